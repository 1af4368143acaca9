"""Patches of a contextual GAN back in their mammogram, at native resolution and depth.

A patch's lesion is added as it is: the mammogram's own grey values plus the lesion, in the native
grey values that the patch's contrast stands for. Whatever a lesion does not reach keeps its stored
value.

Within a patch a lesion fades out at its own edge, which post-processing softens. At the border it
does not: the generator crops its lesion there, as the paper does, from one pixel to the next. A
lesion that reaches the crop ends in a visible line.

Source: Wu, Wu and Lotter, Synthesizing lesions using contextual GANs (2020), Fig. 3 and section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.archives.stored import Stored
from tfmammo.data import preprocess
from tfmammo.data.preprocess import resize
from tfmammo.data.sampling import sums
from tfmammo.errors import DataError
from tfmammo.mammogram import Box, Mammogram
from tfmammo.synthesis.compositing import tissue
from tfmammo.synthesis.generators import LesionGenerator
from tfmammo.synthesis.placement import Ground

TRIES = 20  # random numbers drawn for one patch
SHORTEST = 4  # px of a patch's side


@dataclass(frozen=True, eq=False)
class Filled:
    """One patch put back.

    Attributes:
        place: Its window, native px, half-open.
        mask: uint8 of the window, 0 or 1, what of it was added, empty where post-processing
            discarded every lesion and the patch stays as it was.
        seed: Of the random numbers.
        difference: float32 of the window, native grey values.
    """

    place: Box
    mask: NDArray[np.uint8]
    seed: int
    difference: NDArray[np.float32]

    @property
    def mask_box(self) -> Box | None:
        """Of what was added, native px, half-open; None of nothing."""
        (left, top, across, down) = cv2.boundingRect(self.mask)
        (row, col) = self.place[:2]
        return (row + top, col + left, row + top + down, col + left + across) if across else None


def side(mammogram: Mammogram, network: LesionGenerator) -> int:
    """The side of a patch in native px, at the middle of the scales that the generator was trained
    at.
    """
    low, high = network.data.sampling.scale
    length = 2 * network.size / (low + high)
    spacing = network.data.preprocess.spacing
    if spacing and mammogram.spacing:
        length *= spacing / mammogram.spacing[0]
    return max(SHORTEST, round(length))


def contiguous(
    breast: NDArray[np.uint8],
    lesions: NDArray[np.uint8],
    length: int,
    count: int,
    tissue_part: float,
    random: np.random.Generator,
) -> list[Box]:
    """A row, or where there is none a column, of patches side by side, each with enough breast and
    nothing of a lesion.

    Args:
        breast: uint8 [rows, cols, 1], 0 or 1.
        lesions: uint8 [rows, cols, 1], 0 or 1.
        length: Of a patch's side, px.
        count: Of patches.
        tissue_part: Of each that is breast, at least, 0 to 1.

    Returns:
        Windows, native px, half-open; every row of them equally likely.

    Raises:
        DataError: There is no room.
    """
    for down, right in ((0, length), (length, 0)):
        if (
            breast.shape[0] < length + (count - 1) * down
            or breast.shape[1] < length + (count - 1) * right
        ):
            continue
        enough = (sums(breast, length) >= tissue_part * length**2 - 1e-6) & (
            sums(lesions, length) == 0
        )
        rows = enough.shape[0] - (count - 1) * down
        cols = enough.shape[1] - (count - 1) * right
        all_of_them = np.all(
            [
                enough[i * down : i * down + rows, i * right : i * right + cols]
                for i in range(count)
            ],
            axis=0,
        )
        places = np.flatnonzero(all_of_them)
        if len(places):
            top, left = (
                int(start)
                for start in np.unravel_index(
                    places[random.integers(len(places))], all_of_them.shape
                )
            )
            starts = [(top + i * down, left + i * right) for i in range(count)]
            return [(first, second, first + length, second + length) for first, second in starts]
    raise DataError(
        f"no {count} squares of {length} px side by side are {100 * tissue_part:g} % breast each"
    )


def filled(
    ground: Ground, place: Box, network: LesionGenerator, random: np.random.Generator
) -> Filled:
    """A window of a mammogram with the generator's lesion, which is drawn until post-processing
    keeps one.

    Raises:
        DataError: The window is constant.
    """
    shown, low, high = tissue(ground, place, network.size)
    mirrored = network.data.preprocess.flip_right and ground.mammogram.laterality == "R"
    height = place[2] - place[0]
    width = place[3] - place[1]
    for _ in range(TRIES):
        seed = int(random.integers(2**63))
        refined = network.made(np.ascontiguousarray(shown[:, ::-1]) if mirrored else shown, seed)
        if refined.kept[0]:
            lesion = refined.lesion[0, ..., 0]
            mask = refined.mask[0]
            if mirrored:
                lesion = lesion[:, ::-1]
                mask = mask[:, ::-1]
            added = resize(
                np.ascontiguousarray(lesion) * np.float32((high - low) / 2), height, width
            )
            return Filled(
                place,
                preprocess.resize_mask(np.ascontiguousarray(mask), height, width)[..., 0],
                seed,
                added,
            )
    return Filled(
        place, np.zeros((height, width), np.uint8), seed, np.zeros((height, width), np.float32)
    )


def reinserted(ground: Ground, stored: Stored, patches: Sequence[Filled]) -> Stored:
    """The mammogram with patches that don't overlap; values that no lesion reaches are the
    source's.
    """

    def grey(patch: Filled) -> NDArray[np.float32]:
        top, left, bottom, right = patch.place
        return np.clip(ground.image[top:bottom, left:right, 0] + patch.difference, 0, 1)

    return stored.repainted(ground.image, ((patch.place, grey(patch)) for patch in patches))
