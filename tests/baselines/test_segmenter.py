"""What the segmentation baselines share: cross-entropy, one step, precision, exports."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.updates import assert_descends
from tfmammo.baselines.fcn8s import FCN8s, FCN8sConfig
from tfmammo.baselines.residual_unet import ResidualUNet, ResidualUNetConfig
from tfmammo.baselines.segmenter import Segmenter, SegmenterConfig
from tfmammo.baselines.segnet import SegNet, SegNetConfig
from tfmammo.baselines.unet import UNet, UNetConfig
from tfmammo.nn.normalization import SampleNormalization

SIZE = 32
WIDTHS = (8, 8, 8, 8, 8)
SMALL = {
    "unet": lambda rate: UNet(UNetConfig(widths=(8, 8, 8), dropout=0, learning_rate=rate), SIZE),
    "fcn8s": lambda rate: FCN8s(
        FCN8sConfig(widths=WIDTHS, fc_width=16, dropout=0, learning_rate=rate), SIZE
    ),
    "segnet": lambda rate: SegNet(SegNetConfig(widths=WIDTHS, learning_rate=rate), SIZE),
    "residual_unet": lambda rate: ResidualUNet(
        ResidualUNetConfig(widths=(8, 8, 8), blocks=(1, 1, 1), learning_rate=rate), SIZE
    ),
}


def batch(samples=1, size=SIZE):
    """Bright discs on noise."""
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:size, :size]
    masks = np.stack(
        [np.hypot(rows - size / 2 + i, cols - size / 2 - i) < size / 4 for i in range(samples)]
    )[..., None]
    images = 0.2 + 0.5 * masks + rng.uniform(0, 0.3, masks.shape)
    return {"image": tf.constant(images, tf.float32), "mask": tf.constant(masks, tf.float32)}


def small(name, rate=3e-3, seed=0):
    keras.utils.set_random_seed(seed)
    return SMALL[name](rate)


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


def test_the_panels_are_probabilities():
    model = constant_logit(np.log(3.0))
    data = {"image": tf.ones([1, 2, 2, 1]), "mask": tf.ones([1, 2, 2, 1])}
    panels = model.sample(data)
    assert list(panels) == ["image", "output", "truth"]
    np.testing.assert_allclose(panels["output"], np.full((1, 2, 2, 1), 0.75), rtol=1e-6)
    assert panels["image"] is data["image"] and panels["truth"] is data["mask"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SMALL if name != "residual_unet"])
def test_the_network_descends_cross_entropy(name):
    model, reference = small(name), small(name)
    random = np.random.default_rng(0)
    for weight in model.networks["segmenter"].trainable_variables:
        if "score" in weight.path:  # FCN-8s's, which start at 0
            weight.assign(random.normal(0, 0.3, weight.shape))
    data = batch(2)

    def loss():
        scores = reference.networks["segmenter"](data["image"], training=True)
        # one logit, or the scores of background and lesion
        p = tf.sigmoid(scores) if scores.shape[-1] == 1 else tf.nn.softmax(scores)[..., 1:]
        y = data["mask"]
        return -tf.reduce_mean(y * tf.math.log(p) + (1 - y) * tf.math.log(1 - p))

    assert_descends(model, reference, data, segmenter=loss)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_gradient_reaches_every_variable(name):
    model = small(name)
    data = batch(2)
    for _ in range(2):  # FCN-8s starts with scores of zero, so that at first nothing passes them
        model.train_step(data)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model.logits(data["image"], training=True) * (0.5 - data["mask"]))
    variables = model.networks["segmenter"].trainable_variables
    # normalisation takes away what the bias in front of it adds
    followed = [
        layer.input._keras_history.operation
        for layer in model.networks["segmenter"].layers
        if isinstance(layer, SampleNormalization)
    ]
    idle = [id(layer.bias) for layer in followed if getattr(layer, "bias", None) is not None]
    variables = [v for v in variables if id(v) not in idle]
    still = {
        v.path
        for v, g in zip(variables, tape.gradient(loss, variables), strict=True)
        if g is None or not np.any(g)
    }
    assert not still
