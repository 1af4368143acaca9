"""The shape CNN: its layers, its weighted loss, and that it learns shapes."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from tests.updates import assert_descends
from tfmammo.errors import ConfigError
from tfmammo.models.shape import SHAPES, ShapeCNN, ShapeConfig, class_weights


def small(weights=(1.0, 1.0, 1.0, 1.0), **config):
    return ShapeCNN(
        ShapeConfig(**{"filters": (4, 4, 8), "units": 8, "dropout": 0.0, **config}), 64, weights
    )


def discs_and_bars(count=16, seed=0):
    """Labels 3 (round) and 2 (oval): discs and slender ellipses of any size and turn."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, 64, 64, 1), np.float32)
    labels = np.arange(count) % 2 + 2
    for mask, label in zip(masks, labels, strict=True):
        radius = rng.integers(10, 20)
        turn = rng.uniform(0, 180)
        canvas = np.zeros((64, 64), np.uint8)
        mask[..., 0] = cv2.ellipse(
            canvas,
            (32, 32),
            (int(radius), int(radius if label == 3 else radius // 3)),
            turn,
            0,
            360,
            1,
            -1,
        )
    return {"mask": tf.constant(masks), "label": tf.constant(labels, tf.int32)}


def test_the_articles_network():
    shape = ShapeCNN()
    assert shape.network.count_params() == 768_132
    optimizer = shape.optimizers["classifier"]
    assert float(optimizer.learning_rate) == pytest.approx(1e-3) and optimizer.momentum == 0.9
    assert SHAPES == ("irregular", "lobular", "oval", "round")


def test_class_weights_by_hand():
    assert class_weights([504, 473, 115, 76]) == pytest.approx(
        [1 - 504 / 1168, 1 - 473 / 1168, 1 - 115 / 1168, 1 - 76 / 1168]
    )


def test_the_loss_by_hand():
    weights = (0.1, 0.2, 0.3, 0.4)
    shape = small(weights)
    data = discs_and_bars(4)
    logits = np.asarray(shape.network(data["mask"]), np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = data["label"].numpy()
    expected = np.mean(
        [-weights[c] * np.log(p[c]) for c, p in zip(labels, probabilities, strict=True)]
    )
    right = np.mean(probabilities.argmax(axis=1) == labels)
    losses = shape.train_step(data)
    assert float(losses["classifier_loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(losses["accuracy"]) == right


def test_the_network_descends_the_weighted_cross_entropy():
    weights = (0.1, 0.2, 0.3, 0.4)
    shape, reference = small(weights), small(weights)
    data = discs_and_bars(4)

    def loss():
        p = tf.nn.softmax(reference.network(data["mask"], training=True))
        of_truth = tf.reduce_sum(p * tf.one_hot(data["label"], 4), axis=1)
        return -tf.reduce_mean(tf.gather(weights, data["label"]) * tf.math.log(of_truth))

    assert_descends(shape, reference, data, classifier=loss)


@pytest.mark.slow
def test_it_learns_to_tell_discs_from_bars():
    shape = small(learning_rate=2e-3)
    data = discs_and_bars()
    step = tf.function(shape.train_step)
    for _ in range(150):
        losses = step(data)
    assert float(losses["accuracy"]) == 1
    unseen = discs_and_bars(seed=9)
    assert np.mean(np.argmax(shape.classify(unseen["mask"]), 1) == unseen["label"].numpy()) > 0.8


def test_what_is_exported_gives_probabilities_without_dropout():
    shape = small(dropout=0.5)
    function = shape.functions()["classifier"]
    mask = discs_and_bars(4)["mask"]
    probabilities = function(mask=mask)["shapes"].numpy()
    assert probabilities.shape == (4, 4) and np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert np.array_equal(probabilities, function(mask=mask)["shapes"].numpy())


def test_panels_show_the_probabilities_as_bars():
    shape = small()
    data = discs_and_bars(2)
    panels = shape.sample(data)
    mask, bars = panels.values()
    assert mask.shape == bars.shape == (2, 64, 64, 1)
    np.testing.assert_allclose(bars[0, 10, ::16, 0], shape.classify(data["mask"])[0], atol=1e-6)


def test_masks_that_are_too_small_are_refused():
    with pytest.raises(ConfigError, match="data.size"):
        ShapeCNN(size=32)
