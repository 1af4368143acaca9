"""ROC areas, DeLong's variance and test, and curves, against known numbers."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from tfmammo.metrics.classification import (
    RATES,
    delong_test,
    delong_variance,
    roc_auc,
    roc_by_fold,
    roc_curve,
)

Y = [0, 1, 0, 0, 1, 1, 0, 1, 0]
S = [0.21, 0.32, 0.63, 0.35, 0.92, 0.79, 0.82, 0.99, 0.04]
# Two models on the same twelve cases
CASES = [0, 0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 1]
A = [0.1, 0.2, 0.6, 0.7, 0.8, 0.8, 0.65, 0.3, 0.5, 0.55, 0.75, 0.9]
B = [0.3, 0.6, 0.2, 0.1, 0.9, 0.4, 0.7, 0.55, 0.5, 0.45, 0.6, 0.95]


def test_known_numbers():
    assert roc_auc(Y, S) == pytest.approx(0.8, abs=1e-12)
    assert delong_variance(Y, S) == pytest.approx(0.02875, abs=1e-12)
    assert (roc_auc(CASES, A), roc_auc(CASES, B)) == pytest.approx((0.8611111, 0.625), abs=1e-7)
    z, p = delong_test(CASES, A, B)
    assert (z, p) == pytest.approx((1.3226468, 0.1859528), abs=1e-7)
    assert delong_test(CASES, B, A) == pytest.approx((-z, p))


def test_alike_and_opposite_models():
    assert delong_test(CASES, A, np.array(A) * 3 + 1) == (0.0, 1.0)
    assert delong_test([0, 0, 1, 1], [1, 2, 3, 4], [4, 3, 2, 1]) == (np.inf, 0.5)
    assert delong_test([0, 0, 1, 1], [4, 3, 2, 1], [1, 2, 3, 4]) == (-np.inf, 0.5)


def test_ties_count_one_half():
    assert roc_auc([0, 1], [0.5, 0.5]) == 0.5
    assert roc_auc([0, 0, 1, 1], [0, 1, 1, 2]) == pytest.approx((2 * 2 - 0.5) / 4)


several = st.integers(4, 30).flatmap(
    lambda n: st.tuples(
        st.lists(st.booleans(), min_size=n, max_size=n).filter(lambda y: 2 <= sum(y) <= n - 2),
        st.lists(st.integers(-5, 5), min_size=n, max_size=n),
    )
)


@settings(max_examples=60)
@given(several)
def test_areas_are_scikit_learns_and_the_variance_is_that_of_every_pair(case):
    """DeLong's components written out: psi of every positive with every negative."""
    labels = np.array(case[0])
    scores = np.array(case[1], float)
    assert roc_auc(labels, scores) == pytest.approx(metrics.roc_auc_score(labels, scores))
    false, true, thresholds = roc_curve(labels, scores)
    assert thresholds.tolist() == [np.inf, *sorted(set(scores), reverse=True)]
    assert np.trapezoid(true, false) == pytest.approx(roc_auc(labels, scores))
    psi = np.sign(scores[labels][:, None] - scores[~labels][None]) / 2 + 0.5
    expected = psi.mean(1).var(ddof=1) / labels.sum() + psi.mean(0).var(ddof=1) / (~labels).sum()
    assert delong_variance(labels, scores) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("function", "labels", "scores", "said"),
    [
        (roc_auc, [0, 1], [1.0], "same length"),
        (roc_auc, [0, 2], [1.0, 2.0], "labels must be 0 or 1"),
        (roc_auc, [1, 1], [1.0, 2.0], "positive and negative"),
        (roc_auc, [0, 1], [np.nan, 1.0], "not a number"),
        (partial(delong_test, scores_b=[1, 2, 3]), [0, 1, 1], [3, 1, 2], "two positive and two"),
    ],
)
def test_bad_input(function, labels, scores, said):
    with pytest.raises(ValueError, match=said):
        function(labels, scores)


def test_each_class_against_the_others_as_scikit_learn_has_it():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 200)
    probabilities = random.dirichlet(np.ones(4), 200) + 0.3 * np.eye(4)[labels]
    expected = [
        metrics.roc_auc_score(labels == number, probabilities[:, number]) for number in range(4)
    ]
    classes = labels[:, None] == np.arange(4)
    _, (curve,), (areas,) = roc_by_fold(classes, probabilities, np.zeros(200))
    np.testing.assert_allclose(areas, expected, atol=1e-12)
    assert curve[0] == 0 and curve[-1] == 1 and (np.diff(curve) >= -1e-12).all()
    assert np.trapezoid(curve, RATES) == pytest.approx(np.mean(expected), abs=2e-3)


def test_a_class_without_cases_has_no_area():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.8, 0.1, 0.1]])
    classes = np.array([0, 1, 0])[:, None] == np.arange(3)
    _, (curve,), areas = roc_by_fold(classes, probabilities, np.zeros(3))
    np.testing.assert_array_equal(areas, [[1, 1, np.nan]])
    assert curve[0] == 0 and (curve[1:] == 1).all()


def test_folds_have_curves_of_their_own():
    """Two networks without a fault whose scales differ: pooled, their area would be less than 1."""
    truth = np.tile([0, 1], 50)
    folds = np.repeat([0, 1], 50)
    scores = np.where(folds == 0, 0.1 + 0.1 * truth, 0.5 + 0.1 * truth)
    assert roc_auc(truth, scores) == 0.75
    _, curves, areas = roc_by_fold(truth[:, None] == 1, scores[:, None], folds)
    assert areas.tolist() == [[1], [1]] and (curves[:, 0] == 0).all() and (curves[:, 1:] == 1).all()
    truth[folds == 0] = 0  # a fold of one class
    kept, curves, areas = roc_by_fold(truth[:, None] == 1, scores[:, None], folds)
    assert kept.tolist() == [1] and curves.shape == (1, len(RATES)) and areas.tolist() == [[1]]
    none = roc_by_fold(np.zeros((4, 2), bool), np.zeros((4, 2)), np.zeros(4))
    assert [part.shape for part in none] == [(0,), (0, len(RATES)), (0, 2)]
