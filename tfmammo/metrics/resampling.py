"""Intervals and tests that draw, flip or leave out whole patients.

The images of one patient resemble each other, so that images are no independent units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tfmammo.metrics.significance import (
    FEWEST_PATIENTS,
    Estimate,
    bound_alike,
    is_point,
    percentile_interval,
)

BATCH = 1000  # draws of a bootstrap that are in memory at once
GROUPS = 100  # of patients, at most, that a jackknife leaves out in turn


def bootstrap_interval(
    values: ArrayLike,
    groups: ArrayLike | None = None,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of the mean; groups are drawn whole.

    Args:
        values: Number [n], finite.
        groups: The patient of each value [n]; None makes each value its own group.
        samples: Number of draws.
        seed: Seed of the draws.
        level: Confidence level, in (0, 1).

    Returns:
        (low, high), in the values' unit; NaN where there are fewer than `FEWEST_PATIENTS` groups.

    Source:
        Davison & Hinkley, Bootstrap Methods (1997), 3.8, resampling of clusters.
    """
    sums, sizes = _sum_groups(values, groups)
    if len(sums) < FEWEST_PATIENTS:
        return float("nan"), float("nan")
    # The number of images varies from draw to draw, so that the mean is a ratio of two sums.
    interval = stats.bootstrap(
        (sums, sizes),
        lambda sums, sizes, axis: sums.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=samples,
        batch=BATCH,
        confidence_level=level,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def share_interval(
    values: ArrayLike,
    groups: ArrayLike | None = None,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Compute the interval of a share, a mean of values in [0, 1], as `bootstrap_interval`.

    Where all groups are alike, a bootstrap has no width, though other patients might differ. The
    interval then reaches as far as the rule of three says for so many patients.
    """
    low, high = bootstrap_interval(values, groups, samples, seed, level)
    if not is_point(low, high):
        return low, high
    sums, sizes = _sum_groups(values, groups)
    return bound_alike(float(sums.sum() / sizes.sum()), len(sums), level)


def crossed_interval(
    values: ArrayLike,
    first: Sequence[str],
    second: Sequence[str],
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Compute the bootstrap interval of the mean where each value is of two patients.

    Both, of a mammogram (`first`) and of a lesion in it (`second`), are drawn with replacement. A
    value counts as often as the product of their draws. Where both are the same person everywhere,
    this is `bootstrap_interval`; otherwise the result is as there.

    Source:
        Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007) 386.
    """
    if list(first) == list(second):
        return bootstrap_interval(values, first, samples, seed, level)
    numbers = np.asarray(values, np.float64)
    random = np.random.default_rng(seed)
    sides = [np.unique(np.asarray(names), return_inverse=True) for names in (first, second)]
    if min(len(patients) for patients, _ in sides) < FEWEST_PATIENTS:
        return float("nan"), float("nan")
    means = []
    for start in range(0, samples, BATCH):
        weights = np.ones((min(BATCH, samples - start), len(numbers)))
        for patients, places in sides:
            share = np.full(len(patients), 1 / len(patients))
            weights *= random.multinomial(len(patients), share, len(weights))[:, places]
        totals = weights.sum(axis=1)
        means.append(weights[totals > 0] @ numbers / totals[totals > 0])
    return percentile_interval(np.concatenate(means), level)


def paired_test(
    a: ArrayLike,
    b: ArrayLike,
    groups: ArrayLike | None = None,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Test whether two models differ in the mean over the same images; patients are flipped whole.

    If the models are exchangeable, each patient's summed difference could have the other sign as
    well. All combinations of signs are tried if there are at most `samples`, otherwise `samples`
    random ones. The smallest p of k patients is 2^(1-k).

    Args:
        a: One model's values, number [n], finite.
        b: The other model's values of the same images.
        groups: The patient of each image [n]; None makes each image its own group.
        samples: The most combinations of signs that are tried, and draws of the bootstrap.
        seed: Seed of the draws.
        level: Confidence level, in (0, 1).

    Returns:
        The difference of the means, a - b, with its bootstrap interval and the p of the test; NaN
        where there are fewer than `FEWEST_PATIENTS` patients.
    """
    a = np.asarray(a, np.float64)
    b = np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values must be equally many, not {a.shape} and {b.shape}")
    sums, sizes = _sum_groups(a - b, groups)
    p = np.nan
    if len(sums) >= FEWEST_PATIENTS:
        p = stats.permutation_test(
            (sums,),
            lambda sums, axis: sums.sum(axis=axis),
            permutation_type="samples",  # of one sample: the signs
            vectorized=True,
            n_resamples=samples,
            batch=BATCH,
            rng=np.random.default_rng(seed),
        ).pvalue
    return Estimate(
        float(sums.sum() / sizes.sum()),
        *bootstrap_interval(a - b, groups, samples, seed, level),
        float(p),
    )


def jackknife(
    statistic: Callable[[NDArray[np.intp]], float],
    patient_ids: NDArray[np.str_],
    level: float = 0.95,
) -> Estimate:
    """Compute a statistic of a set of patches with its interval, leaving out one patient at a time.

    More than GROUPS patients are left out in groups. This is not the bootstrap, which draws patches
    twice: FID and KID would see copies, and their interval could miss their value.

    Args:
        statistic: Rows of patches, intp, ascending -> a number.
        patient_ids: str [n].
        level: Confidence level, in (0, 1).

    Returns:
        The value, with interval and two-sided p of 0 by Student's t; NaN where there are fewer than
        `FEWEST_PATIENTS` patients, or where leaving one out leaves nothing to compute. Where the
        statistic never varies, p is 1 of a value of 0, else 2^(1-n) of n patients, as of a test
        that flips signs.

    Source:
        Davison & Hinkley, Bootstrap Methods and their Application (1997), 3.2.1.
    """
    patients, numbers = np.unique(patient_ids, return_inverse=True)
    groups = np.random.default_rng(0).permutation(len(patients)) % min(GROUPS, len(patients))
    member = groups[numbers]
    value = statistic(np.arange(len(patient_ids)))
    count = int(groups.max()) + 1
    if count < FEWEST_PATIENTS:
        return Estimate(value)
    left = np.array([statistic(np.flatnonzero(member != group)) for group in range(count)])
    if not np.isfinite([value, *left]).all():
        return Estimate(value)
    error = np.sqrt((count - 1) / count * np.square(left - left.mean()).sum())
    reach = error * stats.t.ppf((1 + level) / 2, count - 1)
    if np.ptp(left) > 1e-12 * abs(value):  # more than what rounding leaves of 0
        p = float(2 * stats.t.sf(abs(value) / error, count - 1))
    else:
        p = 2.0 ** (1 - len(patients)) if value else 1.0
    return Estimate(value, float(value - reach), float(value + reach), p)


def jackknife_area(
    statistic: Callable[[NDArray[np.intp]], float],
    patient_ids: NDArray[np.str_],
    fewest: int,
    level: float = 0.95,
) -> Estimate:
    """Compute an area under a ROC curve with its interval; otherwise as `jackknife`, without p.

    The interval is on the scale of logits, so that it stays within [0, 1]. Where an area is 0 or 1,
    which has no logit, or never varies, it is that of the area itself, at least by the rule of
    three (3 / n to either side at 0.95), and cut off there.

    Args:
        statistic: As for `jackknife`, like `patient_ids`.
        fewest: The n of this rule: the patients of the class that has fewer.
    """

    def compute_logit(rows: NDArray[np.intp]) -> float:
        area = statistic(rows)
        return float(np.log(area / (1 - area))) if 0 < area < 1 else np.nan

    value = statistic(np.arange(len(patient_ids)))
    logit = jackknife(compute_logit, patient_ids, level)
    low, high = (float(1 / (1 + np.exp(-bound))) for bound in (logit.low, logit.high))
    is_unknown = np.isnan(low) or is_point(low, high)
    if is_unknown and np.isfinite(value) and fewest >= FEWEST_PATIENTS:
        area = jackknife(statistic, patient_ids, level)
        least, most = bound_alike(value, fewest, level)
        low = float(np.clip(np.fmin(area.low, least), 0, 1))
        high = float(np.clip(np.fmax(area.high, most), 0, 1))
    return Estimate(value, low, high)


def _sum_groups(
    values: ArrayLike, groups: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the sum and the number of values of each group."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(
            f"values must be a list of at least one number, not of shape {values.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError("values must be finite")
    if groups is None:
        return values, np.ones_like(values)
    groups = np.asarray(groups)
    if groups.shape != values.shape:
        raise ValueError(f"there are {len(values)} values but groups of shape {groups.shape}")
    _, members = np.unique(groups, return_inverse=True)
    sums = np.bincount(members, weights=values)
    sizes = np.bincount(members)
    return sums.astype(np.float64), sizes.astype(np.float64)
