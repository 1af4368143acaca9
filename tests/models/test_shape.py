"""The shape CNN: its layers, its weighted loss, and that it learns shapes."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from tests.updates import assert_descends
from tfmammo.models.shape import ShapeCNN, ShapeConfig, class_weights


def small(weights=(1.0, 1.0, 1.0, 1.0)):
    config = ShapeConfig(filters=(4, 4, 8), units=8, dropout=0.0)
    return ShapeCNN(config, 64, weights)


def discs_and_bars(count=4, seed=0):
    """Labels 3 (round) and 2 (oval): discs and slender ellipses of any size and turn."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, 64, 64, 1), np.float32)
    labels = np.arange(count) % 2 + 2
    for mask, label in zip(masks, labels, strict=True):
        radius = int(rng.integers(10, 20))
        axes = (radius, radius if label == 3 else radius // 3)
        canvas = np.zeros((64, 64), np.uint8)
        mask[..., 0] = cv2.ellipse(canvas, (32, 32), axes, rng.uniform(0, 180), 0, 360, 1, -1)
    return {"mask": tf.constant(masks), "label": tf.constant(labels, tf.int32)}


def test_class_weights_by_hand():
    assert class_weights([504, 473, 115, 76]) == pytest.approx(
        [1 - 504 / 1168, 1 - 473 / 1168, 1 - 115 / 1168, 1 - 76 / 1168]
    )


def test_the_network_descends_the_weighted_cross_entropy():
    weights = (0.1, 0.2, 0.3, 0.4)
    shape, reference = small(weights), small(weights)
    data = discs_and_bars(4)

    def loss():
        p = tf.nn.softmax(reference.network(data["mask"], training=True))
        of_truth = tf.reduce_sum(p * tf.one_hot(data["label"], 4), axis=1)
        return -tf.reduce_mean(tf.gather(weights, data["label"]) * tf.math.log(of_truth))

    def accuracy():
        predicted = np.argmax(reference.network(data["mask"]), axis=1)
        return np.mean(predicted == data["label"].numpy())

    assert_descends(shape, reference, data, {"accuracy": accuracy}, classifier=loss)


def test_panels_show_the_probabilities_as_bars():
    shape = small()
    data = discs_and_bars(2)
    panels = shape.sample(data)
    mask, bars = panels.values()
    assert mask.shape == bars.shape == (2, 64, 64, 1)
    np.testing.assert_allclose(bars[0, 10, ::16, 0], shape.classify(data["mask"])[0], atol=1e-6)
