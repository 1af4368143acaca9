"""What the CAD pipeline says of one mammogram: report, overlay, mask and DICOM segmentation."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from math import pi, sqrt
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import tfmammo
from tfmammo.archives.named_files import is_dicom
from tfmammo.archives.writers import segmentation
from tfmammo.data import preprocess
from tfmammo.errors import ArchiveError
from tfmammo.inference.pipeline import Finding, Pipeline, PipelineResult
from tfmammo.mammogram import Box, Lesion, Mammogram
from tfmammo.tracking.export.card import remove_places

log = logging.getLogger(__name__)

COLOURS = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)
WHITE = (255, 255, 255)
SIZES = ("area_px", "diameter_px", "area_mm2", "diameter_mm")  # of `measure`
FONT = cv2.FONT_HERSHEY_SIMPLEX


def measure(lesion: Lesion, mammogram: Mammogram) -> dict[str, float | None]:
    """Measure a lesion's mask: its area, and the diameter of a disc of the same area.

    Returns:
        area_px and diameter_px, native px; area_mm2 and diameter_mm, None where the spacing is
        unknown.
    """
    area = int(lesion.mask(mammogram.rows, mammogram.cols).sum())
    area_mm2 = area * mammogram.spacing[0] * mammogram.spacing[1] if mammogram.spacing else None
    diameter_mm = 2 * sqrt(area_mm2 / pi) if area_mm2 else None
    return {
        "area_px": area,
        "diameter_px": 2 * sqrt(area / pi),
        "area_mm2": area_mm2,
        "diameter_mm": diameter_mm,
    }


def build_report(result: PipelineResult, pipeline: Pipeline) -> dict[str, Any]:
    """Build the content of report.json: the findings, the models and the date.

    The report names no patient, and neither the file nor the folder of the mammogram.

    Returns:
        What JSON can hold: "mammogram", "lesions" in the order of result.findings, "models",
        "config", "versions", "remarks", "date".
    """
    mammogram = result.mammogram
    facts = {
        name: getattr(mammogram, name)
        for name in ("image_id", "rows", "cols", "laterality", "view")
    }
    return {
        "mammogram": {
            **facts,
            "spacing_mm": list(mammogram.spacing) if mammogram.spacing else None,
        },
        "lesions": [
            {"number": number} | describe_finding(finding, mammogram)
            for number, finding in enumerate(result.findings, 1)
        ],
        "models": pipeline.describe(),
        "config": remove_places(pipeline.config.model_dump(mode="json")),
        "versions": {
            "tfmammo": tfmammo.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "remarks": pipeline.list_remarks(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def draw_overlay(result: PipelineResult, side: int = 1600) -> NDArray[np.uint8]:
    """Draw every box, outline, score and shape over the mammogram.

    Nothing from a header is written on it. Text that is burned into the pixels stays.

    Args:
        result: The findings in one mammogram.
        side: Rows or columns, whichever is more, px.

    Returns:
        uint8 [rows, cols, 3], RGB.
    """
    native_rows, native_cols = result.image.shape[:2]
    scale = side / max(native_rows, native_cols)
    size = [max(1, round(length * scale)) for length in (native_rows, native_cols)]
    grey = np.rint(255 * preprocess.resize_image(result.image, *size)).astype(np.uint8)
    canvas = np.repeat(grey, 3, axis=-1)
    labels = []
    scales = np.array([size[0] / native_rows, size[1] / native_cols])
    for number, finding in enumerate(result.findings, 1):
        colour = COLOURS[(number - 1) % len(COLOURS)]
        corners = np.reshape(finding.box, (2, 2)) * scales
        (top, left), (bottom, right) = np.rint(corners).astype(int).tolist()
        cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), colour, 1)
        for outline in finding.lesion.outlines if finding.lesion else ():
            points = ((outline + 0.5) * scales - 0.5)[:, ::-1]
            sixteenths = np.rint(16 * points).astype(np.int32)
            cv2.polylines(canvas, [sixteenths], True, colour, 2, cv2.LINE_AA, 4)
        labels.append((format_label(number, finding), (top, left, bottom), colour))
    if not labels:
        labels.append(("no lesion found", (size[0], 0, size[0]), WHITE))
    occupied: list[Box] = []
    for label in labels:  # after all boxes and outlines, so that nothing crosses a label
        _write_label(canvas, *label, occupied)
    return canvas


def format_label(number: int, finding: Finding) -> str:
    """Describe a finding in a few words: "1 mass 0.93, oval 0.71"."""
    text = f"{number} {finding.kind} {finding.score:.2f}"
    if finding.lesion is None:
        return f"{text}, no mask"
    shape = finding.lesion.shape
    if not (finding.probabilities and shape):
        return text
    return f"{text}, {shape} {finding.probabilities[shape]:.2f}"


def lesions_by_label(result: PipelineResult) -> dict[str, Lesion]:
    """Return the lesions that have a mask, by their labels in a DICOM segmentation."""
    return {
        f"Lesion {format_label(number, finding)}": finding.lesion
        for number, finding in enumerate(result.findings, 1)
        if finding.lesion
    }


def encode_mask(result: PipelineResult) -> bytes:
    """Encode the mask of all findings as PNG, native px: 0 is tissue, 255 lesion."""
    return cv2.imencode(".png", 255 * result.mask)[1].tobytes()


def write_segmentation(
    pipeline: Pipeline, result: PipelineResult, source: Path | None, path: Path
) -> str:
    """Write the masks as a DICOM segmentation, if the mammogram is a DICOM file and has a mask.

    Args:
        pipeline: The pipeline that processed the mammogram; the file names its models.
        result: Its findings.
        source: The mammogram's file; None for a mammogram without one.
        path: The file.

    Returns:
        The reason why there is no segmentation; "" if there is one.
    """
    if source is None or not is_dicom(source):
        return "no DICOM segmentation: the input is no DICOM"
    lesions = lesions_by_label(result)
    if not lesions:
        return "no DICOM segmentation: there is no mask"
    models = {
        stage: json.dumps(identity, sort_keys=True)
        for stage, identity in pipeline.describe().items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        segmentation.write(path, source, lesions, models)
    except ArchiveError as error:
        log.warning("%s", error)
        reason = str(error).removeprefix(f"{source}: ").removeprefix(f"{path}: ")
        return f"no DICOM segmentation: {reason}"
    return ""


def describe_finding(finding: Finding, mammogram: Mammogram) -> dict[str, Any]:
    """Describe a finding for JSON: kind, score, box, measures, shape and remarks."""
    lesion = finding.lesion
    measures = measure(lesion, mammogram) if lesion else dict.fromkeys(SIZES)
    probabilities = finding.probabilities or {}
    uncertainty = finding.uncertainty
    return {
        "kind": finding.kind,
        "score": round(finding.score, 4),
        "box": list(finding.box),
        "mask_box": list(lesion.box) if lesion else None,
        **{name: None if value is None else round(value, 3) for name, value in measures.items()},
        "shape": lesion.shape if lesion else None,
        "shape_probabilities": {name: round(value, 4) for name, value in probabilities.items()}
        or None,
        "uncertainty": None if uncertainty is None else float(f"{uncertainty:.4g}"),
        "remarks": list(finding.remarks),
    }


def _write_label(
    canvas: NDArray[np.uint8],
    text: str,
    beside: tuple[int, int, int],
    colour: tuple[int, ...],
    occupied: list[Box],
) -> None:
    """Write a label above a box, or below it where there is no space, and never over another label.

    Args:
        canvas: The overlay, which is changed.
        text: The label.
        beside: Top, left and bottom of the box, px of the overlay.
        colour: RGB.
        occupied: The boxes of the labels so far, to which this one is added.
    """
    size = max(canvas.shape[:2]) / 2000
    (width, height), baseline = cv2.getTextSize(text, FONT, size, 2)
    height += baseline + 4
    top, left, bottom = beside
    left = max(0, min(left, canvas.shape[1] - width - 8))
    tops = [top - height, bottom, *range(0, max(1, canvas.shape[0] - height), height)]
    free = [
        row
        for row in tops
        if 0 <= row <= canvas.shape[0] - height
        and not _overlaps((row, left, row + height, left + width), occupied)
    ]
    row = free[0] if free else max(0, min(top, canvas.shape[0] - height))
    occupied.append((row, left, row + height, left + width))
    cv2.rectangle(canvas, (left, row), (left + width + 8, row + height - 1), (0, 0, 0), cv2.FILLED)
    place = (left + 4, row + height - baseline - 2)
    cv2.putText(canvas, text, place, FONT, size, colour, 2, cv2.LINE_AA)


def _overlaps(box: Box, others: list[Box]) -> bool:
    """Return whether a box has a pixel in common with one of the others."""
    return any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
        for other in others
    )
