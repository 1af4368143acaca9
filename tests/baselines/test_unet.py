"""U-Net: the paper's levels, its skips, where its dropout is."""

import keras
import numpy as np

from tests.full_size import build_without_memory
from tfmammo.baselines.unet import UNet, build_network


def layers(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


def test_full_size(monkeypatch):
    model = build_without_memory(UNet, monkeypatch).networks["segmenter"]
    convolutions = layers(model, keras.layers.Conv2D)
    assert [c.output.shape[1] for c in convolutions[1:10:2]] == [256, 128, 64, 32, 16]
    assert [t.filters for t in layers(model, keras.layers.Conv2DTranspose)] == [512, 256, 128, 64]
    dropped = [d.output.shape[1:] for d in layers(model, keras.layers.Dropout)]
    assert dropped == [(32, 32, 512), (16, 16, 1024)]


def test_the_skips_carry_each_level_past_the_bottom():
    keras.utils.set_random_seed(0)
    model = build_network(16, (4, 4, 4), 0.0)
    for layer in layers(model, keras.layers.Conv2DTranspose)[-1:]:  # cut what comes from below
        layer.set_weights([np.zeros_like(w) for w in layer.get_weights()])
    image = np.random.default_rng(0).uniform(size=(1, 16, 16, 1)).astype(np.float32)
    before = model(image).numpy()
    assert np.ptp(before) > 1e-3
    bottom = layers(model, keras.layers.Conv2D)[5]
    bottom.set_weights([w + 1 for w in bottom.get_weights()])
    np.testing.assert_array_equal(model(image), before)


def test_the_image_is_centred_inside():
    (rescaling,) = layers(build_network(4, (2, 2), 0.0), keras.layers.Rescaling)
    np.testing.assert_allclose(rescaling(np.array([0, 0.25, 1], np.float32)), [-1, -0.5, 1])
