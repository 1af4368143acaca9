"""Statistics of observers' answers: forced choices between real and synthetic, and ratings.

For a forced choice between two, d' = sqrt(2) z(share of right choices), where z is the inverse of
the normal distribution function. For ratings, d_a = sqrt(2) z(area under the ROC curve). Both are 0
for an observer who guesses, and equal for an ideal observer.

Intervals and tests of one observer are over cases. Those of several observers are over cases and
observers, and both are drawn: what two observers say of one image is not independent. With two or
three observers such an interval is rather too narrow.

Every case shows patients of its own. Below `FEWEST_PATIENTS` cases, of ratings of either kind,
there is neither interval nor p.

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

from tfmammo.metrics.classification import roc_curve
from tfmammo.metrics.clustered_auc import estimate_auc
from tfmammo.metrics.plotting import make_roc_axes, plot_style
from tfmammo.metrics.significance import (
    FEWEST_PATIENTS,
    Estimate,
    bound_alike,
    is_point,
    percentile_interval,
)

Array = NDArray[np.float64]
NO_BOUNDS = (np.nan, np.nan)


@dataclass(frozen=True)
class Choices:
    """Forced choices between two.

    Attributes:
        n: Number of choices.
        right: Number of right choices.
        share: Share of right choices, 0 to 1.
        p: Two-sided p of guessing; NaN below `FEWEST_PATIENTS` pairs, like the share's interval.
    """

    n: int
    right: int
    share: Estimate
    p: float

    @property
    def d_prime(self) -> Estimate:
        """d' of the share. All or no right choices count as half a choice less or more."""
        return _convert_to_d(self.share, 0.5 / self.n)


@dataclass(frozen=True)
class Ratings:
    """Numbers of ratings of real and synthetic cases, and the area under their ROC curve.

    Attributes:
        pairs: Number of pairs of a real and a synthetic case that one observer rated.
    """

    real: int
    synthetic: int
    pairs: int
    area: Estimate

    @property
    def d_a(self) -> Estimate:
        """sqrt(2) z(area). An area of 0 or 1 counts as half a pair more or less."""
        return _convert_to_d(self.area, 0.5 / self.pairs)


def estimate_choices(right: ArrayLike, level: float = 0.95) -> Choices:
    """Test one observer's choices by the exact binomial test, with Clopper and Pearson's interval.

    `right` is whether each choice was right, bool [n], n from 1 up. Where all or none are, d' is as
    in Macmillan and Creelman, p. 8, and its interval has no bound on that side.
    """
    is_right = np.asarray(right, bool)
    count = int(is_right.sum())
    n = len(is_right)
    enough = n >= FEWEST_PATIENTS
    share = Estimate(count / n, *(_clopper_pearson(count, n, level) if enough else NO_BOUNDS))
    p = float(stats.binomtest(count, n, 0.5).pvalue) if enough else np.nan
    return Choices(n, count, share, p)


def _clopper_pearson(count: int, n: int, level: float) -> tuple[float, float]:
    bounds = stats.binomtest(count, n).proportion_ci(level, "exact")
    return float(bounds.low), float(bounds.high)


def pool_choices(
    right: ArrayLike, samples: int = 2000, seed: int = 0, level: float = 0.95
) -> Choices:
    """Test several observers' choices between the same pairs; n counts answers.

    For the interval, observers and pairs are both drawn with replacement. Where all or no answers
    are right, it is Clopper and Pearson's, of the pairs. p is exact: if all observers guessed, the
    two sides of each pair could be exchanged, and with them all answers to it.

    Args:
        right: float [observers, pairs], 1 right, 0 wrong, NaN unanswered; one answer at least.
        samples: Draws of the bootstrap.
        seed: Seed of the bootstrap.
        level: Confidence level, in (0, 1).
    """
    given = np.asarray(right, np.float64)
    answered = ~np.isnan(given)
    correct = np.nan_to_num(given)
    random = np.random.default_rng(seed)
    observers, pairs = (_draw_counts(random, count, samples) for count in given.shape)
    drawn_right, drawn_answers = (
        np.einsum("br,rc,bc->b", observers, values, pairs, optimize=True)
        for values in (correct, answered.astype(np.float64))
    )
    n = int(answered.sum())
    count = int(correct.sum())
    bounds = NO_BOUNDS
    p = np.nan
    pairs_answered = int(answered.any(axis=0).sum())
    if pairs_answered >= FEWEST_PATIENTS:
        has_answers = drawn_answers > 0
        bounds = percentile_interval(drawn_right[has_answers] / drawn_answers[has_answers], level)
        if count in (0, n):  # every draw is alike, though other pairs might not be
            bounds = _clopper_pearson(pairs_answered if count else 0, pairs_answered, level)
        p = _exchange_test(np.where(answered, 2 * correct - 1, 0).sum(axis=0))
    return Choices(n, count, Estimate(count / n, *bounds), p)


def estimate_ratings(real: ArrayLike, given: ArrayLike, level: float = 0.95) -> Ratings:
    """Compute the area under the ROC curve of one observer's ratings, each case a patient.

    Args:
        real: Which cases are real, bool [n].
        given: The ratings, number [n]; a higher one is more surely real.
        level: Confidence level, in (0, 1).
    """
    truth = np.asarray(real, bool)
    area = estimate_auc(truth, given, np.arange(len(truth)), level)
    real_cases, others = int(truth.sum()), int((~truth).sum())
    return Ratings(real_cases, others, real_cases * others, area)


def pool_ratings(
    real: ArrayLike, given: ArrayLike, samples: int = 2000, seed: int = 0, level: float = 0.95
) -> Ratings:
    """Average the areas under the ROC curves of several observers' ratings of the same cases.

    Areas are averaged, not ratings, because each observer uses the scale in a different way. For
    the interval, observers, real and synthetic cases are drawn, each with replacement. Where all
    draws are alike it is by the rule of three: 3 / n at 0.95, n the cases of the smaller kind. With
    fewer than `FEWEST_PATIENTS` of these there is none.

    Args:
        real: Which cases are real, bool [cases].
        given: The ratings, float [observers, cases], NaN unanswered.
        samples: Draws of the bootstrap.
        seed: Seed of the bootstrap.
        level: Confidence level, in (0, 1).
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
        raise ValueError("no observer rated a real and a synthetic case")
    area = (won.sum(axis=(1, 2))[whole] / pairs.sum(axis=(1, 2))[whole]).mean()
    random = np.random.default_rng(seed)
    observers, reals, others = (_draw_counts(random, count, samples) for count in pairs.shape)
    top, bottom = (
        np.einsum("bi,rij,bj->br", reals, part, others, optimize=True) for part in (won, pairs)
    )
    weights = observers * (bottom > 0)
    has_pairs = weights.any(axis=1)
    sums = (weights * top / np.maximum(bottom, 1)).sum(axis=1)
    bounds = NO_BOUNDS
    fewest = min(int(answered[:, kind].any(axis=0).sum()) for kind in (truth, ~truth))
    if fewest >= FEWEST_PATIENTS:
        bounds = percentile_interval(sums[has_pairs] / weights.sum(axis=1)[has_pairs], level)
        if is_point(*bounds):  # every draw is alike, though other cases might not be
            bounds = bound_alike(float(area), fewest, level)
    counts = int(answered[:, truth].sum()), int(answered[:, ~truth].sum())
    return Ratings(*counts, int(pairs.sum()), Estimate(float(area), *bounds))


@plot_style
def draw_roc(systems: Mapping[str, tuple[ArrayLike, ArrayLike]], title: str = "") -> Figure:
    """Draw the ROC curves of several systems' ratings, each the mean of its observers' curves.

    Systems are name -> (real, given) as for `pool_ratings`. Observers who did not rate both kinds
    are skipped.
    """
    rates: Array = np.linspace(0, 1, 201)
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = make_roc_axes(figure, "synthetic taken for real", "real taken for real")
    for name, (real, given) in systems.items():
        curves = []
        for ratings in np.asarray(given, np.float64):
            answered = ~np.isnan(ratings)
            is_real = np.asarray(real, bool)[answered]
            if len(np.unique(is_real)) == 2:
                false, true, _ = roc_curve(is_real, ratings[answered])
                curves.append(np.interp(rates, false, true))
        if curves:
            axes.plot([0, *rates], [0, *np.mean(curves, axis=0)], label=name)
    axes.set_title(title, fontsize=8)
    if len(axes.get_lines()) > 1:
        axes.legend(loc="lower right")
    return figure


def _convert_to_d(share: Estimate, least: float) -> Estimate:
    """Convert a share to d'; the value, not its bounds, is kept `least` away from 0 and 1."""
    shares = np.clip(share.value, least, 1 - least), share.low, share.high
    return Estimate(*(np.sqrt(2) * stats.norm.ppf(shares)).tolist())


def _draw_counts(random: np.random.Generator, count: int, samples: int) -> Array:
    """Count how often each of `count` is drawn with replacement, float64 [samples, count]."""
    return random.multinomial(count, np.full(count, 1 / count), size=samples).astype(np.float64)


def _exchange_test(leads: Array) -> float:
    """Compute the probability of sums of right less wrong choices at least as far from 0.

    Each of them, of one pair each, has a random sign.
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
