"""Pretrained networks against torchvision and Keras, the converter, and missing weights."""

import hashlib
import importlib.util
import json
import struct
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
from PIL import Image

from tests.image_pairs import make_image_pairs
from tfmammo.errors import ConfigError, WeightsError
from tfmammo.metrics.perceptual import LPIPS, Inception
from tfmammo.nn import pretrained, published

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


@pytest.mark.slow
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
    images, _ = make_image_pairs()
    ends = ["block1_conv2", "block2_conv2", "block3_conv4", "block4_conv4", "block5_conv4"]
    for found, expected in zip(pretrained.vgg19("none", ends)(images), golden, strict=True):
        np.testing.assert_allclose(np.mean(found, axis=(1, 2, 3)), expected, rtol=1e-5)


@pytest.mark.long
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
        assert published.convert(tmp_path / f"{name}.pth", tmp_path / f"{name}.npz")[0] == kind
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
    np.testing.assert_allclose(
        judge.distance(*make_image_pairs()), again["lpips_published_heads"], atol=1e-5
    )


def test_safetensors(tmp_path, alexnet_tensors):
    source = write_safetensors(tmp_path / "alexnet.safetensors", alexnet_tensors)
    assert published.convert(source, tmp_path / "x.npz") == ("alexnet", tmp_path / "x.npz")
    kernel = pretrained.alexnet(str(tmp_path / "x.npz")).weights[0].numpy()
    np.testing.assert_array_equal(
        kernel[3, 5, 1, 7], alexnet_tensors["features.0.weight"][7, 1, 3, 5]
    )


def test_heads(tmp_path):
    assert [head.tolist() for head in pretrained.lpips_heads("none")] == [
        [1.0] * width for width in (64, 192, 384, 256, 256)
    ]
    tensors = {
        f"lin{i}.model.1.weight": np.full((1, shape[0], 1, 1), i, np.float32)
        for i, shape in enumerate(SHAPES)
    }
    assert (
        published.convert(
            write_safetensors(tmp_path / "a.safetensors", tensors), tmp_path / "a.npz"
        )[0]
        == "LPIPS heads"
    )
    heads = pretrained.lpips_heads(str(tmp_path / "a.npz"))
    assert [(head.shape, head.dtype, head[0]) for head in heads] == [
        ((shape[0],), np.float32, i) for i, shape in enumerate(SHAPES)
    ]
    squeeze = tensors | {"lin1.model.1.weight": np.zeros((1, 128, 1, 1), np.float32)}
    with pytest.raises(WeightsError, match="lin1.model.1.weight"):
        published.convert(
            write_safetensors(tmp_path / "s.safetensors", squeeze), tmp_path / "s.npz"
        )


@pytest.mark.long
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
    source = published.identify("inception", str(tmp_path / "inception.weights.h5"))
    assert source.title == "Keras's Inception-v3"
    content = (tmp_path / "inception.weights.h5").read_bytes()
    assert source.sha256 == hashlib.sha256(content).hexdigest()


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
        "neither torchvision's AlexNet or VGG-19 nor LPIPS's heads .* nor FID's Inception": {
            "features.0.weight": np.zeros((96, 3, 7, 7), np.float32)
        },
        "out.safetensors: features.2.weight is missing": {
            "features.0.weight": np.zeros((64, 3, 3, 3), np.float32)
        },
    }
    for message, change in cases.items():
        with pytest.raises(WeightsError, match=message):
            published.convert(
                unfit(tmp_path / "out.safetensors", alexnet_tensors, **change), target
            )
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 40)
    for path, message in (
        (tmp_path / "damaged.safetensors", "can't be read as .safetensors"),
        (tmp_path / "none.pth", "no such file"),
    ):
        with pytest.raises(WeightsError, match=message):
            published.convert(path, target)
    with pytest.raises(WeightsError, match="out.pkl"):
        published.convert(tmp_path / "out.safetensors", tmp_path / "out.pkl")
    assert not target.exists()


@pytest.fixture(scope="module")
def inception():
    """Keras's network, of which a conversion reads the shapes alone; building it takes seconds."""
    return keras.applications.InceptionV3(weights=None, include_top=False)


def inception_tensors(network, form):
    """FID's Inception as TorchScript or pytorch-fid names it, every array of one number of its own.

    The shapes are those of Keras's network, whose convolutions are made in the same order.
    """
    kernels = [w for w in network.weights if w.path.endswith("/kernel")]
    kernels.sort(key=lambda w: int("0" + w.path.split("/")[0].removeprefix("conv2d").strip("_")))
    names = {
        "torchscript": ("weight", "beta", "mean", "var"),
        "pytorch-fid": ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var"),
    }[form]
    tensors = {}
    for i, kernel in enumerate(kernels):
        rows, cols, before, out = kernel.shape
        shapes = [(out, before, rows, cols), (out,), (out,), (out,)]
        for j, (name, shape) in enumerate(zip(names, shapes, strict=True)):
            tensors[f"layer{i}.{name}"] = np.full(shape, i + j / 10, np.float32)
        if form == "pytorch-fid":
            tensors[f"layer{i}.bn.weight"] = np.ones(out, np.float32)
    return tensors


@pytest.mark.long
@pytest.mark.parametrize("form", ["torchscript", "pytorch-fid"])
def test_inception_of_2015_is_converted_in_order(tmp_path, monkeypatch, inception, form):
    tensors = inception_tensors(inception, form)
    monkeypatch.setattr(keras.applications, "InceptionV3", lambda **_: inception)
    source = write_safetensors(tmp_path / "i.safetensors", tensors)
    name, path = published.convert(source, tmp_path)
    assert (name, path) == ("inception", tmp_path / "inception_fid2015.npz")
    with np.load(path) as arrays:
        assert len(arrays.files) == 4 * 94
        for i in (0, 1, 50, 93):
            found = [
                float(arrays[f"conv{i}/{part}"].flat[0])
                for part in ("kernel", "beta", "moving_mean", "moving_variance")
            ]
            assert found == pytest.approx([i, i + 0.1, i + 0.2, i + 0.3])
    assert published.identify("inception", str(path)).title == "Inception-v3 of unknown origin"
    for change, message in (
        ({"layer3.weight": None, "layer3.conv.weight": None}, "94 convolutions, not 93"),
        ({"layer7.mean": None, "layer7.bn.running_mean": None}, "layer7.*mean is missing"),
    ):
        changed = {key: value for key, value in (tensors | change).items() if value is not None}
        write_safetensors(tmp_path / "j.safetensors", changed)
        with pytest.raises(WeightsError, match=message):
            published.convert(tmp_path / "j.safetensors", tmp_path / "j.npz")
    if form == "pytorch-fid":
        tensors["layer2.bn.weight"][1] = 2
        write_safetensors(tmp_path / "j.safetensors", tensors)
        with pytest.raises(WeightsError, match="layer2.bn.weight"):
            published.convert(tmp_path / "j.safetensors", tmp_path / "j.npz")
    assert not (tmp_path / "j.npz").exists()


@pytest.mark.slow
def test_the_published_inception_is_the_original(published_weights, repository):
    """The golden features are of FID's TorchScript file, resized as TensorFlow 1 does."""
    if not (published_weights / "inception_fid2015.npz").is_file():
        pytest.skip("TFMAMMO_TEST_WEIGHTS has no inception_fid2015.npz")
    golden = json.loads(
        (repository / "tests" / "golden" / "pretrained.json").read_text(encoding="utf-8")
    )["inception_2015"]
    scorer = Inception()
    assert str(scorer.source) == "FID's Inception of 2015-12-05 (SHA-256 a706954822b6)"
    assert scorer.note == ""
    features = scorer.features(make_image_pairs()[0])[:, ::64]
    np.testing.assert_allclose(features, golden, atol=2e-5)


def test_published_lpips_is_the_original(published_weights, repository):
    """The golden distances are of the package lpips with torchvision's AlexNet."""
    for name in ("alexnet.npz", "lpips_alex.npz"):
        if not (published_weights / name).is_file():
            pytest.skip(f"TFMAMMO_TEST_WEIGHTS has no {name}")
    golden = json.loads(
        (repository / "tests" / "golden" / "pretrained.json").read_text(encoding="utf-8")
    )["lpips_published"]
    judge = LPIPS()
    assert judge.note == ""
    assert judge.source["AlexNet"].title == "torchvision's AlexNet"
    assert judge.source["heads"].title == "heads of LPIPS v0.1"
    np.testing.assert_allclose(judge.distance(*make_image_pairs()), golden, atol=1e-5)


def test_lpips_of_its_authors_pictures(published_weights):
    """ex_ref.png, ex_p0.png and ex_p1.png of the authors' repository, in colour: 0.722, 0.138."""
    paths = [published_weights / f"ex_{name}.png" for name in ("ref", "p0", "p1")]
    if not all(path.is_file() for path in paths):
        pytest.skip("TFMAMMO_TEST_WEIGHTS has no ex_ref.png, ex_p0.png and ex_p1.png")
    # The network of three channels stands behind the layers that make them of a grey image.
    rescale, network = pretrained.alexnet("imagenet").layers[2:4]
    heads = pretrained.lpips_heads("published")
    maps = []
    for path in paths:
        image = np.asarray(Image.open(path).convert("RGB"), np.float32)[np.newaxis] / 255
        levels = [np.asarray(level) for level in network(rescale(image))]
        maps.append([level / np.linalg.norm(level, axis=-1, keepdims=True) for level in levels])
    for levels, expected in zip(maps[1:], (0.722, 0.138), strict=True):
        distance = sum(
            float((np.square(x - y).mean(axis=(1, 2)) @ head)[0])
            for x, y, head in zip(maps[0], levels, heads, strict=True)
        )
        assert distance == pytest.approx(expected, abs=5e-4)


def write_alexnet(path, seed):
    random = np.random.default_rng(seed)
    arrays = {}
    for i, (out, before, kernel) in enumerate(SHAPES, 1):
        arrays[f"conv{i}/kernel"] = random.random((kernel, kernel, before, out), np.float32)
        arrays[f"conv{i}/bias"] = np.zeros(out, np.float32)
    np.savez(path, **arrays)
    return arrays


def test_the_folder_of_published_weights(tmp_path, monkeypatch):
    """A file that is there is read, and refused unless its arrays are the published ones."""
    assert published.find("alexnet") is None
    monkeypatch.setenv("TFMAMMO_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(WeightsError, match="TFMAMMO_WEIGHTS"):
        published.find("alexnet")
    monkeypatch.setenv("TFMAMMO_WEIGHTS", str(tmp_path))
    assert published.find("alexnet") is None
    assert published.locate("LPIPS heads", "published") is None
    arrays = write_alexnet(tmp_path / "alexnet.npz", 0)
    with pytest.raises(WeightsError, match="alexnet.npz") as caught:
        pretrained.alexnet("imagenet")
    assert "\n" not in str(caught.value)
    unknown = published.identify("alexnet", str(tmp_path / "alexnet.npz"))
    assert unknown.title == "AlexNet of unknown origin"
    monkeypatch.setitem(published.DIGESTS, "alexnet", unknown.sha256)
    kernel = pretrained.alexnet("imagenet").weights[0].numpy()
    np.testing.assert_array_equal(kernel, arrays["conv1/kernel"])


def test_a_digest_is_of_names_shapes_and_numbers():
    """SHA-256 over "NAME SHAPE", a line break, and little-endian float32, in the order of names."""
    arrays = {"b": np.array([[1.5]], np.float32), "a": np.array([2.0, 3.0], np.float64)}
    content = b"a (2,)\n" + struct.pack("<2f", 2, 3) + b"b (1, 1)\n" + struct.pack("<f", 1.5)
    assert published.compute_digest(arrays) == hashlib.sha256(content).hexdigest()
    turned = {"a": np.array([3.0, 2.0]), "b": arrays["b"]}
    assert published.compute_digest(turned) != published.compute_digest(arrays)


def test_random_weights_have_no_digest():
    assert published.identify("alexnet", "none") == ("random AlexNet", "")
    assert published.identify("inception", "none") == ("random Inception-v3", "")
    assert published.identify("LPIPS heads", "none") == ("heads of 1", "")
    assert str(published.Source("x", "0123456789abcdef")) == "x (SHA-256 0123456789ab)"


def test_the_resizing_of_2015_by_hand():
    """Pixel i lies at i * 2 / 299 of [0, 1]: it rises to 1 at i = 149.5 and stays there."""
    image = np.array([0, 1], np.float32).reshape(1, 2, 1, 1)
    column = np.asarray(pretrained._ResizeAsIn2015()(image))[0, :, 0, 0]
    np.testing.assert_allclose(column, np.minimum(np.arange(299) * 2 / 299, 1), atol=1e-6)


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
        "weights.pth": "weights.pth: weights are read from Keras's .h5, or .npz",
        "other.h5": r"other.h5: Keras has no AlexNet",
    }
    for name, message in cases.items():
        with pytest.raises(WeightsError, match=message) as caught:
            pretrained.alexnet(str(tmp_path / name))
        assert "\n" not in str(caught.value) and name in str(caught.value)
    for name, message in (
        ("other.h5", "other.h5"),
        ("no.h5", "nor a file"),
    ):
        with pytest.raises(WeightsError, match=message):
            pretrained.vgg19(str(tmp_path / name), ["block1_conv1"])
    with pytest.raises(WeightsError, match="empty.npz: lin0/kernel"):
        pretrained.lpips_heads(str(tmp_path / "empty.npz"))
    with pytest.raises(ConfigError, match="conv1_2"):
        pretrained.vgg19("none", ["conv1_2", "block1_conv1"])


def test_a_keras_file_of_another_network_names_the_layer(tmp_path):
    keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)]).save_weights(
        tmp_path / "own.weights.h5"
    )
    with pytest.raises(WeightsError, match="own.weights.h5: .*block1_conv1"):
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
    monkeypatch.setitem(published.DOWNLOADS, name, (url, published.DOWNLOADS[name][1]))
    with pytest.raises(
        WeightsError,
        match=rf"{name}: the ImageNet weights can't be downloaded .* fetch {url} elsewhere",
    ) as caught:
        make()
    assert "give the file's path as these weights, or none for random ones" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_command_prints(tmp_path, capsys, alexnet_tensors):
    source = write_safetensors(tmp_path / "a.safetensors", alexnet_tensors)
    pretrained.convert_and_print(source, tmp_path)
    digest = published.identify("alexnet", str(tmp_path / "alexnet.npz")).sha256
    assert capsys.readouterr().out == (
        f"{tmp_path / 'alexnet.npz'}: AlexNet of unknown origin, SHA-256 of its arrays {digest}\n"
    )
