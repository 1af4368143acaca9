"""Pure functions of one image or mask: grey-value normalisation and resampling."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def normalise(image: NDArray[np.float32], percentiles: tuple[float, float]) -> NDArray[np.float32]:
    """Stretch grey values so that two percentiles of the image become 0 and 1, and clip.

    Args:     image: float32 [rows, cols, 1], any range. percentiles: two rising numbers, 0 to 100.
    Returns:  float32 [rows, cols, 1] in [0, 1].
    Raises:   ValueError: both percentiles have the same grey value, as in a constant image.
    """
    low, high = np.percentile(image, percentiles)
    if not high > low:
        raise ValueError(f"the image is constant: its percentiles {percentiles[0]:g} and {percentiles[1]:g} are both {low:g}")
    return np.clip((image - low) / (high - low), 0, 1).astype(np.float32)


def resize_image(image: NDArray[np.float32], rows: int, cols: int) -> NDArray[np.float32]:
    """Resample an image: by area, free of aliasing, along an axis that shrinks; linear along one that grows.

    Args:     image: float32 [any, any, 1] in [0, 1]. rows, cols: the new size, px.
    Returns:  float32 [rows, cols, 1] in [0, 1].
    """
    # One axis at a time: asked to shrink one and to grow the other, INTER_AREA falls back to unfiltered linear.
    image = cv2.resize(image[..., 0], (image.shape[1], rows), interpolation=_interpolation(image.shape[0], rows))
    image = cv2.resize(image, (cols, rows), interpolation=_interpolation(image.shape[1], cols))
    return np.clip(image, 0, 1)[..., None]


def resize_mask(mask: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.uint8]:
    """Resample a mask by nearest neighbours, on the same grid as `resize_image`.

    Args:     mask: uint8 [any, any, 1], 0 or 1. rows, cols: the new size, px.
    Returns:  uint8 [rows, cols, 1], 0 or 1.
    """
    # Not INTER_NEAREST, which takes the upper left of each block and so shifts the mask.
    return cv2.resize(mask[..., 0], (cols, rows), interpolation=cv2.INTER_NEAREST_EXACT)[..., None]


def _interpolation(old: int, new: int) -> int:
    return cv2.INTER_AREA if new < old else cv2.INTER_LINEAR
