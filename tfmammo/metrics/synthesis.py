"""Distances of synthetic images to real ones: everywhere, in the mass, and along its edge.

`per_image` compares a synthetic image with the real one of the same mask. `sliced_wasserstein`
compares sets, where no real image belongs to a synthetic one.

A good synthetic image need not equal the real one. These numbers say how well a network reproduces
what was seen, not how real its image looks. The edge has a region of its own because CAN claims its
gain there (section III.A).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from tfmammo.metrics.blending import check_patches

# px on either side of the outline: together 16 px, the receptive field of CAN's discriminator.
EDGE = 8
# Of the sliced Wasserstein distance: windows of each set at each level, and random directions.
WINDOWS = 4096
DIRECTIONS = 128


def per_image(
    real: NDArray[np.floating],
    synthetic: NDArray[np.floating],
    masks: NDArray[np.generic],
    edge: int = EDGE,
) -> dict[str, NDArray[np.float64]]:
    """Compute L1, PSNR and SSIM of n pairs of images, in three regions.

    The regions are the whole patch, the inside of the mask, and a band along its edge.

    L1 is the mean absolute difference, PSNR is -10 log10 of the mean squared difference, SSIM is
    the mean over the region of the index's map (Gaussian window, sigma 1.5).

    Args:
        real: float [n, s, s, 1] in [0, 1].
        synthetic: float [n, s, s, 1] in [0, 1].
        masks: {0, 1} [n, s, s, 1].
        edge: Half the width of the band: px on either side of the mask's outline. The border of the
            patch is not an outline.

    Returns:
        "l1", "psnr", "ssim", then each with "_mass" and with "_edge" -> float64 [n]. L1 in [0, 1];
        PSNR in dB, infinite where nothing differs; SSIM in [-1, 1]; NaN where a mask leaves the
        region empty.

    Source:
        Wang et al., Image quality assessment: from error visibility to structural similarity
        (2004), for SSIM.
    """
    check_patches(masks, real=real, synthetic=synthetic)
    if min(real.shape[1:3]) < 11:
        raise ValueError("patches below 11 px have no SSIM")
    names = [name + region for region in ("", "_mass", "_edge") for name in ("l1", "psnr", "ssim")]
    scores = {name: np.full(len(real), np.nan) for name in names}
    for row, (truth, image, mask) in enumerate(
        zip(real[..., 0], synthetic[..., 0], masks[..., 0], strict=True)
    ):
        error = np.abs(truth.astype(np.float64) - image.astype(np.float64))
        _, similarity = structural_similarity(
            truth.astype(np.float64),
            image.astype(np.float64),
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        for region, inside in _find_regions(mask.astype(np.uint8), edge).items():
            if inside.any():
                scores["l1" + region][row] = error[inside].mean()
                square = np.square(error[inside]).mean()
                scores["psnr" + region][row] = -10 * np.log10(square) if square > 0 else np.inf
                scores["ssim" + region][row] = similarity[inside].mean()
    return scores


def sliced_wasserstein(
    real: NDArray[np.floating],
    synthetic: NDArray[np.floating],
) -> float:
    """Compute the sliced Wasserstein distance of two sets of images, by textures at all scales.

    At each level of a Laplacian pyramid, down to 16 px, windows of 7 x 7 px are drawn from both
    sets, scaled by the real ones' mean and standard deviation, and projected on random directions;
    the distance of two sets of numbers is the mean difference of the sorted ones. The mean over
    directions and levels is returned, in standard deviations of the real windows.

    Args:
        real: float [n, s, s, 1] in [0, 1].
        synthetic: float [m, s, s, 1] in [0, 1].

    Deviation:
        The paper scales each set by its own mean and deviation.

    Source:
        Karras et al., Progressive growing of GANs (2017), section 5.
    """
    axes = np.random.default_rng(0).normal(size=(49, DIRECTIONS))
    axes /= np.linalg.norm(axes, axis=0)
    distances = []
    pyramids = zip(_build_pyramid(real), _build_pyramid(synthetic), strict=True)
    for level, (real_level, synthetic_level) in enumerate(pyramids):
        target = _draw_windows(real_level, level)
        output = _draw_windows(synthetic_level, level)
        mean = target.mean()
        deviation = max(float(target.std()), 1e-6)
        projected_target = np.sort((target - mean) / deviation @ axes, axis=0)
        projected_output = np.sort((output - mean) / deviation @ axes, axis=0)
        distances.append(np.abs(projected_target - projected_output).mean())
    return float(np.mean(distances))


def _build_pyramid(images: NDArray[np.floating]) -> list[NDArray[np.float32]]:
    levels = []
    current = images[..., 0].astype(np.float32)
    while current.shape[1] >= 32:
        small = np.stack([cv2.pyrDown(image) for image in current])
        levels.append(
            current - np.stack([cv2.pyrUp(image, dstsize=current.shape[:0:-1]) for image in small])
        )
        current = small
    return [*levels, current]


def _draw_windows(images: NDArray[np.float32], level: int) -> NDArray[np.float32]:
    views = np.lib.stride_tricks.sliding_window_view(images, (7, 7), axis=(1, 2))
    places = np.random.default_rng([level, 1]).random((3, WINDOWS))
    rows = tuple(
        (place * size).astype(int) for place, size in zip(places, views.shape[:3], strict=True)
    )
    return views[rows].reshape(WINDOWS, 49)


def _find_regions(mask: NDArray[np.uint8], edge: int) -> dict[str, NDArray[np.bool_]]:
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * edge + 1, 2 * edge + 1))
    band = cv2.dilate(mask, disc) != cv2.erode(mask, disc)
    return {"": np.ones(mask.shape, np.bool_), "_mass": mask.astype(np.bool_), "_edge": band}
