"""Build DICOM structured reports (TID 1500) of what was found, or what readers outlined.

A finding is one or two groups of measurements with the same tracking identifier:

    detection       the box as a closed polyline; the certainty
    segmentation    the segment of the SEG; area, diameter, shape, probabilities, spread, remarks

A SEG of the same lesion has that identifier as well. Each group names the algorithm, its version
and its models. Whether anything was found is outside of the measurements, since OHIF loads no
report that has a group without coordinates. What readers outlined has the form that OHIF writes
(TID 1501): a closed polyline beneath the area, in a group for each part of a lesion.

Like a SEG, the report repeats the patient and the study of its source: guard it as the source.

Left open by the standard and chosen here: TID 1410 gives a group one region, so box and mask
need a group each. Corners count from the corner of the first pixel, so that a half-open box is a
rectangle of the same numbers. Where the mammogram states no spacing, area and diameter are in
pixels. Probabilities of shapes have no code in the standard, so theirs belong to the scheme
99TFMAMMO, which the file describes.

Source: DICOM PS3.16 TID 1500, 1410, 1501, 4019; CID 6004 (shapes), 6047 (status of CAD).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from highdicom import sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from tfmammo import __version__
from tfmammo.archives.writers.segmentation import (
    ARTIFICIAL,
    BREAST,
    KINDS,
    PURPOSE,
    code_kind,
    complete,
    identify,
)
from tfmammo.mammogram import Box, Lesion, LesionKind

SCHEME = "99TFMAMMO"
_SERIES = 9101
_MAMMOGRAPHY = Code("71651007", "SCT", "Mammography")
_DEVICE = Code("121007", "DCM", "Device")
_STATUS = Code("111017", "DCM", "CAD Processing and Findings Summary")
_WITH_FINDINGS = Code("111242", "DCM", "All algorithms succeeded; with findings")
_WITHOUT_FINDINGS = Code("111241", "DCM", "All algorithms succeeded; without findings")
_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
_CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
_COMMENT = Code("121106", "DCM", "Comment")
_AREA = Code("42798000", "SCT", "Area")
_DIAMETER = Code("81827009", "SCT", "Diameter")
_SHAPE = Code("107644003", "SCT", "Shape finding")
_SHAPES = {
    "irregular": Code("49608001", "SCT", "Irregular"),
    "lobular": Code("40266001", "SCT", "Lobular"),
    "oval": Code("84360004", "SCT", "Ovoid shape (Oval)"),
    "round": Code("42700002", "SCT", "Round shape"),
}
_VIEWER = "Cornerstone3DTools@^0.1.0"
_EQUAL_AREA = Code("equal-area", SCHEME, "Of a disc of the same area")
_SPREAD = Code("spread", SCHEME, "Mean standard deviation of the mask's draws")
_PERCENT = Code("%", "UCUM", "Percent")
_RATIO = Code("1", "UCUM", "no units")
_PIXELS = Code("{pixels}", "UCUM", "pixels")
_MM = Code("mm", "UCUM", "millimeter")
_MM2 = Code("mm2", "UCUM", "square millimeter")
_Group: TypeAlias = (
    sr.MeasurementsAndQualitativeEvaluations | sr.PlanarROIMeasurementsAndQualitativeEvaluations
)


@dataclass(frozen=True)
class Outlined:
    """What is known of a finding that has a mask; None where it is not."""

    segment: int  # number of its segment in the SEG, from 1 on
    area_px: float
    diameter_px: float  # of a disc of the same area
    area_mm2: float | None
    diameter_mm: float | None
    shape: str | None  # the most probable one
    probabilities: Mapping[str, float]  # by shape
    spread: float | None  # mean standard deviation of the segmenter's draws, if several


@dataclass(frozen=True)
class Finding:
    """One finding of a report."""

    label: str  # its name in SEG and report
    tracking: str  # UID, the same as its segment's
    kind: LesionKind
    box: Box
    score: float  # the detector's, in [0, 1]
    outlined: Outlined | None = None
    remarks: tuple[str, ...] = ()  # what makes it doubtful


@dataclass(frozen=True)
class Algorithm:
    """What made the findings."""

    models: Mapping[str, str]  # by stage: "detector", "segmenter" and "classifier"
    device: str  # UID of these models together


def build(
    source: Dataset,
    segmentation: Dataset | None,
    findings: Sequence[Finding],
    algorithm: Algorithm,
    series: str,
    instance: str,
) -> sr.ComprehensiveSR:
    """Build the report of what the pipeline found, which may be nothing, in one mammogram.

    Call it within `segmentation.referring`: what highdicom raises quotes elements.

    Args:
        source: The mammogram's elements. Those that a report can't take over are emptied.
        segmentation: The SEG of those findings that have a mask; None where none has.
        findings: What was found.
        algorithm: What found it.
        series: UID of the report's series.
        instance: UID of the report.
    """
    groups: list[_Group] = [_describe_status(source, bool(findings), algorithm)]
    for finding in findings:
        groups.append(_describe_detection(source, finding, algorithm))
        if finding.outlined and segmentation is not None:
            groups.append(_describe_segment(source, segmentation, finding, algorithm))
    evidence = [source] if segmentation is None else [source, segmentation]
    identity = identify(series, _SERIES, instance, "findings (AI)")
    return _build_report(evidence, groups, algorithm.device, identity, has_status=True)


def build_outlines(
    source: Dataset, lesions: Sequence[Lesion], tracking: Sequence[str], series: str, instance: str
) -> sr.ComprehensiveSR:
    """Build the report of what readers outlined in one mammogram, as `build` does.

    Each lesion has an outline, and a tracking UID as its segment has.
    """
    groups: list[_Group] = []
    outlines = [
        (lesion, uid, outline)
        for lesion, uid in zip(lesions, tracking, strict=True)
        for outline in lesion.outlines
    ]
    for lesion, uid, outline in outlines:
        # OHIF opens as editable what this name says that it drew itself
        name = sr.TrackingIdentifier(uid=uid, identifier=f"{_VIEWER}:PlanarFreehandROI")
        coordinates = sr.CoordinatesForMeasurement(
            sr.GraphicTypeValues.POLYLINE,
            # columns first, from the corner of the first pixel
            np.concatenate([outline, outline[:1]])[:, ::-1] + np.float64(0.5),
            source_image=sr.SourceImageForRegion.from_source_image(source),
        )
        part = Lesion(lesion.kind, lesion.box, (outline,))
        pixels = float(part.mask(source.Rows, source.Columns).sum())
        groups.append(
            sr.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=name,
                finding_type=code_kind(lesion),
                finding_sites=[sr.FindingSite(BREAST)],
                measurements=[
                    sr.Measurement(_AREA, pixels, _PIXELS, referenced_coordinates=[coordinates])
                ],
            )
        )
    identity = identify(series, _SERIES, instance, "lesions")
    return _build_report([source], groups, instance, identity)


def _build_report(
    evidence: list[Dataset],
    groups: list[_Group],
    device: str,
    identity: dict[str, Any],
    has_status: bool = False,
) -> sr.ComprehensiveSR:
    """Build the report of groups, of which the first may be a status."""
    complete(evidence[0])
    observer = sr.ObserverContext(
        observer_type=sr.CodedConcept.from_code(_DEVICE),
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=device, name="tfmammo", manufacturer_name="tfmammo", model_name="tfmammo"
        ),
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_MAMMOGRAPHY,
        imaging_measurements=groups,  # type: ignore[arg-type]  # any sequence of them
    )
    if has_status:  # highdicom builds no report without a group, and knows no evaluations outside
        measured = content[0].ContentSequence[-1]
        status = measured.ContentSequence.pop(0)
        status.ConceptNameCodeSequence = [sr.CodedConcept.from_code(_EVALUATIONS)]
        if not measured.ContentSequence:
            content[0].ContentSequence.pop()
        content[0].ContentSequence.append(status)
    scheme = CodingSchemeIdentificationItem(
        designator=SCHEME, name="tfmammo", responsible_organization="tfmammo"
    )
    return sr.ComprehensiveSR(
        evidence=evidence,
        content=content,
        device_serial_number="none",
        is_complete=True,
        is_final=False,
        coding_schemes=[scheme],
        **identity,
    )


def _identify(algorithm: Algorithm, *stages: str) -> sr.AlgorithmIdentification:
    return sr.AlgorithmIdentification(
        name=f"tfmammo {' and '.join(stages)}",
        version=__version__,
        parameters=[PURPOSE, *(f"{stage}: {algorithm.models[stage]}" for stage in stages)],
        family=ARTIFICIAL,
    )


def _describe_status(
    source: Dataset, has_findings: bool, algorithm: Algorithm
) -> sr.MeasurementsAndQualitativeEvaluations:
    status = _WITH_FINDINGS if has_findings else _WITHOUT_FINDINGS
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=algorithm.device, identifier="status"),
        algorithm_id=_identify(algorithm, "detector"),
        qualitative_evaluations=[sr.QualitativeEvaluation(name=_STATUS, value=status)],
        source_images=[sr.SourceImageForMeasurementGroup.from_source_image(source)],
    )


def _describe_detection(
    source: Dataset, finding: Finding, algorithm: Algorithm
) -> sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    top, left, bottom, right = finding.box
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    region = sr.ImageRegion(
        graphic_type=sr.GraphicTypeValues.POLYLINE,
        graphic_data=np.array(corners, np.float64),
        source_image=sr.SourceImageForRegion.from_source_image(source),
    )
    group = sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=finding.tracking, identifier=finding.label),
        referenced_region=region,
        finding_type=KINDS[finding.kind],
        finding_sites=[sr.FindingSite(BREAST)],
        algorithm_id=_identify(algorithm, "detector"),
        measurements=[sr.Measurement(_CERTAINTY, 100 * finding.score, _PERCENT)],
    )
    for remark in finding.remarks:  # as a comment, which TID 1410 allows: it is extensible
        item = sr.TextContentItem(
            name=_COMMENT, value=remark, relationship_type=sr.RelationshipTypeValues.CONTAINS
        )
        group[0].ContentSequence.append(item)
    return group


def _describe_segment(
    source: Dataset, segmentation: Dataset, finding: Finding, algorithm: Algorithm
) -> sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    outlined = finding.outlined
    assert outlined
    segment = sr.ReferencedSegmentationFrame(
        sop_class_uid=segmentation.SOPClassUID,
        sop_instance_uid=segmentation.SOPInstanceUID,
        frame_number=outlined.segment,  # one frame a segment, because there is one image
        segment_number=outlined.segment,
        source_image=sr.SourceImageForSegmentation.from_source_image(source),
    )
    # highdicom states it; with a segment's number the standard forbids it (PS3.3 C.18.4)
    del segment[0].ReferencedSOPSequence[0].ReferencedFrameNumber
    shape = []
    if outlined.shape:
        shape = [sr.QualitativeEvaluation(name=_SHAPE, value=_SHAPES[outlined.shape])]
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=finding.tracking, identifier=finding.label),
        referenced_segment=segment,
        finding_type=KINDS[finding.kind],
        finding_sites=[sr.FindingSite(BREAST)],
        algorithm_id=_identify(algorithm, "segmenter", "classifier"),
        measurements=_measure(outlined),
        qualitative_evaluations=shape,
    )


def _measure(outlined: Outlined) -> list[sr.Measurement]:
    area, unit = outlined.area_px, _PIXELS
    diameter, length_unit = outlined.diameter_px, _PIXELS
    if outlined.area_mm2 is not None and outlined.diameter_mm is not None:
        area, unit = outlined.area_mm2, _MM2
        diameter, length_unit = outlined.diameter_mm, _MM
    listed = [
        sr.Measurement(_AREA, area, unit),
        sr.Measurement(_DIAMETER, diameter, length_unit, method=_EQUAL_AREA),
    ]
    for shape, probability in outlined.probabilities.items():
        # at most 16 characters: highdicom writes longer codes, and can't read them
        name = Code(f"p-{shape}", SCHEME, f"Probability of the shape {shape}")
        listed.append(sr.Measurement(name, probability, _RATIO))
    if outlined.spread is not None:
        listed.append(sr.Measurement(_SPREAD, outlined.spread, _RATIO))
    return listed
