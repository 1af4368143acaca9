"""Preprocess a mammogram before patches are cut, and a patch after it is scaled.

`preprocess_mammogram` and `preprocess_patch` do what a PreprocessConfig switches on, in its order.
Every step is a pure function of one image or mask. tfmammo.data.anatomy finds the breast and the
pectoral muscle.

What moves an image moves its lesions by the same rule. Pixel (r, c)'s centre is the point (r, c):
mirroring takes column c to cols - 1 - c and the half-open box [a, b) to [cols - b, cols - a);
resampling by a factor s takes p to (p + 0.5) s - 0.5.

Images are float32 [rows, cols, 1] in [0, 1] and masks uint8 [rows, cols, 1], 0 or 1, unless said
otherwise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import ceil, floor
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.exposure import equalize_adapthist

from tfmammo.config import PreprocessConfig
from tfmammo.data.anatomy import breast_mask, remove_marks, remove_pectoral
from tfmammo.errors import DataError
from tfmammo.mammogram import MOST_PIXELS, Lesion, Mammogram, MaskedLesion, find_box

Size = tuple[int, int]  # (rows, cols), px


def preprocess_mammogram(mammogram: Mammogram, config: PreprocessConfig) -> Mammogram:
    """Preprocess a mammogram and move its lesions with it; no pixel or mask is read yet.

    remove_marks, remove_pectoral, flip_right and spacing are done, in this order; the other keys
    are for `preprocess_patch`. A fact that a step needs and the archive does not state is an error:
    nobody would notice a wrong guess from the image.
    """
    if not (config.remove_marks or config.remove_pectoral or config.flip_right or config.spacing):
        return mammogram
    _check_facts(mammogram, config)
    mirrored = is_mirrored(mammogram, config)
    old = new = (mammogram.rows, mammogram.cols)
    spacing = mammogram.spacing
    if config.spacing and spacing:
        new = resampled_size(old, spacing, config.spacing)
        spacing = spacing[0] * old[0] / new[0], spacing[1] * old[1] / new[1]
    lesions = mammogram.lesions
    if mirrored or new != old:
        lesions = tuple(_move_lesion(lesion, old, new, mirrored) for lesion in lesions)
    without_lesions = replace(mammogram, lesions=())
    return replace(
        mammogram,
        rows=new[0],
        cols=new[1],
        spacing=spacing,
        lesions=lesions,
        read=partial(_preprocess_pixels, without_lesions, config),
        bits=mammogram.bits if new == old else None,
        source=mammogram.source or without_lesions,
    )


def map_to_native(
    mask: NDArray[np.uint8], mammogram: Mammogram, config: PreprocessConfig
) -> NDArray[np.uint8]:
    """Map a mask of 0 and 1 [rows, cols] from a preprocessed mammogram's grid to the native one.

    A native pixel is 1 where the mask covers at least half of it.
    """
    if mask.shape != (mammogram.rows, mammogram.cols):
        mask = resize_mask_to(mask, mammogram.rows, mammogram.cols)
    return mirror(mask) if is_mirrored(mammogram, config) else mask


def is_mirrored(mammogram: Mammogram, config: PreprocessConfig) -> bool:
    """Return whether preprocessing mirrors a mammogram."""
    return config.flip_right and mammogram.wall_side == "R"


def resize_mask_to(mask: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.uint8]:
    """Resample a mask as an image and keep what is at least half; a border stays smooth."""
    coverage = resize_image(mask[..., None].astype(np.float32), rows, cols)[..., 0]
    return (coverage >= 0.5).astype(np.uint8)


def preprocess_patch(crop: NDArray[np.float32], config: PreprocessConfig) -> NDArray[np.float32]:
    """Denoise a patch of the size that a network sees, then enhance its contrast."""
    if config.denoise:
        crop = denoise(crop, config.denoise)
    if config.contrast == "equalise":
        crop = equalise(crop)
    elif config.contrast == "clahe":
        crop = clahe(crop, config.clahe_clip, config.clahe_tiles)
    return crop


def normalise(image: NDArray[np.float32], percentiles: tuple[float, float]) -> NDArray[np.float32]:
    """Stretch intensities so that two rising percentiles become 0 and 1, and clip."""
    low, high = np.percentile(image, percentiles)
    if not high > low:
        raise ValueError(
            f"the image is constant: its percentiles {percentiles[0]:g} and {percentiles[1]:g} "
            f"are both {low:g}"
        )
    return np.clip((image - low) / (high - low), 0, 1).astype(np.float32)


def resize_image(image: NDArray[np.float32], rows: int, cols: int) -> NDArray[np.float32]:
    """Resample an image by area along an axis that shrinks, linearly along one that grows.

    Averaging over areas avoids aliasing.
    """
    return np.clip(resize(image[..., 0], rows, cols), 0, 1)[..., None]


def resize(values: NDArray[np.float32], rows: int, cols: int) -> NDArray[np.float32]:
    """Resample values of any range as `resize_image` does an image.

    Args:
        values: float32 [any, any].
        rows: New number of rows.
        cols: New number of columns.

    Returns:
        float32 [rows, cols].

    Examples:
        >>> resize(np.float32([[0, 2], [4, 6]]), 1, 2).tolist()
        [[2.0, 4.0]]
    """
    # One axis at a time: asked to shrink one and to grow the other, INTER_AREA falls back to
    # unfiltered linear.
    values = cv2.resize(
        values, (values.shape[1], rows), interpolation=_interpolation(values.shape[0], rows)
    )
    return cv2.resize(values, (cols, rows), interpolation=_interpolation(values.shape[1], cols))


def resize_mask(mask: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.uint8]:
    """Resample a mask by nearest neighbours, on the same grid as `resize_image`."""
    # Not INTER_NEAREST, which takes the upper left of each block and so shifts the mask.
    return cv2.resize(mask[..., 0], (cols, rows), interpolation=cv2.INTER_NEAREST_EXACT)[..., None]


def apply_window(image: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """Map the intensity `low` to 0 and `high` to 1, linearly, and clip."""
    if not low < high:
        raise ValueError(f"a window from {low:g} to {high:g} is empty")
    return np.clip((image - np.float32(low)) / np.float32(high - low), 0, 1)


def mirror(image: NDArray[Any]) -> NDArray[Any]:
    """Mirror an image or a mask [rows, cols, ...] left to right."""
    return np.ascontiguousarray(image[:, ::-1])


def resampled_size(size: Size, spacing: tuple[float, float], target: float) -> Size:
    """Return (rows, cols) of an image at `target` mm per px; its `spacing` is (row, col)."""
    rows = max(1, round(size[0] * spacing[0] / target))
    cols = max(1, round(size[1] * spacing[1] / target))
    return rows, cols


def denoise(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Blur with a Gaussian of `sigma` px; beyond the border the image is mirrored."""
    return np.clip(cv2.GaussianBlur(image[..., 0], (0, 0), sigma), 0, 1)[..., None]


def equalise(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Equalise the histogram on 16 bits.

    A intensity v becomes (cdf(v) - cdf(darkest)) / (1 - cdf(darkest)). So the darkest value is 0
    and the brightest 1, and air stays black, however much there is of it. Equal values stay equal,
    and the order of intensities is kept. A constant image is returned as it is.
    """
    stored = _quantise(image)
    counts = np.bincount(stored.ravel(), minlength=2**16)
    counts[stored.min()] = 0
    if not counts.any():
        return image
    return (np.cumsum(counts) / counts.sum()).astype(np.float32)[stored]


def clahe(image: NDArray[np.float32], clip: float, tiles: int) -> NDArray[np.float32]:
    """Equalise the histogram locally with limited contrast (CLAHE), by scikit-image.

    Intensities are sorted into 256 bins of the full range. A tile's histogram is cut at `clip`
    times a uniform histogram's count and what is cut off is spread over the lower ones. Between
    tile centres the maps of the four nearest tiles are mixed linearly, so that more than 256 levels
    come out. The result is stretched so that its darkest pixel is 0 and its brightest 1; an image
    that is constant on 16 bits is returned as it is.

    Source:
        Zuiderveld, Contrast limited adaptive histogram equalization, Graphics Gems IV (1994) 474.
        Not OpenCV's: on 16 bits it has 65536 bins, which hold less than one pixel of a tile each,
        so that nothing is clipped.
    """
    stored = _quantise(image[..., 0])
    if stored.min() == stored.max():
        return image
    size = ceil(stored.shape[0] / tiles), ceil(stored.shape[1] / tiles)
    equalised = equalize_adapthist(stored, size, clip_limit=clip / 256, nbins=256)
    return equalised.astype(np.float32)[..., None]


def _quantise(image: NDArray[np.float32]) -> NDArray[np.uint16]:
    return np.rint(np.clip(image, 0, 1) * np.float32(65535)).astype(np.uint16)


def _check_facts(mammogram: Mammogram, config: PreprocessConfig) -> None:
    spacing = mammogram.spacing
    needs_side = config.flip_right or (config.remove_pectoral and mammogram.view == "MLO")
    for key, is_missing, fact in (
        ("remove_pectoral", config.remove_pectoral and mammogram.view is None, "the view"),
        (
            "flip_right" if config.flip_right else "remove_pectoral",
            needs_side and mammogram.wall_side is None,
            "the laterality",
        ),
        ("spacing", config.spacing and spacing is None, "mm per px"),
    ):
        if is_missing:
            raise DataError(
                f"data.preprocess.{key} needs {fact}, not stated of {mammogram.image_id} by its "
                "archive"
            )
    if config.spacing and spacing:
        # floats, because a spacing in a wrong unit may make them infinite
        rows = max(1.0, mammogram.rows * (spacing[0] / config.spacing))
        cols = max(1.0, mammogram.cols * (spacing[1] / config.spacing))
        if rows * cols > MOST_PIXELS:
            raise DataError(
                f"data.preprocess.spacing={config.spacing:g} would make {rows:g} x {cols:g} px of "
                f"the {mammogram.rows} x {mammogram.cols} px of {mammogram.image_id}; are both "
                "spacings in mm?"
            )


def _preprocess_pixels(mammogram: Mammogram, config: PreprocessConfig) -> NDArray[np.float32]:
    """Read and preprocess the pixels of a mammogram that `_check_facts` has accepted."""
    image = mammogram.pixels()
    side = mammogram.wall_side
    if config.remove_marks:
        image = remove_marks(image, breast_mask(image))
    if config.remove_pectoral and side and mammogram.view:
        image = remove_pectoral(image, side, mammogram.view)
    if is_mirrored(mammogram, config):
        image = mirror(image)
    if config.spacing and mammogram.spacing:
        size = (mammogram.rows, mammogram.cols)
        image = resize_image(image, *resampled_size(size, mammogram.spacing, config.spacing))
    return image


def _move_lesion(lesion: Lesion, old: Size, new: Size, mirrored: bool) -> Lesion:
    """Move a lesion to the mirrored and then resampled grid. old, new: (rows, cols)."""
    if isinstance(lesion, MaskedLesion):
        read = partial(_read_moved_mask, lesion.read, new, mirrored)
        return MaskedLesion(lesion.kind, read, lesion.files, **lesion.details)
    top, left, bottom, right = lesion.box
    outlines = lesion.outlines
    if mirrored:
        old_left = left
        left = old[1] - right
        right = old[1] - old_left
        outlines = tuple(
            (outline * (1, -1) + (0, old[1] - 1)).astype(np.float32) for outline in outlines
        )
    if new == old:
        return replace(lesion, box=(top, left, bottom, right), outlines=outlines)
    scale = new[0] / old[0], new[1] / old[1]
    outlines = tuple(((outline + 0.5) * scale - 0.5).astype(np.float32) for outline in outlines)
    near = (
        floor(top * scale[0]),
        floor(left * scale[1]),
        ceil(bottom * scale[0]),
        ceil(right * scale[1]),
    )
    # where a float product is just above the border
    near = (*near[:2], min(near[2], new[0]), min(near[3], new[1]))
    moved = replace(lesion, box=near, outlines=outlines)
    with contextlib.suppress(ValueError):  # nothing of it is left to draw: its box moves alone
        moved = replace(moved, box=find_box(outlines, *new)) if outlines else moved
    return moved


def _read_moved_mask(
    read: Callable[[], NDArray[np.uint8]], new: Size, mirrored: bool
) -> NDArray[np.uint8]:
    """Read a mask and move it: uint8 [rows, cols], 0 or 1."""
    mask = (read() != 0).astype(np.uint8)
    if mirrored:
        mask = mirror(mask)
    if mask.shape == new:
        return mask
    moved = resize_mask(mask[..., None], *new)[..., 0]
    if mask.any() and not moved.any():  # a speck that fell between the new pixels' centres
        moved = (
            cv2.resize(mask.astype(np.float32), new[::-1], interpolation=cv2.INTER_AREA) > 0
        ).astype(np.uint8)
    return moved


def _interpolation(old: int, new: int) -> int:
    return cv2.INTER_AREA if new < old else cv2.INTER_LINEAR
