"""What the segmentation baselines share: cross-entropy, one step, precision, exports."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.models.every import make_batch, make_random
from tests.updates import assert_descends
from tfmammo.baselines.segmenter import Segmenter, SegmenterConfig
from tfmammo.nn.normalization import SampleNormalization


def constant_logit(value):
    """A model whose network answers with its only weight."""
    image = keras.Input((2, 2, 1))
    layer = keras.layers.Conv2D(
        1, 1, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(value)
    )
    return Segmenter(
        keras.Model(image, layer(image)), SegmenterConfig(learning_rate=0.125), "constant"
    )


def test_the_loss_and_the_step_worked_by_hand():
    model = constant_logit(np.log(3.0))  # p = 0.75
    mask = tf.constant([1.0, 0.0, 0.0, 0.0], shape=[1, 2, 2, 1])
    loss = model.train_step({"image": tf.zeros([1, 2, 2, 1]), "mask": mask})
    assert loss.keys() == {"segmenter_loss"}
    assert float(loss["segmenter_loss"]) == pytest.approx(
        -(np.log(0.75) + 3 * np.log(0.25)) / 4, rel=1e-6
    )
    kernel, bias = model.networks["segmenter"].get_weights()
    # Adam's first step is the learning rate, downhill
    assert bias[0] == pytest.approx(np.log(3.0) - 0.125, rel=1e-5)
    assert kernel[0, 0, 0, 0] == 0  # the image is black


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "fcn8s", "segnet"])
def test_the_network_descends_cross_entropy(name):
    model, reference = (make_random(name, 32, 0.15) for _ in range(2))
    data = make_batch(name, 2)

    def loss():
        scores = reference.networks["segmenter"](data["image"], training=True)
        # one logit, or the scores of background and lesion
        p = tf.sigmoid(scores) if scores.shape[-1] == 1 else tf.nn.softmax(scores)[..., 1:]
        y = data["mask"]
        return -tf.reduce_mean(y * tf.math.log(p) + (1 - y) * tf.math.log(1 - p))

    assert_descends(model, reference, data, segmenter=loss)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "fcn8s", "segnet", "residual_unet"])
def test_the_gradient_reaches_every_variable(name):
    model = make_random(name, 32)
    network = model.networks["segmenter"]
    data = make_batch(name, 2)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(data)
    # normalisation takes away what the bias in front of it adds
    idle = {
        id(getattr(layer.input._keras_history.operation, "bias", None))
        for layer in network.layers
        if isinstance(layer, SampleNormalization)
    }
    variables = [v for v in network.trainable_variables if id(v) not in idle]
    gradients = tape.gradient(loss, variables)
    assert not [v.path for v, g in zip(variables, gradients, strict=True) if not np.any(g)]
