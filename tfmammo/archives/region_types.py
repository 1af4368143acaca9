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

from tfmammo.archives.elements import integer, items, numbers, text, value
from tfmammo.archives.findings import Finding
from tfmammo.mammogram import Lesion, LesionKind


@dataclass(frozen=True)
class Image:
    """What an image, or a SEG of it, states of its place; "" and () where it is silent."""

    rows: int
    cols: int
    frame_of_reference: str
    patient_orientation: tuple[str, ...]  # upper-case words
    spacing: tuple[float, ...]  # (row, col) of PixelSpacing, mm per px
    orientation: tuple[float, ...]  # six direction cosines of rows and columns
    position: tuple[float, ...]  # mm, of the first pixel's centre

    @staticmethod
    def of(dataset: Dataset, measures: Dataset, plane: Dataset) -> Image:
        """Read it from a header and the parts of it that hold spacing and orientation."""
        words = value(dataset, "PatientOrientation") or ()
        words = [words] if isinstance(words, str) else words
        spacing = _take(measures, "PixelSpacing", 2)
        return Image(
            integer(dataset, "Rows", 0),
            integer(dataset, "Columns", 0),
            text(dataset, "FrameOfReferenceUID"),
            tuple(str(word).strip().upper() for word in words),
            spacing if min(spacing, default=0) > 0 else (),
            _take(plane, "ImageOrientationPatient", 6),
            _take(dataset, "ImagePositionPatient", 3),
        )


def _take(dataset: Dataset, key: str, count: int) -> tuple[float, ...]:
    values = numbers(dataset, key)
    return tuple(values) if len(values) == count and np.isfinite(values).all() else ()


@dataclass(frozen=True)
class Region:
    """One region of one image, not drawn yet."""

    file: Path  # that draws it
    image: str  # SOP Instance UID
    finding: Finding | None  # None where it is not known
    # Makes the lesion (the image, further fields of Lesion), or raises ValueError with the reason
    # why the image can't be the one that it was drawn on.
    draw: Callable[[Image, LesionKind, dict[str, Any]], Lesion]
    tracking: str = ""  # UID of the lesion
    is_segment: bool = False  # of a SEG


class NoAreaError(ValueError):
    """A diameter or a point, and where it is: [points, 2], (row, col), native px."""

    def __init__(self, reason: str, points: NDArray[np.float64]) -> None:
        super().__init__(reason)
        self._points = points

    def measures(self, lesion: Lesion, kind: LesionKind | None) -> bool:
        """Whether it may be a measurement of a lesion: a point of it is in its box."""
        if kind not in (None, lesion.kind) and lesion.kind_is_certain:
            return False
        try:
            low, high = np.split(np.array(lesion.box), 2)
        except ValueError:  # its segment can't be read, which its use will tell
            return False
        return bool(((low - 1 <= self._points) & (self._points <= high)).all(axis=1).any())


def list_codes(item: Dataset, key: str) -> list[tuple[str, str]]:
    """List value and meaning of the codes of an item."""
    return [
        (code, text(listed, "CodeMeaning"))
        for listed in items(item, key)
        if (code := text(listed, "CodeValue"))
    ]


def list_references(holder: Dataset, *keys: str) -> set[str]:
    """List the SOP Instance UIDs that are beneath nested sequences."""
    if keys:
        return set().union(*(list_references(item, *keys[1:]) for item in items(holder, keys[0])))
    return {text(holder, "ReferencedSOPInstanceUID")}


def count_unusable(finding: Finding | None, unusable: Counter[str], count: int = 1) -> bool:
    """Count regions that are unknown or not lesions; return whether they are not lesions."""
    if finding is None:
        unusable["are of findings that are not known"] += count
    elif finding.kind is None:
        unusable["are of findings that are not lesions"] += count
    return finding is not None and finding.kind is None


def enclose(
    points: NDArray[np.float64], image: Image, kind: LesionKind, details: dict[str, Any]
) -> Lesion:
    """Make a lesion of points; raise ValueError with the reason why they are none."""
    try:
        return Lesion.from_outline(kind, points, image.rows, image.cols, **details)
    except ValueError:
        raise ValueError("enclose no pixel of their image, or cross themselves") from None
