"""The shape CNN's class weights and weighted loss."""

import numpy as np
import pytest
import tensorflow as tf

from tests.models.every import make_batch
from tests.updates import assert_descends
from tfmammo.models.shape import ShapeCNN, ShapeConfig, class_weights


def test_class_weights_by_hand():
    assert class_weights([504, 473, 115, 76]) == pytest.approx(
        [1 - 504 / 1168, 1 - 473 / 1168, 1 - 115 / 1168, 1 - 76 / 1168]
    )


def test_the_network_descends_the_weighted_cross_entropy():
    weights = (0.1, 0.2, 0.3, 0.4)
    config = ShapeConfig(filters=(4, 4, 8), units=8, dropout=0.0)
    shape, reference = (ShapeCNN(config, 64, weights) for _ in range(2))
    data = make_batch("shape", 4)

    def loss():
        p = tf.nn.softmax(reference.network(data["mask"], training=True))
        of_truth = tf.reduce_sum(p * tf.one_hot(data["label"], 4), axis=1)
        return -tf.reduce_mean(tf.gather(weights, data["label"]) * tf.math.log(of_truth))

    def accuracy():
        predicted = np.argmax(reference.network(data["mask"]), axis=1)
        return np.mean(predicted == data["label"].numpy())

    assert_descends(shape, reference, data, {"accuracy": accuracy}, classifier=loss)
