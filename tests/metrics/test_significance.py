"""Holm's correction against hand-worked values and a second implementation, and the
smallest p of sign flips.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tfmammo.metrics.significance import (
    FEWEST_PATIENTS,
    TESTS,
    describe,
    describe_few,
    holm,
    smallest_p,
    welch_degrees,
)


def test_welchs_degrees():
    """As scipy's, of two samples; the few decide, and no sum has more than all patients."""
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=6), 0.1 * rng.normal(size=40)
    variances = few.var(ddof=1) / 6, many.var(ddof=1) / 40
    expected = stats.ttest_ind(few, many, equal_var=False).df
    assert welch_degrees(variances, (6, 40), 45) == pytest.approx(expected)
    assert 5 < expected < 5.1
    assert welch_degrees((1.0, 1.0), (6, 6), 9) == 9
    assert welch_degrees((2.0, 0.0), (9, 0), 20) == 8
    assert welch_degrees((0.0, 0.0), (9, 3), 11) == 11


def test_by_hand():
    # 0.01 x 4, 0.02 x 3, 0.03 x 2 = 0.06, 0.04 x 1 below its forerunner
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, 0.6]), [1.0, 1.0])
    np.testing.assert_allclose(holm([0.2]), [0.2])
    assert holm([]).shape == (0,)


def test_what_was_not_compared_does_not_count():
    np.testing.assert_allclose(holm([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_rejections_are_those_of_holms_steps(values):
    """Step down: reject the smallest at a / m, the next at a / (m - 1), and stop at the first that
    fails.
    """
    order = np.argsort(values)
    rejected = set()
    for step, place in enumerate(order):
        if values[place] * (len(values) - step) > 0.05:
            break
        rejected.add(int(place))
    assert set(np.flatnonzero(holm(values) <= 0.05).tolist()) == rejected


@pytest.mark.parametrize("values", [[1.5], [-0.1], [[0.1]]])
def test_what_is_no_p(values):
    with pytest.raises(ValueError, match="from 0 to 1"):
        holm(values)


def test_the_smallest_p_is_that_of_differences_of_one_sign():
    for patients in (5, 6, 9):
        flipped = stats.permutation_test(
            (np.ones(patients),),
            lambda x, axis: x.sum(axis=axis),
            permutation_type="samples",
            vectorized=True,
        )
        assert flipped.pvalue == smallest_p(patients)
    assert smallest_p(FEWEST_PATIENTS - 1) > 0.05 > smallest_p(FEWEST_PATIENTS)
    assert smallest_p(6, 3) == 3 / 32
    assert smallest_p(1, 4) == 1.0


def test_the_smallest_p_of_random_draws_is_that_of_scipy():
    draw = stats.permutation_test(
        (np.ones(20),),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=99,
        rng=0,
    )
    assert draw.pvalue == smallest_p(20, samples=99) == 0.02


@pytest.mark.slow
def test_what_stands_under_a_table():
    said = describe("flips", 9, 3)
    assert TESTS["flips"] in said and "Holm's correction for 3 comparisons" in said
    assert (
        "9 patients can give no p below 0.012" in said and "no difference can be shown" not in said
    )
    assert describe("swaps", 6, 2).endswith(
        "6 patients can give no p below 0.062, so that no difference can be shown."
    )
    assert describe("flips", 112, 6, samples=9999).endswith(
        "9,999 random draws can give no p below 0.0012."
    )
    assert "one comparison, no correction" in describe(
        "jackknife", 9, 1
    ) and "below" not in describe("jackknife", 9, 1)
    assert (
        describe_few(5)
        == "No interval and no p: 5 patients are fewer than 6, and flipping them gives no p below "
        "0.062."
    )
    assert "5 patients with lesions are fewer than 6" in describe_few(5, "with lesions")
    assert describe_few(1).startswith("No interval and no p: one patient is fewer than 6")
