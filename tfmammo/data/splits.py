"""Which patches train and which are held out: by patient, or the paper's way.

The paper (Shen et al., CAN, section III) augments its images first and then draws the test set from the result, so that turned and
mirrored copies of one lesion stand on both sides. `paper` does the same, on purpose, to measure what that is worth.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tfmammo.config import DataConfig
from tfmammo.data.patches import DataError, Patches

log = logging.getLogger(__name__)

VARIANTS = 8  # rotations by multiples of 90 degrees, each with and without a flip


class LeakError(ValueError):
    """A patient stands on both sides of a split."""


def split(patches: Patches, config: DataConfig) -> tuple[Patches, Patches]:
    """Split as config.split says.

    Args:     patches: all of them. config: split, seed and either folds and fold or paper_samples and paper_test are used.
    Returns:  (train, held-out).
    Raises:   DataError: fewer patients than folds, or too few patches. LeakError: "patient" left one on both sides.
    """
    if config.split == "paper":
        return paper(patches, config.paper_samples, config.paper_test, config.seed)
    train, held_out = by_patient(patches.patient_ids, config.folds, config.fold, config.seed)
    check_no_leak(patches.patient_ids[train], patches.patient_ids[held_out])
    return patches.take(train), patches.take(held_out)


def by_patient(
    patient_ids: Sequence[str] | NDArray[np.str_], folds: int, fold: int, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Hold out one fold of patients.

    Patients are shuffled, those with most patches put first, and each is given to the fold with fewest patches.
    The order of the rows does not change a patient's fold.

    Args:     patient_ids: str [n], of each patch. folds: how many. fold: which one is held out. seed: of the shuffle.
    Returns:  (train, held-out): rising intp indices, together each of n once; every patient is held out in one fold.
    Raises:   DataError: fewer patients than folds, or no such fold.
    """
    patients, rows, counts = np.unique(np.asarray(patient_ids, np.str_), return_inverse=True, return_counts=True)
    if folds < 2 or not 0 <= fold < folds:
        raise DataError(f"fold {fold} of {folds} folds does not exist or leaves nothing to train on")
    if len(patients) < folds:
        raise DataError(f"{len(patients)} patients can't be split into {folds} folds")
    order = np.random.default_rng(seed).permutation(len(patients))
    order = order[np.argsort(-counts[order], kind="stable")]
    fold_of, load = np.empty(len(patients), np.intp), np.zeros(folds, np.intp)
    for patient in order:
        fold_of[patient] = load.argmin()
        load[fold_of[patient]] += counts[patient]
    held_out = fold_of[rows] == fold
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def check_no_leak(train_ids: Iterable[str], held_out_ids: Iterable[str]) -> None:
    """Make sure that no patient stands on both sides.

    Args:     train_ids, held_out_ids: patient ids, any number of times each.
    Raises:   LeakError: says how many patients do.
    """
    both = set(map(str, train_ids)) & set(map(str, held_out_ids))
    if both:
        raise LeakError(f"patients on both sides of the split: {len(both)}")


def paper(patches: Patches, samples: int, test: int, seed: int) -> tuple[Patches, Patches]:
    """CAN's protocol, which leaks: augment to `samples` patches, then split off `test` at random.

    Args:     patches: before augmentation. samples: drawn without repetition from the 8 rotations and flips of each patch.
              test: of the samples. seed: of both draws. Ids get "~0" (as it was) to "~7" appended.
    Returns:  (train, test). Departure: where 8 variants of each patch don't reach `samples`, all of them are taken and
              `test` is reduced in proportion (and logged).
    Raises:   DataError: nothing would be left on one side.
    """
    available = VARIANTS * len(patches)
    if available < samples:
        test = round(test * available / samples)
        log.warning("%d patches make %d samples of the %d asked for: %d of them test", len(patches), available, samples, test)
        samples = available
    if not 0 < test < samples:
        raise DataError(f"{len(patches)} patches make {samples} samples, too few to split off {test} for testing")
    drawn = np.random.default_rng(seed).permutation(available)[:samples]
    return _variants(patches, drawn[test:]), _variants(patches, drawn[:test])


def _variants(patches: Patches, drawn: NDArray[np.integer]) -> Patches:
    rows, variants = np.divmod(drawn, VARIANTS)
    images = np.stack([_turned(patches.images[row], variant) for row, variant in zip(rows, variants, strict=True)])
    masks = np.stack([_turned(patches.masks[row], variant) for row, variant in zip(rows, variants, strict=True)])
    ids = np.array([f"{patches.ids[row]}~{variant}" for row, variant in zip(rows, variants, strict=True)])
    return Patches(images, masks, patches.patient_ids[rows], ids)


def _turned(patch: NDArray, variant: int) -> NDArray:
    turned = np.rot90(patch, variant % 4, axes=(0, 1))
    return turned[:, ::-1] if variant >= 4 else turned
