"""What observers' answers say: choices of the real one of two, and ratings of real and
synthetic ones. Numpy and SciPy.

Of a forced choice between two, d' = sqrt(2) z(share of right choices), z the inverse of the normal
distribution's integral; of ratings d_a = sqrt(2) z(area under the ROC curve). Both are 0 for
whoever guesses, and of an ideal observer they are the same number.

One observer's intervals and tests are of the cases. Those of several together are of cases and
observers: both are drawn anew, since what two of them say of one picture is not independent. With
two or three observers such an interval is rather too narrow.

Every case shows patients of its own. Below `FEWEST_PATIENTS` cases there is neither interval nor p.

Source: Green and Swets, Signal detection theory and psychophysics (1966); Macmillan and Creelman,
Detection theory: a user's guide (2005), chapters 3 and 7; Clopper and Pearson, Biometrika 26 (1934)
404.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tfmammo.metrics.classification import delong_variance, roc_auc, roc_curve
from tfmammo.metrics.plotting import quiet
from tfmammo.metrics.significance import FEWEST_PATIENTS

Array = NDArray[np.float64]
NO_BOUNDS = (np.nan, np.nan)


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, low and high; NaN where there is no interval, infinite where it
    has no bound on a side.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Choices:
    """Forced choices between two.

    p and intervals are NaN where fewer than `FEWEST_PATIENTS` pairs were answered.

    Attributes:
        n: How many, right: of them.
        p: Two-sided, of guessing.
        share: 0 to 1.
        d_prime: See `d_prime`.
    """

    n: int
    right: int
    share: Estimate
    d_prime: Estimate
    p: float


@dataclass(frozen=True)
class Ratings:
    """Ratings.

    Attributes:
        real: How many of either.
        synthetic: How many of either.
        area: Under the ROC curve, 0 to 1.
        d_a: sqrt(2) z(area).
    """

    real: int
    synthetic: int
    area: Estimate
    d_a: Estimate


def d_prime(share: float) -> float:
    """sqrt(2) z(share): of the share of right choices between two, or of an area under the ROC
    curve; infinite at 0 and 1.
    """
    return float(np.sqrt(2) * stats.norm.ppf(share))


def choices(right: ArrayLike, level: float = 0.95) -> Choices:
    """One observer's choices: exact binomial test against 1/2, interval of Clopper and Pearson.

    Args:
        right: bool [n], n from 1 up, whether each was right.
        level: Of the interval, in (0, 1).

    Returns:
        Choices. Where all or none are right d_prime's value is that of half a choice less or more
        (Macmillan and Creelman, p. 8), and its interval has no bound on that side.

    Raises:
        ValueError: There is no choice.
    """
    given = np.asarray(right, bool)
    if given.ndim != 1 or not given.size:
        raise ValueError(f"choices must be a list of one or more, not {given.shape}")
    count = int(given.sum())
    n = len(given)
    test = stats.binomtest(count, n, 0.5)
    bounds = test.proportion_ci(level, "exact")
    enough = n >= FEWEST_PATIENTS
    share = Estimate(count / n, *((float(bounds.low), float(bounds.high)) if enough else NO_BOUNDS))
    return Choices(n, count, share, _in_d(share, 0.5 / n), float(test.pvalue) if enough else np.nan)


def pooled_choices(
    right: ArrayLike, samples: int = 2000, seed: int = 0, level: float = 0.95
) -> Choices:
    """Several observers' choices between the same pairs.

    The interval is of observers and pairs drawn with replacement, both together. p is exact: were
    all guessing, each pair's sides could be exchanged, and with them what all observers said of it;
    of one observer this is the binomial test.

    Args:
        right: float [observers, pairs], 1 right, 0 wrong, NaN unanswered.
        samples: Of the bootstrap.
        seed: Of the bootstrap.
        level: In (0, 1).

    Returns:
        Choices, n counting answers; d_prime as in `choices`.

    Raises:
        ValueError: There is no answer.
    """
    given = np.asarray(right, np.float64)
    if given.ndim != 2 or np.isnan(given).all():
        raise ValueError(f"choices must be of observers and pairs, one or more, not {given.shape}")
    answered = ~np.isnan(given)
    correct = np.nan_to_num(given)
    random = np.random.default_rng(seed)
    observers, pairs = (_drawn(random, count, samples) for count in given.shape)
    won, of = (
        np.einsum("br,rc,bc->b", observers, values, pairs, optimize=True)
        for values in (correct, answered.astype(np.float64))
    )
    n = int(answered.sum())
    count = int(correct.sum())
    enough = answered.any(axis=0).sum() >= FEWEST_PATIENTS
    share = Estimate(
        count / n, *(_percentiles(won[of > 0] / of[of > 0], level) if enough else NO_BOUNDS)
    )
    p = _exchanged(np.where(answered, 2 * correct - 1, 0).sum(axis=0)) if enough else np.nan
    return Choices(n, count, share, _in_d(share, 0.5 / n), p)


def ratings(real: ArrayLike, given: ArrayLike, level: float = 0.95) -> Ratings:
    """One observer's ratings: the area under the ROC curve with DeLong's interval.

    Args:
        real: bool [n], which cases are real, two of either at least.
        given: Number [n], higher is more surely real.
        level: In (0, 1).

    Returns:
        Ratings. There is no interval where DeLong's variance is 0, as of ratings that tell all
        apart, or cases are too few. An area of 0 or 1 counts for d_a as half a pair of cases more
        or less.

    Raises:
        ValueError: As `classification.delong_variance`.
    """
    truth = np.asarray(real, bool)
    variance = delong_variance(real, given)
    area = roc_auc(real, given)
    enough = variance > 1e-12 and len(truth) >= FEWEST_PATIENTS
    reach = stats.norm.ppf((1 + level) / 2) * np.sqrt(variance) if enough else np.nan
    found = Estimate(area, float(np.maximum(area - reach, 0)), float(np.minimum(area + reach, 1)))
    return _rated(truth.sum(), (~truth).sum(), found)


def pooled_ratings(
    real: ArrayLike, given: ArrayLike, samples: int = 2000, seed: int = 0, level: float = 0.95
) -> Ratings:
    """Several observers' ratings of the same cases: the mean of their areas, since each uses the
    scale in a way of their own.

    Args:
        real: bool [cases].
        given: float [observers, cases], NaN unanswered.
        samples: Of the bootstrap, which draws observers, real and synthetic cases, each with
            replacement.
        seed: Of the bootstrap, which draws observers, real and synthetic cases, each with
            replacement.
        level: In (0, 1).

    Returns:
        Ratings, counting answers; d_a as in `ratings`.

    Raises:
        ValueError: Nobody rated a real and a synthetic case.
    """
    truth = np.asarray(real, bool)
    rated = np.asarray(given, np.float64)
    answered = ~np.isnan(rated)
    values = np.nan_to_num(rated)
    pairs = (answered[:, truth, None] & answered[:, None, ~truth]).astype(np.float64)
    # ties count one half
    won = pairs * (1 + np.sign(values[:, truth, None] - values[:, None, ~truth])) / 2
    whole = pairs.sum(axis=(1, 2)) > 0
    if not whole.any():
        raise ValueError("nobody rated a real and a synthetic case")
    area = (won.sum(axis=(1, 2))[whole] / pairs.sum(axis=(1, 2))[whole]).mean()
    random = np.random.default_rng(seed)
    observers, reals, others = (_drawn(random, count, samples) for count in pairs.shape)
    top, bottom = (
        np.einsum("bi,rij,bj->br", reals, part, others, optimize=True) for part in (won, pairs)
    )
    weights = observers * (bottom > 0)
    means = (weights * top / np.maximum(bottom, 1)).sum(axis=1)[weights.any(axis=1)] / weights.sum(
        axis=1
    )[weights.any(axis=1)]
    counts = answered[:, truth].sum(), answered[:, ~truth].sum()
    enough = answered.any(axis=0).sum() >= FEWEST_PATIENTS
    return _rated(
        *counts, Estimate(float(area), *(_percentiles(means, level) if enough else NO_BOUNDS))
    )


@quiet
def roc_figure(systems: Mapping[str, tuple[ArrayLike, ArrayLike]], title: str = "") -> Figure:
    """The ROC curves of several systems' ratings, each the mean of its observers' curves.

    Args:
        systems: Name -> (real, given) as for `pooled_ratings`; observers who did not rate both
            sorts are left out.
    """
    rates: Array = np.linspace(0, 1, 201)
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":")
    for name, (real, given) in systems.items():
        curves = [
            _curve(np.asarray(real, bool), row, rates)
            for row in np.asarray(given, np.float64)
            if _both(real, row)
        ]
        if curves:
            axes.plot(
                np.concatenate([[0.0], rates]),
                np.concatenate([[0.0], np.mean(curves, axis=0)]),
                label=name,
            )
    axes.set(
        xlabel="synthetic taken for real",
        ylabel="real taken for real",
        xlim=(0, 1),
        ylim=(0, 1.01),
        aspect="equal",
    )
    axes.set_title(title, fontsize=8)
    if len(axes.get_lines()) > 1:
        axes.legend(loc="lower right")
    return figure


def _both(real: ArrayLike, given: Array) -> bool:
    """Whether a real and a synthetic case were rated."""
    return len(np.unique(np.asarray(real, bool)[~np.isnan(given)])) == 2


def _curve(real: NDArray[np.bool_], given: Array, rates: Array) -> Array:
    answered = ~np.isnan(given)
    false, true, _ = roc_curve(real[answered], given[answered])
    return np.interp(rates, false, true)


def _rated(real: int, synthetic: int, area: Estimate) -> Ratings:
    return Ratings(int(real), int(synthetic), area, _in_d(area, 0.5 / (int(real) * int(synthetic))))


def _in_d(share: Estimate, least: float) -> Estimate:
    """A share's estimate as d'; the value, not its bounds, is kept `least` away from 0 and 1."""
    return Estimate(
        d_prime(float(np.clip(share.value, least, 1 - least))),
        d_prime(share.low),
        d_prime(share.high),
    )


def _drawn(random: np.random.Generator, count: int, samples: int) -> Array:
    """How often each of `count` is drawn with replacement, float64 [samples, count]."""
    return random.multinomial(count, np.full(count, 1 / count), size=samples).astype(np.float64)


def _percentiles(values: Array, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _exchanged(leads: Array) -> float:
    """How likely sums at least as far from 0 are where each pair's lead (right less wrong choices)
    has either sign as likely.
    """
    sizes = np.abs(leads).astype(int)
    chances = np.ones(1)
    for size in sizes:
        both = np.zeros(2 * size + 1)
        both[0] += 0.5
        both[-1] += 0.5
        chances = np.convolve(chances, both)
    sums = np.abs(np.arange(len(chances)) - sizes.sum())
    return float(min(1.0, chances[sums >= abs(leads.sum())].sum()))
