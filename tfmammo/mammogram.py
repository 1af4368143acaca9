"""The contract between archives and everything behind them: Mammogram and Lesion.

An archive reader turns files on disk into `Mammogram` records without reading a pixel;
`Mammogram.pixels()` reads them when they are wanted. All coordinates are native pixels of the
stored image, row first, origin top left, and pixel (r, c) covers the square from (r - 0.5, c - 0.5)
to (r + 0.5, c + 0.5): an outline point (10.0, 20.0) is the centre of that pixel.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.errors import ArchiveError

LesionKind = Literal["mass", "calcification", "asymmetry", "distortion"]
Pathology = Literal["normal", "benign", "malignant"]
Laterality = Literal["L", "R"]
View = Literal["CC", "MLO"]
Split = Literal["train", "test"]
Box = tuple[int, int, int, int]

ID_KEY = "TFMAMMO_ID_KEY"


def hashed_id(archive: str, identifier: str) -> str:
    """A short stable pseudonym, so that no identifier of an archive reaches records, logs or
    exports.

    Without a key, whoever holds a list of identifiers can hash them and compare: harmless for
    public archives, not for a hospital's numbers. The environment variable TFMAMMO_ID_KEY, any
    secret text, makes it a keyed hash (HMAC-SHA256).

    Identifiers that look alike are one: they are hashed as `spelling` leaves them.

    Args:
        archive: The archive's name.
        identifier: What the archive calls the patient, the study or the image.

    Returns:
        12 hexadecimal digits, equal for equal arguments and key.
    """
    content = f"{archive}/{spelling(identifier)}".encode()
    key = os.environ.get(ID_KEY, "").encode()
    digest = hmac.new(key, content, hashlib.sha256) if key else hashlib.sha256(content)
    return digest.hexdigest()[:12]


def spelling(text: str) -> str:
    """One spelling of a text that Unicode can spell in several ways: NFKC, without invisible
    characters (category Cf).

    Case stays; readers of archives in which it means nothing fold it. Plain ASCII is returned as it
    is.
    """
    if text.isascii():
        return text
    # What an invisible character kept apart may compose, so it goes first, and again if composing
    # leaves one.
    visible = "".join(one for one in text if unicodedata.category(one) != "Cf")
    return "".join(
        one for one in unicodedata.normalize("NFKC", visible) if unicodedata.category(one) != "Cf"
    )


def is_keyed() -> bool:
    """Whether TFMAMMO_ID_KEY is set, so that nobody without it can tell whose a pseudonym is."""
    return bool(os.environ.get(ID_KEY))


def key_check() -> str:
    """What files of pseudonyms keep of TFMAMMO_ID_KEY, to tell later whether it is still the same:
    12 hexadecimal digits.
    """
    return hashed_id("tfmammo", "key check")


def key_fault(known: str | None) -> str | None:
    """Why pseudonyms that were made under the key of `known` can't be compared with those of now;
    None where they can.

    Args:
        known: A `key_check` from a file; None of a file that an earlier version wrote without one.
    """
    if known in (None, key_check()):
        return None
    return (
        f"its pseudonyms were made with another {ID_KEY}, so that it would know no patient "
        "again; set the key that it was made with"
    )


@dataclass(frozen=True, eq=False)
class Lesion:
    """One finding of one mammogram.

    Attributes:
        kind: What it is.
        outlines: float32 [points, 2] each, (row, col), native px, closed implicitly; empty where
            the archive gives a box only.
        box: [row_min, col_min, row_max, col_max], half-open, native px.
        shape: The archive's own word in lower case ("oval", "spiculated"), None where it is silent.
        margin: The archive's own word in lower case ("oval", "spiculated"), None where it is
            silent.
        kind_is_certain: False where the archive names kinds per image and this image has several.
    """

    kind: LesionKind
    box: Box
    outlines: tuple[NDArray[np.float32], ...] = ()
    pathology: Pathology | None = None
    shape: str | None = None
    margin: str | None = None
    kind_is_certain: bool = True

    @staticmethod
    def from_outline(
        kind: LesionKind, outline: NDArray, rows: int, cols: int, **details: object
    ) -> Lesion:
        """A lesion from one closed outline, cut at the image's border.

        Args:
            outline: float [points, 2], (row, col), native px; points may lie outside the image.
            rows: The image's size.
            cols: The image's size.
            details: Further fields of Lesion.

        Raises:
            ValueError: Fewer than three points, a coordinate that is no number, or nothing inside
                the image.
        """
        # what float32 can't hold becomes infinite and is refused below
        with np.errstate(over="ignore"):
            outline = np.asarray(outline, np.float32).reshape(-1, 2)
        if len(outline) < 3:
            raise ValueError(f"an outline of {len(outline)} points encloses nothing")
        if not np.isfinite(outline).all():
            raise ValueError("an outline's coordinate is no number")
        # Drawn only where it lies: a canvas of the whole image costs 45 ms for each of an archive's
        # outlines.
        low = np.clip(outline.min(axis=0) - 1, 0, (rows, cols))
        high = np.clip(outline.max(axis=0) + 2, 0, (rows, cols))
        (top, left) = np.floor(low).astype(int).tolist()
        (bottom, right) = np.ceil(high).astype(int).tolist()
        near = np.zeros((0, 0), np.uint8)
        if top < bottom and left < right:
            near = Lesion(kind, (0, 0, 0, 0), (outline - np.array([top, left], np.float32),)).mask(
                bottom - top, right - left
            )
        if not near.any():
            raise ValueError("the outline lies outside the image")
        (row, height) = cv2.boundingRect(near)[1::2]
        (col, width) = cv2.boundingRect(near)[::2]
        box = (top + row, left + col, top + row + height, left + col + width)
        return Lesion(kind, box, (outline,), **details)  # type: ignore[arg-type]

    def mask(self, rows: int, cols: int) -> NDArray[np.uint8]:
        """The lesion's region, the border pixels included.

        Returns:
            uint8 [rows, cols], 0 or 1, native px.

        Raises:
            ValueError: The archive gives no outline of this lesion, only its box; or an outline
                crosses itself without end.
        """
        if not self.outlines:
            raise ValueError("this lesion has a box but no outline, so no mask can be drawn")
        canvas = np.zeros((rows, cols), np.uint8)
        shift = 4  # sub-pixel bits: 1/16 px
        # one by one: together they would be filled even-odd, an overlap as a hole
        for outline in self.outlines:
            near = _clipped(outline, rows, cols)
            if np.abs(np.diff(near[:, 0], append=near[:1, 0])).sum() ** 2 > _MOST_WORK * rows:
                raise ValueError(
                    f"an outline of {len(outline)} points crosses itself too often to be a lesion's"
                )
            if len(near):
                cv2.fillPoly(
                    canvas, [np.rint(near[:, ::-1] * 2**shift).astype(np.int32)], 1, shift=shift
                )
        return canvas


# OpenCV fills a polygon row by row, whether a row lies in the image or not, and sorts the edges
# that a row meets by exchanging neighbours. So outlines are cut near the image, and (edges that a
# row meets)^2 * rows, what all that sorting costs, is bounded.
_MARGIN = 64  # px around the image that are kept of an outline
_MOST_WORK = 5e9  # about a second


def _clipped(outline: NDArray[np.floating], rows: int, cols: int) -> NDArray[np.float64]:
    """The outline of what lies within _MARGIN px of an image: float64 [points, 2].

    Source:
        Sutherland and Hodgman, 1974.
    """
    points = np.asarray(outline, np.float64)
    for axis, extent in enumerate((rows, cols)):
        for sign, limit in ((1, -_MARGIN), (-1, extent + _MARGIN)):
            points = _cut(points, axis, sign, limit)
    return points


def _cut(points: NDArray[np.float64], axis: int, sign: int, limit: float) -> NDArray[np.float64]:
    """The part of a closed polygon where sign * (coordinate - limit) is 0 or more."""
    inside = sign * (points[:, axis] - limit) >= 0
    if inside.all():
        return points
    # edges, by the point that they begin at
    crossing = np.flatnonzero(inside != np.roll(inside, -1))
    cuts = points.copy()
    ends = np.roll(points, -1, axis=0)
    steps = ends[crossing] - points[crossing]
    cuts[crossing] += steps * ((limit - points[crossing, axis]) / steps[:, axis])[:, np.newaxis]
    cuts[crossing, axis] = limit
    kept = np.stack([inside, np.isin(np.arange(len(points)), crossing)], axis=1).ravel()
    # every point, and behind it the cut of its edge
    return np.stack([points, cuts], axis=1).reshape(-1, 2)[kept]


class MaskedLesion(Lesion):
    """A lesion whose region stands in a file of its own, which is read when outlines, box or mask
    are first asked for.

    Args:
        read: Returns uint8 [rows, cols], not 0 on the lesion, native px of the mammogram; a
            functools.partial of a module-level function.
        details: Further fields of Lesion.

    Raises:
        ArchiveError: On first use, when the file can't be read or marks nothing.
    """

    read: Callable[[], NDArray[np.uint8]]

    def __init__(
        self, kind: LesionKind, read: Callable[[], NDArray[np.uint8]], **details: Any
    ) -> None:
        for name, value in {"kind": kind, "read": read, **details}.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        # nothing that would read the file
        return f"MaskedLesion(kind={self.kind!r}, pathology={self.pathology!r})"

    @cached_property
    def outlines(self) -> tuple[NDArray[np.float32], ...]:  # type: ignore[override]
        """The region's outer borders through the centres of its border pixels; holes are filled."""
        found = borders(self.read())
        if not found:
            raise ArchiveError("the mask of a lesion marks nothing")
        return found

    @cached_property
    def box(self) -> Box:  # type: ignore[override]
        """[row_min, col_min, row_max, col_max] of the region, half-open, native px."""
        points = np.concatenate(self.outlines).astype(int)
        (top, left) = points.min(axis=0)
        (bottom, right) = points.max(axis=0) + 1
        return int(top), int(left), int(bottom), int(right)


def borders(region: NDArray[np.generic]) -> tuple[NDArray[np.float32], ...]:
    """The outer border of each part of a region, through the centres of its border pixels; holes
    are filled.

    Args:
        region: [rows, cols], not 0 inside.

    Returns:
        One outline a part, as in Lesion; none of an empty region.
    """
    contours, _ = cv2.findContours(
        (region != 0).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    return tuple(contour[:, 0, ::-1].astype(np.float32) for contour in contours)


@dataclass(frozen=True)
class Mammogram:
    """One mammogram as its archive describes it; pixels are read by `pixels()` alone.

    Attributes:
        patient_id: A pseudonym from `hashed_id`, the unit of every split.
        image_id: Unique in the archive, free of patient data.
        rows: Native size.
        cols: Native size.
        spacing: (row, col) in mm per px, None where unknown.
        pathology: Of the image's worst finding; None where the archive is silent.
        birads: The archive's own words.
        density: The archive's own words.
        archive: The reader's name.
        official_split: The side on which the archive itself puts the image, None where it has no
            split.
        read: Returns the pixels; a functools.partial of a module-level function, so that a record
            can be pickled.
        bits: Where the pixels are stored whole numbers over 2^bits - 1; None where they are made
            otherwise (of DICOM, film).
    """

    archive: str
    patient_id: str
    image_id: str
    rows: int
    cols: int
    read: Callable[[], NDArray[np.float32]] = field(repr=False, compare=False)
    laterality: Laterality | None = None
    view: View | None = None
    pathology: Pathology | None = None
    lesions: tuple[Lesion, ...] = ()
    spacing: tuple[float, float] | None = None
    birads: str | None = None
    density: str | None = None
    official_split: Split | None = None
    bits: int | None = None

    def pixels(self) -> NDArray[np.float32]:
        """The image, dark background, bright tissue.

        Returns:
            float32 [rows, cols, 1] in [0, 1], native px.

        Raises:
            ArchiveError: The file can't be read, or its size is not what the record says.
        """
        image = np.asarray(self.read(), np.float32)
        if image.shape != (self.rows, self.cols, 1):
            raise ArchiveError(
                f"{self.image_id}: pixels have shape {image.shape}, the record says "
                f"{(self.rows, self.cols, 1)}"
            )
        return image


def harmless(cell: str) -> str:
    """A text as a cell of a CSV file, on one line and never a formula to a spreadsheet."""
    cell = " ".join(cell.split())
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "|", "%")) else cell


@dataclass
class Skipped:
    """What a reader left out, and why: readers append to it, callers log it.

    Attributes:
        reasons: A file, beneath `root`, or an image_id -> one sentence. File names may be
            patients': what leaves the machine or reaches a log goes through
            `archives.files.without_names`.
        root: The archive's folder, None where there is none.
    """

    reasons: dict[str, str] = field(default_factory=dict)
    root: Path | None = None

    def add(self, file: object, reason: object) -> None:
        """Note that `file` was left out; several reasons for one file are joined."""
        known = self.reasons.get(str(file))
        self.reasons[str(file)] = f"{known}; {reason}" if known else str(reason)

    def note(self, root: Path, path: Path, reason: object) -> None:
        """Note a file by its path beneath `root`; a reason that begins with that path, as errors
        do, does not repeat it.
        """
        self.add(path.relative_to(root).as_posix(), str(reason).removeprefix(f"{path}: "))

    def __len__(self) -> int:
        return len(self.reasons)
