"""Overlap, intervals and paired tests: hand-computed values, independent versions, properties."""

import itertools

import numpy as np
import pytest
from sklearn import metrics as peer

from tfmammo.metrics.segmentation import (
    bootstrap_interval,
    centred_disc,
    crossed_interval,
    dice,
    disc_dice,
    paired_test,
    per_image,
    share_interval,
)
from tfmammo.metrics.significance import Estimate

MEASURES = ("accuracy", "dice", "jaccard", "mcc")


def measure_one(target, output):
    """All four of one image."""
    scores = per_image(np.asarray(target)[None], np.asarray(output)[None])
    assert tuple(scores) == MEASURES
    return [float(values[0]) for values in scores.values()]


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_the_checked_vector():
    """9 true negatives, 1 false positive, 2 false negatives, 4 true positives."""
    target = np.repeat([0, 0, 1, 1], [9, 1, 2, 4])
    output = np.repeat([0, 1, 0, 1], [9, 1, 2, 4])
    for shape, types in (((16,), (int, int)), ((4, 4), (bool, bool)), ((2, 2, 4, 1), (float, int))):
        pair = target.reshape(shape).astype(types[0]), output.reshape(shape).astype(types[1])
        values = measure_one(*pair)
        assert values == pytest.approx([0.8125, 0.7272727, 0.5714286, 0.5918640], abs=5e-8)
        assert dice(*pair) == values[1]


def test_against_scikit_learn_one_by_one_and_all_at_once(rng):
    targets = (rng.random((20, 16, 16, 1)) < rng.uniform(0.1, 0.9, (20, 1, 1, 1))).astype(np.uint8)
    outputs = np.where(rng.random(targets.shape) < 0.1, 1 - targets, targets)
    masks = targets, outputs
    peers = peer.accuracy_score, peer.f1_score, peer.jaccard_score, peer.matthews_corrcoef
    expected = [
        [measure(target.ravel(), output.ravel()) for target, output in zip(*masks, strict=True)]
        for measure in peers
    ]
    alone = [dice(*pair) for pair in zip(*masks, strict=True)]
    np.testing.assert_allclose(alone, expected[1], atol=1e-12)
    scores = per_image(targets, outputs.astype(np.float32) * 0.6, threshold=0.6 - 1e-6)
    assert tuple(scores) == MEASURES
    np.testing.assert_allclose(list(scores.values()), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("target", "output", "expected"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0], (1, 1, 1, 0)),
        ([1, 1, 1, 1], [1, 1, 1, 1], (1, 1, 1, 0)),
        ([1, 0, 0, 0], [0, 0, 0, 0], (0.75, 0, 0, 0)),
        ([0, 0, 0, 0], [1, 0, 0, 0], (0.75, 0, 0, 0)),
        ([1, 0, 0, 0], [1, 1, 1, 1], (0.25, 0.4, 0.25, 0)),
        ([1, 0, 0, 1], [0, 1, 1, 0], (0, 0, 0, -1)),
        ([1, 0, 0, 1], [1, 0, 0, 1], (1, 1, 1, 1)),
    ],
)
def test_edge_cases_by_hand(target, output, expected):
    assert measure_one(target, output) == pytest.approx(expected, abs=1e-12)


def test_mcc_does_not_overflow_on_large_masks():
    half = np.arange(2048 * 2048) < 2048 * 1024
    assert measure_one(half, half)[3] == pytest.approx(1, abs=1e-12)
    assert measure_one(half, ~half)[3] == pytest.approx(-1, abs=1e-12)


def test_a_probability_at_the_threshold_is_mass():
    targets = np.array([[1, 0, 0]])
    assert per_image(targets, [[0.5, 0.49, 0.0]])["accuracy"] == [1]
    assert per_image(targets, [[0.5, 0.5, 0.0]])["accuracy"] == pytest.approx([2 / 3])
    assert per_image(targets, [[0.8, 0.7, 0.0]], threshold=0.75)["accuracy"] == [1]


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (dice, ([0, 1], [0, 0.5]), "output must hold nothing but 0 and 1"),
        (dice, ([0, np.nan], [0, 1]), "target must hold nothing but 0 and 1"),
        (dice, ([0, 1], [0, 1, 1]), "must have one shape"),
        (dice, ([], []), "no pixel"),
        (per_image, ([[0, 1]], [[0, np.nan]]), "between 0 and 1"),
        (per_image, ([[0, 1]], [[0, 1.1]]), "between 0 and 1"),
        (per_image, ([[0, 1]], [[-0.1, 1]]), "between 0 and 1"),
        (per_image, ([[0, 0.5]], [[0, 1]]), "targets must hold"),
        (per_image, ([0, 1], [0, 1]), r"\[n, ...\]"),
        (per_image, ([[0, 1]], [[0, 1]], 0.0), "threshold"),
        (per_image, ([[0, 1]], [[0, 1]], 1.5), "threshold"),
        (bootstrap_interval, ([],), "at least one"),
        (bootstrap_interval, ([0.1, np.nan],), "finite"),
        (bootstrap_interval, ([0.1, 0.2], ["a"]), "groups of shape"),
        (paired_test, ([0.1, 0.2], [0.1]), "equally many"),
        (disc_dice, (np.zeros((1, 4, 5, 1)),), r"\[n, s, s, 1\]"),
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


@pytest.mark.parametrize("size", [7, 8])
def test_dice_with_every_centred_disc(rng, size):
    masks = (rng.random((3, size, size, 1)) < 0.4).astype(np.uint8)
    scores = disc_dice(masks)
    assert scores.shape == (3, int(np.ceil(2 * np.sqrt(2) * (size - 1) / 2)))
    for row, step in itertools.product(range(3), range(scores.shape[1])):
        expected = dice(masks[row], centred_disc(size, (step + 1) / 2))
        assert scores[row, step] == pytest.approx(expected, abs=1e-12)
    assert scores[0, -1] == pytest.approx(dice(masks[0], np.ones((size, size, 1))))


def test_discs_by_hand():
    inner = np.pad(np.ones((2, 2)), 1)
    np.testing.assert_array_equal(centred_disc(4, 1)[..., 0], inner)
    assert centred_disc(3, 1)[..., 0].tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    assert (disc_dice(np.zeros((1, 4, 4, 1))) == 0).all()
