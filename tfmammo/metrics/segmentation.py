"""Overlap of masks, per image, and what it says about patients: intervals and paired tests.

With tn, fp, fn, tp the pixels of one image,

    accuracy = (tp + tn) / (tp + tn + fp + fn)        Dice    = 2 tp / (2 tp + fp + fn)
    MCC      = (tp tn - fp fn) / sqrt((tp + fp)(tp + fn)(tn + fp)(tn + fn))       Jaccard = tp / (tp + fp + fn)

Two empty masks agree, so their Dice and Jaccard are 1. MCC is 0 where one of its denominator's factors is 0, that is where
the target or the output has one value only: a correlation with a constant says nothing, even if the two masks are equal.

A patient gives several images, and they resemble each other: intervals and tests therefore draw whole patients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tfmammo.metrics.significance import FEWEST_PATIENTS

Counts = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]  # tn, fp, fn, tp of n images


def accuracy(target: ArrayLike, output: ArrayLike) -> float:
    """The share of pixels on which two masks of one image agree.

    Args:     target, output: bool or number, any one shape, {0, 1}.
    Returns:  float in [0, 1].
    Raises:   ValueError: a value that is neither 0 nor 1 (NaN too), unequal shapes, or no pixel.
    """
    return float(_accuracy(_counts(*_pair(target, output)))[0])


def dice(target: ArrayLike, output: ArrayLike) -> float:
    """Twice the common area over the sum of the areas of two masks of one image; 1 where both are empty.

    Args:     target, output: bool or number, any one shape, {0, 1}.
    Returns:  float in [0, 1].
    Raises:   ValueError: a value that is neither 0 nor 1 (NaN too), unequal shapes, or no pixel.
    """
    return float(_dice(_counts(*_pair(target, output)))[0])


def jaccard(target: ArrayLike, output: ArrayLike) -> float:
    """The common area over the joint area of two masks of one image; 1 where both are empty.

    Args:     target, output: bool or number, any one shape, {0, 1}.
    Returns:  float in [0, 1], equal to Dice / (2 - Dice).
    Raises:   ValueError: a value that is neither 0 nor 1 (NaN too), unequal shapes, or no pixel.
    """
    return float(_jaccard(_counts(*_pair(target, output)))[0])


def mcc(target: ArrayLike, output: ArrayLike) -> float:
    """Matthews's correlation of two masks of one image; 0 where either of them has one value only.

    Args:     target, output: bool or number, any one shape, {0, 1}.
    Returns:  float in [-1, 1].
    Raises:   ValueError: a value that is neither 0 nor 1 (NaN too), unequal shapes, or no pixel.
    """
    return float(_mcc(_counts(*_pair(target, output)))[0])


def per_image(targets: ArrayLike, probabilities: ArrayLike, threshold: float = 0.5) -> dict[str, NDArray[np.float64]]:
    """All four measures of each of n images; a pixel is mass where its probability reaches the threshold.

    Args:     targets: bool or number [n, ...], {0, 1}. probabilities: float [n, ...], the same shape, in [0, 1].
              threshold: in (0, 1].
    Returns:  "accuracy", "dice", "jaccard", "mcc", in this order -> float64 [n].
    Raises:   ValueError: other values (NaN too), unequal shapes, no pixel, or a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1], not at {threshold}")
    probabilities = np.asarray(probabilities)
    if not np.all((probabilities >= 0) & (probabilities <= 1)):
        raise ValueError("probabilities must lie between 0 and 1")
    targets, outputs = _binary(targets, "targets"), probabilities >= threshold
    if targets.ndim < 2:
        raise ValueError(f"targets must have shape [n, ...], not {targets.shape}")
    counts = _counts(targets, outputs)
    return {"accuracy": _accuracy(counts), "dice": _dice(counts), "jaccard": _jaccard(counts), "mcc": _mcc(counts)}


def bootstrap_interval(
    values: ArrayLike, groups: ArrayLike | None = None, samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, drawing whole groups with replacement.

    Args:     values: number [n], finite. groups: [n], each value's patient; None makes each value its own group.
              samples: draws. level: of confidence, in (0, 1).
    Returns:  (low, high), in the values' unit; (nan, nan) where there are fewer than `FEWEST_PATIENTS` groups.
    Raises:   ValueError: no value, one that is not finite, or groups of another length.
    Source:   Davison & Hinkley, Bootstrap Methods and their Application (1997), 3.8, resampling of clusters.
    """
    sums, sizes = _clusters(values, groups)
    if len(sums) < FEWEST_PATIENTS:
        return float("nan"), float("nan")
    # The images of a draw vary in number with the patients drawn, so its mean is a ratio of two sums.
    interval = stats.bootstrap(
        (sums, sizes),
        lambda sums, sizes, axis: sums.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=samples,
        batch=1000,
        confidence_level=level,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Paired:
    """How one model differs from another on the same images.

    difference: of the means, a - b. low, high: its bootstrap interval. p: two-sided, of the sign-flip test. All three are NaN
    where there are fewer than `FEWEST_PATIENTS` patients.
    """

    difference: float
    low: float
    high: float
    p: float


def paired_test(
    a: ArrayLike, b: ArrayLike, groups: ArrayLike | None = None, samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Paired:
    """Do two models differ in the mean over the same images? A permutation test that flips patients whole.

    If the models are exchangeable, each patient's summed difference could as well bear the other sign. All signs are
    tried where there are no more than `samples` ways, else `samples` random ones; the smallest p of k patients is 2^(1-k).

    Args:     a, b: number [n], finite, both models' values of the same n images. groups: [n], each image's patient;
              None makes each image its own group. samples, seed, level: as in `bootstrap_interval`.
    Returns:  Paired, in the values' unit; p in (0, 1], NaN where there are fewer than `FEWEST_PATIENTS` groups.
    Raises:   ValueError: unequal lengths, no value, one that is not finite, or groups of another length.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values must be equally many, not {a.shape} and {b.shape}")
    sums, sizes = _clusters(a - b, groups)
    p = np.nan
    if len(sums) >= FEWEST_PATIENTS:
        p = stats.permutation_test(
            (sums,),
            lambda sums, axis: sums.sum(axis=axis),
            permutation_type="samples",  # of one sample: the signs
            vectorized=True,
            n_resamples=samples,
            batch=1000,
            rng=np.random.default_rng(seed),
        ).pvalue
    return Paired(float(sums.sum() / sizes.sum()), *bootstrap_interval(a - b, groups, samples, seed, level), float(p))


def _binary(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    values = np.asarray(values)
    if values.dtype != np.bool_ and not np.all((values == 0) | (values == 1)):
        raise ValueError(f"{name} must hold nothing but 0 and 1")
    return values.astype(np.bool_)


def _pair(target: ArrayLike, output: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return _binary(target, "target")[np.newaxis], _binary(output, "output")[np.newaxis]


def _counts(targets: NDArray[np.bool_], outputs: NDArray[np.bool_]) -> Counts:
    if targets.shape != outputs.shape:
        raise ValueError(f"target and output must have one shape, not {targets.shape} and {outputs.shape}")
    if targets.size == 0:
        raise ValueError("there is no pixel to compare")
    masks = (array.reshape(len(targets), -1) for array in (targets & outputs, targets, outputs))
    # float64, because MCC's product of four sums passes 2^63 from 256x256 pixels on.
    tp, positive, marked = (mask.sum(axis=1, dtype=np.float64) for mask in masks)
    fp, fn = marked - tp, positive - tp
    return targets[0].size - tp - fp - fn, fp, fn, tp


def _accuracy(counts: Counts) -> NDArray[np.float64]:
    tn, fp, fn, tp = counts
    return (tp + tn) / (tn + fp + fn + tp)


def _dice(counts: Counts) -> NDArray[np.float64]:
    _, fp, fn, tp = counts
    return _ratio(2 * tp, 2 * tp + fp + fn, empty=1.0)


def _jaccard(counts: Counts) -> NDArray[np.float64]:
    _, fp, fn, tp = counts
    return _ratio(tp, tp + fp + fn, empty=1.0)


def _mcc(counts: Counts) -> NDArray[np.float64]:
    tn, fp, fn, tp = counts
    # Two roots, because the root of the whole product rounds (x, x) to 0.9999999.
    return _ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tn + fn)) * np.sqrt((tp + fn) * (tn + fp)), empty=0.0)


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64], empty: float) -> NDArray[np.float64]:
    return np.divide(numerator, denominator, out=np.full_like(numerator, empty), where=denominator != 0)


def _clusters(values: ArrayLike, groups: ArrayLike | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each group's sum and number of values."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"values must be a list of at least one number, not of shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("values must be finite")
    if groups is None:
        return values, np.ones_like(values)
    groups = np.asarray(groups)
    if groups.shape != values.shape:
        raise ValueError(f"there are {len(values)} values but groups of shape {groups.shape}")
    _, members = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(members, weights=values), np.bincount(members)
    return sums.astype(np.float64), sizes.astype(np.float64)
