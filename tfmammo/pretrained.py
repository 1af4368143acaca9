"""Pretrained feature extractors for grey images, and pretrained ResNets; all of ImageNet.

VGG-19, AlexNet and Inception-v3 are frozen, for perceptual losses and metrics. ResNet-50 and -101
are as Keras has them, to be fine-tuned.

A feature extractor takes float32 [n, h, w, 1] in [0, 1], repeats the grey channel three times,
scales it as its weights expect, and puts out float32 features. `weights` says where the weights
come from: "imagenet" downloads them, a path reads them, and "none" draws them at random from a
fixed seed. A random network tells images apart, but not as people do, so its numbers are labelled.

python -m tfmammo.pretrained IN OUT.npz

converts a published file to one that is read here without PyTorch: torchvision's AlexNet
(alexnet-owt-7be5be79.pth), torchvision's VGG-19 (vgg19-dcbb9e9d.pth), or the linear heads of LPIPS
v0.1 for AlexNet (alex.pth). A .pth file needs PyTorch and is read by torch.load with
weights_only=True, which runs no code of the file. The same tensors as .safetensors need nothing.

Only arrays are read from any file, into networks that are built here: nothing is executed or
unpickled. A .npz file holds "LAYER/kernel" and "LAYER/bias" for every layer, and for VGG-19
"input/scale" and "input/offset", because torchvision's weights expect another input than Keras's: a
.h5 file is taken to be of Keras's own VGG-19 (255 * image less the mean colour, blue first).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from tfmammo import (
    _tensorflow,  # noqa: F401  # the first to import TensorFlow, because it keeps that quiet
    cli,
)
from tfmammo.errors import ConfigError, WeightsError

Arrays = dict[str, NDArray[np.float32]]

KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
# where "imagenet" comes from, and the MD5 that Keras states, or the first digits of the SHA-256
# that torchvision states
PUBLISHED = {
    "vgg19": (
        f"{KERAS}/vgg19/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "253f8cb515780f3b799900260a226db6",
    ),
    "inception": (
        f"{KERAS}/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "bcbd6486424b2319ff4ef7d526e38f63",
    ),
    "resnet50": (
        f"{KERAS}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "4d473c1dd8becc155b73f8504c6f6626",
    ),
    "resnet101": (
        f"{KERAS}/resnet/resnet101_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "88cf7a10940856eca736dc7b7e228a21",
    ),
    "alexnet": ("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "7be5be79"),
}
# torchvision's, red first, of [0, 1]
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
KERAS_MEAN = (103.939, 116.779, 123.68)  # Keras's for VGG, blue first, of 255
# LPIPS's scaling layer, of [-1, 1]
LPIPS_SHIFT = (-0.030, -0.088, -0.188)
LPIPS_SCALE = (0.458, 0.448, 0.450)

ALEXNET_WIDTHS = (64, 192, 384, 256, 256)
ALEXNET_INDICES = (0, 3, 6, 8, 10)  # of torchvision's convolutions among its `features`
VGG19_INDICES = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
VGG19_LAYERS = tuple(
    f"block{block}_conv{i + 1}"
    for block, depth in enumerate((2, 2, 4, 4, 4), 1)
    for i in range(depth)
)


def vgg19(weights: str, layers: Sequence[str]) -> keras.Model:
    """Build VGG-19's feature maps after the ReLU.

    Args:
        weights: "imagenet" (Keras's, 80 MB), "none", or a path: .npz of the converter, or Keras's
            .h5 without top.
        layers: Keras's names of the layers ("block1_conv2"), in the order of the output.

    Returns:
        A frozen network: floating [n, h, w, 1] in [0, 1] -> a list of float32 [n, h / 2**i, w /
        2**i, channels] (of one layer the map itself, as Keras has it), any h and w from 32 px up.
        It computes in the global precision. All layers together have 20,024,384 parameters.

    Raises:
        WeightsError: The weights can't be had.
        ConfigError: There is no such layer.

    Source:
        Simonyan and Zisserman, Very deep convolutional networks for large-scale image recognition
        (2015).
    """
    if unknown := [name for name in layers if name not in VGG19_LAYERS]:
        raise ConfigError(
            f"VGG-19 has no convolution {', '.join(unknown)}, only {VGG19_LAYERS[0]} to "
            f"{VGG19_LAYERS[-1]}"
        )
    network = keras.applications.VGG19(weights=None, include_top=False)
    stored = _fill(network, "vgg19", weights)
    if weights == "imagenet" or Path(weights).suffix == ".h5":
        scale = (255.0,) * 3
        offset = tuple(-mean for mean in KERAS_MEAN)
    else:
        scale, offset = (stored[key].tolist() for key in ("input/scale", "input/offset"))
    return _wrap_grey(
        "vgg19", network, scale, offset, [network.get_layer(name).output for name in layers]
    )


def alexnet(weights: str) -> keras.Model:
    """Build AlexNet's five feature maps after their ReLUs, the input scaled as in LPIPS v0.1.

    Args:
        weights: "imagenet" (torchvision's, 240 MB, needs PyTorch to read), "none", or a path: .npz
            of the converter.

    Returns:
        A frozen network: floating [n, h, w, 1] in [0, 1] -> a list of float32 [n, rows, cols,
        channels] with 64, 192, 384, 256, 256 channels, any h and w from 64 px up. 2,469,696
        parameters.

    Raises:
        WeightsError: The weights can't be had.

    Source:
        Torchvision's alexnet, after Krizhevsky, One weird trick for parallelizing convolutional
        neural networks (2014).
    """
    inputs = keras.Input((None, None, 3))
    x = inputs
    taps = []
    for i, (width, kernel) in enumerate(zip(ALEXNET_WIDTHS, (11, 5, 3, 3, 3), strict=True)):
        x = keras.layers.MaxPooling2D(3, 2)(x) if i in (1, 2) else x
        x = x if i else keras.layers.ZeroPadding2D(2)(x)
        stride, padding = (1, "same") if i else (4, "valid")
        x = keras.layers.Conv2D(
            width, kernel, stride, padding, activation="relu", name=f"conv{i + 1}"
        )(x)
        taps.append(x)
    network = keras.Model(inputs, taps)
    _fill(network, "alexnet", weights)
    scale = [2 / s for s in LPIPS_SCALE]  # of [0, 1]: (2 x - 1 - shift) / scale
    offset = [-(1 + shift) / s for shift, s in zip(LPIPS_SHIFT, LPIPS_SCALE, strict=True)]
    return _wrap_grey("alexnet", network, scale, offset, taps)


def inception(weights: str) -> keras.Model:
    """Build Inception-v3's last feature map, averaged: the features of FID and KID.

    This is Keras's Inception-v3, trained for 1,000 classes. Published FIDs are of the TF-Slim graph
    of December 2015 (1,008 classes, the pool_3 of classify_image_graph_def.pb). Its weights and
    poolings differ, so its numbers and these can't be compared. Images are resized to 299 px
    bilinearly and mapped to [-1, 1], as in that graph.

    Args:
        weights: "imagenet" (Keras's, 88 MB), "none", or the path of Keras's .h5 without top.

    Returns:
        A frozen network: floating [n, h, w, 1] in [0, 1] -> float32 [n, 2048]. 21,802,784
        parameters.

    Raises:
        WeightsError: The weights can't be had.

    Source:
        Szegedy et al., Rethinking the Inception architecture (2016); Heusel et al. (2017), for its
        use.
    """
    network = keras.applications.InceptionV3(weights=None, include_top=False, pooling="avg")
    _check_is_keras("inception", "Inception-v3", weights)
    _fill(network, "inception", weights)
    return _wrap_grey("inception", network, (2.0,) * 3, (-1.0,) * 3, [network.output], size=299)


def lpips_heads(weights: str) -> list[NDArray[np.float32]]:
    """Load LPIPS's linear heads for AlexNet: the weight of each channel of each feature map.

    Args:
        weights: "none": all 1, which is LPIPS without calibration (the `lpips` package's
            lpips=False). Or a path: .npz of the converter.

    Returns:
        Five float32 vectors of 64, 192, 384, 256 and 256 numbers.

    Raises:
        WeightsError: The file is missing, or holds no such heads.

    Source:
        Zhang et al., The unreasonable effectiveness of deep features as a perceptual metric (2018).
    """
    if weights == "none":
        return [np.ones(width, np.float32) for width in ALEXNET_WIDTHS]
    arrays = _read(Path(weights))
    return [
        _get_checked(arrays, f"lin{i}/kernel", (width,), weights)
        for i, width in enumerate(ALEXNET_WIDTHS)
    ]


def resnet50(weights: str) -> keras.Model:
    """Build Keras's ResNet-50 without top, trainable.

    Its input is 255 * image less the mean colour, blue first.

    Args:
        weights: "imagenet" (94 MB), or the path of Keras's .h5 without top.

    Returns:
        float32 [n, h, w, 3] -> [n, h / 32, w / 32, 2048]. 23,587,712 parameters.

    Raises:
        WeightsError: The weights can't be had.

    Source:
        He et al., Deep residual learning for image recognition (2016).
    """
    network = keras.applications.ResNet50(weights=None, include_top=False)
    _check_is_keras("resnet50", "ResNet-50", weights)
    _fill(network, "resnet50", weights)
    return network


def resnet101(weights: str) -> keras.Model:
    """Build Keras's ResNet-101 without top, as `resnet50`; 171 MB, 42,658,176 parameters."""
    network = keras.applications.ResNet101(weights=None, include_top=False)
    _check_is_keras("resnet101", "ResNet-101", weights)
    _fill(network, "resnet101", weights)
    return network


def convert(source: Path, target: Path) -> str:
    """Convert a published file of PyTorch tensors to the .npz that is read here.

    Args:
        source: .pth or .safetensors; its tensors tell what it holds.
        target: .npz, replaced if it exists.

    Returns:
        What the source holds: "alexnet", "vgg19" or "LPIPS heads".

    Raises:
        WeightsError: PyTorch is missing, or the file holds none of them; nothing is written then.
    """
    if target.suffix != ".npz":
        raise WeightsError(f"{target}: the file to write must end in .npz")
    name, arrays = _translate(_read_tensors(source), source)
    np.savez(target, **arrays)  # type: ignore[arg-type]  # its stubs know of no other keyword
    return name


def _wrap_grey(
    name: str,
    network: keras.Model,
    scale: Sequence[float],
    offset: Sequence[float],
    outputs: Sequence[keras.KerasTensor],
    size: int = 0,
) -> keras.Model:
    """Build a frozen network of one channel in [0, 1] around a network of three channels.

    Args:
        name: Name of the new network.
        network: Of three channels.
        scale: Factor of each channel.
        offset: Then added to each channel.
        outputs: The network's outputs.
        size: Rows and columns that images are resized to, px; 0: they are not.
    """
    image = keras.Input((None, None, 1), dtype="float32", name="image")
    x = image
    if size:
        resize = keras.layers.Resizing(size, size, interpolation="bilinear", dtype="float32")
        x = resize(image)
    x = keras.layers.Concatenate(dtype="float32")([x, x, x])
    x = keras.layers.Rescaling(list(scale), list(offset), dtype="float32")(x)
    # no more of the network than the outputs need
    features = keras.Model(network.input, list(outputs))(x)
    if not isinstance(features, list):
        features = [features]
    to_float32 = keras.layers.Activation("linear", dtype="float32")
    model = keras.Model(image, [to_float32(feature) for feature in features], name=name)
    model.trainable = False
    return model


def _check_is_keras(name: str, title: str, weights: str) -> None:
    if Path(weights).suffix == ".npz":
        raise WeightsError(
            f"{weights}: {title} is read from Keras's .h5 without top alone, "
            f"{Path(PUBLISHED[name][0]).name}"
        )


def _fill(network: keras.Model, name: str, weights: str) -> Arrays:
    """Give a network its weights.

    Returns:
        "input/scale" and "input/offset" of VGG-19's weights; {} of a .h5 file and other networks.
    """
    if weights == "none":
        _randomise(network)
        return _make_torchvision_input()
    path = _download(name) if weights == "imagenet" else Path(weights)
    if path.suffix == ".h5" and path.is_file():
        if name == "alexnet":
            raise WeightsError(
                f"{path}: Keras has no AlexNet; python -m tfmammo.pretrained makes a .npz of "
                "torchvision's"
            )
        _load_keras(network, path)
        return {}
    arrays = _translate(_read_tensors(path), path)[1] if weights == "imagenet" else _read(path)
    for layer in network.layers:
        if layer.weights:
            layer.set_weights(
                [
                    _get_checked(arrays, f"{layer.name}/{variable.name}", variable.shape, path)
                    for variable in layer.weights
                ]
            )
    return (
        {key: _get_checked(arrays, key, (3,), path) for key in _make_torchvision_input()}
        if name == "vgg19"
        else {}
    )


def _randomise(network: keras.Model, seed: int = 0) -> None:
    """Set He's normal kernels and biases of 0, the same ones in every process.

    Normalisations keep their initial values, with which they are identities.
    """
    random = np.random.default_rng(seed)
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel = random.standard_normal(layer.kernel.shape, np.float32) * np.sqrt(
                2 / np.prod(layer.kernel.shape[:-1])
            )
            layer.set_weights(
                [kernel, *(np.zeros(variable.shape, np.float32) for variable in layer.weights[1:])]
            )


def _load_keras(network: keras.Model, path: Path) -> None:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            network.load_weights(path)
        reason = next(
            (str(warning.message) for warning in caught if warning.category is UserWarning), ""
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error)
    if reason:  # Keras only warns of layers that the file leaves random
        raise WeightsError(
            f"{path}: holds no weights of Keras's {network.name} without top "
            f"({' '.join(reason.split())[:500]})"
        )


def _download(name: str) -> Path:
    """Return the published file's path, in Keras's cache, after a download if need be."""
    url, digest = PUBLISHED[name]
    try:
        path = Path(
            keras.utils.get_file(
                Path(url).name,
                url,
                cache_subdir="models",
                file_hash=digest if len(digest) == 32 else None,
            )
        )
    except Exception as error:  # Keras raises a bare Exception where a download fails
        conversion = (
            ", make a .npz of it with python -m tfmammo.pretrained" if url.endswith(".pth") else ""
        )
        raise WeightsError(
            f"{name}: the ImageNet weights can't be downloaded ({_sentence(error)}); fetch {url} "
            f"elsewhere{conversion} and set the key of "
            "these weights to the file's path, or to none for random ones"
        ) from None
    if len(digest) < 32 and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(digest):
        raise WeightsError(
            f"{path}: is not the published file, its SHA-256 does not begin with {digest}; delete "
            "it to download it again"
        )
    return path


def _read(path: Path) -> Arrays:
    """Read the arrays of a .npz file."""
    if not path.is_file():
        raise WeightsError(f"weights: {path} is neither imagenet nor none nor a file")
    if path.suffix != ".npz":
        raise WeightsError(
            f"{path}: weights are read from Keras's .h5, or .npz, which python -m "
            "tfmammo.pretrained makes of .pth or .safetensors"
        )
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (
        OSError,
        ValueError,
        TypeError,
        EOFError,
        KeyError,
        AttributeError,
        zipfile.BadZipFile,
    ) as error:
        raise WeightsError(f"{path}: can't be read as .npz ({_sentence(error)})") from None


def _get_checked(
    arrays: Mapping[str, NDArray], key: str, shape: Sequence[int], path: Path | str
) -> NDArray[np.float32]:
    if key not in arrays:
        raise WeightsError(f"{path}: {key} is missing")
    array = arrays[key]
    if array.shape != tuple(shape) or array.dtype.kind != "f" or not np.isfinite(array).all():
        expected = "x".join(map(str, shape))
        raise WeightsError(
            f"{path}: {key} must be {expected} finite numbers, not "
            f"{'x'.join(map(str, array.shape))} {array.dtype}"
        )
    return array.astype(np.float32)


def _read_tensors(path: Path) -> Arrays:
    """Read the named tensors of a .pth or .safetensors file."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        import torch
    except ImportError:
        raise WeightsError(
            f"{path}: reading it needs PyTorch (pip install torch); the same tensors as "
            ".safetensors need nothing"
        ) from None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        return {key: tensor.numpy() for key, tensor in tensors.items()}
    except Exception as error:  # whatever a foreign file makes PyTorch raise
        raise WeightsError(
            f"{path}: holds no PyTorch tensors by name ({_sentence(error)[:200]})"
        ) from None


def _read_safetensors(path: Path) -> Arrays:
    """Read the float32 tensors of a .safetensors file.

    Eight bytes hold the length of a JSON header (name -> dtype, shape, offsets). The tensors follow
    it.
    """
    content = path.read_bytes()
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        tensors = {}
        for key, entry in header.items():
            if key == "__metadata__":
                continue
            dtype = entry["dtype"]
            shape = entry["shape"]
            offsets = entry["data_offsets"]
            if dtype == "F32":
                first, last = offsets
                data = content[start + first : start + last]
                tensors[key] = np.frombuffer(data, "<f4").reshape(shape)
        return tensors
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path}: can't be read as .safetensors ({_sentence(error)})") from None


def _translate(tensors: Arrays, path: Path) -> tuple[str, Arrays]:
    """Translate PyTorch's names and axes to Keras's.

    Returns:
        What the tensors are, see `convert`, and the arrays.
    """
    if "lin0.model.1.weight" in tensors:
        heads = [
            _get_checked(tensors, f"lin{i}.model.1.weight", (1, width, 1, 1), path)
            for i, width in enumerate(ALEXNET_WIDTHS)
        ]
        return "LPIPS heads", {f"lin{i}/kernel": head.reshape(-1) for i, head in enumerate(heads)}
    first = tensors.get("features.0.weight", np.empty(0)).shape
    if first == (64, 3, 11, 11):
        return "alexnet", _translate_convolutions(
            tensors, [f"conv{i + 1}" for i in range(5)], ALEXNET_INDICES, _alexnet_shapes(), path
        )
    if first == (64, 3, 3, 3):
        widths = [64 * min(2 ** (int(name[5]) - 1), 8) for name in VGG19_LAYERS]
        shapes = [
            (out, before, 3, 3) for out, before in zip(widths, [3, *widths[:-1]], strict=True)
        ]
        return "vgg19", _translate_convolutions(
            tensors, VGG19_LAYERS, VGG19_INDICES, shapes, path
        ) | _make_torchvision_input()
    raise WeightsError(
        f"{path}: holds neither torchvision's AlexNet or VGG-19 nor LPIPS's heads for AlexNet"
    )


def _make_torchvision_input() -> Arrays:
    """Return (image - mean) / deviation as image * scale + offset."""
    mean = np.array(MEAN, np.float32)
    deviation = np.array(DEVIATION, np.float32)
    return {"input/scale": 1 / deviation, "input/offset": -mean / deviation}


def _alexnet_shapes() -> list[tuple[int, ...]]:
    return [
        (out, before, k, k)
        for out, before, k in zip(
            ALEXNET_WIDTHS, (3, *ALEXNET_WIDTHS[:-1]), (11, 5, 3, 3, 3), strict=True
        )
    ]


def _translate_convolutions(
    tensors: Arrays,
    names: Sequence[str],
    indices: Sequence[int],
    shapes: Sequence[tuple[int, ...]],
    path: Path,
) -> Arrays:
    """Translate PyTorch's kernels [out, in, rows, cols] to Keras's [rows, cols, in, out].

    Biases are copied.
    """
    arrays = {}
    for name, index, shape in zip(names, indices, shapes, strict=True):
        arrays[f"{name}/kernel"] = _get_checked(
            tensors, f"features.{index}.weight", shape, path
        ).transpose(2, 3, 1, 0)
        arrays[f"{name}/bias"] = _get_checked(tensors, f"features.{index}.bias", shape[:1], path)
    return arrays


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or error.__class__.__name__


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert one file and print what it holds."""
    parser = cli.Parser(
        prog="python -m tfmammo.pretrained",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="IN", help="a .pth or .safetensors file")
    parser.add_argument("target", type=Path, metavar="OUT.npz", help="what to write")
    namespace = parser.parse_args(arguments)
    cli.run(lambda: print(f"{convert(namespace.source, namespace.target)}: {namespace.target}"))


if __name__ == "__main__":
    main()
