"""Defects of synthetic texture: tissue with too little or too much structure, checkerboards.

A generator that fails leaves holes without texture, harsh blotches, or checkerboard artefacts with
the period of its strides. None of these shows in a distance to the real image, which a generator
need not reproduce. The measures here compare with the range of real patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.floating]

WINDOW = 7  # px, of local standard deviations
PERIOD = 8  # px, of the coarsest checkerboard artefact: three upsampling layers
TAIL = 0.01
ROUNDING = 1e-6  # deviation of equal intensities, computed in float64; 8 bits are 4e-3 apart
RING = 2  # bins: a Hann window spreads a peak by less


@dataclass(frozen=True)
class TextureRange:
    """The local standard deviations between which real tissue is.

    Attributes:
        low: Tissue below it is flat, and above `high` harsh.
    """

    low: float
    high: float


def compute_local_deviation(images: Images, window: int = WINDOW) -> NDArray[np.float64]:
    """Compute the standard deviation of the square around each pixel, float64 [n, s, s, 1].

    Images are float [n, s, s, 1] in [0, 1], and mirrored at their border; `window` is in px.
    """
    deviations = np.zeros(images.shape, np.float64)
    for row, image in enumerate(images[..., 0].astype(np.float64)):
        mean = cv2.blur(image, (window, window))
        square = cv2.blur(image**2, (window, window))
        deviations[row, ..., 0] = np.sqrt(np.maximum(square - mean**2, 0))
    return deviations


def measure_range(
    images: Images, masks: NDArray[np.generic], window: int = WINDOW, tail: float = TAIL
) -> TextureRange:
    """Measure the range of the local deviation of real tissue, which is outside the masks.

    Pixels around which everything is equal, such as air around the breast, do not count.

    Args:
        images: Real patches, float [n, s, s, 1] in [0, 1].
        masks: {0, 1} [n, s, s, 1].
        window: Side of the square, px.
        tail: The share of tissue that is below the range, and that above it, in [0, 0.5).
    """
    deviations = compute_local_deviation(images, window)[np.asarray(masks) == 0]
    deviations = deviations[deviations > ROUNDING]
    if not deviations.size:
        raise ValueError("no real patch has any texture outside its mask")
    low, high = np.quantile(deviations, (tail, 1 - tail))
    return TextureRange(float(low), float(high))


def find_defects(
    images: Images, masks: NDArray[np.generic], limits: TextureRange, window: int = WINDOW
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Find tissue, outside the masks, whose texture is outside the range of real tissue.

    Returns:
        Flat pixels and harsh pixels, bool [n, s, s, 1] each; limits are measured with the same
        `window`.
    """
    deviations = compute_local_deviation(images, window)
    tissue = np.asarray(masks) == 0
    return tissue & (deviations < limits.low), tissue & (deviations > limits.high)


def compute_lattice(images: Images, period: int = PERIOD) -> NDArray[np.float64]:
    """Compute how far a checkerboard artefact's frequencies exceed the spectrum around them.

    The frequencies are the multiples of 1 / period along both axes, without 0. Each is compared
    with the ring of frequencies two bins away, in a spectrum under a Hann window.

    Args:
        images: float [n, s, s, 1] in [0, 1]; s a multiple of `period`, four times as long at least.
        period: Of the coarsest artefact, px; divisors of it are found as well.

    Returns:
        dB, float64 [n]: the mean over frequencies of the power above that of its ring. About 0
        without an artefact; 0 for a constant image.
    """
    size = images.shape[1]
    if size % period or size < 2 * RING * period:
        raise ValueError(
            f"a checkerboard of {period} px needs patches of a multiple of {period} px, at least "
            f"{2 * RING * period}, not {size}"
        )
    # The periodic form of the window, whose zeros are on bins.
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    window = np.outer(hann, hann)
    pixels = images[..., 0].astype(np.float64)
    centred = pixels - pixels.mean(axis=(1, 2), keepdims=True)
    power = np.abs(np.fft.fft2(centred * window)) ** 2
    # A bin that is its own mirror image holds a real number, whose mean logarithm is lower.
    power[:, :: size // 2, :: size // 2] *= 2
    # Far below what 8 bits resolve: an empty bin is neither a peak nor a gap.
    level = 10 * np.log10(power + 1e-6 * np.sum(window**2))
    offsets = [
        (row, col)
        for row in range(-RING, RING + 1)
        for col in range(-RING, RING + 1)
        if max(abs(row), abs(col)) == RING
    ]
    ring = np.mean([np.roll(level, offset, axis=(1, 2)) for offset in offsets], axis=0)
    excess = (level - ring)[:, :: size // period, :: size // period].reshape(len(images), -1)
    return np.asarray(excess[:, 1:].mean(axis=1))


def compute_fine_energy(
    images: Images, masks: NDArray[np.generic] | None = None
) -> NDArray[np.float64]:
    """Compute the mean energy of the finest band of Haar wavelets, of its three details.

    Args:
        images: float [n, s, s, 1] in [0, 1], s even.
        masks: {0, 1} [n, s, s, 1], where to look: squares of 2 x 2 px that are inside; None:
            everywhere.

    Returns:
        float64 [n]; NaN where no square is inside.
    """
    pixels = images[..., 0].astype(np.float64)
    top_left, top_right = pixels[:, ::2, ::2], pixels[:, ::2, 1::2]
    bottom_left, bottom_right = pixels[:, 1::2, ::2], pixels[:, 1::2, 1::2]
    horizontal = (top_left - top_right + bottom_left - bottom_right) / 2
    vertical = (top_left + top_right - bottom_left - bottom_right) / 2
    diagonal = (top_left - top_right - bottom_left + bottom_right) / 2
    energy = horizontal**2 + vertical**2 + diagonal**2
    if masks is None:
        return np.asarray(energy.mean(axis=(1, 2)))
    inside = np.asarray(masks)[..., 0] != 0
    whole = inside[:, ::2, ::2] & inside[:, ::2, 1::2] & inside[:, 1::2, ::2]
    whole &= inside[:, 1::2, 1::2]
    counts = whole.sum(axis=(1, 2))
    sums = np.where(whole, energy, 0).sum(axis=(1, 2))
    return np.divide(sums, counts, out=np.full(len(images), np.nan), where=counts > 0)
