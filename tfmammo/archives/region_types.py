"""What files of regions share: images, regions, and how a region is enclosed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from tfmammo.archives.elements import items, text
from tfmammo.archives.findings import Finding
from tfmammo.mammogram import Lesion, LesionKind


@dataclass(frozen=True)
class Image:
    """What an image states that regions are checked against.

    Attributes:
        rows: Rows of the stored image.
        cols: Columns of the stored image.
        frame_of_reference: UID, "" where absent.
        patient_orientation: Upper-case words, () where absent.
        spacing: (row, col) of PixelSpacing, mm per px; () where absent.
        orientation: Six direction cosines of rows and columns, () where absent.
        position: mm, of the first pixel's centre; () where absent.
    """

    rows: int
    cols: int
    frame_of_reference: str
    patient_orientation: tuple[str, ...]
    spacing: tuple[float, ...]
    orientation: tuple[float, ...]
    position: tuple[float, ...]


@dataclass(frozen=True)
class Region:
    """One region of one image, not drawn yet.

    Attributes:
        file: The file that draws it.
        image: SOP Instance UID.
        finding: What it is; None where that is not known.
        draw: Makes the lesion (the image, further fields of Lesion), or raises ValueError with the
            reason why the image can't be the one that it was drawn on.
        tracking: Tracking UID of the lesion, "" where the file gives none.
        is_segment: Whether it is a segment of a SEG.
    """

    file: Path
    image: str
    finding: Finding | None
    draw: Callable[[Image, LesionKind, dict[str, Any]], Lesion]
    tracking: str = ""
    is_segment: bool = False


def list_codes(item: Dataset, key: str) -> list[tuple[str, str]]:
    """List value and meaning of the codes of an item."""
    return [
        (code, text(listed, "CodeMeaning"))
        for listed in items(item, key)
        if (code := text(listed, "CodeValue"))
    ]


def count_unusable(finding: Finding | None, unusable: Counter[str], count: int = 1) -> bool:
    """Count regions that are no lesions of ours or not known; whether there is no lesion."""
    if finding is None:
        unusable["are of findings that are not known"] += count
    elif finding.kind is None:
        unusable["are of findings that are no lesions of ours"] += count
    return finding is not None and finding.kind is None


def enclose(
    points: NDArray[np.float64], image: Image, kind: LesionKind, details: dict[str, Any]
) -> Lesion:
    """Make a lesion of points; raise ValueError with the reason why they are none."""
    try:
        return Lesion.from_outline(kind, points, image.rows, image.cols, **details)
    except ValueError:
        raise ValueError("enclose no pixel of their image, or cross themselves") from None
