"""The classifier two-sample test: it finds planted differences, finds none in equal sets,
and keeps patients together.
"""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmammo.evaluation import two_sample as module
from tfmammo.evaluation.two_sample import TwoSample, two_sample
from tfmammo.metrics.classification import roc_auc

FAST = {"folds": 3, "size": 32, "steps": 50, "samples": 500}


def patches(count, seed, spread=0.02):
    """Blurred noise with a bright disc and grain of some spread: images, masks, and patients of two
    patches each.
    """
    generator = np.random.default_rng(seed)
    rows, cols = np.mgrid[:40, :40] - 20
    masks = np.stack([np.hypot(rows, cols) < radius for radius in generator.uniform(6, 12, count)])[
        ..., None
    ]
    coarse = np.kron(generator.normal(0.4, 0.05, (count, 10, 10, 1)), np.ones((1, 4, 4, 1)))
    images = np.clip(coarse + 0.2 * masks + generator.normal(0, spread, coarse.shape), 0, 1).astype(
        np.float32
    )
    return images, np.array([f"p{row // 2}" for row in range(count)]), masks.astype(np.uint8)


def judged(real, made, **options):
    return two_sample(real[0], made[0], real[1], made[1], real[2], made[2], **{**FAST, **options})


def drawn():
    """The next of all global random numbers."""
    return [
        random.random(),
        np.random.rand(),
        float(keras.random.uniform(())),
        float(tf.random.uniform(())),
    ]


@pytest.fixture(scope="module")
def equal():
    """Two draws of one distribution."""
    return judged(patches(40, 0), patches(40, 1))


@pytest.mark.slow
def test_grain_is_found():
    result = judged(patches(40, 0), patches(40, 1, spread=0.06))
    assert result.auc > 0.9 and result.low > 0.8 and result.high <= 1 and result.accuracy > 0.75
    assert result.made.mean() > result.real.mean()


@pytest.mark.slow
def test_what_only_the_mask_tells_is_found():
    """Equal images, but a made lesion's mask is moved beside it."""
    real = patches(40, 0)
    (images, patients, masks) = patches(40, 1)
    assert judged(real, (images, patients, np.roll(masks, 10, axis=2))).auc > 0.9


@pytest.mark.slow
def test_two_draws_of_one_distribution_cannot_be_told_apart(equal):
    assert equal.low < 0.5 < equal.high and 0.02 < equal.high - equal.low < 0.6
    assert 0.25 < equal.accuracy < 0.75


@pytest.mark.slow
def test_the_same_seed_gives_the_same_scores_and_the_callers_keras_is_left_alone(equal):
    """Whatever the precision policy and the global random numbers, which stay, as do the names of
    layers to come.
    """
    keras.config.set_dtype_policy("mixed_bfloat16")
    keras.layers.Dense(1)
    before = int(keras.layers.Dense(1).name.removeprefix("dense_"))
    keras.utils.set_random_seed(3)
    expected = drawn()
    keras.utils.set_random_seed(3)
    again = judged(patches(40, 0), patches(40, 1))
    np.testing.assert_array_equal(again.real, equal.real)
    np.testing.assert_array_equal(again.made, equal.made)
    assert (again.auc, again.low, again.high, again.accuracy) == (
        equal.auc,
        equal.low,
        equal.high,
        equal.accuracy,
    )
    assert drawn() == expected
    assert (
        keras.config.dtype_policy().name == "mixed_bfloat16"
        and keras.layers.Dense(1).name == f"dense_{before + 1}"
    )


@pytest.mark.slow
def test_another_seed_gives_other_scores(equal):
    assert (judged(patches(40, 0), patches(40, 1), seed=1, steps=2).real != equal.real).all()


def test_patients_never_straddle(monkeypatch):
    """Each image is the number of its patient, which the network that scores it has not seen; every
    patch is scored once.
    """
    count = 24
    numbers = np.arange(count) // 2
    images = np.broadcast_to(
        (numbers / 100).astype(np.float32)[:, None, None, None], (count, 16, 16, 1)
    )
    masks = np.ones(images.shape, np.uint8)
    seen = []
    inputs = []

    def fit(self, known, labels, steps, random):
        seen.append(known)
        assert set(labels.tolist()) == {0, 1}

    def scores(self, unknown):
        inputs.append(unknown)
        return np.zeros(len(unknown))

    monkeypatch.setattr(module._Classifier, "fit", fit)
    monkeypatch.setattr(module._Classifier, "score", scores)
    names = np.array([f"p{number}" for number in numbers])
    result = two_sample(images, images, names, names, masks, masks, folds=4, size=16)
    assert (result.auc, result.accuracy) == (0.5, 0.5)
    np.testing.assert_array_equal(result.real_folds, result.made_folds)
    for fold in range(4):
        own = set(names[result.real_folds == fold])
        assert own and not own & set(names[result.real_folds != fold])
        ours, theirs = (
            {round(float(value), 5) for value in part[:, 0, 0, 0]}
            for part in (inputs[fold], seen[fold])
        )
        assert len(ours) == len(own) and not ours & theirs
    assert sum(map(len, inputs)) == 2 * count


def test_the_area_of_some_rows_by_hand():
    result = TwoSample(
        np.nan,
        np.nan,
        np.nan,
        np.nan,
        real=np.array([0.0, 2.0, 10.0]),
        made=np.array([1.0, 3.0, 10.0]),
        real_folds=np.array([0, 0, 1]),
        made_folds=np.array([0, 0, 1]),
    )
    # within fold 0: 1 > 0, 3 > 0, 3 > 2, and not 1 > 2; within fold 1 a tie
    assert result.measure_area(np.array([0, 1, 2])) == pytest.approx(3.5 / 5)
    assert result.measure_area(np.array([0, 2])) == pytest.approx(1.5 / 2)
    assert result.measure_area(np.array([2])) == 0.5
    assert np.isnan(result.measure_area(np.array([], int)))


def test_areas_compare_patches_of_one_network_only():
    """Two networks of perfect order whose scores are 10 apart: their common ROC curve would say
    0.75.
    """
    scores = np.array([0, 10, 1, 11.0])
    labels = np.array([0, 0, 1, 1])
    judge = np.array([0, 1, 0, 1])
    assert roc_auc(labels, scores) == 0.75
    assert module._Area(scores, labels, judge).value() == 1
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 5, 60).astype(float)
    labels = np.repeat([0, 1], 30)
    assert module._Area(scores, labels, np.zeros(60, int)).value() == pytest.approx(
        roc_auc(labels, scores)
    )


@pytest.mark.slow
def test_the_interval_is_that_of_drawn_patients():
    """By numpy, draw by draw: patients with all their patches."""
    generator = np.random.default_rng(0)
    labels = np.tile([0, 1], 30)
    groups = np.repeat([f"p{number}" for number in range(15)], 4)
    scores = labels + generator.normal(0, 1.5, 60) + np.repeat(generator.normal(0, 1, 15), 4)
    low, high = module._Area(scores, labels, np.zeros(60, int)).interval(groups, 4000, 0, 0.9)
    areas = []
    for _ in range(4000):
        rows = np.concatenate(
            [np.flatnonzero(groups == f"p{number}") for number in generator.integers(15, size=15)]
        )
        areas.append(roc_auc(labels[rows], scores[rows]))
    assert (low, high) == pytest.approx(tuple(np.quantile(areas, [0.05, 0.95])), abs=0.015)
    few = np.where(labels == 0, np.resize(list("abcde"), 60), groups)
    assert np.isnan(
        module._Area(scores, labels, np.zeros(60, int)).interval(few, 100, 0, 0.9)
    ).all()


def test_the_eight_ways_of_a_patch():
    patch = np.random.default_rng(0).random((1, 5, 5, 3), dtype=np.float32)
    ways = {module._turn(patch, np.array([turn])).tobytes() for turn in range(8)}
    square = [
        np.rot90(flipped, turns, axes=(1, 2))
        for flipped in (patch, patch[:, ::-1])
        for turns in range(4)
    ]
    assert ways == {np.ascontiguousarray(one).tobytes() for one in square}
    both = module._turn(np.repeat(patch, 2, axis=0), np.array([0, 3]))
    np.testing.assert_array_equal(both[0], patch[0])
    np.testing.assert_array_equal(both[1], patch[0].swapaxes(0, 1)[::-1])


def test_the_network():
    network = module._build_network(32, 0)
    # Convolutions of 3 x 3 with biases, four values of normalisation for each of their maps, and
    # the logit.
    assert (
        network.count_params()
        == (432 + 80) + (3456 + 120) + (6912 + 160) + (9216 + 160) + 33
        == 20_569
    )
    assert all(layer.dtype_policy.name == "float32" for layer in network.layers)
    other = module._build_network(32, 1)
    assert not np.array_equal(network.get_weights()[0], other.get_weights()[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"made_masks": np.zeros((4, 39, 40, 1))}, "made images and masks"),
        ({"made_groups": np.array(["a"])}, "4 made images"),
        ({"real": np.full((4, 40, 40, 1), np.nan, np.float32)}, "real images"),
        ({"made": np.full((4, 40, 40, 1), 2, np.float32)}, "made images"),
        ({"made_masks": np.full((4, 40, 40, 1), 255)}, "made masks"),
        ({"folds": 3}, "3 folds"),
        ({"folds": 1}, "1 folds can't be made of 2 patients"),
        ({"made_groups": np.array(["p0"] * 4)}, "2 folds can't be made of 1 patients"),
        (
            {"real_groups": np.array(list("bccc")), "made_groups": np.array(list("aaab"))},
            "one of 2 folds",
        ),
        ({"size": 8}, "8 px"),
    ],
)
def test_wrong_input_is_refused(changed, message):
    images, groups, masks = patches(4, 0)
    given = {
        "real": images,
        "made": images,
        "real_groups": groups,
        "made_groups": groups,
        "real_masks": masks,
        "made_masks": masks,
    }
    with pytest.raises(ValueError, match=message):
        two_sample(**{**given, "folds": 2, **changed})
