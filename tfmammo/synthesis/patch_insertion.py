"""Patch insertion: patches of a contextual GAN back in their mammogram, at native resolution.

A patch's lesion is added as it is: the mammogram's own intensities plus the lesion, in the native
intensities that the patch's contrast corresponds to. Pixels that no lesion reaches keep their
stored value.

Within a patch a lesion fades out at its own edge, which post-processing softens. At the patch's
border it does not: the generator crops its lesion there, as the paper does, from one pixel to the
next. A lesion that reaches the crop ends in a visible line.

Source: Wu, Wu and Lotter, Synthesizing lesions using contextual GANs (2020), Fig. 3 and section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.archives.stored import Stored
from tfmammo.data.preprocess import resize, resize_mask
from tfmammo.data.sampling import find_squares
from tfmammo.errors import DataError
from tfmammo.mammogram import Box, Mammogram
from tfmammo.synthesis.compositing import extract_patch
from tfmammo.synthesis.generators import LesionGenerator
from tfmammo.synthesis.placement import TargetMammogram

TRIES = 20  # noise drawn for one patch
SHORTEST = 4  # px of a patch's side, at least


@dataclass(frozen=True, eq=False)
class EditedPatch:
    """One patch of a mammogram with the generator's lesion.

    Attributes:
        place: Its window, native px, half-open.
        mask: uint8 [rows, cols] of the window, 1 where a lesion was added or removed. Empty where
            post-processing discarded every lesion, so that the patch stays as it was.
        difference: float32 [rows, cols] of the window, native intensities.
    """

    place: Box
    mask: NDArray[np.uint8]
    seed: int
    difference: NDArray[np.float32]

    @property
    def mask_box(self) -> Box | None:
        """Box of the mask, native px, half-open; None where it is empty."""
        left, top, width, height = cv2.boundingRect(self.mask)
        if not width:
            return None
        row, col = self.place[:2]
        return row + top, col + left, row + top + height, col + left + width


def compute_side(mammogram: Mammogram, network: LesionGenerator) -> int:
    """Compute the side of a patch, native px, at the middle of the generator's training scales."""
    scale = network.data.sampling.get_scale()
    length = 2 * network.size / (scale[0] + scale[-1])
    spacing = network.data.preprocess.spacing
    if spacing and mammogram.spacing:
        length *= spacing / mammogram.spacing[0]
    return max(SHORTEST, round(length))


def draw_contiguous(
    breast: NDArray[np.uint8],
    lesions: NDArray[np.uint8],
    length: int,
    count: int,
    tissue_part: float,
    random: np.random.Generator,
) -> list[Box]:
    """Draw a row of patches side by side, or a column where no row fits.

    Each patch has enough breast and nothing of a lesion. Every such row is equally likely.

    Args:
        length: Side of a patch, px.
        tissue_part: Part of each patch that is breast, at least, 0 to 1.

    Returns:
        Windows, native px, half-open.
    """
    is_free = find_squares(breast, length, tissue_part, lesions)
    for down, right in ((0, length), (length, 0)):
        rows = is_free.shape[0] - (count - 1) * down
        cols = is_free.shape[1] - (count - 1) * right
        if rows < 1 or cols < 1:
            continue
        shifts = [(number * down, number * right) for number in range(count)]
        all_free = np.all(
            [is_free[row : row + rows, col : col + cols] for row, col in shifts], axis=0
        )
        starts = np.flatnonzero(all_free)
        if len(starts):
            start = starts[random.integers(len(starts))]
            top, left = (int(place) for place in np.unravel_index(start, all_free.shape))
            corners = [(top + row, left + col) for row, col in shifts]
            return [(row, col, row + length, col + length) for row, col in corners]
    raise DataError(
        f"no {count} squares of {length} px side by side are {100 * tissue_part:g} % breast each"
    )


def fill_window(
    target: TargetMammogram, place: Box, network: LesionGenerator, random: np.random.Generator
) -> EditedPatch:
    """Add a generator's lesion to a window of a mammogram, or remove the lesion there.

    Noise is drawn until post-processing keeps a lesion, TRIES times at most.
    """
    patch = extract_patch(target, place, network.size)
    height, width = place[2] - place[0], place[3] - place[1]
    for _ in range(TRIES):
        seed = int(random.integers(2**63))
        refined = network.generate(patch.tissue, seed)
        if refined.kept[0]:
            # The lesion is in [-1, 1], twice the patch's grey scale.
            lesion = patch.mirror(refined.lesion[0, ..., 0])
            lesion = lesion * np.float32((patch.high - patch.low) / 2)
            difference = resize(lesion, height, width)
            native_mask = resize_mask(patch.mirror(refined.mask[0]), height, width)[..., 0]
            return EditedPatch(place, native_mask, seed, difference)
    nothing = np.zeros((height, width), np.uint8)
    return EditedPatch(place, nothing, seed, nothing.astype(np.float32))


def reinsert_patches(
    target: TargetMammogram, stored: Stored, patches: Sequence[EditedPatch]
) -> Stored:
    """Put patches back into their mammogram. Values that no lesion reaches are the source's."""
    edits = []
    for patch in patches:
        top, left, bottom, right = patch.place
        tissue = target.image[top:bottom, left:right, 0]
        edits.append((patch.place, np.clip(tissue + patch.difference, 0, 1)))
    return stored.with_greys(target.image, edits)
