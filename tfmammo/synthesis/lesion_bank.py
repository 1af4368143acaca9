"""The lesion bank: real lesions, each mirrored, rotated and resized for its new place.

A lesion is cut out of its mammogram together with its surroundings. One interpolation brings it to
the native pixels of the other mammogram: mirrored where the lateralities differ, then rotated, then
scaled by a random factor and by the two spacings, so that millimetres stay millimetres. Without
spacings nothing says how large a lesion is. Then only lesions of the same archive are used, pixel
for pixel.

Source: Lin et al., Breast mass detection in mammograms via blending adversarial learning (2019),
section 3 ("we randomly resize and rotate the input lesion").

Deviation: the paper gives neither range. All angles, and factors from 0.8 to 1.2, are equally
likely. A breast does not look the same from all sides, because its ducts lead to the nipple. A
smaller `rotate` may look truer.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo import archives
from tfmammo.config import DataConfig
from tfmammo.data import sampling
from tfmammo.data.windows import square_window
from tfmammo.errors import DataError
from tfmammo.mammogram import Lesion, LesionKind, Mammogram, Skipped, keep_largest
from tfmammo.synthesis.config import UsedPart
from tfmammo.synthesis.recipe import TransformRecord, hash_source

# Side of the crop around a lesion over the lesion's longer side. A rotated lesion keeps its
# surroundings.
CONTEXT = 2.0
KEPT = 128  # lesions whose pixels a process remembers, of a megabyte or two each
AROUND = 4  # px around a transformed lesion's box, at least
CUT_OFF = "its mask touches the border of its mammogram, where the rest of it may be cut off"


@dataclass(frozen=True, eq=False)
class SourceLesion:
    """A lesion of an archive."""

    mammogram: Mammogram
    number: int

    @property
    def lesion(self) -> Lesion:
        """The lesion itself; a mask in a file is not read yet."""
        return self.mammogram.lesions[self.number]


def select_lesions(mammograms: Iterable[Mammogram], data: DataConfig) -> tuple[SourceLesion, ...]:
    """Select every lesion of the kinds that a section asks for. No file is read."""
    return tuple(
        SourceLesion(mammogram, number)
        for mammogram in mammograms
        for number in sampling.select_lesions(mammogram, data)
    )


@dataclass(frozen=True, eq=False)
class LesionPatch:
    """A lesion as it will be in another mammogram.

    Attributes:
        mask: uint8 [rows, cols], 0 or 1, touching all four sides.
        image: float32 [rows + 2 around, cols + 2 around] in [0, 1], with its surroundings.
        around: px of surroundings on each side.
    """

    kind: LesionKind
    mask: NDArray[np.uint8]
    image: NDArray[np.float32]
    around: int
    record: TransformRecord

    def crop(self, around: int) -> NDArray[np.float32]:
        """Return the lesion with fewer px around: float32 [rows + 2 around, cols + 2 around]."""
        less = self.around - around
        rows, cols = self.image.shape
        return np.ascontiguousarray(self.image[less : rows - less, less : cols - less])


@dataclass(frozen=True, eq=False)
class LesionBank:
    """Real lesions that may be inserted into mammograms."""

    lesions: tuple[SourceLesion, ...]

    @staticmethod
    def select(
        lesions: Iterable[SourceLesion],
        data: DataConfig,
        pathology: str | None = None,
        of_patients: str = "",
    ) -> LesionBank:
        """Select the outlined ones of an archive's lesions. No pixel and no mask file is read."""
        selected = tuple(
            source
            for source in lesions
            if source.lesion.is_outlined and pathology in (None, source.lesion.pathology)
        )
        if not selected:
            wanted = f"{pathology or ''} {' or '.join(data.kinds)}".strip()
            raise DataError(
                f"{data.archive_name} has no {wanted} with an outline{of_patients} to insert"
            )
        return LesionBank(selected)

    @property
    def identity(self) -> dict[str, object]:
        """What is equal for equal banks."""
        mammograms = {lesion.mammogram.image_id: lesion.mammogram for lesion in self.lesions}
        return {"lesions": len(self.lesions), "records": archives.fingerprint(mammograms.values())}

    def find_usable(self, skipped: Skipped) -> list[SourceLesion]:
        """Find the lesions whose mask can be read and is whole. No pixel of a mammogram is read."""
        usable = []
        reason = ""
        for lesion in self.lesions:
            try:
                _check_mask(lesion)
                usable.append(lesion)
            except ValueError as error:
                noted = f"lesion {lesion.number}: {error}"
                skipped.add(lesion.mammogram.image_id, noted)
                reason = reason or noted
        if not usable:
            raise DataError(f"no lesion can be inserted; the first, {reason}")
        return usable

    def draw(
        self,
        mammogram: Mammogram,
        random: np.random.Generator,
        resize: tuple[float, float],
        rotate: float,
        trained_on: Collection[str] | None,
        used: UsedPart | None = None,
    ) -> LesionPatch:
        """Draw a lesion for a mammogram, and transform it.

        Each lesion whose size in the mammogram is known is equally likely.

        Args:
            rotate: Degrees, each way, at most.
            trained_on: Patients of the renderer's network, None without a network.
        """
        # Two folders may give their images the same names.
        own = (mammogram.image_id, mammogram.file)
        others = [
            lesion
            for lesion in self.lesions
            if (lesion.mammogram.image_id, lesion.mammogram.file) != own
        ]
        if not others:
            raise DataError("there are no lesions but its own")
        fitting = [lesion for lesion in others if _is_comparable(lesion.mammogram, mammogram)]
        if not fitting:
            raise DataError(_explain_incomparable(others[0].mammogram, mammogram))
        lesion = fitting[random.integers(len(fitting))]
        angle = random.uniform(-rotate, rotate)
        factor = random.uniform(*resize)
        source = lesion.mammogram
        record = TransformRecord(
            archive=source.archive,
            image_id=source.image_id,
            patient_id=source.patient_id,
            number=lesion.number,
            sha256=_read_crop(lesion).sha256,
            pathology=lesion.lesion.pathology,
            angle=angle,
            factor=factor,
            mirrored={source.wall_side, mammogram.wall_side} == {"L", "R"},
            trained_on=None if trained_on is None else source.patient_id in trained_on,
            used=used,
        )
        return transform(lesion, record, mammogram)


def find_lesion(
    record: TransformRecord, data: DataConfig, mammograms: Mapping[str, Mammogram]
) -> SourceLesion:
    """Find the lesion of a recipe."""
    name = f"{record.image_id}#{record.number}"
    mammogram = mammograms.get(record.image_id)
    if mammogram is None or record.number >= len(mammogram.lesions):
        raise DataError(f"the lesion {name} is not in {data.archive_name}")
    lesion = SourceLesion(mammogram, record.number)
    if _read_crop(lesion).sha256 != record.sha256:
        raise DataError(f"the mammogram of the lesion {name} has changed since (sha256)")
    return lesion


def transform(lesion: SourceLesion, record: TransformRecord, mammogram: Mammogram) -> LesionPatch:
    """Transform a lesion into the native pixels of another mammogram.

    The new mask is the largest part of what the old one covers by at least half, as in
    placement.scale_shape. Cubic interpolation of intensities keeps more of the grain than linear
    interpolation. A lesion that shrinks is blurred first, against aliasing.
    """
    crop = _read_crop(lesion)
    forward = _make_forward(lesion.mammogram.spacing, mammogram.spacing, record)
    extents = np.abs(forward) @ crop.extents
    if extents[0] > mammogram.cols or extents[1] > mammogram.rows:
        raise DataError(f"a lesion of {extents[1]:.0f} x {extents[0]:.0f} px is larger than it")
    around = max(AROUND, ceil(extents.max() / 20))
    cols, rows = (ceil(extent - 1e-6) + 2 * (around + 1) for extent in extents)
    back = np.linalg.inv(forward)
    matrix = np.column_stack([back, crop.middle - back @ ((cols - 1) / 2, (rows - 1) / 2)])
    size = (cols, rows)
    coverage = cv2.warpAffine(
        crop.mask.astype(np.float32), matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    image = cv2.warpAffine(
        _smooth(crop.image, forward),
        matrix,
        size,
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    mask = keep_largest((coverage >= 0.5).astype(np.uint8))
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        raise DataError(f"nothing of a lesion of {extents[1]:.1f} x {extents[0]:.1f} px is left")
    part = image[top - around : top + height + around, left - around : left + width + around]
    return LesionPatch(
        lesion.lesion.kind,
        np.ascontiguousarray(mask[top : top + height, left : left + width]),
        np.clip(part, 0, 1),
        around,
        record,
    )


@dataclass(frozen=True, eq=False)
class _Crop:
    """A lesion with its surroundings, in the pixels of its own mammogram."""

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    middle: NDArray[np.float64]  # (x, y) of the lesion's box, px of the crop
    extents: NDArray[np.float64]  # width and height of the lesion's box, px
    sha256: str


@functools.lru_cache(KEPT)
def _read_crop(lesion: SourceLesion) -> _Crop:
    mammogram = lesion.mammogram
    try:
        _check_mask(lesion)
    except ValueError as error:
        raise DataError(f"lesion {lesion.number} of {mammogram.image_id}: {error}") from None
    box = np.array(lesion.lesion.box, np.float64)
    rows, cols = mammogram.rows, mammogram.cols
    corners = square_window(lesion.lesion.box, rows, cols, CONTEXT)
    top, left = (max(0, corner) for corner in corners[:2])
    region = np.s_[top : corners[2], left : corners[3]]
    stored = archives.read_stored(mammogram)
    return _Crop(
        stored.image()[..., 0][region].copy(),
        lesion.lesion.mask(rows, cols)[region].copy(),
        ((box[:2] + box[2:] - 1) / 2 - (top, left))[::-1],
        (box[2:] - box[:2])[::-1],
        hash_source(mammogram, lambda: stored.values),
    )


def _check_mask(lesion: SourceLesion) -> None:
    """Check that a lesion's mask is whole."""
    top, left, bottom, right = lesion.lesion.box
    if top >= bottom or left >= right:
        raise DataError("its mask is empty")
    mammogram = lesion.mammogram
    if not (top > 0 and left > 0 and bottom < mammogram.rows and right < mammogram.cols):
        raise DataError(CUT_OFF)


def _is_comparable(source: Mammogram, target: Mammogram) -> bool:
    """Return whether a lesion's size in the target is known."""
    if source.spacing is None or target.spacing is None:
        return source.spacing is target.spacing and source.archive == target.archive
    return True


def _explain_incomparable(source: Mammogram, target: Mammogram) -> str:
    lesions = f"lesions of {source.archive}"
    missing = f"the mm per px of {lesions} are not stated"
    if target.spacing is None and source.spacing is None:
        missing = f"neither its mm per px nor those of {lesions} are stated"
    elif target.spacing is None:
        missing = "its mm per px are not stated"
    return f"{missing}, so that it is not known how large {lesions} are in it"


def _make_forward(
    source: tuple[float, float] | None,
    target: tuple[float, float] | None,
    record: TransformRecord,
) -> NDArray[np.float64]:
    """Make the matrix from a lesion's (x, y) about its middle, px, to those in the target.

    In this order: mirrored, in mm, rotated, resized, in px again.
    """
    angle = np.deg2rad(record.angle)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    to_mm, from_mm = (np.array((step or (1.0, 1.0))[::-1]) for step in (source, target))
    mirror = (-1 if record.mirrored else 1, 1)
    return record.factor * rotation * (to_mm * mirror) / from_mm[:, None]


def _smooth(image: NDArray[np.float32], forward: NDArray[np.float64]) -> NDArray[np.float32]:
    """Blur an image along each axis as far as it is going to shrink.

    sigma = (1 / s - 1) / 2 px for a scale of s, so that nothing finer than a new px is left.
    """
    sigmas = [max(0.0, (1 / scale - 1) / 2) for scale in np.linalg.norm(forward, axis=0)]
    if max(sigmas) < 0.05:
        return image
    return cv2.GaussianBlur(image, (0, 0), sigmaX=max(sigmas[0], 1e-3), sigmaY=max(sigmas[1], 1e-3))
