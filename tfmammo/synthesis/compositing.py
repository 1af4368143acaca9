"""Compositing: how a generated patch gets into a mammogram without a visible border.

A lesion is inserted by the difference that a generator makes. Its patch is cut where training
patches are cut (data.patches' `frame`), and scaled to the generator's size and grey scale. The
generator's change is scaled back to native pixels and intensities, and added with
`BlendMask.weights`. They are 1 on the mask and its margin, fall to 0 within `feather` px of the
patch around them, and are 0 at the patch's border. So the tissue keeps its own grain, and nothing
beyond `BlendMask.support` changes.

What the papers leave open: around the lesion a generator may be a little brighter or darker than
the tissue that it was given. Its mean difference there is subtracted everywhere, so that no step is
left to fade. With data.percentiles the brightest tissue of a patch is 1, so that a mass can't be
brighter. data.window has no such end.

A patch with tissue of its own, of a CAN or a vanilla GAN, is inserted whole instead
(`make_whole_blend_mask`). Its intensities replace those of the mammogram, and fade out at its
border alone.

Deviation from Shen et al., section 4.3: "the breast tissue patch at original position is replaced
by the generated mass patch". By default the difference is added instead (`blend`). A patch of 256
px that is scaled to native pixels has none of the tissue's grain, so that its square shows, and a
detector can learn squares. `whole_patch` of a synthesis is the paper's way (`blend` with
`replaces`), with feather=0 up to its hard border.

Patches are float32 [size, size, 1] in [0, 1], masks uint8 [size, size], 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import cv2
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfmammo.data import preprocess
from tfmammo.data.preprocess import resize
from tfmammo.errors import DataError
from tfmammo.mammogram import Box
from tfmammo.nn.layers import Margin, enlarge
from tfmammo.synthesis.placement import Placement, TargetMammogram

Shown = TypeVar("Shown", bound=np.generic)
GAP = 4  # px of the patch between mask and border, at least, to fade in
FAINT = 1 / 512  # smaller weights become 0: they would change no grey level of the patch


@dataclass(frozen=True, eq=False)
class BlendMask:
    """The weights that a generated patch is blended in with.

    Attributes:
        mask: uint8 [size, size], 0 or 1, the lesion as the generator sees it.
        around: bool [size, size], where the difference fades.
        weights: float32 [rows, cols] of the support, in [0, 1].
        support: Box of what changes, native px, half-open.
    """

    mask: NDArray[np.uint8]
    around: NDArray[np.bool_]
    weights: NDArray[np.float32]
    support: Box


def make_blend_mask(
    placement: Placement, size: int, margin: Margin | None, feather: float
) -> BlendMask:
    """Make the weights of what a generator changes.

    They are 1 on the mask and its margin, fall to 0 around them, and are 0 at the patch's border.

    Args:
        margin: Of its tri-label, 296 in the paper, or None; see layers.tri_label.
        feather: px of the patch over which the weights fall.
    """
    mask = placement.scale_mask(size)
    weights, around = _make_weights(mask, margin, min(feather, measure_gap(mask)))
    return BlendMask(mask, around, *_to_native(weights, placement.window))


def blend_patch(
    tissue: NDArray[np.float32], image: NDArray[np.float32], mask: NDArray[np.uint8], feather: float
) -> NDArray[np.float32]:
    """Blend a generated image into the patch that it was made from, as `blend` into a mammogram.

    A mask may be nearer to the patch's border than in a mammogram: its weights are 1, too.

    Args:
        tissue: float32 [size, size, 1] in [0, 1].
        image: Likewise.
        mask: uint8 [size, size, 1], 0 or 1.
        feather: As for `make_blend_mask`.
    """
    gap = max(_find_gap(mask[..., 0]), GAP)
    weights, around = _make_weights(mask[..., 0], None, min(feather, gap))
    weights = np.maximum(weights, mask[..., 0])
    change = _subtract_offset((image - tissue)[..., 0], around)
    blended = np.clip(tissue[..., 0] + weights.astype(np.float32) * change, 0, 1)
    return blended[..., np.newaxis]


def make_whole_blend_mask(mask: NDArray[np.uint8], window: Box, feather: float) -> BlendMask:
    """Make the weights of a patch that is inserted whole: 1, but for its border.

    Args:
        mask: uint8 [size, size], 0 or 1, of the patch.
        window: Where the patch is, native px, half-open.
        feather: px of the patch over which they fall to 0, or fewer where its mask is nearer.
    """
    weights = _fade_inwards(len(mask), min(feather, measure_gap(mask)))
    return BlendMask(mask, np.zeros(mask.shape, np.bool_), *_to_native(weights, window))


def measure_gap(mask: NDArray[np.uint8]) -> int:
    """Measure how near a mask comes to the border of its patch, px, at least GAP."""
    size = len(mask)
    if not mask.any():
        raise DataError(f"nothing of its mask is left at {size} px")
    gap = _find_gap(mask)
    if gap < GAP:
        raise DataError(
            f"its mask touches the border of its patch, or comes nearer than {GAP} of {size} px"
        )
    return gap


def _find_gap(mask: NDArray[np.uint8]) -> int:
    size = len(mask)
    col, row, width, height = cv2.boundingRect(mask)
    return int(min(row, col, size - row - height, size - col - width))


@dataclass(frozen=True, eq=False)
class TargetPatch:
    """The patch of a mammogram that a generator is shown, made as training patches are.

    Attributes:
        tissue: float32 [size, size, 1] in [0, 1].
        low: Native intensity that is 0 in it.
        high: Native intensity that is 1 in it.
    """

    tissue: NDArray[np.float32]
    low: float
    high: float
    mirrored: bool

    def mirror(self, values: NDArray[Shown]) -> NDArray[Shown]:
        """Mirror what is as in the mammogram, [size, size, ...], as this patch, or back."""
        return np.ascontiguousarray(values[:, ::-1] if self.mirrored else values)

    def compute_difference(
        self, image: NDArray[np.float32], around: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Compute what a generated image changes, in native intensities.

        The mean change where `around` (of a BlendMask) is true is subtracted.
        """
        change = _subtract_offset(self.mirror((image - self.tissue)[..., 0]), around)
        return change * np.float32(self.high - self.low)

    def to_native(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Convert a generated image to native intensities, mirrored as the mammogram."""
        scale = np.float32(self.high - self.low)
        return self.mirror(np.float32(self.low) + scale * image[..., 0])


def extract_patch(target: TargetMammogram, window: Box, size: int) -> TargetPatch:
    """Extract the patch in a window of native px."""
    top, left, bottom, right = window
    data = target.data
    image = resize_as_trained(target.image[top:bottom, left:right, 0], target, size)[..., None]
    if data.preprocess.remove_marks or data.preprocess.remove_pectoral:
        image = np.where(_resample_breast(target, window, size) != 0, image, np.float32(0))
    image = preprocess.preprocess_patch(np.clip(image, 0, 1), data.preprocess)
    low, high = data.window or (float(value) for value in np.percentile(image, data.percentiles))
    if not low < high:
        raise DataError("the tissue under it is constant")
    mirrored = preprocess.is_mirrored(target.mammogram, data.preprocess)
    tissue = preprocess.apply_window(image, low, high)
    patch = TargetPatch(tissue, low, high, mirrored)
    return replace(patch, tissue=patch.mirror(tissue))


def blend(
    target: TargetMammogram,
    placement: Placement,
    blend_mask: BlendMask,
    patch: NDArray[np.float32],
    replaces: bool = False,
) -> NDArray[np.float32]:
    """Blend a patch in: the target plus its weighted change, clipped.

    Args:
        patch: float32 [size, size]. The change, from `TargetPatch.compute_difference`, or where it
            `replaces` the tissue intensities, from `TargetPatch.to_native`.

    Returns:
        float32 [rows, cols] of blend_mask.support, in [0, 1].
    """
    top, left, bottom, right = placement.window
    first_row, first_col, last_row, last_col = blend_mask.support
    native = resize(patch, bottom - top, right - left)
    change = native[first_row - top : last_row - top, first_col - left : last_col - left]
    tissue = target.image[first_row:last_row, first_col:last_col, 0]
    if replaces:
        change = change - tissue
    return np.clip(tissue + blend_mask.weights * change, 0, 1)


def _make_weights(
    mask: NDArray[np.uint8], margin: Margin | None, fade: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Make weights of a patch that fall around a mask and its margin, and where they fall."""
    core = mask
    if margin is not None:
        core = mask | enlarge(tf.constant(mask[..., None]), margin).numpy()[..., 0]
    distance = cv2.distanceTransform(1 - core, cv2.DIST_L2, 5)
    weights = _smooth(1 - distance / fade) * _fade_inwards(len(mask), fade)
    return weights, (weights > 0) & (core == 0)


def _subtract_offset(change: NDArray[np.float32], around: NDArray[np.bool_]) -> NDArray[np.float32]:
    offset = change[around].mean() if around.any() else 0.0
    return change - np.float32(offset)


def _fade_inwards(size: int, fade: float) -> NDArray[np.float64]:
    """Make weights that rise from 0 at a patch's border to 1 within `fade` px, if any."""
    if not fade:
        return np.ones((size, size))
    edge = np.minimum(np.arange(size), np.arange(size)[::-1])
    return _smooth(np.minimum(edge, edge[:, None]) / fade)


def _to_native(weights: NDArray[np.float64], window: Box) -> tuple[NDArray[np.float32], Box]:
    """Scale a patch's weights to the native px of its window."""
    top, left, bottom, right = window
    native = resize(weights.astype(np.float32), bottom - top, right - left)
    native[native < FAINT] = 0
    col, row, width, height = cv2.boundingRect((native > 0).astype(np.uint8))
    support = (top + row, left + col, top + row + height, left + col + width)
    return native[row : row + height, col : col + width], support


def _smooth(ramp: NDArray) -> NDArray[np.float64]:
    """Bend a ramp from 0 to 1 so that its ends are level."""
    ramp = np.clip(ramp, 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def _resample_breast(target: TargetMammogram, window: Box, size: int) -> NDArray[np.uint8]:
    """Resample the breast in a window: uint8 [size, size, 1], 0 or 1."""
    places = []
    for start, stop, count in zip(window[:2], window[2:], target.breast.shape, strict=True):
        native = start + (np.arange(size) + 0.5) * (stop - start) / size
        places.append(np.minimum((native / target.step).astype(int), count - 1))
    return target.breast[np.ix_(*places)][..., None]


def resize_as_trained(
    native: NDArray[np.float32], target: TargetMammogram, size: int
) -> NDArray[np.float32]:
    """Resize a window [rows, cols] to a generator's size as its training did.

    Where training resampled mammograms (data.preprocess.spacing), so does this.
    """
    training_spacing = target.data.preprocess.spacing
    spacing = target.mammogram.spacing
    if training_spacing and spacing is None:
        raise DataError(
            "its mm per px are not stated, and the generator's training resampled mammograms "
            "(data.preprocess.spacing)"
        )
    if training_spacing and spacing:
        rows, cols = preprocess.resampled_size(
            (native.shape[0], native.shape[1]), spacing, training_spacing
        )
        native = resize(native, rows, cols)
    return resize(native, size, size)
