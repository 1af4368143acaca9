"""Whole mammograms for detectors, at once or in tiles, with the boxes of their lesions.

At once: the mammogram is scaled by one factor until it fits into a canvas of rows x cols px
(data.canvas, else a square of data.size). It is at the upper left corner, with 0 below or on the
right, so that a box needs nothing but its scale to go there and back.

In tiles (data.tiles): intensities are normalised over the whole mammogram at its own resolution,
which is then cut into tiles of the canvas' size, with 0 below or on the right of what is shorter.
`make_whole` cuts the tiles for training, at random places around lesions and between them.
tfmammo.detection.tiles cuts those that cover a mammogram.

A tile may show another lesion than the one that it was cut around. That one counts, with its box
cut at the tile's border, where at least half of the box's area is left. With less, neither its kind
nor its extent could be told, and a neighbouring tile shows more of it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tfmammo.config import DataConfig
from tfmammo.data import preprocess, sampling
from tfmammo.data.patches import (
    Patch,
    Patches,
    concatenate_columns,
    gravest_pathology,
    stack_columns,
)
from tfmammo.data.preprocess import Size, resize_image, resize_mask
from tfmammo.data.windows import crop_image, normalize_intensity
from tfmammo.errors import DataError
from tfmammo.mammogram import Box, Lesion, Mammogram, Skipped, stack_boxes

log = logging.getLogger(__name__)
LEAST_AREA = 0.5  # part of another lesion's box that a tile must show for it to count
LEAST_TISSUE = 0.1  # breast in an empty tile, over its area: most tiles of a breast hold its border


@dataclass(frozen=True, eq=False)
class Whole(Patches):
    """Whole mammograms or tiles of them in memory.

    For the other arrays see Patches; images need not be square here. A mask is 1 on any wanted
    lesion, and on its box where it has no outline. Tiles have ids as patches have, around a lesion
    or of normal tissue.

    Attributes:
        boxes: float32 [n, k, 4], [row_min, col_min, row_max, col_max] over the image's rows and
            cols, in [0, 1], half-open; k is the most lesions that an image has, and a missing box
            is all 0.
        classes: int32 [n, k], index of the lesion's kind in config.kinds, 0 where there is no box.
    """

    boxes: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0, 4), np.float32))
    classes: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 0), np.int32))
    square: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        boxes, classes = self.boxes, self.classes
        if boxes.dtype != np.float32 or boxes.ndim != 3 or boxes.shape[::2] != (len(self), 4):
            raise ValueError(
                f"boxes must be float32 [{len(self)}, k, 4], not {boxes.dtype} {boxes.shape}"
            )
        if classes.dtype != np.int32 or classes.shape != boxes.shape[:2]:
            raise ValueError(
                f"classes must be int32 {boxes.shape[:2]}, not {classes.dtype} {classes.shape}"
            )
        if boxes.size and not (boxes.min() >= 0 and boxes.max() <= 1):
            raise ValueError("boxes must be in [0, 1]")

    def concatenate(self, *others: Self) -> Self:
        """Return these images and then those of `others`, of the same size, without labels."""
        parts = (self, *others)
        most = max(part.boxes.shape[1] for part in parts)
        columns = concatenate_columns(parts)
        columns["boxes"] = np.concatenate([_pad_axis(part.boxes, most) for part in parts])
        columns["classes"] = np.concatenate([_pad_axis(part.classes, most) for part in parts])
        return replace(self, **columns, labels=np.empty(0, np.int32), balanced=False)

    @property
    def targets(self) -> Mapping[str, NDArray[Any]]:
        """What a batch holds of each image beside image and mask, by its name there."""
        return {"boxes": self.boxes, "classes": self.classes}

    def fingerprint(self) -> str:
        """Return twelve hexadecimal digits, equal for equal images in the same order.

        Boxes and classes count too.
        """
        content = hashlib.sha256(super().fingerprint().encode())
        for array in (self.boxes, self.classes):
            content.update(repr(array.shape).encode() + array.tobytes())
        return content.hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class _BoxedImage:
    """One image with its boxes."""

    patch: Patch
    boxes: NDArray[np.floating]
    classes: list[int]


def make_whole(
    mammograms: Iterable[Mammogram], config: DataConfig, skipped: Skipped, normal: bool = True
) -> Whole:
    """Make the images of all mammograms with a wanted lesion and of normal ones.

    A lesion counts whether it is outlined or only boxed. Mammograms with other findings alone are
    skipped: nobody could say whether what the detector shows there is wrong.

    Tiles: one around each wanted lesion, and tiles.empty of every mammogram that are breast, in
    part at least, and hold no lesion of any kind; none of a mammogram that lost one on reading.
    Seed, image and number alone decide where they are, by `sampling.random_stream`.
    """
    images: list[_BoxedImage] = []
    for mammogram in mammograms:
        lesions = sampling.select_lesions(mammogram, config)
        if not lesions and not (normal and sampling.is_normal(mammogram)):
            continue
        if sampling.note_lost(mammogram, config.kinds, skipped):
            continue
        try:
            if config.tiles:
                images += _cut_tiles(mammogram, lesions, config, skipped)
            else:
                images.append(_scale_whole(mammogram, lesions, config))
        except ValueError as error:
            skipped.add(mammogram.image_id, error)
    num_lesions = sum(len(image.boxes) for image in images)
    if not num_lesions:
        first = ""
        if skipped.reasons:
            name, reason = next(iter(skipped.reasons.items()))
            first = f"; {len(skipped)} skipped, first {name}: {reason}"
        raise DataError(
            f"there is no mammogram with a {sampling.describe_wanted(config)} to detect" + first
        )
    log.info(
        "%d %s with %d lesions, %d of them normal",
        len(images),
        "tiles" if config.tiles else "mammograms",
        num_lesions,
        sum(not len(image.boxes) for image in images),
    )
    return _stack_images(images)


def letterbox(
    image: NDArray[np.float32], config: DataConfig
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Scale a preprocessed mammogram to fit a detector's canvas, then normalise its intensity.

    It is scaled by one factor, the largest with which it fits. The canvas is filled with 0, below
    or on the right.

    Returns:
        (float32 [*config.shape, 1] in [0, 1], (row, col) scale: a point p of the image's edges goes
        to p * scale).
    """
    rows, cols = _fit_size(image.shape, config.shape)
    scaled = normalize_intensity(resize_image(image, rows, cols), config)
    scale = (rows / image.shape[0], cols / image.shape[1])
    return crop_image(scaled, (0, 0, *config.shape)), scale


def extract_tile(image: NDArray, top: int, left: int, shape: Size) -> NDArray:
    """Cut a tile [*shape, 1] out of an image, 0 where it reaches beyond the image."""
    return crop_image(image, (top, left, top + shape[0], left + shape[1]))


def place_tile_around(
    box: Box, image: Size, shape: Size, random: np.random.Generator
) -> tuple[int, int]:
    """Draw the corner (top, left) of a tile that holds a box, all corners being equally likely.

    Along an axis where the image is shorter than the tile it is 0; where the box is longer, the
    tile has its middle, as far as it stays in the image.
    """
    corner = []
    for low, high, extent, length in zip(box[:2], box[2:], image, shape, strict=True):
        limit = max(0, extent - length)
        first = max(0, high - length)
        last = min(low, limit)
        if first <= last:
            corner.append(int(random.integers(first, last + 1)))
        else:
            corner.append(int(np.clip((low + high - length) // 2, 0, limit)))
    return corner[0], corner[1]


def find_empty_tiles(
    breast: NDArray[np.uint8], boxes: Sequence[Box], shape: Size
) -> NDArray[np.bool_]:
    """Find all places of a tile that holds enough breast and no part of any box.

    Returns:
        bool [tops, lefts]: for every upper left corner of a tile inside the image (at 0 where the
        image is shorter).
    """
    rows, cols = shape
    size = (max(rows, breast.shape[0]), max(cols, breast.shape[1]))
    filled = crop_image(breast, (0, 0, *size))
    inside = sampling.count_in_windows(filled, rows, cols)
    free = inside >= LEAST_TISSUE * rows * cols
    for top, left, bottom, right in boxes:
        free[max(0, top - rows + 1) : bottom, max(0, left - cols + 1) : right] = False
    return free


def _scale_whole(
    mammogram: Mammogram, lesions: Mapping[int, Lesion], config: DataConfig
) -> _BoxedImage:
    preprocessed = preprocess.preprocess_mammogram(
        replace(mammogram, lesions=tuple(lesions.values())), config.preprocess
    )
    image, scale = letterbox(preprocessed.pixels(), config)
    factors = np.array([*scale, *scale]) / (config.shape * 2)
    boxes = np.clip(stack_boxes(preprocessed.lesions) * factors, 0, 1)
    regions = _draw_regions(preprocessed.lesions, preprocessed)
    mask = resize_mask(regions, *_fit_size(regions.shape, config.shape))
    kinds = [lesion.kind for lesion in lesions.values()]
    pathologies = [lesion.pathology or "" for lesion in lesions.values()]
    patch = Patch(
        image,
        crop_image(mask, (0, 0, *config.shape)),
        mammogram.patient_id,
        f"{mammogram.image_id}#full",
        kind=min(kinds, key=config.kinds.index, default="normal"),
        pathology=mammogram.pathology or gravest_pathology(pathologies),
        official_split=mammogram.official_split or "",
    )
    return _BoxedImage(patch, boxes, [config.kinds.index(kind) for kind in kinds])


def _cut_tiles(
    mammogram: Mammogram, lesions: Mapping[int, Lesion], config: DataConfig, skipped: Skipped
) -> list[_BoxedImage]:
    """Cut a tile around each wanted lesion, `lesions` by their number, and empty ones."""
    # with its other lesions, which empty tiles may not show
    preprocessed = preprocess.preprocess_mammogram(mammogram, config.preprocess)
    wanted = {number: preprocessed.lesions[number] for number in lesions}
    size = (preprocessed.rows, preprocessed.cols)
    pixels = preprocessed.pixels()
    image = normalize_intensity(pixels, config)
    regions = _draw_regions(wanted.values(), preprocessed)
    tiles = []
    for number, lesion in wanted.items():
        random = sampling.random_stream(config.seed, mammogram.image_id, number)
        corner = place_tile_around(lesion.box, size, config.shape, random)
        patch = _cut_patch(preprocessed, f"#{number}", image, regions, corner, config)
        pathology = lesion.pathology or mammogram.pathology or ""
        patch = replace(patch, kind=lesion.kind, pathology=pathology)
        tiles.append(_add_boxes(patch, corner, wanted, number, config))
    for number, corner in enumerate(_draw_empty_corners(preprocessed, pixels, config, skipped)):
        patch = _cut_patch(preprocessed, f"@{number}", image, regions, corner, config)
        patch = replace(patch, kind="normal", pathology="normal")
        tiles.append(_BoxedImage(patch, np.empty((0, 4)), []))
    return tiles


def _draw_empty_corners(
    mammogram: Mammogram, pixels: NDArray[np.float32], config: DataConfig, skipped: Skipped
) -> list[tuple[int, int]]:
    """Draw the corners of the empty tiles from all places; a place may be drawn again."""
    assert config.tiles
    if not config.tiles.empty or sampling.note_lost(mammogram, None, skipped):
        return []
    boxes = [lesion.box for lesion in mammogram.lesions]
    free = find_empty_tiles(preprocess.breast_mask(pixels), boxes, config.shape)
    places = np.flatnonzero(free)
    if not len(places):
        skipped.add(
            mammogram.image_id,
            f"no tile of {config.shape[0]} x {config.shape[1]} px is breast without a lesion",
        )
        return []
    first = len(mammogram.lesions)  # the numbers before it are of the tiles around lesions
    corners = []
    for number in range(first, first + config.tiles.empty):
        random = sampling.random_stream(config.seed, mammogram.image_id, number)
        top, left = np.unravel_index(places[random.integers(len(places))], free.shape)
        corners.append((int(top), int(left)))
    return corners


def _cut_patch(
    mammogram: Mammogram,
    suffix: str,
    image: NDArray[np.float32],
    regions: NDArray[np.uint8],
    corner: tuple[int, int],
    config: DataConfig,
) -> Patch:
    shape = config.shape
    return Patch(
        extract_tile(image, *corner, shape),
        extract_tile(regions, *corner, shape),
        mammogram.patient_id,
        mammogram.image_id + suffix,
        official_split=mammogram.official_split or "",
        place=(*corner, corner[0] + shape[0], corner[1] + shape[1]),
    )


def _add_boxes(
    patch: Patch,
    corner: tuple[int, int],
    lesions: Mapping[int, Lesion],
    centre: int,
    config: DataConfig,
) -> _BoxedImage:
    """Add the boxes of all lesions that count in the tile around lesion number `centre`."""
    boxes = stack_boxes(lesions.values())
    shape = config.shape
    cut = np.clip(boxes - [*corner, *corner], 0, shape * 2)
    part = np.prod(cut[:, 2:] - cut[:, :2], axis=1) / np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    is_centre = np.array([number == centre for number in lesions])
    if part[is_centre] < 1:
        log.info(
            "%s: lesion %d is larger than a tile, which shows %.0f %% of its box",
            patch.id,
            centre,
            100 * part[is_centre].item(),
        )
    counts = (part >= LEAST_AREA) | is_centre
    classes = [
        config.kinds.index(lesion.kind)
        for lesion, is_counted in zip(lesions.values(), counts, strict=True)
        if is_counted
    ]
    return _BoxedImage(patch, cut[counts] / (shape * 2), classes)


def _draw_regions(lesions: Iterable[Lesion], mammogram: Mammogram) -> NDArray[np.uint8]:
    regions = np.zeros((mammogram.rows, mammogram.cols, 1), np.uint8)
    for lesion in lesions:
        if lesion.outlines:
            regions[..., 0] |= lesion.mask(mammogram.rows, mammogram.cols)
        else:
            top, left, bottom, right = lesion.box
            regions[top:bottom, left:right] = 1
    return regions


def _fit_size(image: tuple[int, ...], shape: Size) -> Size:
    """Return the size of a scaled image: one side is the canvas', the other no longer than it."""
    rows, cols = image[:2]
    if rows * shape[1] >= cols * shape[0]:
        return shape[0], max(1, round(cols * shape[0] / rows))
    return max(1, round(rows * shape[1] / cols)), shape[1]


def _pad_axis(values: NDArray, length: int) -> NDArray:
    """Pad axis 1 of an array with 0."""
    more = (0, length - values.shape[1])
    return np.pad(values, [(0, 0), more, *[(0, 0)] * (values.ndim - 2)])


def _stack_images(images: Sequence[_BoxedImage]) -> Whole:
    most = max(len(image.boxes) for image in images)
    boxes = np.zeros((len(images), most, 4), np.float32)
    classes = np.zeros((len(images), most), np.int32)
    for row, image in enumerate(images):
        boxes[row, : len(image.boxes)] = image.boxes
        classes[row, : len(image.boxes)] = image.classes
    columns = stack_columns([image.patch for image in images])
    return Whole(**columns, boxes=boxes, classes=classes)
