"""How well a lesion is blended into tissue: strength of the seam, background error, contrast.

`seam_strength` and `lesion_contrast` need no tissue from before the blending, so that they exist
for real lesions as well. Blended lesions compare with the values of real ones, not with 1 or 0.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

RING = 10  # px around the mask that represent the tissue there

Images = NDArray[np.floating]
Masks = NDArray[np.generic]


def seam_strength(images: Images, masks: Masks, ring: int = RING) -> NDArray[np.float64]:
    """Compare jumps of intensity across the mask's border with those in the tissue around it.

    mean |f_p - f_q| over neighbours p inside, q outside  /  mean |f_p - f_q| over neighbours that
    both are in the ring

    The ring belongs to the image itself and blending leaves it alone, so that the denominator means
    the same for blended and real patches. The tissue's jumps at the pixels of the border would be a
    noisier denominator, of fewer pairs, and real lesions have none.

    Args:
        images: float [n, s, s, 1] in [0, 1].
        masks: {0, 1} [n, s, s, 1].
        ring: Width of the ring around the mask, px.

    Returns:
        float64 [n] from 0 up: 1 where the border is as smooth as the tissue around it, more where
        there is an edge, as real lesions have. NaN where the mask is empty or fills the patch,
        and where the ring is constant (black or saturated).
    """
    check_patches(masks, images=images)
    return np.array(
        [_compare_jumps(image, mask, ring) for image, mask in _pair(images, masks)], np.float64
    )


def background_error(
    images: Images, tissue: Images, masks: Masks
) -> dict[str, NDArray[np.float64]]:
    """Measure what blending changed outside the mask, by the two terms of Eq. 5.

    l1        mean |f - x| where the mask is 0
    gradient  root of the mean (|grad f| - |grad x|)^2, of forward differences whose pixels all are
              where the mask is 0

    Args:
        images: float [n, s, s, 1] in [0, 1].
        tissue: Before the blending, as `images`.
        masks: {0, 1} [n, s, s, 1].

    Returns:
        "l1_background", "gradient_background" -> float64 [n], 0 where the background is unchanged;
        NaN where no pixel, or no such difference, is left.

    Deviation:
        Means replace norms, which grow with the patch. A difference that reaches into the mask
        counts as the seam's (`seam_strength`), so that an unchanged background has no error.
    """
    check_patches(masks, images=images, tissue=tissue)
    scores = {
        name: np.full(len(images), np.nan) for name in ("l1_background", "gradient_background")
    }
    for row, ((image, mask), truth) in enumerate(
        zip(_pair(images, masks), tissue[..., 0].astype(np.float64), strict=True)
    ):
        outside = mask == 0
        if outside.any():
            scores["l1_background"][row] = np.abs(image - truth)[outside].mean()
        whole = outside[:-1, :-1] & outside[1:, :-1] & outside[:-1, 1:]
        if whole.any():
            difference = (_gradient_magnitude(image) - _gradient_magnitude(truth))[whole]
            scores["gradient_background"][row] = np.sqrt(np.square(difference).mean())
    return scores


def lesion_contrast(images: Images, masks: Masks, ring: int = RING) -> NDArray[np.float64]:
    """Measure how much brighter a lesion is than the tissue around it, float64 [n] in [-1, 1].

    It is 0 where blending made the lesion invisible ("over-blending", section 3), and NaN where the
    mask is empty or fills the patch. Otherwise as `seam_strength`.
    """
    check_patches(masks, images=images)
    contrasts = np.full(len(images), np.nan)
    for row, (image, mask) in enumerate(_pair(images, masks)):
        around = _find_ring(mask, ring)
        if around.any():
            contrasts[row] = image[mask == 1].mean() - image[around].mean()
    return contrasts


def _compare_jumps(image: NDArray[np.float64], mask: NDArray[np.uint8], ring: int) -> float:
    around = _find_ring(mask, ring)
    border = []
    normal = []
    for values, inside, near in ((image, mask, around), (image.T, mask.T, around.T)):
        jumps = np.abs(np.diff(values, axis=0))
        border.append(jumps[inside[:-1] != inside[1:]])
        normal.append(jumps[near[:-1] & near[1:]])
    over = np.concatenate(border)
    under = np.concatenate(normal)
    return float(over.mean() / under.mean()) if over.size and under.any() else np.nan


def _find_ring(mask: NDArray[np.uint8], ring: int) -> NDArray[np.bool_]:
    """Mark the pixels outside the mask that are at most `ring` px from it; none if it is empty."""
    if ring < 1:
        raise ValueError(f"a ring must be 1 px wide at least, not {ring}")
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * ring + 1, 2 * ring + 1))
    return cv2.dilate(mask, disc) > mask


def _gradient_magnitude(image: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.hypot(np.diff(image, axis=0)[:, :-1], np.diff(image, axis=1)[:-1])


def _pair(images: Images, masks: Masks) -> zip[tuple[NDArray[np.float64], NDArray[np.uint8]]]:
    return zip(images[..., 0].astype(np.float64), masks[..., 0].astype(np.uint8), strict=True)


def check_patches(masks: Masks, **several: Images) -> None:
    """Refuse what is not images in [0, 1] and their masks, [n, s, s, 1], with ValueError."""
    for name, images in several.items():
        if images.shape != masks.shape or images.ndim != 4 or images.shape[-1] != 1:
            raise ValueError(
                f"{name} and masks must both be [n, s, s, 1], not {images.shape} and {masks.shape}"
            )
        if not np.all((images >= 0) & (images <= 1)):
            raise ValueError(f"{name} must be between 0 and 1")
    if not np.all((masks == 0) | (masks == 1)):
        raise ValueError("masks must hold nothing but 0 and 1")
