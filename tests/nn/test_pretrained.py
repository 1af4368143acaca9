"""Pretrained networks against torchvision and Keras, the converter, and missing weights."""

import hashlib
import importlib.util
import json
import struct
import subprocess
import sys
from functools import partial

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


def write_safetensors(path, tensors):
    """The format by its specification: the header's length, the header in JSON, the tensors."""
    header = {"__metadata__": {"format": "pt"}}
    content = b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [len(content), len(content) + len(raw)],
        }
        content += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


@pytest.fixture
def golden(repository):
    """What the original packages computed, see tests/golden."""
    return json.loads((repository / "tests/golden/pretrained.json").read_text(encoding="utf-8"))


def assert_all_close(found, expected, relative):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=relative * np.max(theirs))


@pytest.mark.parametrize("form", ["own.weights.h5", "own.h5"])
def test_keras_own_file_and_input(tmp_path, image, form):
    """Keras's preprocessing and network are the independent version, of three equal channels."""
    original = keras.applications.VGG19(weights=None, include_top=False)
    if form == "own.h5":  # the older form, that of the published file
        original.save(tmp_path / form, include_optimizer=False)
    else:
        original.save_weights(tmp_path / form)
    expected = keras.Model(original.input, original.get_layer("block2_conv2").output)(
        keras.applications.vgg19.preprocess_input(np.repeat(image * np.float32(255), 3, axis=-1))
    )
    found = pretrained.vgg19(str(tmp_path / form), ["block2_conv2"])(image)
    assert_all_close([found], [expected], 1e-4)


def test_random_vgg19_is_torchvision_with_these_weights(golden):
    """The golden maps are torchvision's, with weights of the same seed."""
    images, _ = make_image_pairs()
    ends = ["block1_conv2", "block2_conv2", "block3_conv4", "block4_conv4", "block5_conv4"]
    for found, expected in zip(
        pretrained.vgg19("none", ends)(images), golden["vgg19_means"], strict=True
    ):
        np.testing.assert_allclose(np.mean(found, axis=(1, 2, 3)), expected, rtol=1e-5)


@pytest.mark.long
def test_published_files_are_converted(tmp_path, repository, image, golden):
    """A process of PyTorch writes torchvision's state dicts and the published LPIPS heads."""
    for package in ("torch", "torchvision", "lpips"):
        if importlib.util.find_spec(package) is None:  # not to be imported beside TensorFlow
            pytest.skip(f"{package} is missing: pip install torch torchvision lpips")
    command = [sys.executable, "-m", "tests.golden.make_pretrained_golden", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=300, cwd=repository)
    for name, kind in (("alexnet", "alexnet"), ("vgg19", "vgg19"), ("heads", "LPIPS heads")):
        assert published.convert(tmp_path / f"{name}.pth", tmp_path / f"{name}.npz")[0] == kind
    for make in (
        lambda weights: pretrained.vgg19(weights, ["block1_conv2", "block5_conv4"]),
        pretrained.alexnet,
    ):
        name = make("none").name
        found, expected = (make(weights)(image) for weights in (f"{tmp_path}/{name}.npz", "none"))
        assert_all_close(found, expected, 1e-5)
    again = json.loads((tmp_path / "pretrained.json").read_text(encoding="utf-8"))
    for name in ("lpips", "lpips_without_heads"):
        np.testing.assert_allclose(golden[name], again[name], atol=1e-5)
    judge = LPIPS(str(tmp_path / "alexnet.npz"), str(tmp_path / "heads.npz"))
    distances = judge.distance(*make_image_pairs())
    np.testing.assert_allclose(distances, again["lpips_published_heads"], atol=1e-5)


def test_a_state_dict_is_converted(tmp_path, capsys, alexnet_tensors):
    source = write_safetensors(tmp_path / "a.safetensors", alexnet_tensors)
    pretrained.convert_and_print(source, tmp_path)
    path = tmp_path / "alexnet.npz"
    origin = published.identify("alexnet", str(path))
    assert f"AlexNet of unknown origin, SHA-256 of its arrays {origin.sha256}" in (
        capsys.readouterr().out
    )
    kernel = pretrained.alexnet(str(path)).weights[0].numpy()
    weight = alexnet_tensors["features.0.weight"]
    np.testing.assert_array_equal(kernel, weight.transpose(2, 3, 1, 0))
    heads = {
        f"lin{i}.model.1.weight": np.full((1, shape[0], 1, 1), i, np.float32)
        for i, shape in enumerate(SHAPES)
    }
    source = write_safetensors(tmp_path / "heads.safetensors", heads)
    assert published.convert(source, tmp_path / "heads.npz")[0] == "LPIPS heads"
    for path, value in ((str(tmp_path / "heads.npz"), range(5)), ("none", [1.0] * 5)):
        for head, shape, number in zip(pretrained.lpips_heads(path), SHAPES, value, strict=True):
            np.testing.assert_array_equal(head, np.full(shape[0], number, np.float32))


@pytest.mark.long
def test_inception_is_keras_own(tmp_path, image):
    original = keras.applications.InceptionV3(weights=None, include_top=False, pooling="avg")
    path = tmp_path / "inception.weights.h5"
    original.save_weights(path)
    network = pretrained.inception(str(path))
    assert network.count_params() == 21_802_784 and network.trainable_variables == []
    colour = np.repeat(image, 3, axis=-1)
    colour = keras.ops.image.resize(colour, (299, 299), interpolation="bilinear")
    scaled = keras.applications.inception_v3.preprocess_input(np.array(colour) * 255)
    np.testing.assert_allclose(network(image), original(scaled, training=False), atol=1e-4)
    random = pretrained.inception("none")(image)
    assert np.isfinite(random).all() and np.std(random) > 0.01
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert published.identify("inception", str(path)) == ("Keras's Inception-v3", digest)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"features.8.bias": None}, "features.8.bias is missing"),
        ({"features.3.weight": np.zeros((192, 64, 3, 3), np.float32)}, "features.3.weight must be"),
        ({"features.6.bias": np.full(384, np.nan, np.float32)}, "features.6.bias must be 384 fin"),
        ({"features.0.weight": np.zeros((96, 3, 7, 7), np.float32)}, "holds neither"),
        ({"features.0.weight": np.zeros((64, 3, 3, 3), np.float32)}, "features.2.weight is miss"),
        ({"lin0.model.1.weight": np.zeros((1, 128, 1, 1), np.float32)}, "lin0.model.1.weight must"),
        (b"\xff" * 40, "can't be read as .safetensors"),
        (b"", "can't be read as .safetensors"),
        (None, "no such file"),
    ],
)
def test_what_the_converter_refuses(tmp_path, alexnet_tensors, change, reason):
    source = tmp_path / "in.safetensors"
    if isinstance(change, dict):
        tensors = {k: v for k, v in (alexnet_tensors | change).items() if v is not None}
        write_safetensors(source, tensors)
    elif change is not None:
        source.write_bytes(change)
    with pytest.raises(WeightsError, match=f"in.safetensors: .*{reason}"):
        published.convert(source, tmp_path / "out.npz")
    with pytest.raises(WeightsError, match="out.pkl"):
        published.convert(source, tmp_path / "out.pkl")
    assert not {path.name for path in tmp_path.iterdir()} - {"in.safetensors"}


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
def test_the_published_inception_is_the_original(published_weights, golden):
    """The golden features are of FID's TorchScript file, resized as TensorFlow 1 does."""
    if not (published_weights / "inception_fid2015.npz").is_file():
        pytest.skip("TFMAMMO_TEST_WEIGHTS has no inception_fid2015.npz")
    scorer = Inception()
    assert str(scorer.source) == "FID's Inception of 2015-12-05 (SHA-256 a706954822b6)"
    assert scorer.note == ""
    features = scorer.features(make_image_pairs()[0])[:, ::64]
    np.testing.assert_allclose(features, golden["inception_2015"], atol=2e-5)


def test_published_lpips_is_the_original(published_weights, golden):
    """The golden distances are of the package lpips with torchvision's AlexNet."""
    for name in ("alexnet.npz", "lpips_alex.npz"):
        if not (published_weights / name).is_file():
            pytest.skip(f"TFMAMMO_TEST_WEIGHTS has no {name}")
    judge = LPIPS()
    assert judge.note == ""
    assert judge.source["AlexNet"].title == "torchvision's AlexNet"
    assert judge.source["heads"].title == "heads of LPIPS v0.1"
    distances = judge.distance(*make_image_pairs())
    np.testing.assert_allclose(distances, golden["lpips_published"], atol=1e-5)


def test_lpips_of_its_authors_pictures(published_weights):
    """ex_ref.png, ex_p0.png and ex_p1.png of the authors' repository, in colour: 0.722, 0.138."""
    paths = [published_weights / f"ex_{name}.png" for name in ("ref", "p0", "p1")]
    if not all(path.is_file() for path in paths):
        pytest.skip("TFMAMMO_TEST_WEIGHTS has no ex_ref.png, ex_p0.png and ex_p1.png")
    # The network of three channels is behind the layers that make them of a grey image.
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
    with pytest.raises(WeightsError, match="alexnet.npz"):
        pretrained.alexnet("imagenet")
    unknown = published.identify("alexnet", str(tmp_path / "alexnet.npz"))
    assert unknown.title == "AlexNet of unknown origin"
    monkeypatch.setitem(published.DIGESTS, "alexnet", unknown.sha256)
    kernel = pretrained.alexnet("imagenet").weights[0].numpy()
    np.testing.assert_array_equal(kernel, arrays["conv1/kernel"])
    assert published.identify("alexnet", "none") == ("random AlexNet", "")


def test_a_digest_is_of_names_shapes_and_numbers():
    """SHA-256 over "NAME SHAPE", a line break, and little-endian float32, in the order of names."""
    arrays = {"b": np.array([[1.5]], np.float32), "a": np.array([2.0, 3.0], np.float64)}
    content = b"a (2,)\n" + struct.pack("<2f", 2, 3) + b"b (1, 1)\n" + struct.pack("<f", 1.5)
    assert published.compute_digest(arrays) == hashlib.sha256(content).hexdigest()
    turned = {"a": np.array([3.0, 2.0]), "b": arrays["b"]}
    assert published.compute_digest(turned) != published.compute_digest(arrays)


def test_the_resizing_of_2015_by_hand():
    """Pixel i is at i * 2 / 299 of [0, 1]: it rises to 1 at i = 149.5 and stays there."""
    image = np.array([0, 1], np.float32).reshape(1, 2, 1, 1)
    column = np.asarray(pretrained._ResizeAsIn2015()(image))[0, :, 0, 0]
    np.testing.assert_allclose(column, np.minimum(np.arange(299) * 2 / 299, 1), atol=1e-6)


def write_npz(path, **arrays):
    np.savez(path, **{key.replace("_", "/"): value for key, value in arrays.items()})


write_narrow = partial(write_npz, conv1_kernel=np.zeros((11, 11, 3, 32), np.float32))
write_pickled = partial(write_npz, conv1_kernel=np.array([{}], object))


def write_other_h5(path):
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"block1_conv1"]


def write_other_weights(path):
    network = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    network.save_weights(path)


MAKE = {
    "alexnet": pretrained.alexnet,
    "vgg19": lambda weights: pretrained.vgg19(weights, ["block1_conv1"]),
    "heads": pretrained.lpips_heads,
    "resnet50": lambda weights: pretrained.resnet("resnet50", weights),
    "resnet101": lambda weights: pretrained.resnet("resnet101", weights),
    "vgg16": pretrained.vgg16,
}


# network, its file, what writes it, and what the error says besides the file
@pytest.mark.parametrize(
    ("network", "name", "write", "reason"),
    [
        ("alexnet", "a.npz", None, "neither imagenet nor none nor a file"),
        ("resnet101", "a.npz", None, "ResNet-101 is read from Keras's .h5 without top"),
        ("alexnet", "a.npz", write_npz, "conv1/kernel is missing"),
        ("alexnet", "a.npz", write_narrow, "conv1/kernel must be 11x11x3x64 finite numbers"),
        ("alexnet", "a.npz", write_pickled, "can't be read as .npz"),
        ("alexnet", "a.npz", lambda path: path.write_bytes(b"PK\3\4nothing"), "can't be read as"),
        ("alexnet", "a.npz", lambda path: path.write_bytes(b"\x93NUMPY"), "can't be read as .npz"),
        ("alexnet", "a.pth", lambda path: path.write_bytes(b""), "weights are read from Keras's"),
        ("alexnet", "a.h5", write_other_h5, "Keras has no AlexNet"),
        ("vgg19", "a.h5", write_other_h5, "contains no weights"),
        ("vgg19", "a.h5", None, "nor a file"),
        ("vgg19", "a.weights.h5", write_other_weights, "block1_conv1"),
        ("heads", "a.npz", write_npz, "lin0/kernel"),
        ("resnet50", "a.npz", write_npz, "Keras's .h5"),
        ("resnet50", "a.h5", None, "nor a file"),
        ("vgg16", "a.npz", write_npz, "block1_conv1/kernel is missing"),
        ("vgg16", "a.h5", None, "nor a file"),
    ],
)
def test_what_can_not_be_read_is_one_sentence(tmp_path, network, name, write, reason):
    path = tmp_path / name
    if write is not None:
        write(path)
    with pytest.raises(WeightsError, match=reason) as caught:
        MAKE[network](str(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_an_unknown_layer_is_named():
    with pytest.raises(ConfigError, match="conv1_2"):
        pretrained.vgg19("none", ["conv1_2", "block1_conv1"])


@pytest.mark.parametrize("name", ["vgg19", "alexnet"])
def test_offline_the_error_says_what_to_fetch(tmp_path, monkeypatch, name):
    url = (tmp_path / "nowhere" / f"absent-{tmp_path.name}.pth").as_uri()
    monkeypatch.setitem(published.DOWNLOADS, name, (url, published.DOWNLOADS[name][1]))
    with pytest.raises(WeightsError, match=f"{name}: .* fetch {url} elsewhere") as caught:
        MAKE[name]("imagenet")
    assert "\n" not in str(caught.value)
