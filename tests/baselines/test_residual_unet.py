"""Residual U-Net: its blocks, its answers and their loss."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.full_size import build_without_memory
from tests.models.every import make_batch, make_random
from tests.updates import assert_descends
from tfmammo.baselines.residual_unet import ResidualUNet, build_network
from tfmammo.nn.convolutions import Convolution
from tfmammo.nn.normalization import SampleNormalization


def test_full_size(monkeypatch):
    model = build_without_memory(ResidualUNet, monkeypatch).networks["segmenter"]
    assert [answer.shape[1] for answer in model.outputs] == [256, 128, 64, 32]
    convolutions = find(model, Convolution)
    strided = [layer.filters for layer in convolutions if layer.strides != (1, 1)]
    assert strided == [64, 128, 256, 512, 512]
    (answer,) = build_network(8, (2, 4), (1, 1)).outputs  # two stages answer once
    assert answer.shape == (None, 8, 8, 1)


def find(model, kind):
    return [layer for layer in model.layers if type(layer) is kind]


def test_a_block_whose_convolutions_are_silent_lets_its_input_pass():
    """LeakyReLU(past + 0): averaged over 2 x 2 px in the first block of a stage."""
    model = build_network(8, (3, 3), (1, 1))
    silent = [not layer.gamma.numpy().any() for layer in find(model, SampleNormalization)]
    assert silent[:5] == [False, False, True, False, True]  # stem, and two blocks of two
    first, second = find(model, keras.layers.Add)
    inner = keras.Model(model.input, [find(model, keras.layers.LeakyReLU)[0].output, second.output])
    image = np.random.default_rng(0).uniform(size=(1, 8, 8, 1)).astype(np.float32)
    stem, deep = (value.numpy() for value in inner(image))
    past = np.where(stem > 0, stem, 0.01 * stem)  # of the first block
    expected = past.reshape(1, 4, 2, 4, 2, 3).mean((2, 4))
    np.testing.assert_allclose(deep, expected, atol=1e-6)
    assert first.output.shape == (None, 8, 8, 3)


@pytest.mark.slow
def test_the_network_descends_its_loss():
    values = {"widths": (4, 8, 8, 8), "blocks": (1, 2, 1, 1)}
    model, reference = (make_random("residual_unet", 16, 0.2, **values) for _ in range(2))
    data = make_batch("residual_unet", 2, size=16)
    image = data["image"]
    answers = model.networks["segmenter"](image)
    np.testing.assert_array_equal(model.logits(image), answers[0])

    def loss():
        whole, half = reference.networks["segmenter"](image, training=True)
        total = 0.0
        smaller = data["mask"][:, 1::2, 1::2]
        for weight, logits, y in ((2 / 3, whole, data["mask"]), (1 / 3, half, smaller)):
            p = tf.sigmoid(logits)
            entropy = -tf.reduce_mean(y * tf.math.log(p) + (1 - y) * tf.math.log(1 - p))
            overlap = tf.reduce_sum(y * p, [1, 2, 3])
            sizes = tf.reduce_sum(y + p, [1, 2, 3])
            total += weight * (entropy + 1 - tf.reduce_mean((2 * overlap + 1) / (sizes + 1)))
        return total

    assert_descends(model, reference, data, segmenter=loss)
