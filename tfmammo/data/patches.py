"""Mammograms -> square patches around lesions, with their masks."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfmammo.config import DataConfig
from tfmammo.data.preprocess import normalise, resize_image, resize_mask
from tfmammo.record import ArchiveError, Box, Lesion, Mammogram, Skipped

log = logging.getLogger(__name__)


class DataError(ValueError):
    """The data can't be used as the config asks. The message says what was found."""


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches of lesions in memory, row i of every array belonging together.

    images: float32 [n, s, s, 1] in [0, 1]. masks: uint8 [n, s, s, 1], 0 or 1, 1 on any wanted lesion. patient_ids: str
    [n], the unit of splits. ids: str [n], "<image_id>#<index of the lesion in the mammogram>".

    Raises:   ValueError: a shape, dtype or range is another.
    """

    images: NDArray[np.float32]
    masks: NDArray[np.uint8]
    patient_ids: NDArray[np.str_]
    ids: NDArray[np.str_]

    def __post_init__(self) -> None:
        shape = self.images.shape
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 1 or self.masks.shape != shape:
            raise ValueError(f"images {shape} and masks {self.masks.shape} must both have the shape [n, s, s, 1]")
        if self.images.dtype != np.float32 or self.masks.dtype != np.uint8:
            raise ValueError(f"images must be float32 and masks uint8, not {self.images.dtype} and {self.masks.dtype}")
        if self.patient_ids.shape != shape[:1] or self.ids.shape != shape[:1]:
            raise ValueError(f"{len(self.patient_ids)} patient_ids and {len(self.ids)} ids for {shape[0]} patches")
        if self.patient_ids.dtype.kind != "U" or self.ids.dtype.kind != "U":
            raise ValueError("patient_ids and ids must be arrays of str")
        if len(self) and not (self.images.min() >= 0 and self.images.max() <= 1 and self.masks.max() <= 1):
            raise ValueError("images must lie in [0, 1] and masks must hold 0 and 1 alone")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Patches:
        """The patches at `indices`, in that order."""
        rows = np.asarray(indices, np.intp)
        return Patches(self.images[rows], self.masks[rows], self.patient_ids[rows], self.ids[rows])

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits, equal for equal contents in the same order."""
        content = hashlib.sha256(repr(self.images.shape).encode())
        for array in (self.images, self.masks):
            content.update(np.ascontiguousarray(array).data)
        for names in (self.patient_ids, self.ids):
            content.update("\n".join(names.tolist()).encode() + b"\n")
        return content.hexdigest()[:12]


def lesion_patches(mammograms: Iterable[Mammogram], config: DataConfig, skipped: Skipped) -> Patches:
    """One patch for every lesion of the wanted kinds.

    A patch is a square, in mm where the spacing is known, centred on the lesion's box; its side is `context` times the
    box's longer side. It is moved to stay inside the image; one that is larger is left out, or padded with 0 if
    `config.pad`. Its mask shows every wanted lesion, so that a neighbour does not count as background.

    Args:     mammograms: their pixels are read once each, and only where there is a wanted lesion.
              config: kinds, mixed_findings, size, context, pad and percentiles are used.
              skipped: lesions and images that make no patch are noted here, by image_id.
    Returns:  patches of config.size px, in the order of the mammograms and of their lesions.
    Raises:   DataError: no patch is left.
    """
    images, masks, patients, ids = [], [], [], []
    seen, uncertain, found, before = 0, 0, Counter[str](), len(skipped)
    for mammogram in mammograms:
        seen += 1
        found.update(lesion.kind for lesion in mammogram.lesions)
        for number, image, mask in _patches(mammogram, config, skipped):
            images.append(image)
            masks.append(mask)
            patients.append(mammogram.patient_id)
            ids.append(f"{mammogram.image_id}#{number}")
            uncertain += not mammogram.lesions[number].kind_is_certain
    if not images:
        raise DataError(_nothing(config, seen, found, list(skipped.reasons.items())[before:]))
    log.info(
        "%d patches of %d patients from %d mammograms, %d with lesions left out; the archive does not settle the kind of %d",
        len(ids), len(set(patients)), seen, len(skipped) - before, uncertain,
    )  # fmt: skip
    return Patches(np.stack(images), np.stack(masks), np.array(patients), np.array(ids))


def window(box: Box, rows: int, cols: int, context: float, spacing: tuple[float, float] | None = None) -> Box:
    """Where a patch lies: a square around a lesion's box.

    Args:     box: of the lesion, native px. rows, cols: of the image. context: the square's side over the box's longer
              side. spacing: (row, col) in mm per px; without it pixels count as square.
    Returns:  [row_min, col_min, row_max, col_max], half-open, native px; beyond the image only along an axis where it is
              longer than the image.
    """
    step = spacing or (1.0, 1.0)
    side = context * max((box[2] - box[0]) * step[0], (box[3] - box[1]) * step[1])
    starts, lengths = [], []
    for axis, extent in enumerate((rows, cols)):
        length = max(1, round(side / step[axis]))
        start = round((box[axis] + box[axis + 2] - length) / 2)
        starts.append(int(np.clip(start, min(0, extent - length), max(0, extent - length))))
        lengths.append(length)
    return starts[0], starts[1], starts[0] + lengths[0], starts[1] + lengths[1]


def _patches(mammogram: Mammogram, config: DataConfig, skipped: Skipped) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.uint8]]]:
    lesions = _wanted(mammogram, config, skipped)
    if not lesions:
        return
    try:
        image = mammogram.pixels()
    except ArchiveError as error:
        skipped.add(mammogram.image_id, error)
        return
    rows, cols = mammogram.rows, mammogram.cols
    regions = np.zeros((rows, cols, 1), np.uint8)
    for lesion in lesions.values():
        regions[..., 0] |= lesion.mask(rows, cols)
    for number, lesion in lesions.items():
        place = window(lesion.box, rows, cols, config.context, mammogram.spacing)
        if not config.pad and (place[2] - place[0] > rows or place[3] - place[1] > cols):
            skipped.add(mammogram.image_id, f"lesion {number}: its patch is larger than the mammogram (data.pad=true keeps it)")
            continue
        mask = resize_mask(_crop(regions, place), config.size, config.size)
        try:
            patch = normalise(resize_image(_crop(image, place), config.size, config.size), config.percentiles)
        except ValueError as error:
            skipped.add(mammogram.image_id, f"lesion {number}: {error}")
            continue
        if not mask.any():
            skipped.add(mammogram.image_id, f"lesion {number}: nothing of its mask is left at {config.size} px")
            continue
        yield number, patch, mask


def _wanted(mammogram: Mammogram, config: DataConfig, skipped: Skipped) -> dict[int, Lesion]:
    lesions = {}
    for number, lesion in enumerate(mammogram.lesions):
        if lesion.kind not in config.kinds or not (lesion.kind_is_certain or config.mixed_findings):
            continue
        if lesion.outlines:
            lesions[number] = lesion
        else:
            skipped.add(mammogram.image_id, f"lesion {number}: the archive gives its box but no outline")
    return lesions


def _crop(image: NDArray, place: Box) -> NDArray:
    top, left, bottom, right = place
    inside = image[max(0, top) : bottom, max(0, left) : right]
    below, beside = bottom - max(0, top) - inside.shape[0], right - max(0, left) - inside.shape[1]
    return np.pad(inside, ((max(0, -top), below), (max(0, -left), beside), (0, 0)))


def _nothing(config: DataConfig, seen: int, found: Counter[str], skipped: list[tuple[str, str]]) -> str:
    wanted = " or ".join(config.kinds) + ("" if config.mixed_findings else " whose kind is certain")
    lesions = ", ".join(f"{count} {kind}" for kind, count in found.items()) or "no lesion"
    reason = f"; {len(skipped)} skipped, first {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
    return f"no patch of a {wanted} can be made: {seen} mammograms hold {lesions}{reason}"
