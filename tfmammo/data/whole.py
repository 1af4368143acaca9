"""Whole mammograms for detectors: scaled into a square with their aspect kept, and the boxes of their lesions with them.

`letterbox` puts the image into the upper left corner of the square and leaves 0 below or beside it, so that a box needs
nothing but its scale to go there and back.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from tfmammo.config import DataConfig
from tfmammo.data import preprocess, sampling
from tfmammo.data.patches import DataError, Patch, Patches, stack, worst
from tfmammo.data.preprocess import normalise, resize_image, resize_mask
from tfmammo.record import Lesion, Mammogram, Skipped

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Whole(Patches):
    """Whole mammograms in memory; see Patches for the other arrays. masks: 1 on any wanted lesion, on its box where it has no outline.

    boxes: float32 [n, k, 4], [row_min, col_min, row_max, col_max] as parts of the square's side, in [0, 1], half-open; k is
    the most lesions that a mammogram has, and a box that is not there is all 0. classes: int32 [n, k], index of the lesion's
    kind in config.kinds, 0 where there is no box.

    Raises:   ValueError: a shape, dtype or range is another.
    """

    boxes: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0, 4), np.float32))
    classes: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 0), np.int32))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.boxes.dtype != np.float32 or self.boxes.ndim != 3 or self.boxes.shape[::2] != (len(self), 4):
            raise ValueError(f"boxes must be float32 [{len(self)}, k, 4], not {self.boxes.dtype} {self.boxes.shape}")
        if self.classes.dtype != np.int32 or self.classes.shape != self.boxes.shape[:2]:
            raise ValueError(f"classes must be int32 {self.boxes.shape[:2]}, not {self.classes.dtype} {self.classes.shape}")
        if self.boxes.size and not (self.boxes.min() >= 0 and self.boxes.max() <= 1):
            raise ValueError("boxes must lie in [0, 1]")

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Whole:
        """The mammograms at `indices`, in that order."""
        rows = np.asarray(indices, np.intp)
        return _whole(super().take(rows), self.boxes[rows], self.classes[rows])

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits, equal for equal patches, boxes and classes in the same order."""
        content = hashlib.sha256(super().fingerprint().encode())
        for array in (self.boxes, self.classes):
            content.update(repr(array.shape).encode() + array.tobytes())
        return content.hexdigest()[:12]


def make_whole(mammograms: Iterable[Mammogram], config: DataConfig, skipped: Skipped, normal: bool = True) -> Whole:
    """Every mammogram with a wanted lesion, outlined or only boxed, and the normal ones.

    Mammograms with other findings alone are left out: whether what the detector shows there is wrong, nobody could say.

    Args:     mammograms: raw records; pixels are read once each, of those that are taken. config: preprocess, kinds,
              mixed_findings, size, percentiles and window are used. skipped: what can't be used is noted here, by
              image_id. normal: take those that the archive calls normal too.
    Raises:   DataError: there is no lesion.
    """
    made: list[tuple[Patch, list[tuple[int, ...]], list[int]]] = []
    for mammogram in mammograms:
        lesions = list(sampling.wanted(mammogram, config).values())
        if lesions or (normal and sampling.is_normal(mammogram)):
            try:
                made.append(_view(mammogram, lesions, config))
            except ValueError as error:
                skipped.add(mammogram.image_id, error)
    most = max((len(boxes) for _, boxes, _ in made), default=0)
    if not most:
        raise DataError(f"there is no mammogram with a {' or '.join(config.kinds)} to detect" + _first(skipped))
    boxes, classes = np.zeros((len(made), most, 4), np.float32), np.zeros((len(made), most), np.int32)
    for row, (_, found, kinds) in enumerate(made):
        boxes[row, : len(found)], classes[row, : len(found)] = np.reshape(found, (-1, 4)), kinds
    log.info("%d mammograms with %d lesions, %d of them normal", len(made), sum(len(b) for _, b, _ in made), sum(not b for _, b, _ in made))
    return _whole(stack(patch for patch, _, _ in made), boxes, classes)


def letterbox(image: NDArray[np.float32], size: int) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Scale an image until its longer side is `size` px and fill the square with 0, below or on the right.

    Args:     image: float32 [rows, cols, 1] in [0, 1].
    Returns:  (float32 [size, size, 1] in [0, 1], (row, col) scale: a point p of the image's edges goes to p * scale).
    """
    scaled = resize_image(image, *_scaled(image.shape, size))
    return _squared(scaled, size), (scaled.shape[0] / image.shape[0], scaled.shape[1] / image.shape[1])


def view(image: NDArray[np.float32], config: DataConfig) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """What a detector sees of a prepared mammogram: scaled, then denoised, its contrast and grey values as patches have them.

    Args:     image: float32 [rows, cols, 1] in [0, 1]. config: preprocess, percentiles, window and size are used.
    Returns:  as `letterbox`.
    Raises:   ValueError: the image is constant.
    """
    scaled = preprocess.framed(resize_image(image, *_scaled(image.shape, config.size)), config.preprocess)
    scaled = preprocess.window(scaled, *config.window) if config.window else normalise(scaled, config.percentiles)
    return _squared(scaled, config.size), (scaled.shape[0] / image.shape[0], scaled.shape[1] / image.shape[1])


def _view(mammogram: Mammogram, lesions: list[Lesion], config: DataConfig) -> tuple[Patch, list[tuple[int, ...]], list[int]]:
    prepared = preprocess.prepare(replace(mammogram, lesions=tuple(lesions)), config.preprocess)
    image, scale = view(prepared.pixels(), config)
    factors = np.array([*scale, *scale]) / config.size
    boxes = [tuple(np.clip(np.array(lesion.box) * factors, 0, 1).tolist()) for lesion in prepared.lesions]
    pathology = mammogram.pathology or worst(lesion.pathology or "" for lesion in lesions)
    patch = Patch(
        image,
        _regions(prepared, config.size),
        mammogram.patient_id,
        f"{mammogram.image_id}#full",
        kind=min((lesion.kind for lesion in lesions), key=config.kinds.index, default="normal"),
        pathology=pathology,
        official_split=mammogram.official_split or "",
    )
    return patch, boxes, [config.kinds.index(lesion.kind) for lesion in prepared.lesions]


def _regions(mammogram: Mammogram, size: int) -> NDArray[np.uint8]:
    regions = np.zeros((mammogram.rows, mammogram.cols, 1), np.uint8)
    for lesion in mammogram.lesions:
        if lesion.outlines:
            regions[..., 0] |= lesion.mask(mammogram.rows, mammogram.cols)
        else:
            top, left, bottom, right = lesion.box
            regions[top:bottom, left:right] = 1
    return _squared(resize_mask(regions, *_scaled(regions.shape, size)), size)


def _scaled(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    longer = max(shape[:2])
    return max(1, round(shape[0] * size / longer)), max(1, round(shape[1] * size / longer))


def _squared(image: NDArray, size: int) -> NDArray:
    return np.pad(image, ((0, size - image.shape[0]), (0, size - image.shape[1]), (0, 0)))


def _whole(patches: Patches, boxes: NDArray[np.float32], classes: NDArray[np.int32]) -> Whole:
    return Whole(**{one.name: getattr(patches, one.name) for one in fields(Patches)}, boxes=boxes, classes=classes)


def _first(skipped: Skipped) -> str:
    return next((f"; {len(skipped)} left out, first {name}: {reason}" for name, reason in skipped.reasons.items()), "")
