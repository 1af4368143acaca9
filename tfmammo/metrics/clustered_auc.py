"""Intervals and tests of areas under ROC curves, with patients as the units.

Patches of one patient resemble each other. DeLong's test takes every patch as independent and so
finds differences between equally good models far too often. Here whole patients vary:

    estimate_auc      one area with its interval, by Obuchowski's variance
    chance_test       whether it is one half, by the same
    obuchowski_test   a normal approximation; with 6 to 10 patients it rejects up to 15 % of equal
                      models at .05
    rank_swap_test    a permutation test, which holds its level for few patients, too; tables print
                      its p

The tests ask about the models as they were trained. Neither says how another training would differ.

Source: Obuchowski, Nonparametric analysis of clustered ROC curve data, Biometrics 53 (1997) 567.
    Bandos, Rockette and Gur, A permutation test sensitive to differences in areas for comparing ROC
    curves from a paired design, Statistics in Medicine 24 (2005) 2873. Departure: whole patients
    are exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tfmammo.metrics.classification import check_scores, roc_auc, structural_components
from tfmammo.metrics.significance import (
    FEWEST_PATIENTS,
    Estimate,
    rule_of_three,
    welch_degrees,
)

Array = NDArray[np.float64]


def has_few_patients(labels: ArrayLike, patients: ArrayLike) -> bool:
    """Whether a class has fewer than six patients, too few for an interval or p.

    Args:
        labels: 1 or True positive, 0 negative, shape ``[n]``.
        patients: The patient of each patch, shape ``[n]``.

    Raises:
        ValueError: Patients of another length.
    """
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
    class whose patches all lie alike among those of the other class has no variance, though other
    patients might. It reaches at least by the rule of three: -ln(1 - level) / n to either side,
    3 / n at 0.95, n the patients of that class. With an area of 0 or 1 both classes are of that
    kind.

    Args:
        labels: 1 or True positive, 0 negative, shape ``[n]``.
        scores: Higher is more positive, shape ``[n]``.
        patients: The patient of each patch, shape ``[n]``.
        level: Confidence level.

    Raises:
        ValueError: As `roc_auc`, or patients of another length.
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
    bound = rule_of_three(min(alike), level) if alike else 0.0
    return Estimate(
        area, float(max(0.0, min(low, area - bound))), float(min(1.0, max(high, area + bound)))
    )


def chance_test(labels: ArrayLike, scores: ArrayLike, patients: ArrayLike) -> float:
    """Test whether an area under a ROC curve is one half, as `estimate_auc`'s interval tells.

    Args:
        labels: 1 or True positive, 0 negative, shape ``[n]``.
        scores: Higher is more positive, shape ``[n]``.
        patients: The patient of each patch, shape ``[n]``.

    Returns:
        The two-sided p of the logit over its deviation, by Student's t as in `estimate_auc`. NaN
        below six patients of a class. Of an area without variance it is 1 at one half, else
        2^(1-n) of n patients of the smaller class, as of a test that flips signs.

    Raises:
        ValueError: As `estimate_auc`.
    """
    positive, values = check_scores(labels, scores)
    if has_few_patients(positive, patients):
        return np.nan
    logit, deviation, degrees = _compute_logit(positive, values, patients)
    if not deviation > 0:
        is_half = roc_auc(positive, values) == 0.5
        return 1.0 if is_half else 2.0 ** (1 - _count_patients(positive, patients))
    return float(2 * stats.t.sf(abs(logit) / deviation, degrees))


def _compute_logit(
    positive: NDArray[np.bool_], values: Array, patients: ArrayLike
) -> tuple[float, float, float]:
    """Compute an area's logit, its deviation and the degrees of freedom of Student's t.

    Logit and deviation are 0 where the area has no variance.
    """
    area = roc_auc(positive, values)
    parts = _split_covariance(positive, [values], patients)
    degrees = welch_degrees(
        (parts.of_positives[0, 0], parts.of_negatives[0, 0]), parts.counts, parts.patients - 1
    )
    deviation = float(np.sqrt(parts.sum()[0, 0]))
    if deviation < 1e-9 or not 0 < area < 1:
        return 0.0, 0.0, degrees
    return float(np.log(area / (1 - area))), deviation / (area * (1 - area)), degrees


def obuchowski_variance(labels: ArrayLike, scores: ArrayLike, patients: ArrayLike) -> float:
    """Compute the variance of `roc_auc` where patches of one patient are not independent.

    Args:
        labels: 1 or True positive, 0 negative, shape ``[n]``.
        scores: Higher is more positive, shape ``[n]``.
        patients: The patient of each patch, shape ``[n]``.

    Returns:
        The variance, 0 or more. It equals DeLong's where each patient has one patch.

    Raises:
        ValueError: As `roc_auc`, patients of another length, or fewer than two patients with
            patches of a class.
    """
    return float(_split_covariance(labels, [scores], patients).sum()[0, 0])


def obuchowski_test(
    labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike, patients: ArrayLike
) -> tuple[float, float]:
    """Test whether two classifiers of the same patches have different areas, by patients.

    z = (AUC_a - AUC_b) / sqrt(var_a + var_b - 2 cov_ab), against the normal distribution.

    Args:
        labels: 1 or True positive, 0 negative, shape ``[n]``.
        scores_a: One classifier's scores, shape ``[n]``.
        scores_b: The other's, on any scale.
        patients: The patient of each patch, shape ``[n]``.

    Returns:
        z and the two-sided p. p is NaN below six patients of a class, and where the areas differ
        without any variance.

    Raises:
        ValueError: As `obuchowski_variance`.
    """
    covariance = _split_covariance(labels, [scores_a, scores_b], patients).sum()
    difference = roc_auc(labels, scores_a) - roc_auc(labels, scores_b)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    enough = not has_few_patients(labels, patients)
    if variance <= 1e-15:  # what rounding leaves of 0
        alike = abs(difference) < 1e-12
        z = 0.0 if alike else float(np.copysign(np.inf, difference))
        return z, 1.0 if alike and enough else np.nan
    z = float(difference / np.sqrt(variance))
    return z, float(2 * stats.norm.sf(abs(z))) if enough else np.nan


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
        labels: 1 or True positive, 0 negative, shape ``[n]``.
        scores_a: One classifier's scores, shape ``[n]``.
        scores_b: The other's, on any scale.
        patients: The patient of each patch, shape ``[n]``.
        samples: The most swaps that are tried.
        seed: Seed of random swaps.

    Returns:
        The two-sided p of the difference of the areas, at least 2^(1 - patients). NaN below six
        patients.

    Raises:
        ValueError: As `roc_auc`, or patients of another length.
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
        return _rank_sum(first, positive) - _rank_sum(second, positive)

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


def _rank_sum(values: Array, positive: NDArray[np.bool_]) -> Array:
    return stats.rankdata(values, axis=-1)[..., positive].sum(axis=-1)


def _number_patients(patients: ArrayLike, patches: int) -> tuple[NDArray[np.intp], int]:
    """Number the patients, and return each patch's number and how many patients there are."""
    names = np.asarray(patients)
    if names.shape != (patches,):
        raise ValueError(f"there are {patches} patches but patients of shape {names.shape}")
    unique_names, members = np.unique(names, return_inverse=True)
    return members, len(unique_names)


@dataclass(frozen=True)
class _Parts:
    """The covariance of the areas of several scores, in parts.

    Attributes:
        of_positives: What patients with positive patches add, float64 ``[k, k]``.
        of_negatives: What patients with negative patches add, float64 ``[k, k]``.
        of_both: What patients with both add, float64 ``[k, k]``.
        counts: Number of patients with positive patches, and with negative ones.
        patients: Number of patients.
    """

    of_positives: Array
    of_negatives: Array
    of_both: Array
    counts: tuple[int, int]
    patients: int

    def sum(self) -> Array:
        """The covariance, float64 ``[k, k]``."""
        return self.of_positives + self.of_negatives + self.of_both


def _split_covariance(labels: ArrayLike, several: list[ArrayLike], patients: ArrayLike) -> _Parts:
    """Compute the covariance of the areas of several scores."""
    checked = [check_scores(labels, scores) for scores in several]
    positive = checked[0][0]
    members, count = _number_patients(patients, len(positive))
    of_positives = np.bincount(members[positive], minlength=count)
    of_negatives = np.bincount(members[~positive], minlength=count)
    if min(np.count_nonzero(of_positives), np.count_nonzero(of_negatives)) < 2:
        raise ValueError(
            "a variance needs two patients with positive patches and two with negative ones"
        )
    above, below = np.empty((2, len(several), count))
    for row, (_, scores) in enumerate(checked):
        v10, v01 = structural_components(positive, scores)
        # Each patient's sum of components, less what it would be were all its patches average.
        above[row] = np.bincount(members[positive], v10, count) - of_positives * v10.mean()
        below[row] = np.bincount(members[~positive], v01, count) - of_negatives * v10.mean()
    m = of_positives.sum()
    n = of_negatives.sum()
    i10 = np.count_nonzero(of_positives)
    i01 = np.count_nonzero(of_negatives)
    s10 = i10 / ((i10 - 1) * m) * above @ above.T
    s01 = i01 / ((i01 - 1) * n) * below @ below.T
    s11 = count / (count - 1) * above @ below.T
    return _Parts(s10 / m, s01 / n, (s11 + s11.T) / (m * n), (int(i10), int(i01)), count)
