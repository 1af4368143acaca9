"""Areas of clustered patches: formulas written out, and DeLong's where clusters are single."""

import math

import numpy as np
import pytest
from scipy import stats

from tfmammo.metrics.clustered_auc import (
    chance_test,
    estimate_auc,
    estimate_rate,
    obuchowski_variance,
    rank_swap_test,
)


def clustered(seed, patients=12, patches=9, models=2, correlation=0.4):
    """Labels, patients and equally good models' scores; a model's errors correlate within a
    patient.
    """
    random = np.random.default_rng(seed)
    names = np.repeat(np.arange(patients), patches)
    # most patients are mostly of one class
    labels = random.random(len(names)) < random.beta(0.5, 0.5, patients)[names]
    shared = random.normal(size=(models, patients))[:, names] * correlation**0.5
    own = random.normal(size=(models, len(names))) * (1 - correlation) ** 0.5
    return labels, names, labels * 1.5 + shared + own


def written_out(labels, scores, patients):
    """Obuchowski's variance of an area, by loops over patients and every pair of patches."""
    positives = np.flatnonzero(labels)
    negatives = np.flatnonzero(~labels)

    def psi(i, j):
        return float(scores[i] > scores[j]) + 0.5 * float(scores[i] == scores[j])

    area = np.mean([psi(i, j) for i in positives for j in negatives])
    tens = []
    ones = []
    for patient in sorted(set(patients)):
        mine = [i for i in positives if patients[i] == patient]
        theirs = [j for j in negatives if patients[j] == patient]
        tens.append(sum(np.mean([psi(i, j) for j in negatives]) - area for i in mine))
        ones.append(sum(np.mean([psi(i, j) for i in positives]) - area for j in theirs))
    m = len(positives)
    n = len(negatives)
    clusters = len(set(patients))
    with_positives, with_negatives = (
        len({patients[i] for i in side}) for side in (positives, negatives)
    )
    s10 = with_positives / ((with_positives - 1) * m) * np.square(tens).sum()
    s01 = with_negatives / ((with_negatives - 1) * n) * np.square(ones).sum()
    s11 = clusters / (clusters - 1) * np.dot(tens, ones)
    return s10 / m + s01 / n + 2 * s11 / (m * n)


@pytest.mark.parametrize("seed", range(4))
def test_the_formulas_written_out(seed):
    labels, patients, (a, _) = clustered(seed, patients=16, patches=5)
    # two patients with one class only
    labels[patients == 0] = True
    labels[patients == 1] = False
    a = np.round(a, 1)  # with ties
    expected = written_out(labels, a, patients)
    assert obuchowski_variance(labels, a, patients)[0] == pytest.approx(expected, rel=1e-10)
    psi = np.sign(a[labels][:, None] - a[~labels][None]) / 2 + 0.5
    delong = psi.mean(1).var(ddof=1) / labels.sum() + psi.mean(0).var(ddof=1) / (~labels).sum()
    of_one_patch = obuchowski_variance(labels, a, np.arange(len(labels)))[0]
    assert of_one_patch == pytest.approx(delong, rel=1e-10)


def test_no_variance_is_not_negative():
    """Each positive is just above its own negative: patients' two components cancel."""
    for patients in range(6, 60):
        members = np.repeat(np.arange(patients), 2)
        variance, _ = obuchowski_variance([0, 1] * patients, np.arange(2 * patients), members)
        assert 0 <= variance < 1e-15


def test_swaps_by_hand():
    """Six patients, a positive and a negative patch each; all 64 ways to swap, areas by counting
    pairs.
    """
    patients = np.repeat(np.arange(6), 2)
    labels = np.tile([1, 0], 6)
    random = np.random.default_rng(7)
    a = random.permutation(12) + 1.0 + 3 * labels
    b = random.permutation(12) + 1.0
    ranks = [stats.rankdata(scores) for scores in (a, b)]

    def area(values):
        difference = values[labels == 1][:, None] - values[labels == 0][None]
        return np.mean((difference > 0) + 0.5 * (difference == 0))

    differences = []
    for way in range(64):
        swap = np.array([(way >> patient) & 1 for patient in patients], bool)
        differences.append(area(np.where(swap, *ranks[::-1])) - area(np.where(swap, *ranks)))
    expected = np.mean(np.abs(differences) >= abs(differences[0]) - 1e-12)
    assert rank_swap_test(labels, a, b, patients) == pytest.approx(expected)
    # ranks: no scale matters
    assert rank_swap_test(labels, b, np.exp(a), patients) == pytest.approx(expected)


def test_the_ends_of_p():
    patients = np.repeat(np.arange(8), 2)
    labels = np.tile([1, 0], 8)
    right = labels + 0.1 * np.arange(16)
    assert rank_swap_test(labels, right * 10.0, -right, patients) == 2.0 ** (1 - 8)
    assert rank_swap_test(labels, right, right * 3, patients) == 1.0
    labels, patients, (a, b) = clustered(2, patients=19, patches=27)
    assert rank_swap_test(labels, a, b - labels * 1.4, patients, samples=2000) < 0.005


LABELS, PATIENTS, (SCORES, OTHERS) = clustered(0)


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (obuchowski_variance, (LABELS, SCORES, PATIENTS[1:]), "patients of shape"),
        (obuchowski_variance, (LABELS, SCORES, np.where(LABELS, 0, PATIENTS)), "two patients"),
        (rank_swap_test, (LABELS, SCORES, OTHERS * np.nan, PATIENTS), "not a number"),
    ],
)
def test_bad_input(function, arguments, named):
    with pytest.raises(ValueError, match=named):
        function(*arguments)


def test_a_class_without_a_single_hit_is_not_certain():
    """Of 20 training patches none is a hit, of 20 unseen ones one: others of training might be."""
    labels = np.repeat([1, 0], 20)
    scores = np.zeros(40)
    scores[20] = 1
    patients = [f"p{number}" for number in range(40)]
    estimate = estimate_auc(labels, scores, patients)
    assert estimate.value == pytest.approx(0.475)
    assert estimate.high == pytest.approx(0.475 - np.log(0.05) / 20)
    assert estimate.low == pytest.approx(0.475 + np.log(0.05) / 20)


def test_p_against_chance_agrees_with_the_interval():
    rng = np.random.default_rng(0)
    patients = [f"p{number // 2}" for number in range(60)]
    labels = np.repeat([1, 0], 30)
    for shift in (0.0, 0.3, 0.6, 1.2):
        scores = rng.normal(size=60) + shift * labels
        p = chance_test(labels, scores, patients)
        estimate = estimate_auc(labels, scores, patients, 1 - p)
        # the interval of level 1 - p ends at one half
        assert min(abs(estimate.low - 0.5), abs(estimate.high - 0.5)) < 1e-9
    fewest = min(len(set(np.array(patients)[np.array(labels) == label])) for label in (0, 1))
    assert chance_test(labels, labels, patients) == 2.0 ** (1 - fewest), "no variance"
    assert chance_test(labels, np.zeros(len(labels)), patients) == 1, "none, and one half"


def test_few_positive_patients_among_many_negative_ones_are_not_certain():
    """Some 4 in a hundred equal distributions differ at .05; with a degree for every patient, 7."""
    rng = np.random.default_rng(1)
    labels = np.arange(206) < 6
    p = [chance_test(labels, rng.normal(size=206), np.arange(206)) for _ in range(800)]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.06


def test_few_patients_have_neither_interval_nor_p():
    labels, patients, (a, b) = clustered(0, patients=5)
    assert np.isnan(rank_swap_test(labels, a, b, patients))
    assert np.isnan(chance_test([1, 0], [1.0, 0.0], ["a", "b"]))
    assert np.isnan(estimate_auc(np.arange(20) < 5, np.arange(20.0), np.arange(20)).low)


@pytest.mark.parametrize("counts", [(6, 20), (20, 6)])
def test_an_area_of_one_is_bounded_by_the_class_with_fewer_patients(counts):
    """By hand: none of 6 patients was wrong, so up to 1 - 0.05^(1/6), about -ln(0.05) / 6."""
    labels = np.repeat([1, 0], counts)
    estimate = estimate_auc(labels, labels.astype(float), np.arange(26))
    assert (estimate.value, estimate.high) == (1, 1)
    assert estimate.low == pytest.approx(1 + math.log(0.05) / 6)


@pytest.mark.parametrize(
    ("members", "scores", "rate", "value"),
    [
        # the limit is the third highest of 200 others, 9: above it are 25 members and one other
        ([25, 75], [10, 0, *[11, 9, 9], *[1] * 197], 0.01, 0.25),
        # half of four others may be above: the limit is 2, and a member at it is not above it
        ([1, 1, 1], [5, 2, 1.5, 4, 3, 2, 1], 0.5, 1 / 3),
    ],
)
def test_the_rate_counts_positives_above_the_limit_by_hand(members, scores, rate, value):
    scores = np.concatenate([np.repeat(scores[: len(members)], members), scores[len(members) :]])
    is_member = np.arange(len(scores)) < sum(members)
    estimate = estimate_rate(is_member, scores, np.arange(len(scores)), samples=50, rate=rate)
    assert estimate.value == value
    if len(scores) > 12:
        assert estimate.low <= value <= estimate.high
    else:  # few patients
        assert np.isnan(estimate.low)


@pytest.mark.parametrize("value", [0, 1])
def test_a_rate_of_none_or_all_is_not_certain(value):
    """Members of 40 patients, others of 10."""
    is_member = np.arange(50) < 40
    scores = np.where(is_member, 2.0 * value, 1.0)
    estimate = estimate_rate(is_member, scores, np.arange(50), samples=50)
    bound = -math.log(0.05) / 10
    expected = (0, bound) if value == 0 else (1 - bound, 1)
    assert estimate.value == value
    assert (estimate.low, estimate.high) == pytest.approx(expected)
