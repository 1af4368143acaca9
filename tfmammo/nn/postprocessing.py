"""Post-processing of generated lesions before they are added to their patches.

Lesions that are added and removed go through the same steps:

    1. Everything above 0.1 (below -0.1 for removal) is a binary mask. Its largest connected object
       stays.
    2. An object that covers less than 10 % of the patch is discarded; the patch is not changed.
    3. The object is expanded by 5 px, and its edge is smoothed by a Gaussian of 10 px.
    4. The lesion is multiplied by the result, and added.

What the paper leaves open: Pixels that touch at a corner are connected. Of two equally large
objects one stays. "10px" is the Gaussian's sigma. Within the softened object the whole
lesion channel stays, brighter and darker than the patch.

Source: Wu, Wu and Lotter, Synthesizing lesions using contextual GANs (2020), section 3, the
numbered list.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from tfmammo.config import Frozen
from tfmammo.mammogram import keep_largest


class PostprocessConfig(Frozen):
    """The paper's list."""

    threshold: PositiveFloat = 0.1
    """Least value of the lesion, in [-1, 1]; its negative is the largest one for removal."""
    smallest: float = Field(default=0.1, ge=0, le=1)
    """Least area of the object, as a share of the patch's."""
    dilation: NonNegativeInt = 5
    """Expansion of the object, px."""
    edge: NonNegativeFloat = 10.0
    """Sigma of the Gaussian, px."""


class Refined(NamedTuple):
    """Patches after post-processing, [n, s, s, 1]."""

    image: NDArray[np.float32]
    """In [0, 1]; the input where the lesion was discarded."""
    lesion: NDArray[np.float32]
    """In [-1, 1], what was added, on twice the scale of the image."""
    mask: NDArray[np.uint8]
    """1 on the object before its expansion."""
    kept: NDArray[np.bool_]
    """[n], False where the lesion was discarded."""


def postprocess(
    image: NDArray[np.float32],
    lesion: NDArray[np.float32],
    config: PostprocessConfig | None = None,
    removal: bool = False,
) -> Refined:
    """Keep the largest object of each lesion channel, with soft edges, and add it.

    Args:
        image: float32 [n, s, s, 1] in [0, 1].
        lesion: The same shape, in [-1, 1], G's output.
        config: By default the paper's values.
        removal: The object is below -threshold, not above threshold.
    """
    config = config or PostprocessConfig()
    if image.shape != lesion.shape or image.ndim != 4 or image.shape[-1] != 1 or not len(image):
        raise ValueError(
            f"patches and lesions must both be [n, s, s, 1], not {image.shape} and {lesion.shape}"
        )
    binary = (-lesion if removal else lesion)[..., 0] > config.threshold
    objects = np.stack([keep_largest(each) for each in binary.astype(np.uint8)])
    kept = objects.sum(axis=(1, 2)) >= max(1, config.smallest * binary[0].size)
    objects[~kept] = 0
    weights = np.stack([_soften(mask, config) for mask in objects.astype(np.float32)])[..., None]
    refined = weights * lesion
    return Refined(np.clip(image + refined / 2, 0, 1), refined, objects[..., None], kept)


def _soften(mask: NDArray[np.float32], config: PostprocessConfig) -> NDArray[np.float32]:
    reach = config.dilation
    disc = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) <= reach
    mask = cv2.dilate(mask, disc.astype(np.uint8))
    return cv2.GaussianBlur(mask, (0, 0), config.edge) if config.edge and mask.any() else mask
