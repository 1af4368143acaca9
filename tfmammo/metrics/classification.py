"""How well scores separate two classes: ROC curves, their area, and DeLong's test of two
areas; confusion matrices. Numpy.

Source: DeLong, DeLong and Clarke-Pearson, Comparing the areas under two or more correlated receiver
operating characteristic curves, Biometrics 44 (1988) 837-845; the components by ranks after Sun and
Xu, IEEE Signal Processing Letters 21 (2014) 1389.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """The area under the ROC curve: the probability that a positive scores higher than a negative,
    ties counting one half.

    Args:
        labels: [n], 1 or True positive, 0 negative, at least one of each.
        scores: float [n], higher is more positive.

    Returns:
        0 to 1.

    Raises:
        ValueError: Lengths differ, a label is neither, a class is missing, or a score is no number.
    """
    positives, _ = structural_components(*check_scores(labels, scores))
    return float(positives.mean())


def delong_variance(labels: ArrayLike, scores: ArrayLike) -> float:
    """The variance of `roc_auc`, by DeLong's structural components; arguments and errors as there,
    two of each class at least.
    """
    return float(_covariance(check_scores(labels, scores)[0], [scores])[0, 0])


def delong_test(labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike) -> tuple[float, float]:
    """Whether two classifiers of the same cases have different areas.

    z = (AUC_a - AUC_b) / sqrt(var_a + var_b - 2 cov_ab)

    Args:
        labels: [n], as for `roc_auc`.
        scores_a: [n], as for `roc_auc`.
        scores_b: [n], as for `roc_auc`.

    Returns:
        (z, two-sided p); (0, 1) where the two order the cases alike, and (+-inf, 0) where they
        differ without variance.

    Raises:
        ValueError: As `roc_auc`, or fewer than two of a class.
    """
    checked, _ = check_scores(labels, scores_a)
    check_scores(labels, scores_b)
    covariance = _covariance(checked, [scores_a, scores_b])
    difference = roc_auc(checked, scores_a) - roc_auc(checked, scores_b)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    if variance <= 1e-15:  # what rounding leaves of 0
        return (
            (0.0, 1.0) if abs(difference) < 1e-12 else (float(np.copysign(np.inf, difference)), 0.0)
        )
    z = float(difference / np.sqrt(variance))
    return z, float(2 * stats.norm.sf(abs(z)))


def roc_curve(
    labels: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The ROC curve, a point for each distinct score.

    Args:
        labels: As for `roc_auc`.
        scores: As for `roc_auc`.

    Returns:
        (false positive rate, true positive rate, threshold), float64 [m] each, from (0, 0, inf) to
        (1, 1, lowest score); a case is called positive from its threshold on.
    """
    positive, values = check_scores(labels, scores)
    thresholds = np.unique(values)[::-1]
    called = [
        np.searchsorted(np.sort(-values[side]), -thresholds, side="right")
        for side in (~positive, positive)
    ]
    false, true = (np.concatenate([[0.0], count / count[-1]]) for count in called)
    return false, true, np.concatenate([[np.inf], thresholds])


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, classes: int) -> NDArray[np.int64]:
    """How often class i (row) was called class j (column).

    Args:
        labels: integers [n] from 0 to classes - 1.
        predictions: integers [n] from 0 to classes - 1.

    Returns:
        int64 [classes, classes].

    Raises:
        ValueError: Lengths differ or a class does not exist.
    """
    true = np.asarray(labels, np.int64)
    called = np.asarray(predictions, np.int64)
    if true.shape != called.shape or true.ndim != 1:
        raise ValueError(
            f"labels {true.shape} and predictions {called.shape} must be two lists of the same "
            "length"
        )
    if true.size and (
        min(true.min(), called.min()) < 0 or max(true.max(), called.max()) >= classes
    ):
        raise ValueError(f"labels and predictions must be integers from 0 to {classes - 1}")
    return np.bincount(true * classes + called, minlength=classes**2).reshape(classes, classes)


def precision_recall(
    confusion: NDArray[np.integer],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each class, which part of those called so are so, and which part of those that are so are
    called so.

    Args:
        confusion: Of `confusion_matrix`, integers [classes, classes].

    Returns:
        (precision, recall), float64 [classes] each, NaN where nothing was called so, or is so.
    """
    right = np.diag(confusion).astype(np.float64)
    parts = [
        np.divide(right, total, out=np.full(len(right), np.nan), where=total > 0)
        for total in (confusion.sum(0), confusion.sum(1))
    ]
    return parts[0], parts[1]


def one_versus_rest(labels: ArrayLike, probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """`roc_auc` of each class against all others.

    Args:
        labels: integers [n].
        probabilities: float [n, classes], a column a class.

    Returns:
        float64 [classes], NaN where no case, or every case, is of the class.
    """
    true = np.asarray(labels)
    areas = np.full(probabilities.shape[1], np.nan)
    for number in np.flatnonzero(_tellable(true, len(areas))):
        areas[number] = roc_auc(true == number, probabilities[:, number])
    return areas


def mean_roc(
    labels: ArrayLike, probabilities: NDArray[np.floating], rates: NDArray[np.floating]
) -> NDArray[np.float64]:
    """The ROC curves of each class against all others, averaged at given false positive rates.

    Args:
        labels: As for `one_versus_rest`.
        probabilities: As for `one_versus_rest`.
        rates: Rising [m], 0 to 1.

    Returns:
        True positive rates, float64 [m], 0 at a rate of 0; NaN where no class can be told from
        others.
    """
    true = np.asarray(labels)
    curves = [np.full(len(rates), np.nan)]
    for number in np.flatnonzero(_tellable(true, probabilities.shape[1])):
        false, found, _ = roc_curve(true == number, probabilities[:, number])
        curves.append(np.where(rates > 0, np.interp(rates, false, found), 0.0))
    return np.mean(curves[1:] or curves, axis=0)


def _tellable(labels: NDArray, classes: int) -> NDArray[np.bool_]:
    """bool [classes]: which classes some cases are of, and some are not."""
    counts = np.bincount(labels, minlength=classes)
    return (counts > 0) & (counts < len(labels))


def check_scores(
    labels: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Labels as bool and scores as float64; the errors are those of `roc_auc`."""
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
        raise ValueError("a score is no number")
    positive = positive.astype(bool)
    if positive.all() or not positive.any():
        raise ValueError("there must be positive and negative labels")
    return positive, values


def structural_components(
    positive: NDArray[np.bool_], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each positive the part of the negatives below it, for each negative the part of the
    positives above it.
    """
    ranks = stats.rankdata(scores)  # ties share their mean rank, which is what gives them one half
    above = (ranks[positive] - stats.rankdata(scores[positive])) / np.sum(~positive)
    below = 1 - (ranks[~positive] - stats.rankdata(scores[~positive])) / np.sum(positive)
    return above, below


def _covariance(positive: NDArray[np.bool_], several: list[ArrayLike]) -> NDArray[np.float64]:
    """The covariance of the areas of several scores of the same cases, float64 [k, k]."""
    if min(np.sum(positive), np.sum(~positive)) < 2:
        raise ValueError("a variance needs two positive and two negative labels")
    parts = [structural_components(positive, np.asarray(scores, np.float64)) for scores in several]
    return sum(
        np.atleast_2d(np.cov([part[side] for part in parts])) / len(parts[0][side])
        for side in (0, 1)
    )  # type: ignore[return-value]
