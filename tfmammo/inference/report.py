"""The report and the overlay of a mammogram that the pipeline has read."""

from __future__ import annotations

from datetime import UTC, datetime
from math import pi, sqrt
from typing import Any

import cv2
import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import tfmammo
from tfmammo.data import preprocess
from tfmammo.inference.pipeline import Case, Chain, Finding, _meets
from tfmammo.mammogram import Box, Lesion, Mammogram

COLOURS = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)
FONT = cv2.FONT_HERSHEY_SIMPLEX


def measures(lesion: Lesion, mammogram: Mammogram) -> dict[str, float | None]:
    """Area and equivalent diameter of a lesion's mask, the latter that of a disc of the same area.

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


def report(case: Case, chain: Chain) -> dict[str, Any]:
    """What was found, by what, when: for report.json.

    It names no patient, and of the input neither name nor place.

    Returns:
        What JSON can hold: "mammogram", "lesions" in the order of case.findings, "models",
        "config", "versions", "date".
    """
    mammogram = case.mammogram
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
            {"number": number} | _described(finding, mammogram)
            for number, finding in enumerate(case.findings, 1)
        ],
        "models": chain.describe(),
        # which may hold a password
        "config": chain.config.model_dump(mode="json", exclude={"tracking_uri"}),
        "versions": {
            "tfmammo": tfmammo.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def overlay(case: Case, side: int = 1600) -> NDArray[np.uint8]:
    """The mammogram with every box, outline, score and shape drawn over it.

    Nothing of a header is written on it; what a machine burned into the pixels stays, as in the
    input.

    Args:
        side: Rows or columns, whichever is more, px.

    Returns:
        uint8 [rows, cols, 3], RGB.
    """
    scale = side / max(case.image.shape[:2])
    size = [max(1, round(length * scale)) for length in case.image.shape[:2]]
    grey = np.rint(255 * preprocess.resize_image(case.image, *size)).astype(np.uint8)
    sheet = np.repeat(grey, 3, axis=-1)
    words = []
    scales = np.array([size[0] / case.image.shape[0], size[1] / case.image.shape[1]])
    for number, finding in enumerate(case.findings, 1):
        colour = COLOURS[(number - 1) % len(COLOURS)]
        corners = np.reshape(finding.box, (2, 2)) * scales
        (top, left), (bottom, right) = np.rint(corners).astype(int).tolist()
        cv2.rectangle(sheet, (left, top), (right - 1, bottom - 1), colour, 1)
        for outline in finding.lesion.outlines if finding.lesion else ():
            points = ((outline + 0.5) * scales - 0.5)[:, ::-1]
            cv2.polylines(
                sheet, [np.rint(16 * points).astype(np.int32)], True, colour, 2, cv2.LINE_AA, 4
            )
        words.append((label(number, finding), (top, left, bottom), colour))
    taken: list[Box] = []
    # last, so that nothing crosses them
    for line in words or [("no lesion found", (size[0], 0, size[0]), (255, 255, 255))]:
        _write(sheet, *line, taken)
    return sheet


def label(number: int, finding: Finding) -> str:
    """A finding in a few words: "1 mass 0.93, oval 0.71"."""
    text = f"{number} {finding.kind} {finding.score:.2f}"
    if finding.lesion is None:
        return f"{text}, no mask"
    shape = finding.lesion.shape
    return (
        f"{text}, {shape} {finding.probabilities[shape]:.2f}"
        if finding.probabilities and shape
        else text
    )


def outlined(case: Case) -> dict[str, Lesion]:
    """The findings that have a mask, by what a segmentation calls them."""
    return {
        f"Lesion {label(number, one)}": one.lesion
        for number, one in enumerate(case.findings, 1)
        if one.lesion
    }


def _described(finding: Finding, mammogram: Mammogram) -> dict[str, Any]:
    lesion = finding.lesion
    measured = (
        measures(lesion, mammogram)
        if lesion
        else dict.fromkeys(("area_px", "diameter_px", "area_mm2", "diameter_mm"))
    )
    return {
        "kind": finding.kind,
        "score": round(finding.score, 4),
        "box": list(finding.box),
        "mask_box": list(lesion.box) if lesion else None,
        **{name: None if value is None else round(value, 3) for name, value in measured.items()},
        "shape": lesion.shape if lesion else None,
        "shape_probabilities": {
            name: round(value, 4) for name, value in (finding.probabilities or {}).items()
        }
        or None,
        "uncertainty": None if finding.uncertainty is None else float(f"{finding.uncertainty:.4g}"),
        "remarks": list(finding.remarks),
    }


def _write(
    sheet: NDArray[np.uint8],
    text: str,
    beside: tuple[int, int, int],
    colour: tuple[int, ...],
    taken: list[Box],
) -> None:
    """Write a line over a box, or under it where there is no room, and never over another line."""
    size = max(sheet.shape[:2]) / 2000
    (width, height), under = cv2.getTextSize(text, FONT, size, 2)
    height += under + 4
    top, left, bottom = beside
    left = max(0, min(left, sheet.shape[1] - width - 8))
    tops = [top - height, bottom, *range(0, max(1, sheet.shape[0] - height), height)]
    free = [
        row
        for row in tops
        if 0 <= row <= sheet.shape[0] - height
        and not _meets((row, left, row + height, left + width), taken)
    ]
    row = free[0] if free else max(0, min(top, sheet.shape[0] - height))
    taken.append((row, left, row + height, left + width))
    cv2.rectangle(sheet, (left, row), (left + width + 8, row + height - 1), (0, 0, 0), cv2.FILLED)
    cv2.putText(
        sheet, text, (left + 4, row + height - under - 2), FONT, size, colour, 2, cv2.LINE_AA
    )
