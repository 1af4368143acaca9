"""FCN-8s: the parameter counts, strides, bilinear kernels, the two classes' loss."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.full_size import build_without_memory, count_weights
from tfmammo.baselines.fcn8s import FCN8s, FCN8sConfig, bilinear, build_network

SMALL = {"widths": (4, 4, 4, 4, 4), "fc_width": 8, "dropout": 0.0}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("classes", "count"), [(2, 134_271_430), (1, 134_265_699)])
def test_full_size(classes, count, monkeypatch):
    config = FCN8sConfig(classes=classes)
    model = build_without_memory(lambda: build_network(config, 256), monkeypatch)
    assert count_weights(model) == count
    shapes = {
        name: model.get_layer(name).output.shape[1:]
        for name in ("pool3", "pool4", "pool5", "fc1", "fc2")
    }
    assert shapes == {
        "pool3": (32, 32, 256),
        "pool4": (16, 16, 512),
        "pool5": (8, 8, 512),
        "fc1": (8, 8, 4096),
        "fc2": (8, 8, 4096),
    }
    assert [v.shape[:2] for v in model.trainable_variables if "transpose" in v.path] == [
        (4, 4),
        (4, 4),
        (16, 16),
    ]


def test_bilinear_kernel_by_hand():
    line = np.array([0.25, 0.75, 0.75, 0.25])
    kernel = np.asarray(bilinear((4, 4, 2, 2)))
    np.testing.assert_allclose(kernel[..., 0, 0], np.outer(line, line))
    np.testing.assert_allclose(kernel[..., 1, 1], np.outer(line, line))
    assert not kernel[..., 0, 1].any() and not kernel[..., 1, 0].any()
    sixteenths = np.array([1, 3, 5, 7, 9, 11, 13, 15, 15, 13, 11, 9, 7, 5, 3, 1]) / 16
    np.testing.assert_allclose(
        np.asarray(bilinear((16, 16, 1, 1)))[..., 0, 0], np.outer(sixteenths, sixteenths)
    )


def test_the_up_sampling_starts_as_interpolation():
    model = build_network(FCN8sConfig(**SMALL, classes=1), 32)
    *_, last = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2DTranspose)]
    ramp = np.arange(4, dtype=np.float32)[None, :, None, None] * np.ones((1, 4, 4, 1), np.float32)
    fine = np.asarray(last(ramp))[0, :, :, 0]
    # Row r of the fine grid is at (r + 0.5) / 8 - 0.5 of the coarse one; half a coarse pixel at
    # the border is lost.
    inside = slice(4, 28)
    expected = ((np.arange(32) + 0.5) / 8 - 0.5)[inside, None] * np.ones((1, 24))
    np.testing.assert_allclose(fine[inside, inside], expected, atol=1e-6)


def test_it_starts_undecided():
    model = FCN8s(FCN8sConfig(**SMALL), 32)
    image = tf.random.uniform([1, 32, 32, 1], seed=0)
    np.testing.assert_array_equal(
        model.sample({"image": image, "mask": image})["output"], np.full((1, 32, 32, 1), 0.5)
    )
    loss = model.train_step({"image": image, "mask": tf.ones_like(image)})["segmenter_loss"]
    assert float(loss) == pytest.approx(np.log(2))


@pytest.mark.parametrize("name", ["score_fc7", "score_pool4", "score_pool3"])
def test_each_stride_adds_to_the_scores(name):
    model = build_network(FCN8sConfig(**SMALL, classes=1), 32)
    kernel, _ = model.get_layer(name).get_weights()
    model.get_layer(name).set_weights([kernel, np.ones(1, np.float32)])
    scores = np.asarray(model(noise(1, 32, 32, 1)))
    # its map is one pixel here: border everywhere
    assert scores[0, 16, 16, 0] == pytest.approx(1.0) or name == "score_fc7"
    assert scores.min() > 0


def test_the_grey_patch_becomes_three_equal_colours():
    model = build_network(FCN8sConfig(**SMALL), 32)
    assert model.get_layer("block1_conv1").kernel.shape == (3, 3, 3, 4)
    colours = keras.Model(model.input, model.get_layer("block1_conv1").input)(
        np.full((1, 32, 32, 1), 0.25, np.float32)
    )
    np.testing.assert_allclose(colours, np.full((1, 32, 32, 3), -0.5))
