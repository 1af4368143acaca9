"""Intervals and tests of areas under ROC curves, with patients as the units.

Patches of one patient resemble each other. DeLong's test takes every patch as independent and so
finds differences between equally good models far too often. Here whole patients vary:

    estimate_auc      one area with its interval, by Obuchowski's variance
    chance_test       whether it is one half, by the same
    rank_swap_test    a permutation test of two areas, which holds its level for few patients, too
    estimate_rate     the true positive rate at a small false positive rate, by bootstrap

The tests ask about the models as they were trained, not how another training run would differ.
Functions take labels (1 or True positive, 0 negative), scores (a higher one is more positive) and
the patient of each patch, all of shape ``[n]``. They raise ValueError as `roc_auc` does, and for
patients of another length.

Source: Obuchowski, Nonparametric analysis of clustered ROC curve data, Biometrics 53 (1997) 567.
    Carlini et al., Membership inference attacks from first principles (2022), for the true positive
    rate at a low false positive rate: an average over all patches hides a few that leak.
    Bandos, Rockette and Gur, A permutation test sensitive to differences in areas for comparing ROC
    curves from a paired design, Statistics in Medicine 24 (2005) 2873. Deviation: whole patients
    are exchanged.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tfmammo.metrics.classification import check_scores, roc_auc, structural_components
from tfmammo.metrics.significance import (
    FEWEST_PATIENTS,
    Estimate,
    bound_alike,
    percentile_interval,
    welch_degrees,
)

Array = NDArray[np.float64]


def has_few_patients(labels: ArrayLike, patients: ArrayLike) -> bool:
    """Whether a class has fewer than six patients, too few for an interval or p."""
    return _count_patients(labels, patients) < FEWEST_PATIENTS


def _count_patients(labels: ArrayLike, patients: ArrayLike) -> int:
    """Count the patients of the class that has fewer."""
    positive = np.asarray(labels, dtype=np.bool_)
    members, _ = _number_patients(patients, len(positive))
    return min(len(np.unique(members[side])) for side in (positive, ~positive))


def estimate_auc(
    labels: ArrayLike, scores: ArrayLike, patients: ArrayLike, level: float = 0.95
) -> Estimate:
    """Estimate an area under a ROC curve, with an interval by Obuchowski's variance.

    The interval is on the scale of logits, so that it stays within [0, 1], and by Student's t with
    Welch's degrees of freedom, those of the class with few patients where the other has many. A
    class whose patches all are alike among those of the other class has no variance, though other
    patients might. It reaches at least by the rule of three: -ln(1 - level) / n to either side,
    3 / n at 0.95, n the patients of that class. With an area of 0 or 1 both classes are of that
    kind.
    """
    positive, values = check_scores(labels, scores)
    area = roc_auc(positive, values)
    if has_few_patients(positive, patients):
        return Estimate(area, np.nan, np.nan)
    low = high = area
    logit, deviation, degrees = _compute_logit(positive, values, patients)
    if deviation > 0:
        reach = stats.t.ppf(0.5 + level / 2, degrees) * deviation
        low, high = (1 / (1 + np.exp(-(logit + sign * reach))) for sign in (-1, 1))
    names = np.asarray(patients)
    sides = zip((positive, ~positive), structural_components(positive, values), strict=True)
    alike = [len(set(names[side])) for side, components in sides if np.ptp(components) < 1e-9]
    least, most = bound_alike(area, min(alike), level) if alike else (area, area)
    return Estimate(area, float(min(low, least)), float(max(high, most)))


def chance_test(labels: ArrayLike, scores: ArrayLike, patients: ArrayLike) -> float:
    """Test whether an area under a ROC curve is one half, as `estimate_auc`'s interval does.

    Returns:
        The two-sided p of the logit over its deviation, by Student's t as in `estimate_auc`. NaN
        below six patients of a class. Of an area without variance it is 1 at one half, else
        2^(1-n) of n patients of the smaller class, as of a test that flips signs.
    """
    positive, values = check_scores(labels, scores)
    if has_few_patients(positive, patients):
        return np.nan
    logit, deviation, degrees = _compute_logit(positive, values, patients)
    if deviation > 0:
        return float(2 * stats.t.sf(abs(logit) / deviation, degrees))
    is_half = roc_auc(positive, values) == 0.5
    return 1.0 if is_half else 2.0 ** (1 - _count_patients(positive, patients))


def _compute_logit(
    positive: NDArray[np.bool_], values: Array, patients: ArrayLike
) -> tuple[float, float, float]:
    """Compute an area's logit, its deviation and the degrees of freedom of Student's t.

    Logit and deviation are 0 where the area has no variance.
    """
    area = roc_auc(positive, values)
    variance, degrees = obuchowski_variance(positive, values, patients)
    deviation = float(np.sqrt(variance))
    if deviation < 1e-9 or not 0 < area < 1:
        return 0.0, 0.0, degrees
    return float(np.log(area / (1 - area))), deviation / (area * (1 - area)), degrees


def obuchowski_variance(
    labels: ArrayLike, scores: ArrayLike, patients: ArrayLike
) -> tuple[float, float]:
    """Compute the variance of `roc_auc` where patches of one patient are not independent.

    There must be two patients with patches of each class.

    Returns:
        (variance, Welch's degrees of freedom). The variance is DeLong's where each patient has one
        patch.
    """
    positive, values = check_scores(labels, scores)
    members, count = _number_patients(patients, len(positive))
    of_positives = np.bincount(members[positive], minlength=count)
    of_negatives = np.bincount(members[~positive], minlength=count)
    i10 = np.count_nonzero(of_positives)
    i01 = np.count_nonzero(of_negatives)
    if min(i10, i01) < 2:
        raise ValueError(
            "a variance needs two patients with positive patches and two with negative ones"
        )
    v10, v01 = structural_components(positive, values)
    # Each patient's sum of components, less what it would be were all its patches average.
    above = np.bincount(members[positive], v10, count) - of_positives * v10.mean()
    below = np.bincount(members[~positive], v01, count) - of_negatives * v10.mean()
    m = of_positives.sum()
    n = of_negatives.sum()
    s10 = i10 / ((i10 - 1) * m) * above @ above
    s01 = i01 / ((i01 - 1) * n) * below @ below
    s11 = count / (count - 1) * above @ below
    of_both = 2 * s11 / (m * n)
    degrees = welch_degrees((float(s10 / m), float(s01 / n)), (int(i10), int(i01)), count - 1)
    # rounding can make it negative
    return max(0.0, float(s10 / m + s01 / n + of_both)), degrees


def rank_swap_test(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    patients: ArrayLike,
    samples: int = 10_000,
    seed: int = 0,
) -> float:
    """Test whether two classifiers have different areas, by swapping their ranks by patient.

    Both score the same patches. If the models are exchangeable, each patient's ranks could be the
    other model's as well. All ways to swap are tried if there are at most `samples`, otherwise
    `samples` random ones.

    Args:
        labels: See the module, like `patients`.
        scores_a: One classifier's scores, shape ``[n]``.
        scores_b: The other's, on any scale.
        patients: The patient of each patch.
        samples: The most swaps that are tried.

    Returns:
        The two-sided p of the difference of the areas, at least 2^(1 - patients). NaN below six
        patients.
    """
    positive, ranks_a = check_scores(labels, stats.rankdata(check_scores(labels, scores_a)[1]))
    ranks_b = stats.rankdata(check_scores(labels, scores_b)[1])
    members, count = _number_patients(patients, len(positive))
    if count < FEWEST_PATIENTS:
        return np.nan

    def difference(signs: Array, axis: int) -> Array:
        swapped = signs[..., members] < 0
        first = np.where(swapped, ranks_b, ranks_a)
        second = np.where(swapped, ranks_a, ranks_b)
        # The area is the positives' sum of ranks, scaled and shifted by what all swaps share.
        sums = [stats.rankdata(side, axis=-1)[..., positive] for side in (first, second)]
        return sums[0].sum(axis=-1) - sums[1].sum(axis=-1)

    test = stats.permutation_test(
        (np.ones(count),),
        difference,
        permutation_type="samples",  # of one sample: the signs
        vectorized=True,
        n_resamples=samples,
        batch=max(1, 1_000_000 // len(positive)),
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def estimate_rate(
    labels: ArrayLike,
    scores: ArrayLike,
    patients: ArrayLike,
    level: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
    rate: float = 0.01,
) -> Estimate:
    """Estimate the true positive rate at a small false positive rate, by bootstrap over patients.

    With fewer than 1 / rate negatives, no false positive is allowed at all. Where all patients are
    alike, the interval reaches by the rule of three to either side, for the patients of the smaller
    class.
    """
    positive, values = check_scores(labels, scores)
    numbers, count = _number_patients(patients, len(positive))
    value = _compute_rate(positive, values, rate)
    if has_few_patients(positive, patients):
        return Estimate(value, np.nan, np.nan)
    rows = [np.flatnonzero(numbers == number) for number in range(count)]
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(samples):
        chosen = np.concatenate([rows[n] for n in random.integers(count, size=count)])
        if positive[chosen].any() and not positive[chosen].all():
            drawn.append(_compute_rate(positive[chosen], values[chosen], rate))
    low, high = percentile_interval(drawn, level)
    if low == high:
        low, high = bound_alike(value, _count_patients(positive, patients), level)
    return Estimate(value, low, high)


def _compute_rate(positive: NDArray[np.bool_], values: NDArray[np.floating], rate: float) -> float:
    others = np.sort(values[~positive])[::-1]
    limit = others[int(rate * len(others))]
    return float(np.mean(values[positive] > limit))


def _number_patients(patients: ArrayLike, patches: int) -> tuple[NDArray[np.intp], int]:
    """Number the patients, and return each patch's number and how many patients there are."""
    names = np.asarray(patients)
    if names.shape != (patches,):
        raise ValueError(f"there are {patches} patches but patients of shape {names.shape}")
    unique_names, members = np.unique(names, return_inverse=True)
    return members, len(unique_names)
