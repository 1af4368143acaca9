"""Published weights: where files are, which weights they hold, how originals are converted.

A published file is looked for in the folder that TFMAMMO_WEIGHTS names, then downloaded. The
SHA-256 of its arrays tells which weights it holds, whatever the form of the file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray

from tfmammo import filesystem
from tfmammo.errors import WeightsError, summarize
from tfmammo.nn import tensor_files

Arrays = dict[str, NDArray[np.float32]]

KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
# where "imagenet" comes from, and the MD5 that Keras states, or the first digits of the SHA-256
# that torchvision states
DOWNLOADS = {
    "vgg19": (
        f"{KERAS}/vgg19/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "253f8cb515780f3b799900260a226db6",
    ),
    "inception": (
        f"{KERAS}/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "bcbd6486424b2319ff4ef7d526e38f63",
    ),
    "vgg16": (
        f"{KERAS}/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "6d6bbae143d832006294945121d1f1fc",
    ),
    "vgg16 with top": (
        f"{KERAS}/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels.h5",
        "64373286793e3c8b2b4e3219cbf3544b",
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
FOLDER_VARIABLE = "TFMAMMO_WEIGHTS"
# the names of .npz files in the folder that TFMAMMO_WEIGHTS names
FILES = {
    "alexnet": "alexnet.npz",
    "vgg19": "vgg19.npz",
    "LPIPS heads": "lpips_alex.npz",
    "inception": "inception_fid2015.npz",
}
NETWORKS = {
    "alexnet": "AlexNet",
    "vgg19": "VGG-19",
    "LPIPS heads": "heads",
    "inception": "Inception-v3",
    "vgg16": "VGG-16",
    "vgg16 with top": "VGG-16",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
}
# SHA-256 of published weights, see `compute_digest`. The original of torchvision's VGG-19 was not
# at hand, so a vgg19.npz is not checked.
DIGESTS = {
    "alexnet": "9d259dd7724e1e903e5c70c4e742708a505a1194fa9d2e9bbf2bdd0dc52da94f",
    "LPIPS heads": "4e08d5020640dcec0aba61e13d1e59d494a0718a9cb8aac4d7331454b8eec8cc",
    "inception": "a706954822b6c2fcaf7c6c9e587729f7f43eb1b6fdf51352b558b9ecbc718828",
}
VGG19_OF_8_BITS = "f427876d0551534dca5eaba4b360ba1f0e85947fb4e4510187940898ae1d777f"
TITLES = {
    DIGESTS["alexnet"]: "torchvision's AlexNet",
    DIGESTS["LPIPS heads"]: "heads of LPIPS v0.1",
    DIGESTS["inception"]: "FID's Inception of 2015-12-05",
    VGG19_OF_8_BITS: "Keras's VGG-19, rounded to 8 bits",
}
# torchvision's, red first, of [0, 1]
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)

KERAS_NORMALIZATION = ("beta", "moving_mean", "moving_variance")

ALEXNET_WIDTHS = (64, 192, 384, 256, 256)
ALEXNET_INDICES = (0, 3, 6, 8, 10)  # of torchvision's convolutions among its `features`
VGG19_INDICES = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
VGG19_LAYERS = tuple(
    f"block{block}_conv{i + 1}"
    for block, depth in enumerate((2, 2, 4, 4, 4), 1)
    for i in range(depth)
)


class Source(NamedTuple):
    """Which weights a network has: what is known of them, and their SHA-256, "" if random."""

    title: str
    sha256: str

    def __str__(self) -> str:
        """Name the weights in a sentence, with the first digits of their SHA-256."""
        return f"{self.title} (SHA-256 {self.sha256[:12]})" if self.sha256 else self.title


def find(name: str) -> Path | None:
    """Find the published weights of a key of FILES in the folder that TFMAMMO_WEIGHTS names.

    None where the variable is not set, or the folder has no such file.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise WeightsError(f"{FOLDER_VARIABLE}: {folder} is not a folder")
    path = Path(folder) / FILES[name]
    return path if path.is_file() else None


def identify(name: str, weights: str) -> Source:
    """Tell which weights a network, a key of NETWORKS, would have.

    The SHA-256 is that of the arrays, or that of the file where it is Keras's.
    """
    path = locate(name, weights)
    network = NETWORKS[name]
    if path is None:
        return Source("heads of 1" if name == "LPIPS heads" else f"random {network}", "")
    if path.suffix in (".h5", ".keras") and path.is_file():
        return Source(f"Keras's {network}", filesystem.sha256(path))
    digest = compute_digest(read(path))
    return Source(TITLES.get(digest, f"{network} of unknown origin"), digest)


def compute_digest(arrays: Mapping[str, NDArray]) -> str:
    """Compute the SHA-256 of the name, the shape and the little-endian float32 numbers of arrays.

    They are taken in the order of names, whatever the file that holds them.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name], "<f4")
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def convert(source: Path, target: Path) -> tuple[str, Path]:
    """Convert a published file of PyTorch tensors to the .npz that is read here.

    Args:
        source: .pth, .pt or .safetensors; its tensors tell what it holds.
        target: .npz, replaced if it exists; or a folder, where the file is called as in FILES.

    Returns:
        What the source holds, a key of FILES, and the file that was written. Nothing is written if
        it holds none of them, which is a WeightsError.
    """
    is_folder = target.is_dir()
    if target.suffix != ".npz" and not is_folder:
        raise WeightsError(f"{target}: the file to write must end in .npz, or be a folder")
    name, arrays = _translate(_read_tensors(source), source)
    path = target / FILES[name] if is_folder else target
    with filesystem.atomic_file(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its stubs know of no other keyword
    return name, path


def locate(name: str, weights: str) -> Path | None:
    """Return the file of a network's weights; None for random weights and for heads of 1.

    A published file that can't be downloaded, or is another one, is a WeightsError.
    """
    if weights == "none":
        return None
    if weights != ("published" if name == "LPIPS heads" else "imagenet"):
        return Path(weights)
    path = find(name) if name in FILES else None
    if path is None:
        return None if name == "LPIPS heads" else _download(name)
    expected = DIGESTS.get(name)
    if expected and compute_digest(read(path)) != expected:
        raise WeightsError(
            f"{path}: does not hold {TITLES[expected]}, whose arrays have the SHA-256 {expected}; "
            f"name the file itself in place of {weights} to use it all the same"
        )
    return path


def _download(name: str) -> Path:
    """Return the published file's path, in Keras's cache, after a download if need be."""
    url, digest = DOWNLOADS[name]
    try:
        md5 = digest if len(digest) == 32 else None
        name_of_file = Path(url).name
        path = Path(keras.utils.get_file(name_of_file, url, cache_subdir="models", file_hash=md5))
    except Exception as error:  # Keras raises a bare Exception where a download fails
        conversion = (
            ", make a .npz of it with tfmammo pretrained convert" if url.endswith(".pth") else ""
        )
        raise WeightsError(
            f"{name}: the ImageNet weights can't be downloaded ({summarize(error)}); fetch {url} "
            f"elsewhere{conversion} and give the file's path as these weights, or none for "
            "random ones"
        ) from None
    if len(digest) < 32 and not filesystem.sha256(path).startswith(digest):
        raise WeightsError(
            f"{path}: is not the published file, its SHA-256 does not begin with {digest}; delete "
            "it to download it again"
        )
    return path


def read(path: Path) -> Arrays:
    """Read the arrays of a .npz file, or of the published file that was downloaded."""
    if not path.is_file():
        raise WeightsError(f"weights: {path} is neither imagenet nor none nor a file")
    if path.name == Path(DOWNLOADS["alexnet"][0]).name:
        return _translate(_read_tensors(path), path)[1]
    if path.suffix != ".npz":
        raise WeightsError(
            f"{path}: weights are read from Keras's .h5, or .npz, which tfmammo pretrained convert "
            "makes of .pth, .pt or .safetensors"
        )
    return tensor_files.read_npz(path)


def get_checked(
    arrays: Mapping[str, NDArray], key: str, shape: Sequence[int], path: Path
) -> NDArray[np.float32]:
    """Return one of a file's arrays, which must have this shape and finite numbers."""
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
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return tensor_files.read_safetensors(path)
    return tensor_files.read_torch(path)


def _translate(tensors: Arrays, path: Path) -> tuple[str, Arrays]:
    """Translate PyTorch's names and axes to Keras's; the first value tells what the tensors are."""
    if "lin0.model.1.weight" in tensors:
        heads = [
            get_checked(tensors, f"lin{i}.model.1.weight", (1, width, 1, 1), path)
            for i, width in enumerate(ALEXNET_WIDTHS)
        ]
        return "LPIPS heads", {f"lin{i}/kernel": head.reshape(-1) for i, head in enumerate(heads)}
    first = tensors.get("features.0.weight", np.empty(0)).shape
    if first == (64, 3, 11, 11):
        layers = zip(ALEXNET_INDICES, ALEXNET_WIDTHS, (11, 5, 3, 3, 3), strict=True)
        names = [f"conv{i + 1}" for i in range(5)]
        return "alexnet", _translate_convolutions(tensors, names, layers, path)
    if first == (64, 3, 3, 3):
        widths = [64 * min(2 ** (int(name[5]) - 1), 8) for name in VGG19_LAYERS]
        layers = zip(VGG19_INDICES, widths, [3] * 16, strict=True)
        arrays = _translate_convolutions(tensors, VGG19_LAYERS, layers, path)
        return "vgg19", arrays | make_torchvision_input()
    if any(array.shape == (32, 3, 3, 3) for array in tensors.values()):
        return "inception", dict(_translate_inception(tensors, path))
    raise WeightsError(
        f"{path}: holds neither torchvision's AlexNet or VGG-19 nor LPIPS's heads for AlexNet nor "
        "FID's Inception"
    )


def _translate_inception(tensors: Arrays, path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Translate FID's Inception, whose convolutions are in the order of Keras's.

    TorchScript calls the parts of a convolution weight, beta, mean and var. pytorch-fid calls them
    conv.weight, bn.bias, bn.running_mean and bn.running_var, and its bn.weight is 1.
    """
    network = keras.applications.InceptionV3(weights=None, include_top=False)
    kernels = [layer.kernel for layer in list_by_number(network, keras.layers.Conv2D)]
    names = [name for name, array in tensors.items() if array.ndim == 4]
    if len(names) != len(kernels):
        raise WeightsError(
            f"{path}: FID's Inception has {len(kernels)} convolutions, not {len(names)}"
        )
    for i, (name, kernel) in enumerate(zip(names, kernels, strict=True)):
        rows, cols, before, out = kernel.shape
        weight = get_checked(tensors, name, (out, before, rows, cols), path)
        yield f"conv{i}/kernel", weight.transpose(2, 3, 1, 0)
        prefix = name.removesuffix("weight")
        parts = ("beta", "mean", "var")
        normalization = f"{name.removesuffix('conv.weight')}bn."
        if f"{normalization}weight" in tensors:
            if np.any(get_checked(tensors, f"{normalization}weight", (out,), path) != 1):
                raise WeightsError(f"{path}: {normalization}weight is not 1 as in FID's Inception")
            prefix = normalization
            parts = ("bias", "running_mean", "running_var")
        for part, keras_part in zip(parts, KERAS_NORMALIZATION, strict=True):
            yield f"conv{i}/{keras_part}", get_checked(tensors, prefix + part, (out,), path)


def make_torchvision_input() -> Arrays:
    """Return torchvision's scaling, (image - mean) / deviation, as image * scale + offset."""
    mean = np.array(MEAN, np.float32)
    deviation = np.array(DEVIATION, np.float32)
    return {"input/scale": 1 / deviation, "input/offset": -mean / deviation}


def _translate_convolutions(
    tensors: Arrays, names: Sequence[str], layers: Iterable[tuple[int, int, int]], path: Path
) -> Arrays:
    """Translate a chain of kernels from PyTorch's [out, in, rows, cols] to [rows, cols, in, out].

    `names` are Keras's. `layers` has each one's number in PyTorch, its filters, and the rows of its
    kernel.
    """
    arrays = {}
    before = 3
    for name, (index, width, side) in zip(names, layers, strict=True):
        shape = (width, before, side, side)
        kernel = get_checked(tensors, f"features.{index}.weight", shape, path)
        arrays[f"{name}/kernel"] = kernel.transpose(2, 3, 1, 0)
        arrays[f"{name}/bias"] = get_checked(tensors, f"features.{index}.bias", (width,), path)
        before = width
    return arrays


def list_by_number(network: keras.Model, kind: type) -> list[keras.layers.Layer]:
    """List the layers of a kind in the order in which Keras made them.

    Their names end in numbers ("conv2d_7"), but the first one's.
    """

    def get_number(layer: keras.layers.Layer) -> int:
        match = re.search(r"_(\d+)$", layer.name)
        return int(match[1]) if match else 0

    return sorted((layer for layer in network.layers if isinstance(layer, kind)), key=get_number)
