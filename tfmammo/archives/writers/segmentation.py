"""Write lesions found in a DICOM mammogram as a DICOM segmentation (SEG), a segment a lesion.

A viewer lays the segments over the mammogram because the file belongs to the same patient and
study: the standard makes it repeat the source's patient and study modules (PS3.3 C.7.1.1 and
C.7.2.1), so **it holds the patient's name, identifier and date of birth wherever the source does**,
and must be guarded as the source is. To pass it on, de-identify the source first.

Left open by the standard and chosen here: segments are binary and may overlap; a label map, which
fewer viewers show, is written where it is asked for. Some of the source's elements must be there
but may be empty; one that is missing or breaks the standard's form stays empty. Where identifiers
of study, series or image are missing, nothing is written, as no viewer could find the mammogram.
The masks are in the source's own pixels, so no frame of reference is needed, which mammograms
seldom state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from highdicom import UID, AlgorithmIdentificationSequence, PatientSexValues
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.valuerep import DA, TM, PersonName

from tfmammo import __version__
from tfmammo.archives import dicom
from tfmammo.archives.silence import silence
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lesion

_SERIES = 9100  # its number among the study's, far from those of the machine
PURPOSE = "research output of neural networks, not for diagnosis"
# PS3.16 CID 7150, 7159 and 6014
_ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
BREAST = Code("76752008", "SCT", "Breast")
KINDS = {
    "mass": Code("4147007", "SCT", "Mass"),
    "calcification": Code("129769006", "SCT", "Calcification Cluster"),
    "asymmetry": Code("129790003", "SCT", "Asymmetric breast tissue"),
    "distortion": Code("129792006", "SCT", "Architectural distortion of breast"),
}
LESION = Code("52988006", "SCT", "Lesion")
ARTIFICIAL = Code("123110", "DCM", "Artificial Intelligence")  # CID 7162
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
# Elements that a SEG takes from its source and that may be empty, each with what refuses a value
# that it can't take.
_EMPTIABLE: dict[str, Callable[[str], object]] = {
    "PatientName": PersonName,
    "PatientID": str,
    "PatientBirthDate": DA,
    "PatientSex": PatientSexValues,
    "StudyDate": DA,
    "StudyTime": TM,
    "StudyID": str,
    "AccessionNumber": str,
    "ReferringPhysicianName": PersonName,
}


def write(
    path: Path, source: Path, lesions: Mapping[str, Lesion], parameters: Mapping[str, str]
) -> None:
    """Write the masks of a mammogram's lesions.

    Args:
        path: The file to write; its folder must be there.
        source: The mammogram, of which everything before the pixels is read.
        lesions: Lesions by their segments' labels, up to 64 ASCII characters, each with an outline
            in the source's px; at least one.
        parameters: Parameters of the algorithm: which models it was.

    Raises:
        ArchiveError: No SEG can refer to the source, or path can't be written. No message quotes an
            element of the source.
    """
    dataset = dicom.read_dataset(source)
    with referring(source):
        segmentation = build(dataset, lesions, parameters)
    save(segmentation, path)


def save(dataset: Dataset, path: Path) -> None:
    """Write a file; raise ArchiveError where that can't be, and leave no part of it."""
    try:
        dataset.save_as(path)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ArchiveError(
            f"{path}: can't be written ({error.strerror or type(error).__name__})"
        ) from None


class Identifiers(NamedTuple):
    """UIDs of a segmentation's series, of itself, and of each segment, which its report shares."""

    series: str
    instance: str
    tracking: tuple[str, ...]


def build(
    source: Dataset,
    lesions: Mapping[str, Lesion],
    parameters: Mapping[str, str] | None,
    identifiers: Identifiers | None = None,
    label_map: bool = False,
) -> Segmentation:
    """Build the segmentation of a mammogram's lesions, as `write` writes it.

    Call it within `referring`: what highdicom raises quotes elements.

    Args:
        parameters: None where readers, not networks, outlined them.
        identifiers: New ones where None.
        label_map: Write a label map, unless lesions overlap.
    """
    complete(source)
    if "SliceThickness" not in source:  # no projection has one, and highdicom no place without it
        source.pop("ImagePositionPatient", None)
    masks = np.stack([one.mask(source.Rows, source.Columns) for one in lesions.values()], axis=-1)
    form = SegmentationTypeValues.BINARY
    if label_map and masks.sum(axis=-1).max() == 1:
        form = SegmentationTypeValues.LABELMAP
        masks = (masks @ np.arange(1, len(lesions) + 1)).astype(np.uint16)
    if identifiers is None:
        identifiers = Identifiers(UID(), UID(), tuple(UID() for _ in lesions))
    author, what = "readers", "lesions"
    if parameters is not None:
        author, what = "neural networks, not by a reader", "lesions (AI)"
    segmentation = Segmentation(
        source_images=[source],
        pixel_array=masks[np.newaxis],
        segmentation_type=form,
        segment_descriptions=_describe_segments(lesions, identifiers.tracking, parameters),
        device_serial_number="none",
        content_description=f"Lesions outlined by {author}",
        **identify(identifiers.series, _SERIES, identifiers.instance, what),
    )
    _complete_groups(segmentation, source)
    return segmentation


def _describe_segments(
    lesions: Mapping[str, Lesion], tracking: Sequence[str], parameters: Mapping[str, str] | None
) -> list[SegmentDescription]:
    algorithm = None
    kind = SegmentAlgorithmTypeValues.MANUAL
    if parameters is not None:
        algorithm = AlgorithmIdentificationSequence(
            "tfmammo", ARTIFICIAL, __version__, parameters=dict(parameters)
        )
        kind = SegmentAlgorithmTypeValues.AUTOMATIC
    pairs = zip(lesions.items(), tracking, strict=True)
    return [
        SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=_ABNORMAL,
            segmented_property_type=code_kind(lesion),
            algorithm_type=kind,
            algorithm_identification=algorithm,
            tracking_uid=uid,
            tracking_id=label,
            anatomic_regions=[BREAST],
        )
        for number, ((label, lesion), uid) in enumerate(pairs, start=1)
    ]


def _complete_groups(segmentation: Segmentation, source: Dataset) -> None:
    """Add and remove what readers trip over in what all frames share."""
    # Not needed with a source image, and without a thickness, which no projection has, highdicom
    # itself can't read them (PS3.3 A.51.5).
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    for measures in shared.get("PixelMeasuresSequence", ()):
        if "SliceThickness" not in measures:
            del shared.PixelMeasuresSequence
    # OHIF loads no segments without one; where the image has none, it assumes this as well
    plane = Dataset()
    plane.ImageOrientationPatient = source.get("ImageOrientationPatient") or [1, 0, 0, 0, 1, 0]
    shared.PlaneOrientationSequence = [plane]
    segmentation.PatientOrientation = source.get("PatientOrientation") or ""


def code_kind(lesion: Lesion) -> Code:
    """Return the code of what a lesion is."""
    return KINDS[lesion.kind] if lesion.kind_is_certain else LESION


@contextmanager
def referring(source: object) -> Iterator[None]:
    """Turn what pydicom and highdicom raise and log into an ArchiveError without their words."""
    refusal = "no segmentation can refer to it"
    try:
        with silence():
            yield
    except _Unidentified as fault:
        raise ArchiveError(f"{source}: has no {fault}, so {refusal}") from None
    except Exception as error:  # their words quote elements
        raise ArchiveError(f"{source}: {refusal} ({type(error).__name__})") from None


class _Unidentified(Exception):
    """The keyword of a missing element."""


def identify(series: str, number: int, instance: str, what: str) -> dict[str, Any]:
    """Return what highdicom writes of the origin of a result, the only one of its series."""
    return {
        "series_instance_uid": series,
        "series_number": number,
        "sop_instance_uid": instance,
        "instance_number": 1,
        "manufacturer": "tfmammo",
        "manufacturer_model_name": "tfmammo",
        "software_versions": __version__,
        "content_qualification": "RESEARCH",
        "series_description": f"tfmammo: {what}, research output",
    }


def complete(dataset: Dataset) -> None:
    """Empty the elements of patient and study that a file of results can't take over."""
    for keyword in _NEEDED:
        if not dataset.get(keyword):
            raise _Unidentified(keyword)
    for keyword, form in _EMPTIABLE.items():
        value = dataset.get(keyword)
        try:
            is_known = isinstance(value, str | PersonName) and form(str(value)) is not None
        except ValueError:
            is_known = False
        if not is_known:
            setattr(dataset, keyword, None)
