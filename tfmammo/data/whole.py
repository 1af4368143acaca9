"""Whole mammograms for detectors, at once or in tiles, and the boxes of their lesions with them.

At once: scaled by one factor until they fit into a canvas of rows x cols px (data.canvas, else a
square of data.size), at its upper left corner and with 0 below or beside them, so that a box needs
nothing but its scale to go there and back. In tiles (data.tiles): at their own resolution, grey
values normalised over the whole mammogram, cut into tiles of the canvas' size; what is shorter than
a tile has 0 below or beside it. `make_whole` cuts the tiles that a training sees, at random places
around lesions and between them; tfmammo.detection.tiles cuts those that cover a mammogram.

What of a lesion counts in a tile that was cut around another one: its box, cut at the tile's
border, where at least half of its area is left. Of less it could not be told what it is of, nor how
far it reaches, and a neighbouring tile shows more of it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.config import DataConfig
from tfmammo.data import preprocess, sampling
from tfmammo.data.patches import TEXTS, Patch, Patches, worst
from tfmammo.data.preprocess import Size, normalise, resize_image, resize_mask
from tfmammo.errors import DataError
from tfmammo.mammogram import Box, Lesion, Mammogram, Skipped

log = logging.getLogger(__name__)
LEFT = 0.5  # of another lesion's area, at least: what counts in a tile
TISSUE = 0.1  # of an empty tile, at least: most tiles of a breast hold its border


@dataclass(frozen=True, eq=False)
class Whole(Patches):
    """Whole mammograms or tiles of them in memory; see Patches for the other arrays, which need not
    be of squares here. masks: 1 on any wanted lesion, on its box where it has no outline. ids: of
    tiles as of patches, around a lesion or of normal tissue.

    Raises:
        ValueError: A shape, dtype or range is another.

    Attributes:
        boxes: float32 [n, k, 4], [row_min, col_min, row_max, col_max] as parts of the image's
            sides, in [0, 1], half-open; k is the most lesions that an image has, and a box that is
            not there is all 0.
        classes: int32 [n, k], index of the lesion's kind in config.kinds, 0 where there is no box.
    """

    boxes: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0, 4), np.float32))
    classes: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 0), np.int32))
    square: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            self.boxes.dtype != np.float32
            or self.boxes.ndim != 3
            or self.boxes.shape[::2] != (len(self), 4)
        ):
            raise ValueError(
                f"boxes must be float32 [{len(self)}, k, 4], not {self.boxes.dtype} "
                f"{self.boxes.shape}"
            )
        if self.classes.dtype != np.int32 or self.classes.shape != self.boxes.shape[:2]:
            raise ValueError(
                f"classes must be int32 {self.boxes.shape[:2]}, not {self.classes.dtype} "
                f"{self.classes.shape}"
            )
        if self.boxes.size and not (self.boxes.min() >= 0 and self.boxes.max() <= 1):
            raise ValueError("boxes must lie in [0, 1]")

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Whole:
        """The images at `indices`, in that order."""
        rows = np.asarray(indices, np.intp)
        arrays = {
            one.name: getattr(self, one.name) for one in fields(self) if one.name != "balanced"
        }
        return replace(
            self, **{name: array[rows] if len(array) else array for name, array in arrays.items()}
        )

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits, equal for equal patches, boxes and classes in the
        same order.
        """
        content = hashlib.sha256(super().fingerprint().encode())
        for array in (self.boxes, self.classes):
            content.update(repr(array.shape).encode() + array.tobytes())
        return content.hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class _Made:
    """One image.

    Attributes:
        boxes: float [k, 4], as parts of its sides.
        classes: K numbers of kinds.
    """

    patch: Patch
    boxes: NDArray[np.floating]
    classes: list[int]


def make_whole(
    mammograms: Iterable[Mammogram], config: DataConfig, skipped: Skipped, normal: bool = True
) -> Whole:
    """Every mammogram with a wanted lesion, outlined or only boxed, and the normal ones, at once or
    in tiles.

    Mammograms with other findings alone are left out: whether what the detector shows there is
    wrong, nobody could say. Tiles: one around each wanted lesion, and tiles.empty of every
    mammogram that are breast, in part at least, and hold no lesion of any kind. Where they lie
    follows from seed, image and number alone (see sampling.stream).

    Args:
        mammograms: Raw records; pixels are read once each, of those that are taken.
        config: Preprocess, kinds, mixed_findings, size, canvas, tiles, percentiles, window and seed
            are used.
        skipped: What can't be used is noted here, by image_id.
        normal: Take those that the archive calls normal too.

    Raises:
        DataError: There is no lesion.
    """
    made: list[_Made] = []
    for mammogram in mammograms:
        lesions = sampling.wanted(mammogram, config)
        if lesions or (normal and sampling.is_normal(mammogram)):
            try:
                made += (
                    _tiles(mammogram, lesions, config, skipped)
                    if config.tiles
                    else [_at_once(mammogram, lesions, config)]
                )
            except ValueError as error:
                skipped.add(mammogram.image_id, error)
    if not any(len(one.boxes) for one in made):
        raise DataError(
            f"there is no mammogram with a {' or '.join(config.kinds)} to detect" + _first(skipped)
        )
    count = sum(len(one.boxes) for one in made)
    empty = sum(not len(one.boxes) for one in made)
    log.info(
        "%d %s with %d lesions, %d of them normal",
        len(made),
        "tiles" if config.tiles else "mammograms",
        count,
        empty,
    )
    return _stacked(made)


def joined(parts: Sequence[Whole]) -> Whole:
    """Images of one size behind one another."""
    most = max(part.boxes.shape[1] for part in parts)
    boxes = np.concatenate(
        [np.pad(part.boxes, ((0, 0), (0, most - part.boxes.shape[1]), (0, 0))) for part in parts]
    )
    classes = np.concatenate(
        [np.pad(part.classes, ((0, 0), (0, most - part.classes.shape[1]))) for part in parts]
    )
    others: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("images", "masks", *TEXTS)
    }
    return Whole(**others, boxes=boxes, classes=classes)


def view(
    image: NDArray[np.float32], config: DataConfig
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """What a detector sees at once of a prepared mammogram: scaled, then denoised, its contrast and
    grey values as patches have them.

    It is scaled by one factor, the largest with which it fits, and the canvas filled with 0, below
    or on the right.

    Args:
        image: float32 [rows, cols, 1] in [0, 1].
        config: Preprocess, percentiles, window, size and canvas are used.

    Returns:
        (float32 [*config.shape, 1] in [0, 1], (row, col) scale: a point p of the image's edges goes
        to p * scale).

    Raises:
        ValueError: The image is constant.
    """
    scaled = toned(resize_image(image, *_fitted(image.shape, config.shape)), config)
    return _filled(scaled, config.shape), (
        scaled.shape[0] / image.shape[0],
        scaled.shape[1] / image.shape[1],
    )


def toned(image: NDArray[np.float32], config: DataConfig) -> NDArray[np.float32]:
    """A whole mammogram as its tiles are cut from it: denoised, its contrast and grey values as
    patches have them.

    Args:
        image: float32 [rows, cols, 1] in [0, 1], prepared.
        config: Preprocess, percentiles and window are used.

    Returns:
        float32 [rows, cols, 1] in [0, 1].

    Raises:
        ValueError: The image is constant.
    """
    image = preprocess.framed(image, config.preprocess)
    return (
        preprocess.window(image, *config.window)
        if config.window
        else normalise(image, config.percentiles)
    )


def tile(image: NDArray, top: int, left: int, shape: Size) -> NDArray:
    """A tile of an image [rows, cols, 1], of the image's dtype: [*shape, 1], 0 where it reaches
    beyond the image, below or on the right.
    """
    return _filled(image[top : top + shape[0], left : left + shape[1]], shape)


def around(box: Box, image: Size, shape: Size, random: np.random.Generator) -> tuple[int, int]:
    """Where a tile lies that holds a box: anywhere in the image, all places being equally likely.

    Args:
        box: In px of the image, inside it.
        image: Rows and columns of the image and of the tile, px.
        shape: Rows and columns of the image and of the tile, px.

    Returns:
        The tile's upper left corner (top, left), px. Along an axis where the image is shorter than
        the tile it is 0; where the box is longer, the tile has its middle, as far as it stays in
        the image.
    """
    corner = []
    for low, high, whole, length in zip(box[:2], box[2:], image, shape, strict=True):
        room = max(0, whole - length)
        first = max(0, high - length)
        last = min(low, room)
        corner.append(
            int(random.integers(first, last + 1))
            if first <= last
            else int(np.clip((low + high - length) // 2, 0, room))
        )
    return corner[0], corner[1]


def between(breast: NDArray[np.uint8], boxes: Sequence[Box], shape: Size) -> NDArray[np.bool_]:
    """Where a tile may lie that holds enough breast and no part of any box.

    Args:
        breast: uint8 [rows, cols, 1], 0 or 1.
        boxes: In its px.
        shape: Rows and columns of the tile, px.

    Returns:
        bool [tops, lefts]: for every upper left corner of a tile inside the image (at 0 where the
        image is shorter).
    """
    rows, cols = shape
    corners = cv2.integral(
        _filled(breast, (max(rows, breast.shape[0]), max(cols, breast.shape[1])))[..., 0]
    )
    inside = (
        corners[rows:, cols:]
        - corners[:-rows, cols:]
        - corners[rows:, :-cols]
        + corners[:-rows, :-cols]
    )
    free = inside >= TISSUE * rows * cols
    for top, left, bottom, right in boxes:
        free[max(0, top - rows + 1) : bottom, max(0, left - cols + 1) : right] = False
    return free


def _at_once(mammogram: Mammogram, lesions: Mapping[int, Lesion], config: DataConfig) -> _Made:
    prepared = preprocess.preprocess_mammogram(
        replace(mammogram, lesions=tuple(lesions.values())), config.preprocess
    )
    image, scale = view(prepared.pixels(), config)
    factors = np.array([*scale, *scale]) / (config.shape * 2)
    boxes = np.clip(_boxes(prepared.lesions) * factors, 0, 1)
    regions = _regions(prepared.lesions, prepared)
    patch = Patch(
        image,
        _filled(resize_mask(regions, *_fitted(regions.shape, config.shape)), config.shape),
        mammogram.patient_id,
        f"{mammogram.image_id}#full",
        kind=min(
            (lesion.kind for lesion in lesions.values()), key=config.kinds.index, default="normal"
        ),
        pathology=mammogram.pathology
        or worst(lesion.pathology or "" for lesion in lesions.values()),
        official_split=mammogram.official_split or "",
    )
    return _Made(patch, boxes, [config.kinds.index(lesion.kind) for lesion in prepared.lesions])


def _tiles(
    mammogram: Mammogram, lesions: Mapping[int, Lesion], config: DataConfig, skipped: Skipped
) -> list[_Made]:
    """A tile around each wanted lesion, `lesions` by their number, and empty ones."""
    # with its other lesions, which empty tiles may not show
    prepared = preprocess.preprocess_mammogram(mammogram, config.preprocess)
    shown = {number: prepared.lesions[number] for number in lesions}
    size = (prepared.rows, prepared.cols)
    pixels = prepared.pixels()
    image = toned(pixels, config)
    regions = _regions(shown.values(), prepared)
    made = []
    for number, lesion in shown.items():
        corner = around(
            lesion.box, size, config.shape, sampling.stream(config.seed, mammogram.image_id, number)
        )
        patch = _patch(prepared, f"#{number}", image, regions, corner, config)
        patch = replace(
            patch, kind=lesion.kind, pathology=lesion.pathology or mammogram.pathology or ""
        )
        made.append(_labelled(patch, corner, shown, number, config))
    for number, corner in enumerate(_empty(prepared, pixels, config, skipped)):
        patch = _patch(prepared, f"@{number}", image, regions, corner, config)
        made.append(_Made(replace(patch, kind="normal", pathology="normal"), np.empty((0, 4)), []))
    return made


def _empty(
    prepared: Mammogram, pixels: NDArray[np.float32], config: DataConfig, skipped: Skipped
) -> list[tuple[int, int]]:
    """The corners of the empty tiles, drawn from all places; a place may be drawn again."""
    assert config.tiles
    if not config.tiles.empty:
        return []
    free = between(
        preprocess.breast_mask(pixels), [lesion.box for lesion in prepared.lesions], config.shape
    )
    places = np.flatnonzero(free)
    if not len(places):
        skipped.add(
            prepared.image_id,
            f"no tile of {config.shape[0]} x {config.shape[1]} px is breast without a lesion",
        )
        return []
    first = len(prepared.lesions)  # the numbers before it are of the tiles around lesions
    streams = [
        sampling.stream(config.seed, prepared.image_id, first + number)
        for number in range(config.tiles.empty)
    ]
    drawn = [
        np.unravel_index(places[random.integers(len(places))], free.shape) for random in streams
    ]
    return [(int(top), int(left)) for top, left in drawn]


def _patch(
    mammogram: Mammogram,
    suffix: str,
    image: NDArray[np.float32],
    regions: NDArray[np.uint8],
    corner: tuple[int, int],
    config: DataConfig,
) -> Patch:
    shape = config.shape
    return Patch(
        tile(image, *corner, shape),
        tile(regions, *corner, shape),
        mammogram.patient_id,
        mammogram.image_id + suffix,
        official_split=mammogram.official_split or "",
        place=(*corner, corner[0] + shape[0], corner[1] + shape[1]),
    )


def _labelled(
    patch: Patch, corner: tuple[int, int], shown: Mapping[int, Lesion], own: int, config: DataConfig
) -> _Made:
    """A tile around lesion `own` with the boxes of all of the lesions that count in it."""
    boxes = _boxes(shown.values())
    shape = config.shape
    cut = np.clip(boxes - [*corner, *corner], 0, shape * 2)
    part = np.prod(cut[:, 2:] - cut[:, :2], axis=1) / np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    its = np.array([number == own for number in shown])
    if part[its] < 1:
        log.info(
            "%s: lesion %d is larger than a tile, which shows %.0f %% of its box",
            patch.id,
            own,
            100 * part[its].item(),
        )
    counts = (part >= LEFT) | its
    classes = [
        config.kinds.index(lesion.kind)
        for lesion, counted in zip(shown.values(), counts, strict=True)
        if counted
    ]
    return _Made(patch, cut[counts] / (shape * 2), classes)


def _boxes(lesions: Iterable[Lesion]) -> NDArray[np.float64]:
    return np.array([lesion.box for lesion in lesions], np.float64).reshape(-1, 4)


def _regions(lesions: Iterable[Lesion], mammogram: Mammogram) -> NDArray[np.uint8]:
    regions = np.zeros((mammogram.rows, mammogram.cols, 1), np.uint8)
    for lesion in lesions:
        if lesion.outlines:
            regions[..., 0] |= lesion.mask(mammogram.rows, mammogram.cols)
        else:
            top, left, bottom, right = lesion.box
            regions[top:bottom, left:right] = 1
    return regions


def _fitted(image: tuple[int, ...], shape: Size) -> Size:
    """The size of an image after scaling: one side is the canvas', the other no longer than it."""
    rows, cols = image[:2]
    if rows * shape[1] >= cols * shape[0]:
        return shape[0], max(1, round(cols * shape[0] / rows))
    return max(1, round(rows * shape[1] / cols)), shape[1]


def _filled(image: NDArray, shape: Size) -> NDArray:
    return np.pad(image, ((0, shape[0] - image.shape[0]), (0, shape[1] - image.shape[1]), (0, 0)))


def _stacked(made: Sequence[_Made]) -> Whole:
    most = max(len(one.boxes) for one in made)
    boxes = np.zeros((len(made), most, 4), np.float32)
    classes = np.zeros((len(made), most), np.int32)
    for row, one in enumerate(made):
        boxes[row, : len(one.boxes)] = one.boxes
        classes[row, : len(one.boxes)] = one.classes
    texts: dict[str, Any] = {
        plural: np.array([getattr(one.patch, single) for one in made], np.str_)
        for plural, single in TEXTS.items()
    }
    images = np.stack([one.patch.image for one in made])
    masks = np.stack([one.patch.mask for one in made])
    return Whole(images, masks, **texts, boxes=boxes, classes=classes)


def _first(skipped: Skipped) -> str:
    return next(
        (
            f"; {len(skipped)} left out, first {name}: {reason}"
            for name, reason in skipped.reasons.items()
        ),
        "",
    )
