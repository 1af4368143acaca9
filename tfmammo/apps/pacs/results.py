"""Findings of the CAD pipeline in one mammogram -> DICOM objects of its study.

Their UIDs follow from the mammogram, the models' files, the pipeline's config and the version of
tfmammo. So a second run on the mammogram finds its results in the PACS.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    generate_uid,
)

import tfmammo
from tfmammo.apps.pacs.nodes import Instance
from tfmammo.archives.writers import capture, measurements, segmentation
from tfmammo.archives.writers.measurements import Algorithm, Outlined
from tfmammo.inference.pipeline import Finding, Pipeline, PipelineResult
from tfmammo.inference.report import (
    FONT,
    WHITE,
    draw_overlay,
    format_label,
    lesions_by_label,
    measure,
)
from tfmammo.mammogram import Mammogram

_CLASSES = {
    "segmentation": SegmentationStorage,
    "report": ComprehensiveSRStorage,
    "capture": SecondaryCaptureImageStorage,
}


@dataclass(frozen=True)
class Identity:
    """What decides the results of a mammogram, apart from the mammogram."""

    digest: str  # hash of the models' files, the config and the version
    models: dict[str, str]  # each stage's model, for reports; without paths, which may name a user
    remarks: tuple[str, ...]  # what makes all of its findings doubtful

    @staticmethod
    def make(pipeline: Pipeline) -> Identity:
        """Make the identity of a pipeline; the files of its models are read."""
        hashes = pipeline.hash_models()
        config = pipeline.config.model_dump(
            mode="json", exclude={"detector", "segmenter", "classifier", "tracking_uri"}
        )
        content = [hashes, config, tfmammo.__version__]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        models = {}
        for stage, facts in pipeline.describe().items():
            known = [f"{key} {facts[key]}" for key in ("name", "step", "card") if facts.get(key)]
            models[stage] = ", ".join([*known, f"sha256 of files {hashes[stage]}"])
        return Identity(digest, models, tuple(pipeline.list_remarks()))

    def name_result(self, part: str, source: Instance) -> Instance:
        """Name a mammogram's "segmentation", "report" or "capture" before it is made."""
        series = self.make_uid("series", part, source.study)
        return Instance(source.study, series, self.make_uid(part, source.uid), _CLASSES[part])

    def make_uid(self, *names: str) -> str:
        """Derive a UID from this identity and some names."""
        return generate_uid(entropy_srcs=["tfmammo pacs", self.digest, *names])


def build_results(
    result: PipelineResult, header: Dataset, source: Instance, identity: Identity, picture: bool
) -> list[Dataset]:
    """Build a SEG if a finding has a mask, a secondary capture on request, and a structured report.

    `header` has all elements of the mammogram before its pixels.
    """
    numbered = list(enumerate(result.findings, 1))
    tracking = {
        number: identity.make_uid("lesion", str(number), source.uid) for number, _ in numbered
    }
    outlined = [number for number, finding in numbered if finding.lesion]
    results: list[Dataset] = []
    with segmentation.referring("the mammogram"):
        segments = None
        if outlined:
            named = identity.name_result("segmentation", source)
            uids = tuple(tracking[number] for number in outlined)
            segments = segmentation.build(
                header,
                lesions_by_label(result),
                identity.models,
                segmentation.Identifiers(named.series, named.uid, uids),
            )
            results.append(segments)
        if picture:
            named = identity.name_result("capture", source)
            drawn = _mark(draw_overlay(result))
            results.append(capture.build(header, drawn, named.series, named.uid))
        findings = [
            _describe(
                number,
                finding,
                tracking[number],
                outlined.index(number) + 1 if number in outlined else 0,
                result.mammogram,
                identity.remarks,
            )
            for number, finding in numbered
        ]
        named = identity.name_result("report", source)
        algorithm = Algorithm(identity.models, identity.make_uid("device"))
        results.append(
            measurements.build(header, segments, findings, algorithm, named.series, named.uid)
        )
    return results


def _describe(
    number: int,
    finding: Finding,
    tracking: str,
    segment: int,
    mammogram: Mammogram,
    remarks: tuple[str, ...],
) -> measurements.Finding:
    outlined = None
    if finding.lesion:
        measures = measure(finding.lesion, mammogram)
        outlined = Outlined(
            segment,
            measures["area_px"] or 0,
            measures["diameter_px"] or 0,
            measures["area_mm2"],
            measures["diameter_mm"],
            finding.lesion.shape,
            finding.probabilities or {},
            finding.uncertainty,
        )
    return measurements.Finding(
        f"Lesion {format_label(number, finding)}",
        tracking,
        finding.kind,
        finding.box,
        finding.score,
        outlined,
        finding.remarks + remarks,
    )


def _mark(overlay: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Write below an overlay what it is: uint8 [rows + band, cols, 3]."""
    rows, cols = overlay.shape[:2]
    text = "RESEARCH OUTPUT, NOT FOR DIAGNOSIS"
    (width, height), baseline = cv2.getTextSize(text, FONT, 1, 2)
    scale = min(1.0, 0.95 * cols / width)
    band = np.zeros((2 * (height + baseline), cols, 3), np.uint8)
    place = (round(0.025 * cols), height + baseline)
    cv2.putText(band, text, place, FONT, scale, WHITE, 2, cv2.LINE_AA)
    return np.concatenate([overlay, band])
