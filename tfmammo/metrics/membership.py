"""Measures of membership inference: how well a score tells training patches from others.

Patches of one patient resemble each other, so that patients are the units of every interval.

Source: Carlini et al., Membership inference attacks from first principles (2022): the true positive
    rate at a low false positive rate, because an average over all patches hides a few that leak.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfmammo.metrics.classification import check_scores
from tfmammo.metrics.clustered_auc import has_few_patients
from tfmammo.metrics.significance import Estimate, percentile_interval

SMALL_RATE = 0.01  # of false positives


def estimate_rate(
    members: ArrayLike,
    scores: ArrayLike,
    patients: ArrayLike,
    level: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
    rate: float = SMALL_RATE,
) -> Estimate:
    """Estimate the true positive rate at a small false positive rate, by bootstrap over patients.

    Below 1 / rate patches that are no members, no false positive is allowed at all.

    Args:
        members: True for patches of the training, shape ``[n]``.
        scores: Higher says member, shape ``[n]``.
        patients: The patient of each patch, shape ``[n]``.
        level: Confidence level.
        samples: Draws.
        seed: Seed of the draws.
        rate: False positive rate.
    """
    positive, values = check_scores(members, scores)
    names, numbers = np.unique(np.asarray(patients), return_inverse=True)
    value = _compute_rate(positive, values, rate)
    if has_few_patients(positive, patients):
        return Estimate(value, np.nan, np.nan)
    rows = [np.flatnonzero(numbers == number) for number in range(len(names))]
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(samples):
        chosen = np.concatenate([rows[n] for n in random.integers(len(names), size=len(names))])
        if positive[chosen].any() and not positive[chosen].all():
            drawn.append(_compute_rate(positive[chosen], values[chosen], rate))
    return Estimate(value, *percentile_interval(drawn, level))


def _compute_rate(positive: NDArray[np.bool_], values: NDArray[np.floating], rate: float) -> float:
    others = np.sort(values[~positive])[::-1]
    limit = others[int(rate * len(others))]
    return float(np.mean(values[positive] > limit))
