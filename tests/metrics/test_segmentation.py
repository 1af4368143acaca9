"""Overlap of masks: hand-computed values, independent versions, properties."""

import itertools

import numpy as np
import pytest
from sklearn import metrics as peer

from tfmammo.metrics.segmentation import (
    accuracy,
    centred_disc,
    dice,
    disc_dice,
    jaccard,
    mcc,
    per_image,
)

MEASURES = ("accuracy", "dice", "jaccard", "mcc")


def measure_one(target, output):
    """All four of one image."""
    return [measure(target, output) for measure in (accuracy, dice, jaccard, mcc)]


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
        assert all(type(value) is float for value in values)


def test_against_scikit_learn_one_by_one_and_all_at_once(rng):
    targets = (rng.random((20, 16, 16, 1)) < rng.uniform(0.1, 0.9, (20, 1, 1, 1))).astype(np.uint8)
    outputs = np.where(rng.random(targets.shape) < 0.1, 1 - targets, targets)
    masks = targets, outputs
    peers = peer.accuracy_score, peer.f1_score, peer.jaccard_score, peer.matthews_corrcoef
    expected = [
        [measure(target.ravel(), output.ravel()) for target, output in zip(*masks, strict=True)]
        for measure in peers
    ]
    alone = [measure_one(*pair) for pair in zip(*masks, strict=True)]
    np.testing.assert_allclose(np.transpose(alone), expected, atol=1e-12)
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
        (disc_dice, (np.zeros((1, 4, 5, 1)),), r"\[n, s, s, 1\]"),
    ],
)
def test_bad_input(function, arguments, named):
    with pytest.raises(ValueError, match=named):
        function(*arguments)


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
