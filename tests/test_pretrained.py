"""Pretrained networks against torchvision and Keras, the converter, and missing weights."""

import importlib.util
import json
import struct
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest

from tfmammo import pretrained
from tfmammo.errors import ConfigError, WeightsError
from tfmammo.metrics.perceptual import LPIPS

# Keras 3.15 saves variables in a way that numpy 2 will once refuse.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SHAPES = [(64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3)]


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).random((2, 48, 64, 1), dtype=np.float32)


@pytest.fixture(scope="module")
def alexnet_tensors():
    """AlexNet as torchvision names it, small random weights, and a layer of its classifier."""
    random = np.random.default_rng(1)
    tensors = {"classifier.6.bias": np.zeros(10, np.float32)}
    for index, (out, before, kernel) in zip((0, 3, 6, 8, 10), SHAPES, strict=True):
        tensors[f"features.{index}.weight"] = random.normal(
            0, 0.05, (out, before, kernel, kernel)
        ).astype(np.float32)
        tensors[f"features.{index}.bias"] = random.normal(0, 0.05, out).astype(np.float32)
    return tensors


def pairs():
    """The images of make_pretrained_golden.py."""
    random = np.random.default_rng(2)
    a, b = random.random((2, 5, 80, 80, 1), dtype=np.float32)
    b[1] = np.clip(a[1] + random.normal(0, 0.05, a[1].shape), 0, 1)
    b[2] = a[2]
    a[3] = 0
    b[3] = 1
    return a, b


def write_safetensors(path, tensors, dtype="F32"):
    """The format by its specification: the header's length, the header in JSON, the tensors."""
    header = {"__metadata__": {"format": "pt"}}
    content = b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [len(content), len(content) + len(raw)],
        }
        content += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


def unfit(path, tensors, **changes):
    return write_safetensors(
        path, {key: value for key, value in (tensors | changes).items() if value is not None}
    )


def test_vgg19_has_its_parameters_and_maps(image):
    whole = pretrained.vgg19("none", pretrained.VGG19_LAYERS)
    assert whole.count_params() == 20_024_384 and whole.trainable_variables == []
    assert [level.shape for level in whole(image)][::5] == [
        (2, 48, 64, 64),
        (2, 12, 16, 256),
        (2, 6, 8, 512),
        (2, 3, 4, 512),
    ]
    first, last = pretrained.vgg19("none", ["block5_conv2", "block1_conv2"])(image)
    np.testing.assert_array_equal(last, whole(image)[1])  # the same weights again, from their seed
    np.testing.assert_array_equal(first, whole(image)[13])
    assert pretrained.vgg19("none", ["block1_conv1"])(image).shape == (2, 48, 64, 64)


def test_features_are_float32_in_mixed_precision(image):
    keras.config.set_dtype_policy("mixed_bfloat16")
    network = pretrained.vgg19("none", ["block1_conv1", "block2_conv1"])
    keras.config.set_dtype_policy("float32")
    exact = pretrained.vgg19("none", ["block1_conv1", "block2_conv1"])
    for rough, fine in zip(network(image), exact(image), strict=True):
        assert rough.dtype == "float32"
        assert 0 < np.abs(rough - fine).max() < 0.03 * np.max(fine)


def test_gradients_reach_the_image_through_a_frozen_trunk(image):
    import tensorflow as tf

    network = pretrained.vgg19("none", ["block1_conv2", "block2_conv2"])
    with tf.GradientTape() as tape:
        variable = tf.Variable(image)
        loss = sum(tf.reduce_mean(level) for level in network(variable))
    assert np.abs(tape.gradient(loss, variable)).max() > 0


@pytest.mark.parametrize("form", ["own.weights.h5", "own.h5"])
def test_keras_own_file_and_input(tmp_path, image, form):
    """Keras's preprocessing and network are the independent version.

    The image has three equal channels.
    """
    original = keras.applications.VGG19(weights=None, include_top=False)
    if form == "own.h5":  # the older form, that of the published file
        original.save(tmp_path / form, include_optimizer=False)
    else:
        original.save_weights(tmp_path / form)
    expected = keras.Model(original.input, original.get_layer("block2_conv2").output)(
        keras.applications.vgg19.preprocess_input(np.repeat(image * np.float32(255), 3, axis=-1))
    )
    found = pretrained.vgg19(str(tmp_path / form), ["block2_conv2"])(image)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.max(expected))


def test_random_vgg19_is_torchvision_with_these_weights(repository):
    """The golden maps are torchvision's, with weights of the same seed."""
    golden = json.loads(
        (repository / "tests" / "golden" / "pretrained.json").read_text(encoding="utf-8")
    )["vgg19_means"]
    images, _ = pairs()
    ends = ["block1_conv2", "block2_conv2", "block3_conv4", "block4_conv4", "block5_conv4"]
    for found, expected in zip(pretrained.vgg19("none", ends)(images), golden, strict=True):
        np.testing.assert_allclose(np.mean(found, axis=(1, 2, 3)), expected, rtol=1e-5)


@pytest.mark.slow
def test_published_files_are_converted(tmp_path, repository, image):
    """A process of PyTorch writes torchvision's state dicts and the published LPIPS heads."""
    for package in ("torch", "torchvision", "lpips"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is missing: pip install torch torchvision lpips")
    command = [
        sys.executable,
        str(repository / "tests" / "golden" / "make_pretrained_golden.py"),
        str(tmp_path),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    for name, kind in (("alexnet", "alexnet"), ("vgg19", "vgg19"), ("heads", "LPIPS heads")):
        assert pretrained.convert(tmp_path / f"{name}.pth", tmp_path / f"{name}.npz") == kind
    layers = ["block1_conv2", "block5_conv4"]
    for found, expected in zip(
        pretrained.vgg19(str(tmp_path / "vgg19.npz"), layers)(image),
        pretrained.vgg19("none", layers)(image),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.max(expected))
    for found, expected in zip(
        pretrained.alexnet(str(tmp_path / "alexnet.npz"))(image),
        pretrained.alexnet("none")(image),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)
    heads = pretrained.lpips_heads(str(tmp_path / "heads.npz"))
    assert all((head >= 0).all() and head.any() for head in heads)
    golden = json.loads(
        (repository / "tests" / "golden" / "pretrained.json").read_text(encoding="utf-8")
    )
    again = json.loads((tmp_path / "pretrained.json").read_text(encoding="utf-8"))
    for name in ("lpips", "lpips_without_heads"):
        np.testing.assert_allclose(golden[name], again[name], atol=1e-5)
    judge = LPIPS(str(tmp_path / "alexnet.npz"), str(tmp_path / "heads.npz"))
    np.testing.assert_allclose(judge.distance(*pairs()), again["lpips_published_heads"], atol=1e-5)


def test_safetensors_need_no_pytorch(tmp_path, alexnet_tensors, monkeypatch, image):
    monkeypatch.setitem(sys.modules, "torch", None)
    source = write_safetensors(tmp_path / "alexnet.safetensors", alexnet_tensors)
    assert pretrained.convert(source, tmp_path / "alexnet.npz") == "alexnet"
    kernel = pretrained.alexnet(str(tmp_path / "alexnet.npz")).weights[0].numpy()
    np.testing.assert_array_equal(
        kernel[3, 5, 1, 7], alexnet_tensors["features.0.weight"][7, 1, 3, 5]
    )
    (tmp_path / "alexnet.pth").write_bytes(b"nothing")
    with pytest.raises(
        WeightsError, match=r"alexnet.pth: reading it needs PyTorch \(pip install torch\)"
    ):
        pretrained.convert(tmp_path / "alexnet.pth", tmp_path / "other.npz")


def test_heads(tmp_path):
    assert [head.tolist() for head in pretrained.lpips_heads("none")] == [
        [1.0] * width for width in (64, 192, 384, 256, 256)
    ]
    published = {
        f"lin{i}.model.1.weight": np.full((1, shape[0], 1, 1), i, np.float32)
        for i, shape in enumerate(SHAPES)
    }
    assert (
        pretrained.convert(
            write_safetensors(tmp_path / "a.safetensors", published), tmp_path / "a.npz"
        )
        == "LPIPS heads"
    )
    heads = pretrained.lpips_heads(str(tmp_path / "a.npz"))
    assert [(head.shape, head.dtype, head[0]) for head in heads] == [
        ((shape[0],), np.float32, i) for i, shape in enumerate(SHAPES)
    ]
    squeeze = published | {"lin1.model.1.weight": np.zeros((1, 128, 1, 1), np.float32)}
    with pytest.raises(
        WeightsError,
        match=r"lin1.model.1.weight must be 1x192x1x1 finite numbers, not 1x128x1x1 float32",
    ):
        pretrained.convert(
            write_safetensors(tmp_path / "s.safetensors", squeeze), tmp_path / "s.npz"
        )


@pytest.mark.slow
def test_inception_is_keras_own(tmp_path, image):
    original = keras.applications.InceptionV3(weights=None, include_top=False, pooling="avg")
    original.save_weights(tmp_path / "inception.weights.h5")
    network = pretrained.inception(str(tmp_path / "inception.weights.h5"))
    assert network.count_params() == 21_802_784 and network.trainable_variables == []
    colour = keras.ops.image.resize(
        np.repeat(image, 3, axis=-1), (299, 299), interpolation="bilinear"
    )
    expected = original(
        keras.applications.inception_v3.preprocess_input(np.array(colour) * 255), training=False
    )
    found = network(image)
    assert found.shape == (2, 2048)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    random = pretrained.inception("none")(image)
    assert np.isfinite(random).all() and np.std(random) > 0.01
    with pytest.raises(
        WeightsError,
        match="Inception-v3 is read from Keras's .h5 without top alone, inception_v3_weights",
    ):
        pretrained.inception(str(tmp_path / "inception.npz"))


def test_what_the_converter_refuses(tmp_path, alexnet_tensors):
    target = tmp_path / "out.npz"
    cases = {
        "features.8.bias is missing": {"features.8.bias": None},
        "features.3.weight must be 192x64x5x5 finite numbers, not 192x64x3x3": {
            "features.3.weight": np.zeros((192, 64, 3, 3), np.float32)
        },
        "features.6.bias must be 384 finite numbers": {
            "features.6.bias": np.full(384, np.nan, np.float32)
        },
        "neither torchvision's AlexNet or VGG-19 nor LPIPS's heads": {
            "features.0.weight": np.zeros((96, 3, 7, 7), np.float32)
        },
        "out.safetensors: features.2.weight is missing": {
            "features.0.weight": np.zeros((64, 3, 3, 3), np.float32)
        },
    }
    for message, change in cases.items():
        with pytest.raises(WeightsError, match=message):
            pretrained.convert(
                unfit(tmp_path / "out.safetensors", alexnet_tensors, **change), target
            )
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 40)
    for path, message in (
        (tmp_path / "damaged.safetensors", "can't be read as .safetensors"),
        (tmp_path / "none.pth", "no such file"),
    ):
        with pytest.raises(WeightsError, match=message):
            pretrained.convert(path, target)
    with pytest.raises(WeightsError, match="out.pkl: the file to write must end in .npz"):
        pretrained.convert(tmp_path / "out.safetensors", tmp_path / "out.pkl")
    assert not target.exists()


def test_a_file_that_runs_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch")  # pip install torch

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "made"), "w")

    torch.save({"features.0.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="evil.pth: holds no PyTorch tensors by name"):
        pretrained.convert(tmp_path / "evil.pth", tmp_path / "evil.npz")
    assert not (tmp_path / "made").exists()


def test_what_can_not_be_read_is_an_error_of_one_sentence(tmp_path):
    np.savez(tmp_path / "empty.npz")
    np.savez(tmp_path / "short.npz", **{"conv1/kernel": np.zeros((11, 11, 3, 32), np.float32)})
    np.savez(tmp_path / "objects.npz", **{"conv1/kernel": np.array([{}], object)})
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04nothing")
    with (tmp_path / "single.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    (tmp_path / "weights.pth").write_bytes(b"")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["layer_names"] = [b"block1_conv1"]
    cases = {
        "nowhere.npz": r"nowhere.npz is neither imagenet nor none nor a file",
        "empty.npz": r"empty.npz: conv1/kernel is missing",
        "short.npz": r"short.npz: conv1/kernel must be 11x11x3x64 finite numbers, not 11x11x3x32 "
        r"float32",
        "objects.npz": r"objects.npz: can't be read as .npz",
        "damaged.npz": r"damaged.npz: can't be read as .npz",
        "single.npz": r"single.npz: can't be read as .npz",
        "weights.pth": r"weights.pth: weights are read from Keras's .h5, or .npz, which python -m "
        r"tfmammo.pretrained makes",
        "other.h5": r"other.h5: Keras has no AlexNet",
    }
    for name, message in cases.items():
        with pytest.raises(WeightsError, match=message) as caught:
            pretrained.alexnet(str(tmp_path / name))
        assert "\n" not in str(caught.value) and name in str(caught.value)
    for name, message in (
        ("other.h5", "other.h5: holds no weights of Keras's vgg19 without top"),
        ("no.h5", "nor a file"),
    ):
        with pytest.raises(WeightsError, match=message):
            pretrained.vgg19(str(tmp_path / name), ["block1_conv1"])
    with pytest.raises(WeightsError, match="empty.npz: lin0/kernel is missing"):
        pretrained.lpips_heads(str(tmp_path / "empty.npz"))
    with pytest.raises(
        ConfigError, match="VGG-19 has no convolution conv1_2, only block1_conv1 to block5_conv4"
    ):
        pretrained.vgg19("none", ["conv1_2", "block1_conv1"])


def test_a_keras_file_of_another_network_names_the_layer(tmp_path):
    keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)]).save_weights(
        tmp_path / "own.weights.h5"
    )
    with pytest.raises(
        WeightsError,
        match=r"own.weights.h5: holds no weights of Keras's vgg19 without top .*block1_conv1",
    ):
        pretrained.vgg19(str(tmp_path / "own.weights.h5"), ["block1_conv1"])


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("vgg19", lambda: pretrained.vgg19("imagenet", ["block1_conv1"])),
        ("alexnet", lambda: pretrained.alexnet("imagenet")),
    ],
)
def test_offline_the_error_says_what_to_fetch(tmp_path, monkeypatch, name, make):
    url = (tmp_path / "nowhere" / f"absent-{tmp_path.name}.pth").as_uri()
    monkeypatch.setitem(pretrained.PUBLISHED, name, (url, pretrained.PUBLISHED[name][1]))
    with pytest.raises(
        WeightsError,
        match=rf"{name}: the ImageNet weights can't be downloaded .* fetch {url} elsewhere",
    ) as caught:
        make()
    assert "set the key of these weights to the file's path, or to none for random ones" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


def test_the_command(tmp_path, capsys, alexnet_tensors):
    source = write_safetensors(tmp_path / "a.safetensors", alexnet_tensors)
    pretrained.main([str(source), str(tmp_path / "a.npz")])
    assert capsys.readouterr().out == f"alexnet: {tmp_path / 'a.npz'}\n"
    with pytest.raises(SystemExit) as ended:
        pretrained.main([str(tmp_path / "b.pth"), str(tmp_path / "b.npz")])
    assert (
        ended.value.code == 2
        and capsys.readouterr().err == f"error: {tmp_path / 'b.pth'}: no such file\n"
    )
