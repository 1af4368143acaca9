"""Define the contract between archives and everything behind them: Mammogram and Lesion.

An archive reader turns files on disk into `Mammogram` records without reading a pixel;
`Mammogram.pixels()` reads them when they are wanted. All coordinates are native pixels of the
stored image, row first, origin top left, and pixel (r, c) covers the square from (r - 0.5, c - 0.5)
to (r + 0.5, c + 0.5): an outline point (10.0, 20.0) is the centre of that pixel.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.errors import ArchiveError, EmptyMask

LesionKind = Literal["mass", "calcification", "asymmetry", "distortion"]
Pathology = Literal["normal", "benign", "malignant"]
Laterality = Literal["L", "R"]
View = Literal["CC", "MLO", "ML", "LM", "LMO", "XCCL", "XCCM", "FB", "SIO", "ISO"]
Split = Literal["train", "test"]
Box = tuple[int, int, int, int]
# of masses; classifiers number them in this order
SHAPES = ("irregular", "lobular", "oval", "round")

ID_KEY = "TFMAMMO_ID_KEY"
MOST_PIXELS = 2**27  # of an image; the largest mammograms have 2**25
# OpenCV fills a polygon row by row, whether a row is in the image or not, and sorts the edges that
# a row meets by exchanging neighbours. So coordinates are bounded, and (edges that a row meets)^2 *
# rows, what all that sorting costs.
_FARTHEST = 2**15  # px
_MOST_WORK = 5e9  # about a second


def hash_id(archive: str, identifier: str, key: str | None = None) -> str:
    """Return a stable pseudonym, 12 hexadecimal digits: identifiers reach no record, log or export.

    Without a key, whoever holds a list of identifiers can hash them and compare: harmless for
    public archives, not for a hospital's numbers. A key, any secret text, makes it a keyed hash
    (HMAC-SHA256): by default that of the environment variable TFMAMMO_ID_KEY; "" is none.
    `normalize_spelling` is applied first.
    """
    content = f"{archive}/{normalize_spelling(identifier)}".encode()
    secret = (os.environ.get(ID_KEY, "") if key is None else key).encode()
    digest = hmac.new(secret, content, hashlib.sha256) if secret else hashlib.sha256(content)
    return digest.hexdigest()[:12]


def normalize_spelling(text: str) -> str:
    """Return one spelling of a text that Unicode can spell in several ways.

    The text becomes NFKC, without invisible characters (category Cf). Case stays.
    """
    if text.isascii():
        return text
    # Characters that an invisible one separates may compose, so it goes first, and again if
    # composing leaves one.
    visible = _remove_invisible(text)
    return _remove_invisible(unicodedata.normalize("NFKC", visible))


def normalize_patient(text: str) -> str:
    """Return one spelling of a patient's identifier.

    Case and width of blanks mean nothing, and what is a whole number is that number: 12, 0012,
    12.0 (pandas) and 1.2E+01 (Excel) are one patient.

    Raises:
        ValueError: The number lost digits, or may be of thousands (1,000).
    """
    text = " ".join(normalize_spelling(normalize_spelling(text).casefold()).split())
    # 12e4 may be a name; 1.2e4 and 12e+4 are what programs write
    if re.fullmatch(r"\+?[0-9]+(?:[.,][0-9]*(?:e\+?[0-9]{1,3})?|e\+[0-9]{1,3})?", text):
        number = Decimal(text.replace(",", "."))
        if int(number.as_tuple().exponent) > 0:
            raise ValueError("is a number that lost digits (1.2E+12); save the column as text")
        if number == number.to_integral_value():
            if re.fullmatch(r"\+?[1-9][0-9]{0,2}[.,]000", text):
                raise ValueError("may be 1 or 1000 (1,000); save the column as text")
            return str(int(number))
    return text


def hash_patient(archive: str, identifier: str) -> str:
    """Return a patient's pseudonym, the same for all spellings of one number (see `hash_id`)."""
    return hash_id(archive, normalize_patient(identifier))


def _remove_invisible(text: str) -> str:
    return "".join(character for character in text if unicodedata.category(character) != "Cf")


def is_keyed() -> bool:
    """Whether TFMAMMO_ID_KEY is set."""
    return bool(os.environ.get(ID_KEY))


def key_check(key: str | None = None) -> str:
    """Return 12 hexadecimal digits that files of pseudonyms keep, to know `hash_id`'s key again."""
    return hash_id("tfmammo", "key check", key)


def key_fault(recorded: str | None) -> str | None:
    """Say why pseudonyms of this `key_check` can't be compared with today's; None if they can."""
    if recorded == key_check():
        return None
    return (
        f"its pseudonyms were made with another {ID_KEY}, so that it would know no patient "
        "again; set the key that it was made with"
    )


@dataclass(frozen=True, eq=False)
class Lesion:
    """One finding of one mammogram.

    Attributes:
        outlines: float32 [points, 2] each, (row, col), native px, closed implicitly; empty where
            the archive gives a box only.
        box: [row_min, col_min, row_max, col_max], half-open, native px.
        shape: The archive's own word in lower case ("oval"), as margin ("spiculated"), or None.
        kind_is_certain: False where the archive names kinds per image and this image has several.

    Examples:
        >>> square = np.array([[2, 3], [2, 6], [5, 6], [5, 3]])
        >>> lesion = Lesion.from_outline("mass", square, rows=10, cols=10)
        >>> lesion.box
        (2, 3, 6, 7)
        >>> int(lesion.mask(10, 10).sum())
        16
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
        """Make a lesion from one closed outline, cut at the image's border.

        Args:
            kind: Of the lesion.
            outline: float [points, 2], (row, col), native px; points may be outside the image.
            rows: Of the image.
            cols: Of the image.
            details: Further fields of Lesion.

        Raises:
            ValueError: Fewer than three points, a coordinate that is no number or farther away
                than any image is large, or nothing inside the image.
        """
        # what float32 can't hold becomes infinite and is refused below
        with np.errstate(over="ignore"):
            outline = np.asarray(outline, np.float32).reshape(-1, 2)
        if len(outline) < 3:
            raise ValueError(f"an outline of {len(outline)} points encloses nothing")
        if not np.isfinite(outline).all():
            raise ValueError("an outline's coordinate is no number")
        if np.abs(outline).max() > _FARTHEST:
            raise ValueError("an outline's coordinate is far outside the image")
        return Lesion(kind, find_box((outline,), rows, cols), (outline,), **details)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        # not every point of its outlines
        words = [self.kind, f"box {self.box}", self.pathology, self.shape, self.margin]
        return f"<Lesion {', '.join(filter(None, words))}>"

    @property
    def details(self) -> dict[str, Any]:
        """What is stated of it besides kind and region, by field."""
        names = ("pathology", "shape", "margin", "kind_is_certain")
        return {name: getattr(self, name) for name in names}

    @property
    def is_outlined(self) -> bool:
        """Whether more than its box is known."""
        return bool(self.outlines)

    def mask(self, rows: int, cols: int) -> NDArray[np.uint8]:
        """Draw the lesion's region, its border included: uint8 [rows, cols], 0 or 1, native px.

        Raises:
            ValueError: The archive gives no outline of this lesion, only its box; or an outline
                crosses itself without end.
        """
        if not self.outlines:
            raise ValueError("this lesion has a box but no outline, so no mask can be drawn")
        return fill_outlines(self.outlines, rows, cols)


def fill_outlines(outlines: Iterable[NDArray[Any]], rows: int, cols: int) -> NDArray[np.uint8]:
    """Draw what outlines enclose, border included, as `Lesion.mask` does."""
    canvas = np.zeros((rows, cols), np.uint8)
    shift = 4  # sub-pixel bits: 1/16 px
    # one by one: together they would be filled even-odd, an overlap as a hole
    for outline in outlines:
        heights = np.abs(np.diff(outline[:, 0], append=outline[:1, 0]))
        if heights.sum(dtype=float) ** 2 > _MOST_WORK * (1 + np.ptp(outline[:, 0])):
            raise ValueError(
                f"an outline of {len(outline)} points crosses itself too often to be a lesion's"
            )
        points = np.rint(outline[:, ::-1] * 2**shift).astype(np.int32)
        cv2.fillPoly(canvas, [points], 1, shift=shift)
    return canvas


def find_box(outlines: tuple[NDArray[np.float32], ...], rows: int, cols: int) -> Box:
    """Return the box of all pixels that outlines cover; ValueError if none is in the image."""
    # Drawn only where they are: a canvas of the whole image costs 45 ms for each of an archive's
    # outlines.
    points = np.concatenate(outlines)
    low = np.clip(points.min(axis=0) - 1, 0, (rows, cols))
    high = np.clip(points.max(axis=0) + 2, 0, (rows, cols))
    top, left = np.floor(low).astype(int).tolist()
    bottom, right = np.ceil(high).astype(int).tolist()
    near = np.zeros((0, 0), np.uint8)
    if top < bottom and left < right:
        shifted = (outline - np.array([top, left], np.float32) for outline in outlines)
        near = fill_outlines(shifted, bottom - top, right - left)
    if not near.any():
        raise ValueError("the outline is outside the image")
    col, row, width, height = cv2.boundingRect(near)
    return top + row, left + col, top + row + height, left + col + width


class MaskedLesion(Lesion):
    """A lesion whose region is in a file of its own, read when outlines, box or mask are asked for.

    Args:
        read: Returns uint8 [rows, cols], not 0 on the lesion, native px of the mammogram; a
            functools.partial of a module-level function.
    """

    read: Callable[[], NDArray[np.uint8]]
    files: tuple[Path, ...]

    def __init__(
        self,
        kind: LesionKind,
        read: Callable[[], NDArray[np.uint8]],
        files: tuple[Path, ...] = (),
        **details: Any,
    ) -> None:
        for name, value in {"kind": kind, "read": read, "files": files, **details}.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        # nothing that would read the file
        return f"<MaskedLesion {', '.join(filter(None, (self.kind, self.pathology)))}>"

    @property
    def is_outlined(self) -> bool:
        """True: its file has more than a box, and is not read here."""
        return True

    @cached_property
    def outlines(self) -> tuple[NDArray[np.float32], ...]:  # type: ignore[override]
        """The region's outer borders through the centres of its border pixels; holes are filled."""
        outlines = trace_borders(self.read())
        if not outlines:
            raise EmptyMask("the mask of a lesion marks nothing")
        return outlines

    @cached_property
    def box(self) -> Box:  # type: ignore[override]
        """[row_min, col_min, row_max, col_max] of the region, half-open, native px."""
        return _bound(self.outlines)


def _bound(outlines: tuple[NDArray[np.float32], ...]) -> Box:
    """Return the box around outlines whose points are whole pixels."""
    points = np.concatenate(outlines).astype(int)
    (top, left), (bottom, right) = points.min(axis=0), points.max(axis=0) + 1
    return int(top), int(left), int(bottom), int(right)


@dataclass(frozen=True)
class Lost:
    """A lesion that an archive marks and that can't be read; kind is None where that is unknown."""

    kind: LesionKind | None = None


Found = Lesion | Lost


def sort_found(found: Iterable[Found]) -> dict[str, Any]:
    """Sort what a reader found into the fields `lesions` and `lost` of Mammogram."""
    found = tuple(found)
    return {
        "lesions": tuple(each for each in found if isinstance(each, Lesion)),
        "lost": tuple(each for each in found if isinstance(each, Lost)),
    }


def cut_box(box: Box, rows: int, cols: int) -> Box:
    """Cut a box off at the border of an image; ValueError where nothing of it is left."""
    top, left = max(0, box[0]), max(0, box[1])
    bottom, right = min(rows, box[2]), min(cols, box[3])
    if not (top < bottom and left < right):
        raise ValueError("its box is empty or is outside the image")
    return top, left, bottom, right


def stack_boxes(lesions: Iterable[Lesion]) -> NDArray[np.float64]:
    """Return the boxes of lesions, float64 [n, 4], native px."""
    return np.array([lesion.box for lesion in lesions], np.float64).reshape(-1, 4)


def trace_borders(region: NDArray[np.generic]) -> tuple[NDArray[np.float32], ...]:
    """Trace the outer border of each part of a region through pixels' centres; holes are filled."""
    contours, _ = cv2.findContours(
        (region != 0).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    return tuple(contour[:, 0, ::-1].astype(np.float32) for contour in contours)


def keep_largest(region: NDArray[np.uint8], connectivity: Literal[4, 8] = 8) -> NDArray[np.uint8]:
    """Keep the largest connected part of a region, uint8 [rows, cols], 0 or 1."""
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(
        region, connectivity=connectivity
    )
    if count == 1:
        return region
    return (labels == 1 + np.argmax(statistics[1:, cv2.CC_STAT_AREA])).astype(np.uint8)


def trace_lesions(
    kind: LesionKind, region: NDArray[np.generic], **details: object
) -> tuple[Lesion, ...]:
    """Make a lesion of each connected part of a region, however small; holes are filled."""
    return tuple(
        Lesion(kind, _bound((outline,)), (outline,), **details)  # type: ignore[arg-type]
        for outline in trace_borders(region)
    )


def hold_pixels(image: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
    """Make a mammogram's `read` of pixels that are in memory."""
    return partial(np.asarray, image)


@dataclass(frozen=True)
class Mammogram:
    """One mammogram as its archive describes it; only `pixels()` reads pixels.

    Attributes:
        patient_id: A pseudonym from `hash_id`, the unit of every split.
        image_id: Unique in the archive, free of patient data.
        spacing: (row, col) in mm per px, None where unknown.
        pathology: Of the image's worst finding; None where the archive is silent.
        birads: In the archive's own words, as density is.
        official_split: As the archive itself splits, None where it does not.
        read: Returns the pixels; a functools.partial of a module-level function, so that a record
            can be pickled.
        bits: Given where pixels are stored whole numbers over 2^bits - 1, else None (DICOM, film).
        file: The file behind the pixels; None where they are computed or held in memory. Its name
            may be a patient's, so `repr` leaves it out.
        read_stored: Returns the intensities as the file stores them, an `archives.stored.Stored`;
            None where pixels and bits tell them. Call `archives.read_stored` instead.
        source: The mammogram as its reader gave it, where this one was preprocessed.
        chest_wall: Side of the image at which the file says that the chest wall is, or None.
        lost: Lesions that are marked and can't be read; see `lacks`.
        is_lossy: Whether its file was compressed with loss.

    Examples:
        >>> grey = partial(np.full, (40, 30, 1), 0.5)
        >>> mammogram = Mammogram("mine", "patient", "image", 40, 30, grey, view="CC")
        >>> mammogram.pixels().shape
        (40, 30, 1)
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
    file: Path | None = field(default=None, repr=False, compare=False)
    read_stored: Callable[[], Any] | None = field(default=None, repr=False, compare=False)
    source: Mammogram | None = field(default=None, repr=False, compare=False)
    chest_wall: Laterality | None = None
    lost: tuple[Lost, ...] = ()
    is_lossy: bool = False

    def __repr__(self) -> str:
        kinds = Counter(lesion.kind for lesion in self.lesions)
        findings = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "no lesion"
        words = [self.archive, self.image_id, self.laterality, self.view, self.pathology]
        size = f"{self.rows} x {self.cols} px"
        return f"<Mammogram {' '.join(filter(None, words))}: {size}, {findings}>"

    def with_pixels(self, read: Callable[[], NDArray[np.float32]], **changes: Any) -> Mammogram:
        """Return the same mammogram with other pixels, which no file holds."""
        return replace(self, read=read, file=None, read_stored=None, source=None, **changes)

    @property
    def wall_side(self) -> Laterality | None:
        """Side of the image of the chest wall: as its file says, else as mammograms usually are."""
        return self.chest_wall or self.laterality

    def lacks(self, kinds: Iterable[LesionKind] | None = None) -> bool:
        """Whether a lesion of these kinds (None: of any) was lost on reading.

        Then the image is not normal, and what is outside its lesions is not background.
        """
        wanted = None if kinds is None else {None, *kinds}
        return any(wanted is None or lost.kind in wanted for lost in self.lost)

    def pixels(self) -> NDArray[np.float32]:
        """Read the image, float32 [rows, cols, 1] in [0, 1]: dark background, bright tissue.

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


def escape_cell(cell: str) -> str:
    """Return a text as a cell of a CSV file, on one line and never a formula to a spreadsheet."""
    cell = " ".join(cell.split())
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "|", "%")) else cell


@dataclass
class Skipped:
    """What a reader skipped, and why: readers append to it, callers log it.

    Attributes:
        reasons: A file, beneath `root`, or an image_id -> one sentence. File names may be
            patients': what leaves the machine or reaches a log goes through
            `archives.files.remove_names`.
        root: The archive's folder, None where there is none.
    """

    reasons: dict[str, str] = field(default_factory=dict)
    root: Path | None = None

    def add(self, file: object, reason: object) -> None:
        """Note that `file` was skipped; several reasons for one file are joined."""
        noted = self.reasons.get(str(file))
        self.reasons[str(file)] = f"{noted}; {reason}" if noted else str(reason)

    def __len__(self) -> int:
        return len(self.reasons)

    def to_csv(self) -> str:
        """Format the reasons as a table; no cell begins like a spreadsheet's formula."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("file", "reason"))
        rows.writerows(map(escape_cell, row) for row in self.reasons.items())
        return text.getvalue()
