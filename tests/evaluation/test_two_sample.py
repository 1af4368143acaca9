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


def patches(count, seed, spread=0.02):
    """Blurred noise with a bright disc and grain of some spread: images, patients of two patches
    each, and masks.
    """
    generator = np.random.default_rng(seed)
    rows, cols = np.mgrid[:40, :40] - 20
    discs = [np.hypot(rows, cols) < radius for radius in generator.uniform(6, 12, count)]
    masks = np.stack(discs)[..., None]
    coarse = np.kron(generator.normal(0.4, 0.05, (count, 10, 10, 1)), np.ones((1, 4, 4, 1)))
    images = np.clip(coarse + 0.2 * masks + generator.normal(0, spread, coarse.shape), 0, 1)
    patients = np.array([f"p{row // 2}" for row in range(count)])
    return images.astype(np.float32), patients, masks.astype(np.uint8)


def judge(real, made, **options):
    fast = {"folds": 3, "size": 32, "steps": 50} | options
    return two_sample(real[0], made[0], real[1], made[1], real[2], made[2], **fast)


def find_area(result):
    """The area over all patches."""
    return result.measure_area(np.arange(len(result.real)), np.arange(len(result.made)))


def draw():
    """The next of all global random numbers."""
    of_keras, of_tensorflow = keras.random.uniform(()), tf.random.uniform(())
    return [random.random(), np.random.rand(), float(of_keras), float(of_tensorflow)]


@pytest.mark.slow
def test_grain_is_found():
    result = judge(patches(40, 0), patches(40, 1, spread=0.06))
    assert find_area(result) > 0.9 and result.made.mean() > result.real.mean()


@pytest.mark.slow
def test_what_only_the_mask_tells_is_found():
    """Equal images, but a made lesion's mask is moved beside it."""
    images, patients, masks = patches(40, 1)
    assert find_area(judge(patches(40, 0), (images, patients, np.roll(masks, 10, axis=2)))) > 0.9


@pytest.mark.slow
def test_equal_sets_do_not_differ_and_the_callers_keras_is_left_alone():
    """Whatever the precision policy and the global random numbers, which stay, as do the names of
    layers to come.
    """
    equal = judge(patches(40, 0), patches(40, 1))
    assert 0.25 < find_area(equal) < 0.75
    keras.config.set_dtype_policy("mixed_bfloat16")
    keras.layers.Dense(1)
    before = int(keras.layers.Dense(1).name.removeprefix("dense_"))
    keras.utils.set_random_seed(3)
    expected = draw()
    keras.utils.set_random_seed(3)
    again = judge(patches(40, 0), patches(40, 1))
    np.testing.assert_array_equal(again.real, equal.real)
    np.testing.assert_array_equal(again.made, equal.made)
    assert draw() == expected
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    assert keras.layers.Dense(1).name == f"dense_{before + 1}"
    assert (judge(patches(40, 0), patches(40, 1), seed=1, steps=2).real != equal.real).all()


def test_patients_never_straddle(monkeypatch):
    """Each image is the number of its patient, which the network that scores it has not seen; every
    patch is scored once.
    """
    count = 24
    numbers = np.arange(count) // 2
    grey = (numbers / 100).astype(np.float32)[:, None, None, None]
    images = np.broadcast_to(grey, (count, 16, 16, 1))
    masks = np.ones(images.shape, np.uint8)
    seen = []
    inputs = []

    def fit(self, known, labels, steps, random):
        seen.append(known)
        assert set(labels.tolist()) == {0, 1}

    def score(self, unknown):
        inputs.append(unknown)
        return np.zeros(len(unknown))

    monkeypatch.setattr(module._Classifier, "fit", fit)
    monkeypatch.setattr(module._Classifier, "score", score)
    names = np.array([f"p{number}" for number in numbers])
    result = two_sample(images, images, names, names, masks, masks, folds=4, size=16)
    assert find_area(result) == 0.5
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


def test_areas_compare_patches_of_one_network_only():
    """Two networks of perfect order whose scores are 10 apart: their common ROC curve would say
    0.75. Some rows by hand.
    """
    apart = TwoSample(np.array([0, 10.0]), np.array([1, 11.0]), np.arange(2), np.arange(2))
    assert roc_auc([0, 0, 1, 1], np.concatenate([apart.real, apart.made])) == 0.75
    assert find_area(apart) == 1
    real, made = np.random.default_rng(0).integers(0, 5, (2, 30)).astype(float)
    one = TwoSample(real, made[:20], np.zeros(30, int), np.zeros(20, int))
    expected = roc_auc(np.repeat([0, 1], [30, 20]), np.concatenate([real, made[:20]]))
    assert find_area(one) == pytest.approx(expected)
    folds = np.array([0, 0, 1])
    result = TwoSample(np.array([0.0, 2.0, 10.0]), np.array([1.0, 3.0, 10.0]), folds, folds)
    # within fold 0: 1 > 0, 3 > 0, 3 > 2, and not 1 > 2; within fold 1 a tie
    assert result.measure_area(np.array([0, 1, 2])) == pytest.approx(3.5 / 5)
    assert result.measure_area(np.array([0, 2])) == pytest.approx(1.5 / 2)
    assert result.measure_area(np.array([2])) == 0.5
    assert np.isnan(result.measure_area(np.array([], int)))


def test_the_eight_ways_of_a_patch():
    patch = np.random.default_rng(0).random((1, 5, 5, 3), dtype=np.float32)
    ways = {module._turn(patch, np.array([turn])).tobytes() for turn in range(8)}
    turned = [
        np.rot90(flipped, turns, axes=(1, 2))
        for flipped in (patch, patch[:, ::-1])
        for turns in range(4)
    ]
    assert ways == {np.ascontiguousarray(one).tobytes() for one in turned}
    both = module._turn(np.repeat(patch, 2, axis=0), np.array([0, 3]))
    np.testing.assert_array_equal(both[0], patch[0])
    np.testing.assert_array_equal(both[1], patch[0].swapaxes(0, 1)[::-1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"made_masks": np.zeros((4, 39, 40, 1))}, "made and masks"),
        ({"made_groups": np.array(["a"])}, "need as many groups"),
        ({"real": np.full((4, 40, 40, 1), np.nan, np.float32)}, "real must be"),
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
    given = {"real": images, "made": images, "real_groups": groups, "made_groups": groups}
    given |= {"real_masks": masks, "made_masks": masks, "folds": 2}
    with pytest.raises(ValueError, match=message):
        two_sample(**given | changed)
