"""VGG-16's weights in the encoders: values, every file format, and failures."""

import gc
import hashlib
import re
import urllib.request
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from tests.full_size import build_without_memory
from tfmammo.baselines import segnet, vgg16
from tfmammo.baselines.fcn8s import FCN8sConfig
from tfmammo.baselines.fcn8s import build_network as fcn8s_network
from tfmammo.baselines.segnet import SegNet, SegNetConfig
from tfmammo.errors import WeightsError
from tfmammo.nn import published

# Keras 3.15 saves variables in a way that numpy 2 will once refuse.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def random_vgg16(top=False):
    """Keras's own VGG-16 with other biases than zero."""
    keras.utils.set_random_seed(3)
    model = keras.applications.VGG16(weights=None, include_top=top)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if layer.weights:
            layer.bias.assign(rng.normal(size=layer.bias.shape))
    return model


def save(model, folder, form):
    """Save one file of `form`; "legacy.h5" has the weights' groups at the root, as published."""
    path = folder / f"vgg16{form}"
    if form == ".weights.h5":
        model.save_weights(path)
    elif form == "legacy.h5":
        model.save(folder / "whole.h5", include_optimizer=False)
        with h5py.File(folder / "whole.h5") as whole, h5py.File(path, "w") as file:
            for name in whole["model_weights"]:
                whole.copy(f"model_weights/{name}", file)
            file.attrs.update(whole["model_weights"].attrs)
        (folder / "whole.h5").unlink()
    else:
        model.save(path)
    return str(path)


@pytest.fixture
def narrow_vgg16(monkeypatch):
    """Give Keras a VGG-16 of four channels; its own takes half a gigabyte."""

    def build(weights, include_top):
        image = keras.Input((224, 224, 3))
        features = image
        for block, depth in enumerate(vgg16.DEPTHS, 1):
            for index in range(1, depth + 1):
                convolution = keras.layers.Conv2D(
                    4, 3, padding="same", activation="relu", name=f"block{block}_conv{index}"
                )
                features = convolution(features)
            features = keras.layers.MaxPooling2D(2)(features)
        if include_top:
            features = keras.layers.Flatten()(features)
            for name in ("fc1", "fc2", "predictions"):
                features = keras.layers.Dense(4, activation="relu", name=name)(features)
        return keras.Model(image, features)

    monkeypatch.setattr(keras.applications, "VGG16", build)


@pytest.mark.slow
def test_segnet_starts_from_the_file(tmp_path):
    source = random_vgg16()
    path = save(source, tmp_path, ".weights.h5")
    model = SegNet(SegNetConfig(weights=path), 32)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert model.pretrained == {"segmenter": ("Keras's VGG-16", digest)}
    network = model.networks["segmenter"]
    for layer in source.layers:
        if layer.weights:
            kernel, bias = network.get_layer(layer.name).get_weights()
            their_kernel, their_bias = layer.get_weights()
            expected = (
                their_kernel.sum(2, keepdims=True) if layer.name == "block1_conv1" else their_kernel
            )
            np.testing.assert_array_equal(kernel, expected, err_msg=layer.name)
            np.testing.assert_array_equal(bias, their_bias, err_msg=layer.name)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["legacy.h5", ".keras"])
def test_other_files_of_keras_are_read_alike(tmp_path, form, narrow_vgg16):
    source = random_vgg16()
    target = keras.applications.VGG16(weights=None, include_top=False)
    vgg16.adopt(target, save(source, tmp_path, form), fc=False)
    for ours, theirs in zip(target.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


NARROW = {"widths": (4,) * 5, "fc_width": 4, "dropout": 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [NARROW, pytest.param({"dropout": 0}, marks=pytest.mark.nightly)],  # 2.3 GB
)
def test_the_fully_connected_layers_become_convolutions(request, tmp_path, config):
    """Compare fc7 of an FCN-8s with that of the VGG-16 whose file it reads, of equal widths."""
    if config == NARROW:
        request.getfixturevalue("narrow_vgg16")
    source = random_vgg16(top=True)
    path = save(source, tmp_path, ".weights.h5")
    image = np.random.default_rng(0).uniform(size=(1, 224, 224, 1)).astype(np.float32)
    scaled = 2 * np.repeat(image, 3, -1) - 1  # as an encoder that starts from no weights has it
    theirs = keras.Model(source.input, source.get_layer("fc2").output)(scaled).numpy()
    kernel = source.get_layer("block5_conv3").kernel.numpy()
    del source
    gc.collect()
    network = fcn8s_network(FCN8sConfig(**config), 224)
    vgg16.adopt(network, path, fc=True)
    ours = keras.Model(network.input, network.get_layer("fc2").output)(image).numpy()
    # At 224 px the last pooling is 7x7: fc6's window at its middle covers it exactly, as VGG-16's
    # flattening does.
    np.testing.assert_allclose(ours[:, 3, 3], theirs, rtol=1e-3, atol=1e-3 * theirs.max())
    assert theirs.max() > 0
    encoder = keras.applications.VGG16(weights=None, include_top=False)
    vgg16.adopt(encoder, path, fc=False)  # the encoder is read from the larger file as well
    np.testing.assert_array_equal(encoder.get_layer("block5_conv3").kernel, kernel)
    Path(path).unlink()  # pytest would keep it


KERAS_INPUT = {
    "input/scale": np.full(3, 255, np.float32),
    "input/offset": -np.array([103.939, 116.779, 123.68], np.float32),
}
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
TORCHVISION_INPUT = {
    "input/scale": 1 / DEVIATION,
    "input/offset": -np.array([0.485, 0.456, 0.406], np.float32) / DEVIATION,
}


def make_vgg19(width, scaling):
    """VGG-19's arrays with all blocks equally wide; every layer has numbers of its own."""
    rng = np.random.default_rng(5)
    arrays = dict(scaling)
    before = 3
    for name in published.VGG19_LAYERS:
        arrays[f"{name}/kernel"] = rng.normal(size=(3, 3, before, width)).astype(np.float32)
        arrays[f"{name}/bias"] = rng.normal(size=width).astype(np.float32)
        before = width
    return arrays


def save_vgg19(folder, arrays):
    np.savez(folder / "vgg19.npz", **arrays)
    return str(folder / "vgg19.npz")


@pytest.mark.parametrize("scaling", [KERAS_INPUT, TORCHVISION_INPUT])
@pytest.mark.parametrize("model", ["segnet", "fcn8s"])
def test_a_vgg19_gives_the_convolutions_that_vgg16_has(tmp_path, narrow_vgg16, model, scaling):
    arrays = make_vgg19(4, scaling)
    is_segnet = model == "segnet"
    if is_segnet:
        network = segnet.build_network(32, (4,) * 5, pretrained=True)
    else:
        network = fcn8s_network(FCN8sConfig(widths=(4,) * 5, fc_width=4), 32)
    fc1 = None if is_segnet else network.get_layer("fc1").kernel.numpy()
    source = vgg16.adopt(network, save_vgg19(tmp_path, arrays), fc=not is_segnet)
    assert source == ("VGG-19 of unknown origin", published.compute_digest(arrays))
    names = [name for name in arrays if re.match(r"block\d_conv[123]/", name)]
    assert len(names) == 2 * 13
    for name in names:
        layer, _, part = name.partition("/")
        if layer != "block1_conv1":
            found = getattr(network.get_layer(layer), part)
            np.testing.assert_array_equal(found, arrays[name], err_msg=name)
    if not is_segnet:
        np.testing.assert_array_equal(network.get_layer("fc1").kernel, fc1)


@pytest.mark.parametrize("scaling", [KERAS_INPUT, TORCHVISION_INPUT])
def test_the_first_layer_sees_what_vgg19s_saw(tmp_path, narrow_vgg16, scaling):
    """Torchvision's mean colours are up to 0.5 of 255 from Keras's, which VGG-16 expects."""
    arrays = make_vgg19(4, scaling)
    kernel, bias = (arrays[f"block1_conv1/{part}"] for part in ("kernel", "bias"))
    network = fcn8s_network(FCN8sConfig(widths=(4,) * 5, fc_width=4), 32)
    vgg16.adopt(network, save_vgg19(tmp_path, arrays), fc=True)
    grey = np.random.default_rng(0).uniform(size=(3, 3, 1)).astype(np.float32)  # one window
    scaled = grey * scaling["input/scale"] + scaling["input/offset"]
    theirs = np.einsum("rcio,rci->o", kernel, scaled) + bias
    first = network.get_layer("block1_conv1")
    seen = vgg16.normalize(3, True)(np.repeat(grey[None], 3, -1))
    ours = np.einsum("rcio,rci->o", first.kernel, seen[0]) + first.bias.numpy()
    step = 0.5 / 255 * scaling["input/scale"].max()  # half a grey level, in the file's own unit
    tolerance = 1e-2 if scaling is KERAS_INPUT else step * np.abs(kernel).sum((0, 1, 2)).max()
    assert tolerance < 0.05 * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, atol=tolerance)


def test_a_file_without_the_fully_connected_layers_is_named(tmp_path, narrow_vgg16):
    path = save(random_vgg16(), tmp_path, ".weights.h5")
    with pytest.raises(WeightsError, match="model.weights: .*fully connected") as caught:
        vgg16.adopt(segnet.build_network(32, (4,) * 5), path, fc=True)
    assert path in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "widths"),
    [
        (SegNetConfig, {"widths": (4,) * 5}),
        (FCN8sConfig, {"widths": (4,) * 5}),
        (FCN8sConfig, {"fc_width": 8}),
    ],
)
def test_other_widths_than_vgg16s_are_refused(config, widths):
    with pytest.raises(ValidationError, match=next(iter(widths))):
        config(weights="imagenet", **widths)
    assert config(**widths).pretrained is False and config(weights="imagenet").pretrained is True


def test_without_a_network_imagenet_is_one_sentence(monkeypatch, tmp_path):
    # nothing is cached there
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    nowhere = dict.fromkeys(("http", "https"), "http://127.0.0.1:9")
    urllib.request.install_opener(urllib.request.build_opener(urllib.request.ProxyHandler(nowhere)))
    try:
        with pytest.raises(WeightsError, match="^model.weights: .*URL fetch failure") as error:
            build_without_memory(lambda: SegNet(SegNetConfig(weights="imagenet"), 32), monkeypatch)
    finally:
        urllib.request.install_opener(None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_image_is_mapped_to_what_the_weights_expect(channels):
    image = np.stack([np.zeros((1, 1, channels)), np.ones((1, 1, channels))]).astype(np.float32)
    means = np.array([103.939, 116.779, 123.68]) if channels == 3 else np.array([344.398 / 3])
    np.testing.assert_allclose(
        vgg16.normalize(channels, True)(image)[:, 0, 0], [-means, 255 - means], rtol=1e-6
    )
    np.testing.assert_allclose(
        vgg16.normalize(channels, False)(image)[:, 0, 0], [[-1] * channels, [1] * channels]
    )
    keras.config.set_dtype_policy("mixed_bfloat16")
    # 255 grey levels do not fit eight bits of mantissa and a mean
    assert vgg16.normalize(channels, True)(image).dtype == tf.float32
