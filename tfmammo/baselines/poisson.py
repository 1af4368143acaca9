"""Blending without a network: direct paste and Poisson image editing (PIE).

The blending paper compares with both. PIE minimises, over f in Omega and with f = tissue where the
mask is 0,

    sum over neighbours <p, q> of (f_p - f_q - v_pq)^2

so that for each pixel p of Omega

    4 f_p - sum of f_q (q in Omega) = sum of tissue_q (q not in Omega) + sum of v_pq

The guide v_pq is the lesion's difference, or, mixed, whichever of the lesion's and the tissue's is
larger. Only the differences of a lesion count, so a constant added to it changes nothing. A mass
that was dense all over loses its density to its new surroundings, which the blending paper calls
over-blending.

All functions take one patch, or one window in native pixels, and return the tissue itself, bit by
bit, where the mask is 0:

    Args:
        tissue: float32 [rows, cols, 1] in [0, 1].
        lesion: The same shape and range, with its own surroundings: differences across the mask's
            border reach one pixel beyond it.
        mask: uint8 [rows, cols, 1], 0 or 1, 0 along the border.

    Returns:
        float32 [rows, cols, 1], clipped to [0, 1].

    Raises:
        ValueError: Another shape, dtype or value, an empty mask, or one that touches the border.

    Source:
        Perez, Gangnet and Blake, Poisson image editing (2003). Deviation: none but the clipping.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

Image = NDArray[np.float32]
Mask = NDArray[np.uint8]


def paste(tissue: Image, lesion: Image, mask: Mask) -> Image:
    """Paste the lesion where the mask is 1; see the module for arguments, result and errors."""
    _check(tissue, lesion, mask)
    return np.where(mask == 1, lesion, tissue)


def poisson(tissue: Image, lesion: Image, mask: Mask, mixed: bool = False) -> Image:
    """Blend by Poisson image editing; see the module for arguments, result and errors.

    The equations are solved in float64 by a sparse factorisation, exact but for rounding. 60,000 px
    take about 0.2 s of processor time. With `mixed` the guide is the tissue's difference where that
    is larger in magnitude, else the lesion's.

    Source:
        Perez et al., Eq. 7, with the guide of Eq. 9 to 11, mixed of Eq. 12 and 13 (Eq. 4 of the
        blending paper, there of gradients, here of each difference).
    """
    _check(tissue, lesion, mask)
    inside = (mask == 1).ravel()
    background = tissue.astype(np.float64).ravel()
    foreground = lesion.astype(np.float64).ravel()
    pixels = np.flatnonzero(inside)
    number = np.cumsum(inside) - 1  # of each pixel of Omega among the unknowns
    right = np.zeros(len(pixels))
    rows = []
    cols = []
    for step in (-mask.shape[1], -1, 1, mask.shape[1]):
        neighbours = pixels + step
        inner = inside[neighbours]
        right += _guide(foreground, background, pixels, neighbours, mixed) + np.where(
            inner, 0.0, background[neighbours]
        )
        rows.append(number[pixels[inner]])
        cols.append(number[neighbours[inner]])
    solution = _solve(np.concatenate(rows), np.concatenate(cols), right)
    blended = tissue.copy()
    blended.ravel()[pixels] = np.clip(solution, 0.0, 1.0)
    return blended


def opencv(tissue: Image, lesion: Image, mask: Mask, mixed: bool = False) -> Image:
    """Blend by OpenCV's seamlessClone, in 8 bits; see the module for arguments and errors.

    It is no exact Poisson editing. It solves on the mask's whole bounding box with the tissue's
    differences around the mask, by a discrete sine transform, and takes the lesion's only from 3 px
    inside the mask. Pixels that it changes beyond the mask are restored. A mask below 3 px high or
    wide is a ValueError. `mixed` is its MIXED_CLONE.
    """
    _check(tissue, lesion, mask)
    left, top, width, height = cv2.boundingRect(mask)
    if min(width, height) < 3:
        raise ValueError(f"OpenCV clones masks from 3 px up, this one is {height} x {width} px")
    source, target = (
        cv2.merge([np.rint(255 * image[..., 0]).astype(np.uint8)] * 3) for image in (lesion, tissue)
    )
    # The bounding box's centre goes to this point; OpenCV halves width and height as integers too.
    centre = (left + width // 2, top + height // 2)
    flags = cv2.MIXED_CLONE if mixed else cv2.NORMAL_CLONE
    cloned = cv2.seamlessClone(source, target, 255 * mask[..., 0], centre, flags)
    return np.where(mask == 1, cloned[..., :1].astype(np.float32) / np.float32(255), tissue)


METHODS: dict[str, Callable[[Image, Image, Mask], Image]] = {
    "paste": paste,
    "poisson": poisson,
    "mixed": partial(poisson, mixed=True),
    "opencv": opencv,
    "opencv_mixed": partial(opencv, mixed=True),
}


def _guide(
    lesion: NDArray[np.float64],
    tissue: NDArray[np.float64],
    pixels: NDArray[np.intp],
    neighbours: NDArray[np.intp],
    mixed: bool,
) -> NDArray[np.float64]:
    """Compute v_pq of each pixel p and its neighbour q, from flat images."""
    lesion_difference = lesion[pixels] - lesion[neighbours]
    if not mixed:
        return lesion_difference
    tissue_difference = tissue[pixels] - tissue[neighbours]
    tissue_is_larger = np.abs(tissue_difference) > np.abs(lesion_difference)
    return np.where(tissue_is_larger, tissue_difference, lesion_difference)


def _solve(
    rows: NDArray[np.intp], cols: NDArray[np.intp], right: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Solve the equations, whose right sides these are, of Omega's pixels.

    `rows` and `cols` are the pairs of neighbours within Omega, each pair in both orders.
    """
    diagonal = np.arange(len(right))
    values = np.concatenate([np.full(len(right), 4.0), np.full(len(rows), -1.0)])
    indices = np.concatenate([diagonal, rows]), np.concatenate([diagonal, cols])
    matrix = sparse.csc_array((values, indices), shape=(len(right), len(right)))
    # The matrix is symmetric and positive definite, so it needs no pivoting. This is faster than
    # spsolve by a fourth, and about as fast as cg, but exact.
    factors = splu(
        matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
    )
    return factors.solve(right)


def _check(tissue: Image, lesion: Image, mask: Mask) -> None:
    if not tissue.shape == lesion.shape == mask.shape or tissue.ndim != 3 or tissue.shape[-1] != 1:
        raise ValueError(
            f"tissue, lesion and mask must all be [rows, cols, 1], not {tissue.shape}, "
            f"{lesion.shape}, {mask.shape}"
        )
    for name, image in (("tissue", tissue), ("lesion", lesion)):
        if image.dtype != np.float32:
            raise ValueError(f"the {name} must be float32, not {image.dtype}")
        if not np.all((image >= 0) & (image <= 1)):  # catches NaN too
            raise ValueError(f"the {name}'s values must be between 0 and 1")
    if mask.dtype != np.uint8 or not np.all(mask <= 1):
        raise ValueError(
            f"the mask must be uint8 of 0 and 1, not {mask.dtype} up to {mask.max(initial=0)}"
        )
    if not mask.any():
        raise ValueError("the mask is empty, there is nothing to blend")
    if mask[[0, -1]].any() or mask[:, [0, -1]].any():
        raise ValueError(
            "the mask touches the patch's border, so that no tissue is known around it"
        )
