"""Split as CAN's paper does, which leaks.

Shen et al., section III, augment their images first and then draw the test set from the result, so
that rotated and mirrored copies of one lesion are in both subsets. `split_as_in_paper` does the
same, on purpose, to measure what that is worth.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tfmammo.data.patches import Patches
from tfmammo.errors import DataError

log = logging.getLogger(__name__)

VARIANTS = 8  # rotations by multiples of 90 degrees, each with and without a flip


def split_as_in_paper(
    patches: Patches, samples: int, test: int, seed: int
) -> tuple[Patches, Patches]:
    """Split by CAN's protocol, which leaks: augment to `samples` patches, then draw `test` of them.

    Deviation:
        Where 8 variants of each patch don't reach `samples`, all of them are taken and `test` is
        reduced in proportion (and logged).
    """
    available = VARIANTS * len(patches)
    if available < samples:
        test = round(test * available / samples)
        log.warning(
            "%d patches make %d samples of the %d asked for: %d of them test",
            len(patches),
            available,
            samples,
            test,
        )
        samples = available
    if not 0 < test < samples:
        raise DataError(
            f"{len(patches)} patches make {samples} samples, too few to split off {test} for "
            "testing"
        )
    draws = np.random.default_rng(seed).permutation(available)[:samples]
    return _take_variants(patches, draws[test:]), _take_variants(patches, draws[:test])


def _take_variants(patches: Patches, draws: NDArray[np.integer]) -> Patches:
    rows, variants = np.divmod(draws, VARIANTS)
    pairs = list(zip(rows, variants, strict=True))
    return replace(
        patches.take(rows),
        images=np.stack([_transform(patches.images[row], variant) for row, variant in pairs]),
        masks=np.stack([_transform(patches.masks[row], variant) for row, variant in pairs]),
        ids=np.array([f"{patches.ids[row]}~{variant}" for row, variant in pairs]),
    )


def _transform(patch: NDArray, variant: int) -> NDArray:
    rotated = np.rot90(patch, variant % 4, axes=(0, 1))
    return rotated[:, ::-1] if variant >= 4 else rotated
