"""What is done to a generated lesion before it is added to its patch: the same steps for
lesions added and removed.

    1. Everything above 0.1 (below -0.1 for removal) is a binary mask, whose largest connected
    object is kept
    2. unless it covers less than 10 % of the patch: then the patch stays as it is and counts as
    discarded;
    3. the object is expanded by 5 px, its edge smoothed by a Gaussian of 10 px,
    4. the lesion is multiplied by that, and added.

What the paper leaves open: pixels that touch at a corner are connected, of two equally large
objects the first is taken; "10px" is the Gaussian's sigma; within the softened object the whole
lesion channel is kept, brighter and darker than the patch.

Source: Wu, Wu and Lotter, Synthesizing lesions using contextual GANs (2020), section 3, the
numbered list.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from scipy import ndimage

from tfmammo.config import Frozen


class PostprocessConfig(Frozen):
    """The paper's list."""

    threshold: PositiveFloat = 0.1
    """Of the lesion, in [-1, 1]; its negative for removal."""
    smallest: float = Field(default=0.1, ge=0, le=1)
    """Part of the patch's area."""
    dilation: NonNegativeInt = 5
    """px around the object."""
    edge: NonNegativeFloat = 10.0
    """Sigma of the Gaussian, px."""


class Refined(NamedTuple):
    """Patches behind post-processing.

    Attributes:
        image: float32 [n, s, s, 1] in [0, 1], the input where the lesion was discarded.
        lesion: float32 [n, s, s, 1] in [-1, 1], what was added, on twice the scale of the image.
        mask: uint8 [n, s, s, 1], 1 on the object as it was found, before it was expanded.
        kept: bool [n]; the discard rate is 1 - kept.mean().
    """

    image: NDArray[np.float32]
    lesion: NDArray[np.float32]
    mask: NDArray[np.uint8]
    kept: NDArray[np.bool_]


def postprocess(
    image: NDArray[np.float32],
    lesion: NDArray[np.float32],
    config: PostprocessConfig | None = None,
    removal: bool = False,
) -> Refined:
    """Keep the largest object of each lesion channel, with soft edges, and add it.

    Args:
        image: float32 [n, s, s, 1] in [0, 1].
        lesion: The same shape, in [-1, 1], as G gives it.
        removal: The object is what lies below -threshold, not above threshold.

    Raises:
        ValueError: The shapes are not these.
    """
    config = config or PostprocessConfig()
    if image.shape != lesion.shape or image.ndim != 4 or image.shape[-1] != 1 or not len(image):
        raise ValueError(
            f"patches and lesions must both be [n, s, s, 1], not {image.shape} and {lesion.shape}"
        )
    binary = (-lesion if removal else lesion)[..., 0] > config.threshold
    objects = largest(binary)
    kept = objects.sum(axis=(1, 2)) >= max(1, config.smallest * binary[0].size)
    objects &= kept[:, None, None]
    edges = np.stack([_softened(mask, config) for mask in objects.astype(np.float32)])[..., None]
    refined = edges * lesion
    return Refined(
        np.clip(image + refined / 2, 0, 1), refined, objects.astype(np.uint8)[..., None], kept
    )


def largest(binary: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected object of each image, nothing where there is none.

    Args:
        binary: bool [n, rows, cols].
    """
    # within an image alone
    neighbours = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])
    labels, count = ndimage.label(binary, neighbours)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    rank = areas * (count + 1) + np.arange(count, -1, -1)  # by area, then the first; unique
    rank[0] = 0
    ranks = rank[labels]
    return binary & (ranks == ranks.max(axis=(1, 2), keepdims=True))


def _softened(mask: NDArray[np.float32], config: PostprocessConfig) -> NDArray[np.float32]:
    reach = config.dilation
    disc = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) <= reach
    mask = cv2.dilate(mask, disc.astype(np.uint8))
    return cv2.GaussianBlur(mask, (0, 0), config.edge) if config.edge and mask.any() else mask
