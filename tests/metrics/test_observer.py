"""Forced choices and ratings against numbers worked out by hand, exhaustive enumeration,
and draws of known observers.
"""

import itertools
from math import comb, sqrt
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from tfmammo.metrics.clustered_auc import estimate_auc
from tfmammo.metrics.observer import (
    draw_roc,
    estimate_choices,
    estimate_ratings,
    pool_choices,
    pool_ratings,
)

Z = NormalDist().inv_cdf
REAL = np.array([1, 1, 1, 0, 0, 0], bool)


def test_fifteen_of_twenty_by_hand():
    choices = estimate_choices([True] * 15 + [False] * 5)
    assert (choices.n, choices.right, choices.share.value) == (20, 15, 0.75)
    by_hand = 2 * sum(comb(20, k) for k in range(15, 21)) / 2**20
    assert choices.p == pytest.approx(by_hand) == pytest.approx(0.0414, abs=5e-5)
    # Clopper and Pearson (1934): at its bounds 15 or more, or 15 or fewer, have a chance of 2.5 %.
    low, high = choices.share.low, choices.share.high
    assert (low, high) == pytest.approx((0.5090, 0.9134), abs=5e-5)
    assert stats.binom.sf(14, 20, low) == pytest.approx(0.025)
    assert stats.binom.cdf(15, 20, high) == pytest.approx(0.025)
    d = choices.d_prime
    expected = 0.9539, sqrt(2) * Z(low), sqrt(2) * Z(high)  # sqrt(2) 0.67449
    assert (d.value, d.low, d.high) == pytest.approx(expected, abs=5e-5)


def test_all_none_and_half_right():
    half = estimate_choices([True, False] * 8)
    assert (half.p, half.share.value, half.d_prime.value) == (1, 0.5, 0)
    every = estimate_choices([True] * 10)
    none = estimate_choices([False] * 10)
    assert every.p == none.p == pytest.approx(2 / 1024)
    assert every.d_prime.value == pytest.approx(sqrt(2) * Z(0.95))
    assert none.d_prime.value == pytest.approx(-every.d_prime.value)
    assert (every.d_prime.high, none.d_prime.low) == (np.inf, -np.inf)
    assert every.share.low == pytest.approx(0.025 ** (1 / 10)) == pytest.approx(1 - none.share.high)


def test_ratings_of_one_kind_have_no_area():
    with pytest.raises(ValueError, match="no observer rated"):
        pool_ratings(REAL, [[1, 2, 3, np.nan, np.nan, np.nan]])


@settings(max_examples=30)
@given(
    arrays(float, (3, 6), elements=st.sampled_from([0.0, 1.0, np.nan])).filter(
        lambda right: not np.isnan(right).all(axis=0).any()
    )
)
def test_the_pooled_test_counts_every_exchange_of_sides(right):
    lead = np.nansum(2 * right - 1, axis=0)
    sums = [abs(np.dot(signs, lead)) for signs in itertools.product((-1, 1), repeat=6)]
    assert pool_choices(right, samples=20).p == pytest.approx(
        np.mean(np.array(sums) >= abs(lead.sum()))
    )


def test_observers_who_are_all_right_have_the_interval_of_the_pairs():
    one = estimate_choices([True] * 10)
    two = pool_choices(np.ones((2, 10)), 50)
    assert (two.share.low, two.share.high) == (one.share.low, one.share.high)
    assert two.d_prime.value < np.inf and two.d_prime.low == one.d_prime.low
    sure = pool_ratings([1] * 10 + [0] * 10, [[5] * 10 + [1] * 10] * 2, 50)
    assert (sure.area.value, sure.area.high) == (1, 1)
    assert sure.area.low == pytest.approx(1 + np.log(0.05) / 10), "the rule of three"
    assert sure.d_a.value == pytest.approx(sqrt(2) * Z(1 - 0.5 / 200)), "half a pair less"
    unsure = pool_ratings([1] * 10 + [0] * 10, [[3] * 20] * 2, 50)
    assert (unsure.area.value, unsure.area.low) == (0.5, pytest.approx(0.5 + np.log(0.05) / 10))


def test_the_pooled_interval_covers_what_observers_and_pairs_of_a_known_law_have():
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        ability = random.normal(0, 0.4, (8, 1))
        ease = random.normal(0, 0.8, (1, 40))
        right = random.random((8, 40)) < stats.norm.cdf(ability + ease)
        low, high = (lambda share: (share.low, share.high))(pool_choices(right, 300, seed).share)
        covered += low <= 0.5 <= high
    assert covered >= 54, f"{covered} of 60 intervals of 95 % hold the truth"


def test_fewer_than_six_cases_have_neither_interval_nor_p():
    # twenty answers, but to five pairs
    alone = estimate_choices([True] * 5)
    pooled = pool_choices(np.ones((4, 5)), 50)
    rated = estimate_ratings([1, 1, 0, 0, 0], [5, 3, 4, 2, 1])
    together = pool_ratings([1, 1, 0, 0, 0], [[5, 3, 4, 2, 1]] * 3, 50)
    for one in (alone, pooled):
        assert one.share.value == 1
        assert np.isnan([one.p, one.share.low, one.d_prime.high]).all()
    for one in (rated, together):
        assert one.area.value == pytest.approx(5 / 6)
        assert np.isnan([one.area.low, one.area.high, one.d_a.low]).all()
    one_real = pool_ratings([1] + [0] * 9, [[5, *range(1, 10)]] * 3, 50)
    assert np.isnan([one_real.area.low, one_real.area.high]).all(), "six of either kind are needed"
    six = estimate_choices([True] * 6)
    assert six.p == 2 / 64 and np.isfinite(six.share.low)


def test_area_of_ratings_by_hand():
    # psi: what of each real one with each synthetic one is won, a tie one half.
    given = [5, 3, 2, 3, 1, 2]
    ratings = estimate_ratings(REAL, given)
    assert (ratings.real, ratings.synthetic) == (3, 3)
    psi = np.array([[1, 1, 1], [0.5, 1, 1], [0, 1, 0.5]])
    assert ratings.area.value == pytest.approx(psi.mean())
    assert np.isnan([ratings.area.low, ratings.area.high]).all(), "six of either kind are needed"
    assert ratings.d_a.value == pytest.approx(sqrt(2) * Z(psi.mean()))
    twice = estimate_ratings(np.tile(REAL, 2), np.tile(given, 2))
    expected = estimate_auc(np.tile(REAL, 2), np.tile(given, 2), np.arange(12))
    assert twice.area == expected and 0 < expected.low < psi.mean() < expected.high < 1
    assert twice.d_a.low == pytest.approx(sqrt(2) * Z(expected.low))


def test_the_pooled_area_is_the_observers_mean():
    good = [6, 5, 4, 3, 2, 1]
    reverse = [1, 2, 3, 4, 5, 6]
    unrated = [np.nan] * 6
    ratings = pool_ratings(np.repeat(REAL, 2), np.repeat([good, reverse, unrated], 2, axis=1), 200)
    assert ratings.area.value == pytest.approx(0.5)
    assert (ratings.real, ratings.synthetic) == (12, 12)
    assert (ratings.area.low, ratings.area.high) == (0, 1), "whoever is drawn alone has 1 or 0"
    partly = pool_ratings(REAL, [good, [np.nan, 4, 2, 3, np.nan, np.nan]], 200)
    assert partly.area.value == pytest.approx((1 + 0.5) / 2)
    assert (partly.real, partly.synthetic) == (5, 4)


def test_curves_are_those_of_the_ratings():
    given = np.array([[5, 3, 2, 3, 1, 2], [np.nan] * 6])
    systems = {"poisson": (REAL, given), "unrated": (REAL, np.full((1, 6), np.nan))}
    (axes,) = draw_roc(systems, "phantom").axes
    chance, curve = axes.get_lines()
    assert list(chance.get_xdata()) == [0, 1]
    assert (curve.get_label(), axes.get_title()) == ("poisson", "phantom")
    area = np.trapezoid(curve.get_ydata(), curve.get_xdata())
    assert area == pytest.approx(estimate_ratings(REAL, given[0]).area.value, abs=0.01)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["poisson"]
    assert draw_roc({}).axes[0].get_legend() is None
