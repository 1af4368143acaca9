"""Intervals and tests over patients: by hand, by independent versions, at their ends."""

import itertools

import numpy as np
import pytest
from scipy import stats

from tfmammo.metrics import resampling
from tfmammo.metrics.resampling import (
    bootstrap_interval,
    crossed_interval,
    jackknife,
    paired_test,
    share_interval,
)
from tfmammo.metrics.significance import Estimate


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (bootstrap_interval, ([],), "at least one"),
        (bootstrap_interval, ([0.1, np.nan],), "finite"),
        (bootstrap_interval, ([0.1, 0.2], ["a"]), "groups of shape"),
        (paired_test, ([0.1, 0.2], [0.1]), "equally many"),
    ],
)
def test_bad_input(function, arguments, named):
    with pytest.raises(ValueError, match=named):
        function(*arguments)


def test_a_share_of_none_or_all_is_not_certain():
    patients = np.repeat([f"patient {number}" for number in range(30)], 5)
    bound = -np.log(0.05) / 30  # the rule of three: none of thirty patients
    assert share_interval(np.zeros(150), patients) == pytest.approx((0, bound))
    assert share_interval(np.ones(150), patients) == pytest.approx((1 - bound, 1))
    assert share_interval(np.zeros(150))[1] == pytest.approx(bound / 5)
    some = np.arange(150) % 3 == 0
    assert share_interval(some, patients) == bootstrap_interval(some, patients)
    assert np.isnan(share_interval(np.zeros(5))).all()


def test_interval_draws_patients_whole(rng):
    patients = rng.normal(0.7, 0.1, 30)
    copies = np.repeat(patients, 5)
    groups = np.repeat([f"patient {number}" for number in range(30)], 5)
    order = rng.permutation(150)
    low, high = bootstrap_interval(patients)
    clustered = bootstrap_interval(copies[order], groups[order])
    # copies bring no knowledge
    assert clustered[1] - clustered[0] == pytest.approx(high - low, rel=0.03)
    naive = bootstrap_interval(copies)
    assert naive[1] - naive[0] == pytest.approx((high - low) / np.sqrt(5), rel=0.05)


def test_interval_of_six_unequal_patients_by_hand():
    """One patient of three ones among five of a single 0: drawn k times, the mean is 3 k / (6 + 2
    k); k is binomial, with cumulative chances of 0.335, 0.737, 0.938, 0.991 of k = 0, 1, 2, 3.
    """
    values = [0, 0, 0, 0, 0, 1, 1, 1]
    for level, expected in ((0.9, (0, 9 / 12)), (0.1, (3 / 8, 3 / 8)), (0.8, (0, 6 / 10))):
        assert bootstrap_interval(values, [*"abcdefff"], level=level) == pytest.approx(expected)


def test_few_patients_have_no_interval_and_equal_values_a_narrow_one(rng):
    values = rng.random(10)
    assert np.isnan(bootstrap_interval(values, [*"aabbccddee"])).all()
    assert np.isnan(bootstrap_interval(values[:5])).all()
    assert np.isfinite(bootstrap_interval(values, [*"aabbccddef"])).all()
    assert bootstrap_interval([0.5] * 6) == (0.5, 0.5)


def test_an_interval_of_two_patients_draws_both(rng):
    """Mammograms of 10 patients, each with lesions of 10 others."""
    first, second = np.divmod(np.arange(100), 10)
    values = rng.normal(size=10)[first] + rng.normal(size=10)[second]
    names = first.astype(str).tolist(), [f"l{number}" for number in second.tolist()]
    low, high = crossed_interval(values, *names, samples=4000)
    one_low, one_high = bootstrap_interval(values, names[0])
    assert low < one_low and one_high < high and low < values.mean() < high
    assert crossed_interval(values, names[0], names[0]) == bootstrap_interval(values, names[0])
    assert np.isnan(crossed_interval(values, names[0], ["l"] * 100)).all()


def test_permutation_test_is_exact_on_six_patients():
    a = np.array([0.9, 0.8, 0.7, 0.9, 0.6, 0.5, 0.8, 0.7])
    b = np.array([0.7, 0.7, 0.75, 0.6, 0.6, 0.1, 0.1, 0.1])
    groups = ["x", "x", "y", "z", "z", "w", "v", "u"]
    sums = np.array([0.3, -0.05, 0.3, 0.4, 0.7, 0.6])  # of each patient, by hand
    signed = [abs(np.dot(signs, sums)) for signs in itertools.product((-1, 1), repeat=6)]
    expected = np.mean([value >= sums.sum() - 1e-9 for value in signed])
    assert expected == 4 / 64  # all as they are, or y flipped, and the reverse of both
    result, reverse = paired_test(a, b, groups), paired_test(b, a, groups)
    assert (result.p, reverse.p) == pytest.approx((expected, expected))
    assert (result.value, -reverse.value) == pytest.approx([(a - b).mean()] * 2)


def test_a_real_difference_is_found_and_none_or_few_patients_show_nothing(rng):
    b = rng.normal(0.7, 0.1, 60)
    a = b + rng.normal(0.05, 0.02, 60)
    result = paired_test(a, b)
    assert result.p < 0.001
    assert 0.04 < result.low < result.value < result.high < 0.06
    assert (result.low, result.high) == bootstrap_interval(a - b)
    assert paired_test([0.5] * 6, [0.5] * 6) == Estimate(0.0, 0.0, 0.0, 1.0)
    # all differ by as much: the interval would leave 0 out
    few = paired_test([0.5, 0.6, 0.5, 0.6, 0.5], [0.1] * 5)
    assert few.value == pytest.approx(0.44)
    assert np.isnan([few.low, few.high, few.p]).all()


def test_jackknife_leaves_out_whole_patients_in_groups():
    patients = np.array([f"p{i // 2:03}" for i in range(500)])
    seen = []
    jackknife(lambda rows: seen.append(rows) or 1.0, patients)
    assert len(seen) == 1 + resampling.GROUPS and len(seen[0]) == 500
    left_out = [np.setdiff1d(seen[0], rows) for rows in seen[1:]]
    assert sorted(np.concatenate(left_out).tolist()) == list(range(500))
    for rows in left_out:
        assert set(patients[rows]).isdisjoint(patients[np.setdiff1d(seen[0], rows)])
    assert jackknife(lambda rows: 3.0, patients) == Estimate(3.0, 3.0, 3.0, 2.0**-249)
    eight = np.array(list("abcdefgh"))
    assert jackknife(lambda rows: -0.1, eight).p == 2**-7, "as a test that flips signs"
    assert jackknife(lambda rows: 0.0, patients).p == 1
    few = jackknife(lambda rows: float(rows.sum()), np.array(list("aabbcde")))
    assert few.value == 21 and np.isnan([few.low, few.high, few.p]).all()
    unknown = jackknife(lambda rows: 2.0 if len(rows) > 5 else np.nan, np.array(list("abcdef")))
    # leaving one out leaves nothing to compute
    assert unknown.value == 2 and np.isnan([unknown.low, unknown.high, unknown.p]).all()


@pytest.mark.parametrize("count", [12, 120])
def test_jackknife_by_the_textbooks_formula(count):
    """120 patients are in 100 groups: the variance is that of 100 values, not of 120."""
    values = np.random.default_rng(0).normal(0.5, 1, count)
    patients = np.array([f"p{number:03}" for number in range(count)])
    left = []

    def compute(rows):
        left.append(np.square(values[rows]).mean())
        return left[-1]

    found = jackknife(compute, patients, level=0.9)
    groups = len(left) - 1
    assert groups == min(count, resampling.GROUPS)
    error = np.sqrt((groups - 1) ** 2 / groups * np.var(left[1:], ddof=1))
    reach = stats.t.ppf(0.95, groups - 1) * error
    assert (found.low, found.high) == pytest.approx((found.value - reach, found.value + reach))
    assert found.p == pytest.approx(2 * stats.t.sf(found.value / error, groups - 1))


def test_an_areas_interval_stays_within_0_and_1_and_an_area_of_1_is_not_certain():
    areas = np.array([0.9, 0.99, 0.97, 0.999, 0.95, 0.98, 0.995, 0.93])
    patients = np.array([f"p{number}" for number in range(8)])
    area = resampling.jackknife_area(lambda rows: areas[rows].mean(), patients, 8)
    assert area.value == pytest.approx(areas.mean())
    assert 0 < area.low < area.value < area.high < 1
    assert area.high - area.value < area.value - area.low, "on the scale of logits"
    perfect = resampling.jackknife_area(lambda rows: 1.0, patients, 8)
    assert perfect.value == 1 == perfect.high
    assert perfect.low == pytest.approx(1 + np.log(0.05) / 8), "the rule of three"
    blind = resampling.jackknife_area(lambda rows: 0.5, patients, 8)
    assert blind.low == pytest.approx(0.5 + np.log(0.05) / 8), "all alike to the classifier"
    smaller = resampling.jackknife_area(lambda rows: 1.0, patients, 6)
    assert smaller.low == pytest.approx(1 + np.log(0.05) / 6), "of the smaller class"
    few = resampling.jackknife_area(lambda rows: 1.0, patients, 5)
    assert np.isnan([few.low, few.high]).all()
