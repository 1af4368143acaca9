"""What all tests share: the minimum number of patients, Holm's correction, notes below tables.

Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of
Statistics 6 (1979) 65.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

# A test that flips signs or swaps models by patient has 2^n equally likely outcomes for n patients.
# Its smallest two-sided p is 2^(1 - n): 0.0625 for five patients, 0.031 for six.
FEWEST_PATIENTS = 6

Test = Literal["flips", "jackknife", "guessing"]
TESTS: Mapping[Test, str] = {
    "flips": "two-sided permutation test that flips the signs of whole patients' differences",
    "jackknife": "two-sided, Student's t on a jackknife that leaves out one patient at a time",
    "guessing": "two-sided exact test against guessing; every case is of patients of its own",
}


def percentile_interval(
    drawn: Sequence[float] | NDArray[np.floating], level: float
) -> tuple[float, float]:
    """Compute the interval between the percentiles of bootstrap draws."""
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


@dataclass(frozen=True)
class Estimate:
    """A value with its interval.

    Attributes:
        low: Lower bound. Both bounds are NaN where there are too few patients or cases for any.
        high: Upper bound. A bound is infinite where there is none on that side.
        p: Two-sided p of a value of 0; NaN where it was not tested.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan


def welch_degrees(variances: Sequence[float], counts: Sequence[int], most: int) -> float:
    """Compute the degrees of freedom of a sum of variances, (sum v)^2 / sum v^2 / (n - 1).

    Where few patients of one kind meet many of another, the few decide how well the sum is known.

    Args:
        variances: Each group's variance of its mean, 0 or more.
        counts: How many patients each group has.
        most: The most that the answer may be; it is the answer where nothing varies.

    Source:
        Welch, Biometrika 34 (1947) 28.
    """
    parts = [(v, n) for v, n in zip(variances, counts, strict=True) if v > 0]
    if not parts:
        return float(most)
    total = sum(v for v, _ in parts)
    return float(min(most, total**2 / sum(v**2 / max(1, n - 1) for v, n in parts)))


def bound_difference(ours: Sequence[float], other: Sequence[float], is_paired: bool) -> float:
    """Compute the upper end of the 95 % interval of a difference of means, by Student's t.

    Without pairs by Welch's. It is the difference itself if no value varies.

    Examples:
        >>> round(bound_difference([1, 2, 4], [0, 1.5, 2], is_paired=True), 3)
        3.064
        >>> round(bound_difference([1, 2, 4], [0, 1.5, 2], is_paired=False), 3)
        4.293
    """
    mean = float(np.mean(ours) - np.mean(other))
    samples = [np.subtract(ours, other)] if is_paired else [ours, other]
    counts = [len(values) for values in samples]
    variances = [float(np.var(values, ddof=1)) / len(values) for values in samples]
    if not sum(variances):
        return mean
    freedom = welch_degrees(variances, counts, sum(counts))
    return mean + float(student.ppf(0.975, freedom)) * math.sqrt(sum(variances))


def bound_alike(value: float, count: int, level: float, lowest: float = 0.0) -> tuple[float, float]:
    """Return the interval of a number in [lowest, 1] of `count` cases that are all alike.

    It reaches by the rule of three to either side, the largest rate at which none of so many cases
    may have shown it: 3 / n at 0.95.
    """
    bound = min(1.0, -np.log(1 - level) / count)
    return float(max(lowest, value - bound)), float(min(1.0, value + bound))


def is_point(low: float, high: float) -> bool:
    """Return whether an interval has no width but what rounding leaves; NaN bounds are none."""
    return bool(high - low < 1e-12)


def smallest_p(patients: int, comparisons: int = 1, samples: int = 10_000) -> float:
    """Compute the smallest two-sided p that a test of so many patients can give, after Holm.

    That is ``comparisons * 2^(1 - patients)``, or ``comparisons * 2 / (samples + 1)`` with random
    draws, where there are more outcomes than `samples`; at most 1.
    """
    is_sampled = 2.0**patients > samples
    p = 2 / (samples + 1) if is_sampled else 2.0 ** (1 - patients)
    return float(min(1.0, comparisons * p))


def describe(
    test: Test,
    patients: int,
    comparisons: int,
    samples: int = 10_000,
    level: float = 0.95,
    correction: str = "Holm",
) -> str:
    """Describe the p-values of a table in the line below it: test, correction, smallest p.

    Args:
        patients: The units that the test resamples, at least `FEWEST_PATIENTS`.
        comparisons: How many tests the correction covers; 1 needs none.
        samples: Random draws of a permutation test.
        correction: Its author.
    """
    corrected = (
        f"{correction}'s correction for {comparisons} comparisons"
        if comparisons > 1
        else "one comparison, no correction"
    )
    sentence = f"p: {TESTS[test]}; {corrected}"
    if test == "flips":
        least = smallest_p(patients, comparisons, samples)
        units = f"{patients} patients" if 2.0**patients <= samples else f"{samples:,} random draws"
        sentence += f"; {units} can give no p-value below {least:.2g}"
        sentence += ", so that no difference can be shown" if least >= 1 - level else ""
    return f"{sentence}."


def describe_few(patients: int, what: str = "") -> str:
    """Explain below a table why it has neither intervals nor p: too few patients `what`."""
    kind = f" {what}" if what else ""
    counted = f"{patients} patients{kind} are" if patients > 1 else f"one patient{kind} is"
    least = f"{smallest_p(patients):.2g}"
    return (
        f"No interval and no p-value: {counted} fewer than {FEWEST_PATIENTS}, and flipping them "
        f"gives no p-value below {least}."
    )


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjust p-values of several comparisons so that the chance of any false rejection is bounded.

    The k-th smallest of m values is multiplied by m - k + 1. No adjusted value is below that of a
    smaller p.

    Args:
        p_values: Two-sided p in [0, 1], shape ``[m]``. NaN is not compared and stays NaN.

    Returns:
        Adjusted p in the same order, float64 ``[m]``, at most 1.
    """
    values = np.asarray(p_values, np.float64)
    is_test = ~np.isnan(values)
    order = np.argsort(values[is_test], kind="stable")
    factors = np.arange(len(order), 0, -1)
    raised = np.maximum.accumulate(values[is_test][order] * factors)
    adjusted = np.full(len(values), np.nan)
    adjusted[np.flatnonzero(is_test)[order]] = np.minimum(raised, 1.0)
    return adjusted
