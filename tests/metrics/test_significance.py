"""Holm's correction, Welch's degrees and the smallest p, against second implementations."""

import numpy as np
import pytest
from scipy import stats

from tfmammo.metrics.significance import (
    FEWEST_PATIENTS,
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


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # 0.01 x 4, 0.02 x 3, 0.03 x 2 = 0.06, 0.04 x 1 below its forerunner
        ([0.04, 0.01, 0.03, 0.02], [0.06, 0.04, 0.06, 0.06]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.2], [0.2]),
        ([], []),
        ([0.01, np.nan, 0.04], [0.02, np.nan, 0.04]),  # what was not compared does not count
    ],
)
def test_by_hand(values, expected):
    np.testing.assert_allclose(holm(values), expected)


def flip(patients, **options):
    """scipy's p of as many differences of one sign."""
    flipped = stats.permutation_test(
        (np.ones(patients),),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        **options,
    )
    return flipped.pvalue


def test_the_smallest_p_is_that_of_differences_of_one_sign():
    for patients in (5, 6, 9):
        assert flip(patients) == smallest_p(patients)
    assert flip(20, n_resamples=99, rng=0) == smallest_p(20, samples=99) == 0.02
    assert smallest_p(FEWEST_PATIENTS - 1) > 0.05 > smallest_p(FEWEST_PATIENTS)
    assert (smallest_p(6, 3), smallest_p(1, 4)) == (3 / 32, 1.0)


@pytest.mark.parametrize(
    ("said", "parts"),
    [
        (
            describe("flips", 9, 3),
            ["Holm's correction for 3 comparisons", "no p-value below 0.012."],
        ),
        (describe("flips", 6, 2), ["0.062, so that no difference can be shown."]),
        (describe("flips", 112, 6, samples=9999), ["9,999 random draws", "below 0.0012."]),
        (describe("jackknife", 9, 1), ["one comparison, no correction."]),
        (describe_few(5), ["5 patients are fewer than 6", "below 0.062."]),
        (describe_few(5, "with lesions"), ["5 patients with lesions are fewer than 6"]),
        (describe_few(1), ["one patient is fewer than 6"]),
    ],
)
def test_notes_below_a_table(said, parts):
    assert all(part in said for part in parts)
