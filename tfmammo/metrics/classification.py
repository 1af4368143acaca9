"""ROC curves, their area, and DeLong's test of two areas.

Source: DeLong, DeLong and Clarke-Pearson, Comparing the areas under two or more correlated receiver
operating characteristic curves, Biometrics 44 (1988) 837-845; the components by ranks after Sun and
Xu, IEEE Signal Processing Letters 21 (2014) 1389.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn import metrics

RATES = np.linspace(0, 1, 1001)  # of false positives, at which curves of folds are averaged


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Compute the area under the ROC curve, 0 to 1.

    It is the probability that a positive scores higher than a negative; ties count one half.

    Args:
        labels: [n], 1 or True positive, 0 negative, at least one of each.
        scores: float [n], higher is more positive.

    Raises:
        ValueError: Lengths differ, a label is neither, a class is missing, or a score is NaN.

    Examples:
        >>> roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
        0.75
    """
    positives, _ = structural_components(*check_scores(labels, scores))
    return float(positives.mean())


def delong_variance(labels: ArrayLike, scores: ArrayLike) -> float:
    """Compute the variance of `roc_auc` by DeLong's components; two cases of each class or more."""
    return float(_covariance(check_scores(labels, scores)[0], [scores])[0, 0])


def delong_test(labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike) -> tuple[float, float]:
    """Test whether two classifiers of the same cases have different areas.

    z = (AUC_a - AUC_b) / sqrt(var_a + var_b - 2 cov_ab)

    Args:
        scores_a: One classifier's scores [n].
        scores_b: The other's.

    Returns:
        (z, two-sided p); (0, 1) where the two order the cases alike. Where they differ without
        variance, z is infinite and p is 2^(1-n) of n cases of the smaller class, as of a test that
        flips signs.

    Examples:
        >>> z, p = delong_test([0, 0, 1, 1, 1], [1, 3, 2, 4, 5], [2, 3, 1, 4, 5])
        >>> z > 0, 0 < p < 1
        (True, True)
    """
    checked, _ = check_scores(labels, scores_a)
    check_scores(labels, scores_b)
    covariance = _covariance(checked, [scores_a, scores_b])
    difference = roc_auc(checked, scores_a) - roc_auc(checked, scores_b)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    if variance <= 1e-15:  # what rounding leaves of 0
        if abs(difference) < 1e-12:
            return 0.0, 1.0
        fewest = min(np.sum(checked), np.sum(~checked))
        return float(np.copysign(np.inf, difference)), float(2.0 ** (1 - fewest))
    z = float(difference / np.sqrt(variance))
    return z, float(2 * stats.norm.sf(abs(z)))


def roc_curve(
    labels: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Compute the ROC curve, with a point for each distinct score; input and errors as `roc_auc`.

    Returns:
        (false positive rate, true positive rate, threshold), float64 [m] each, from (0, 0, inf) to
        (1, 1, lowest score); a case is called positive from its threshold on.
    """
    positive, values = check_scores(labels, scores)
    return metrics.roc_curve(positive, values, drop_intermediate=False)


def roc_by_fold(
    classes: ArrayLike, scores: ArrayLike, folds: ArrayLike
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64]]:
    """Compute the ROC curve of each fold, whose scores need no common scale.

    Args:
        classes: bool [n, k], whether each case is of each class.
        scores: float [n, k], each case's score of each class.
        folds: The fold of each case [n].

    Returns:
        The folds, without those in which no class has both cases that are of it and others that are
        not; true positive rates at RATES of false positives, the mean over the classes and 0 at 0,
        float64 [folds, rates]; and `roc_auc` of each class, float64 [folds, k], NaN where no case,
        or every case, is of the class.
    """
    true, values = np.asarray(classes), np.asarray(scores)
    kept, curves, areas = [], [], []
    for fold in np.unique(folds):
        rows = np.flatnonzero(np.asarray(folds) == fold)
        own = true[rows]
        of_classes = []
        area = np.full(true.shape[1], np.nan)
        for number in np.flatnonzero(own.any(axis=0) & ~own.all(axis=0)):
            case = own[:, number], values[rows, number]
            area[number] = roc_auc(*case)
            false_rates, true_rates, _ = roc_curve(*case)
            of_classes.append(np.where(RATES > 0, np.interp(RATES, false_rates, true_rates), 0.0))
        if of_classes:
            kept.append(fold)
            curves.append(np.mean(of_classes, axis=0))
            areas.append(area)
    return (
        np.array(kept),
        np.reshape(curves, (-1, len(RATES))),
        np.reshape(areas, (-1, true.shape[1])),
    )


def check_scores(
    labels: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Convert labels to bool and scores to float64; the errors are those of `roc_auc`."""
    positive = np.asarray(labels)
    values = np.asarray(scores, np.float64)
    if positive.shape != values.shape or positive.ndim != 1:
        raise ValueError(
            f"labels {positive.shape} and scores {values.shape} must be two lists of the same "
            "length"
        )
    if not np.isin(positive, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if np.isnan(values).any():
        raise ValueError("a score is not a number")
    positive = positive.astype(bool)
    if positive.all() or not positive.any():
        raise ValueError("there must be positive and negative labels")
    return positive, values


def structural_components(
    positive: NDArray[np.bool_], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute DeLong's components: of each positive, the part of the negatives below it; of each
    negative, the part of the positives above it.
    """
    ranks = stats.rankdata(scores)  # ties share their mean rank, so that they count one half
    above = (ranks[positive] - stats.rankdata(scores[positive])) / np.sum(~positive)
    below = 1 - (ranks[~positive] - stats.rankdata(scores[~positive])) / np.sum(positive)
    return above, below


def _covariance(positive: NDArray[np.bool_], several: list[ArrayLike]) -> NDArray[np.float64]:
    """Compute the covariance of the areas of several scores of the same cases, float64 [k, k]."""
    if min(np.sum(positive), np.sum(~positive)) < 2:
        raise ValueError("a variance needs two positive and two negative labels")
    parts = [structural_components(positive, np.asarray(scores, np.float64)) for scores in several]
    return sum(
        np.atleast_2d(np.cov([part[side] for part in parts])) / len(parts[0][side])
        for side in (0, 1)
    )  # type: ignore[return-value]
