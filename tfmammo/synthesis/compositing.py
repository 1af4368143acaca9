"""How a patch gets into a mammogram: blend mask, resampling, seam."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfmammo.data import preprocess
from tfmammo.data.preprocess import resize
from tfmammo.errors import DataError
from tfmammo.mammogram import Box
from tfmammo.models.infilling import enlarged
from tfmammo.synthesis.config import Reach
from tfmammo.synthesis.placement import Ground, Spot

GAP = 4  # px of the patch between mask and border, at least, to fade in
FAINT = 1 / 512  # weights below are none: no grey level of the patch would change


@dataclass(frozen=True, eq=False)
class Seam:
    """How a generated patch is blended in.

    Attributes:
        mask: uint8 [size, size], 0 or 1, what the generator is shown.
        around: bool [size, size], where the difference fades.
        weights: float32 of the support, in [0, 1].
        support: Native px, half-open; nothing beyond it changes.
    """

    mask: NDArray[np.uint8]
    around: NDArray[np.bool_]
    weights: NDArray[np.float32]
    support: Box

    def reach(self, box: Box) -> Reach:
        """How far the support goes beyond a box."""
        return (
            box[0] - self.support[0],
            box[1] - self.support[1],
            self.support[2] - box[2],
            self.support[3] - box[3],
        )


def seam(spot: Spot, size: int, margin: int | None, feather: float) -> Seam:
    """The mask as the generator sees it, and the weights of what it changes.

    Args:
        spot: Of the lesion.
        size: Of the generator's patch, px.
        margin: Of its tri-label, 296 in the paper, or None; see models.infilling.
        feather: px of the patch.

    Raises:
        DataError: The mask touches the border of its patch, or vanishes at its size.
    """
    mask = spot.patch_mask(size)
    fade = min(feather, gap(mask))
    core = (
        mask
        if margin is None
        else mask | enlarged(tf.constant(mask[..., None]), margin).numpy()[..., 0]
    )
    beyond = cv2.distanceTransform(1 - core, cv2.DIST_L2, 5)
    faded = _smooth(1 - beyond / fade) * _inwards(size, fade)
    return Seam(mask, (faded > 0) & (core == 0), *_native(faded, spot.window))


def whole_seam(mask: NDArray[np.uint8], window: Box, feather: float) -> Seam:
    """The weights of a patch that is set in whole: 1, but falling to 0 over `feather` px at its
    border, or fewer where its mask is nearer.

    With a feather of 0 they are 1 up to the border.

    Args:
        mask: uint8 [size, size], 0 or 1, of the patch.
        window: Where that lies, native px, half-open.
        feather: px of the patch.

    Raises:
        DataError: As `gap`.
    """
    return Seam(
        mask,
        np.zeros(mask.shape, np.bool_),
        *_native(_inwards(len(mask), min(feather, gap(mask))), window),
    )


def gap(mask: NDArray[np.uint8]) -> int:
    """How near a mask comes to the border of its patch, px, at least GAP.

    Args:
        mask: uint8 [size, size], 0 or 1.

    Raises:
        DataError: It touches the border or comes nearer, or it is empty.
    """
    size = len(mask)
    (col, row, width, height) = cv2.boundingRect(mask)
    if not width:
        raise DataError(f"nothing of its mask is left at {size} px")
    found = min(row, col, size - row - height, size - col - width)
    if found < GAP:
        raise DataError(
            f"its mask touches the border of its patch, or comes nearer than {GAP} of {size} px"
        )
    return int(found)


@dataclass(frozen=True, eq=False)
class Patch:
    """What a generator is shown of a ground.

    Attributes:
        tissue: float32 [size, size, 1], mask: float32 [size, size, 1].
        low: The grey values that it sees as 0 and 1.
        high: The grey values that it sees as 0 and 1.
        mirrored: Whether it is of a right breast, turned to the left.
    """

    tissue: NDArray[np.float32]
    mask: NDArray[np.float32]
    low: float
    high: float
    mirrored: bool

    def difference(
        self, image: NDArray[np.float32], around: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """What a generated image [size, size, 1] changes, in native grey values, the mean change
        around the lesion taken off.
        """
        change = (image - self.tissue)[..., 0]
        change = change[:, ::-1] if self.mirrored else change
        offset = change[around].mean() if around.any() else 0.0
        return np.ascontiguousarray(
            (change - np.float32(offset)) * np.float32(self.high - self.low)
        )

    def native(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """A generated image [size, size, 1] in native grey values, turned as the mammogram: float32
        [size, size].
        """
        grey = np.float32(self.low) + np.float32(self.high - self.low) * image[..., 0]
        return np.ascontiguousarray(grey[:, ::-1] if self.mirrored else grey)


def patch(ground: Ground, spot: Spot, seam: Seam) -> Patch:
    """The ground under a lesion as training patches are made: prepared, scaled, mirrored, its grey
    values in [0, 1].

    Raises:
        DataError: It is constant.
    """
    image, low, high = tissue(ground, spot.window, len(seam.mask))
    mask = seam.mask.astype(np.float32)[..., None]
    mirrored = ground.data.preprocess.flip_right and ground.mammogram.laterality == "R"
    if mirrored:
        image, mask = (np.ascontiguousarray(part[:, ::-1]) for part in (image, mask))
    return Patch(image, mask, low, high, mirrored)


def tissue(ground: Ground, window: Box, size: int) -> tuple[NDArray[np.float32], float, float]:
    """A window as training patches are made, not yet mirrored: prepared, scaled, its grey values in
    [0, 1].

    Returns:
        float32 [size, size, 1], and the native grey values that are 0 and 1 in it.

    Raises:
        DataError: It is constant.
    """
    top, left, bottom, right = window
    data = ground.data
    image = training_resize(ground.image[top:bottom, left:right, 0], ground, size)[..., None]
    if data.preprocess.remove_marks or data.preprocess.remove_pectoral:
        image = np.where(_resampled(ground, window, size) != 0, image, np.float32(0))
    image = preprocess.framed(np.clip(image, 0, 1), data.preprocess)
    low, high = data.window or (float(value) for value in np.percentile(image, data.percentiles))
    if not low < high:
        raise DataError("the tissue under it is constant")
    return preprocess.window(image, low, high), low, high


def blended(
    ground: Ground, spot: Spot, seam: Seam, difference: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The support's new grey values: the ground plus the weighted difference, clipped.

    Args:
        difference: float32 [size, size], from `Patch.difference`.

    Returns:
        float32 [rows, cols] of seam.support, in [0, 1]; equal to the ground wherever the weight is
        0.
    """
    (top, left, bottom, right) = spot.window
    (first, before, last, behind) = seam.support
    native = resize(difference, bottom - top, right - left)[
        first - top : last - top, before - left : behind - left
    ]
    return np.clip(ground.image[first:last, before:behind, 0] + seam.weights * native, 0, 1)


def replaced(
    ground: Ground, spot: Spot, seam: Seam, grey: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The support's new grey values where a patch takes the ground's place.

    Args:
        grey: float32 [size, size], from `Patch.native`.
        seam: From `whole_seam`.

    Returns:
        float32 [rows, cols] of seam.support, in [0, 1]; equal to the ground wherever the weight is
        0.
    """
    (top, left, bottom, right) = spot.window
    (first, before, last, behind) = seam.support
    patch = resize(grey, bottom - top, right - left)[
        first - top : last - top, before - left : behind - left
    ]
    tissue = ground.image[first:last, before:behind, 0]
    return np.clip(tissue + seam.weights * (patch - tissue), 0, 1)


def _inwards(size: int, fade: float) -> NDArray[np.float64]:
    """0 at a patch's border, rising to 1 within `fade` px, 1 everywhere with a fade of 0: float64
    [size, size].
    """
    if not fade:
        return np.ones((size, size))
    edge = np.minimum(np.arange(size), np.arange(size)[::-1])
    return _smooth(np.minimum(edge, edge[:, None]) / fade)


def _native(faded: NDArray[np.float64], window: Box) -> tuple[NDArray[np.float32], Box]:
    """A patch's weights in the native px of its window, those that are none cut off, and what of it
    they cover.
    """
    top, left, bottom, right = window
    weights = resize(faded.astype(np.float32), bottom - top, right - left)
    weights[weights < FAINT] = 0
    col, row, width, height = cv2.boundingRect((weights > 0).astype(np.uint8))
    return weights[row : row + height, col : col + width], (
        top + row,
        left + col,
        top + row + height,
        left + col + width,
    )


def _smooth(ramp: NDArray) -> NDArray[np.float64]:
    """0 to 1 with level ends."""
    ramp = np.clip(ramp, 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def _resampled(ground: Ground, window: Box, size: int) -> NDArray[np.uint8]:
    """The breast in a window: uint8 [size, size, 1], 0 or 1."""
    places: Iterator[NDArray[np.intp]] = (
        np.minimum(
            ((start + (np.arange(size) + 0.5) * (stop - start) / size) / ground.step).astype(int),
            count - 1,
        )
        for start, stop, count in zip(window[:2], window[2:], ground.breast.shape, strict=True)
    )
    return ground.breast[np.ix_(*places)][..., None]


def training_resize(native: NDArray[np.float32], ground: Ground, size: int) -> NDArray[np.float32]:
    """A window's grey values at a generator's size, by way of data.preprocess.spacing where its
    training went that way.

    Args:
        native: float32 [rows, cols].
        ground: Data and mammogram.spacing are used.

    Returns:
        float32 [size, size].

    Raises:
        DataError: Training resampled mammograms, and the mm per px of this one are not stated.
    """
    target = ground.data.preprocess.spacing
    spacing = ground.mammogram.spacing
    if target and spacing is None:
        raise DataError(
            "its mm per px are not stated, and the generator's training resampled mammograms "
            "(data.preprocess.spacing)"
        )
    if target and spacing:
        rows, cols = preprocess.resampled_size((native.shape[0], native.shape[1]), spacing, target)
        native = resize(native, rows, cols)
    return resize(native, size, size)
