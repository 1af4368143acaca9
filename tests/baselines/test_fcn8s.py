"""FCN-8s: its parameters, strides and bilinear kernels."""

import numpy as np
import pytest

from tests.full_size import build_without_memory
from tfmammo.baselines.fcn8s import FCN8sConfig, bilinear, build_network

SMALL = {"widths": (4, 4, 4, 4, 4), "fc_width": 8, "dropout": 0.0}


def test_full_size(monkeypatch):
    model = build_without_memory(lambda: build_network(FCN8sConfig(), 256), monkeypatch)
    shapes = [model.get_layer(f"pool{i}").output.shape[1:] for i in (3, 4, 5)]
    assert shapes == [(32, 32, 256), (16, 16, 512), (8, 8, 512)]
    assert model.get_layer("fc2").output.shape[1:] == (8, 8, 4096)
    kernels = [v.shape[:2] for v in model.trainable_variables if "transpose" in v.path]
    assert kernels == [(4, 4), (4, 4), (16, 16)]


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


# The map of fc7 is one pixel here: in each direction a quarter of it is beyond the border.
@pytest.mark.parametrize(
    ("name", "added"), [("score_fc7", 0.75**2), ("score_pool4", 1), ("score_pool3", 1)]
)
def test_each_stride_adds_to_the_scores(name, added):
    model = build_network(FCN8sConfig(**SMALL), 32)
    kernel, _ = model.get_layer(name).get_weights()
    model.get_layer(name).set_weights([kernel, np.ones(2, np.float32)])
    image = np.random.default_rng(0).normal(size=(1, 32, 32, 1)).astype(np.float32)
    scores = np.asarray(model(image))
    assert scores[0, 16, 16, 0] == pytest.approx(added)
    assert scores.min() > 0
