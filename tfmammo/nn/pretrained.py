"""Pretrained feature extractors for grey images, pretrained VGG-16 and ResNets; all of ImageNet.

VGG-19, AlexNet and Inception-v3 are frozen, for perceptual losses and metrics. VGG-16, ResNet-50
and -101 are as Keras has them; other networks start from their weights.

A feature extractor takes float32 [n, h, w, 1] in [0, 1], repeats the grey channel three times,
scales it as its weights expect, and puts out float32 features. `weights` says where the weights
come from. "imagenet" is the published file: the one in the folder that TFMAMMO_WEIGHTS names, or a
download where that folder lacks it. A path reads a file. "none" draws weights at random from a
fixed seed. A random network distinguishes images, but not as people do, so its numbers are
labelled. Weights that can't be had are a WeightsError.

tfmammo pretrained convert IN OUT

converts a published file to a .npz file, which is read here: torchvision's AlexNet
(alexnet-owt-7be5be79.pth), torchvision's VGG-19 (vgg19-dcbb9e9d.pth), the linear heads of LPIPS
v0.1 for AlexNet (alex.pth), or FID's Inception of 2015-12-05 (TorchScript, or the state dict of
pytorch-fid). .pth, .pt and .safetensors are read without PyTorch. If OUT is a folder, the file is
called as TFMAMMO_WEIGHTS expects it there.

Only arrays are read from any file, into networks that are built here: nothing in it is executed. A
.npz file holds "LAYER/kernel" and "LAYER/bias" for every layer, and for VGG-19
"input/scale" and "input/offset", because torchvision's weights expect another input than Keras's: a
.h5 file is taken to be of Keras's own VGG-19 (255 * image less the mean colour, blue first).
"""

from __future__ import annotations

from tfmammo.nn import _tensorflow  # noqa: F401  # imports TensorFlow quietly, before Keras does

# isort: split
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfmammo.errors import ConfigError, WeightsError, summarize
from tfmammo.nn import published
from tfmammo.nn.published import (
    ALEXNET_WIDTHS,
    VGG19_LAYERS,
    Arrays,
    Source,
    get_checked,
    list_by_number,
    locate,
    make_torchvision_input,
)

KERAS_MEAN = (103.939, 116.779, 123.68)  # Keras's for VGG, blue first, of 255
# LPIPS's scaling layer, of [-1, 1]
LPIPS_SHIFT = (-0.030, -0.088, -0.188)
LPIPS_SCALE = (0.458, 0.448, 0.450)


def vgg19(weights: str, layers: Sequence[str]) -> keras.Model:
    """Build VGG-19's feature maps after the ReLU; Simonyan and Zisserman (2015).

    Args:
        weights: "imagenet" (downloaded: Keras's, 80 MB), "none", or a path: .npz of the converter,
            or Keras's .h5 without top.
        layers: Keras's names of the layers ("block1_conv2"), in the order of the output.

    Returns:
        A frozen network: floating [n, h, w, 1] in [0, 1] -> a list of float32 [n, h / 2**i, w /
        2**i, channels] (of one layer the map itself, as Keras has it), any h and w from 32 px up.
        It computes in the global precision. All layers together have 20,024,384 parameters.
    """
    if unknown := [name for name in layers if name not in VGG19_LAYERS]:
        raise ConfigError(
            f"VGG-19 has no convolution {', '.join(unknown)}, only {VGG19_LAYERS[0]} to "
            f"{VGG19_LAYERS[-1]}"
        )
    network = keras.applications.VGG19(weights=None, include_top=False)
    stored = _fill(network, "vgg19", weights)
    if stored:
        scale, offset = (stored[key].tolist() for key in ("input/scale", "input/offset"))
    else:
        scale = (255.0,) * 3
        offset = tuple(-mean for mean in KERAS_MEAN)
    return _wrap_grey(
        "vgg19", network, scale, offset, [network.get_layer(name).output for name in layers]
    )


def alexnet(weights: str) -> keras.Model:
    """Build AlexNet's five feature maps after their ReLUs, the input scaled as in LPIPS v0.1.

    Torchvision's alexnet, after Krizhevsky, One weird trick for parallelizing convolutional neural
    networks (2014).

    Args:
        weights: "imagenet" (torchvision's, 240 MB), "none", or a path: .npz of the converter.

    Returns:
        A frozen network: floating [n, h, w, 1] in [0, 1] -> a list of float32 [n, rows, cols,
        channels] with 64, 192, 384, 256, 256 channels, any h and w from 64 px up. 2,469,696
        parameters.
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

    Published FIDs are of the TF-Slim graph of 2015-12-05 (the pool_3 of
    classify_image_graph_def.pb). A .npz file of the converter holds its weights. The network is
    then Keras's with its last average pooling replaced by a maximum over 3 x 3 px, which equals
    that graph. Images are resized to 299 px as TensorFlow 1 did, without its half-pixel centres,
    and mapped to (255 x - 128) / 128.

    Keras's own Inception-v3 has other weights, for 1,000 classes. Its numbers compare with no
    published FID. Images are resized to 299 px with half-pixel centres and mapped to [-1, 1].

    Args:
        weights: "imagenet" (the Inception of 2015-12-05 where TFMAMMO_WEIGHTS has its file, else
            Keras's, downloaded, 88 MB), "none", or a path: .npz of the converter, or Keras's .h5
            without top.

    Returns:
        A frozen network: floating [n, h, w, 1] in [0, 1] -> float32 [n, 2048]. 21,802,784
        parameters.

    Source:
        Szegedy et al., Rethinking the Inception architecture (2016); Heusel et al. (2017), for its
        use.
    """
    network = keras.applications.InceptionV3(weights=None, include_top=False, pooling="avg")
    path = locate("inception", weights)
    if path is None or path.suffix == ".h5":
        _fill(network, "inception", weights)
        resize: keras.layers.Layer = keras.layers.Resizing(299, 299, dtype="float32")
        scale, offset = 2.0, -1.0
    else:
        network = _use_max_pooling_last(network)
        _fill_inception(network, published.read(path), path)
        resize = _ResizeAsIn2015(dtype="float32")
        scale, offset = 255 / 128, -1.0
    return _wrap_grey("inception", network, (scale,) * 3, (offset,) * 3, [network.output], resize)


def lpips_heads(weights: str) -> list[NDArray[np.float32]]:
    """Load LPIPS's linear heads for AlexNet: a weight for each channel; Zhang et al. (2018).

    Args:
        weights: "published": the file in the folder that TFMAMMO_WEIGHTS names; where there is
            none, as "none". "none": all 1, which is LPIPS without calibration (the `lpips`
            package's lpips=False). Or a path: .npz of the converter.

    Returns:
        Five float32 vectors of 64, 192, 384, 256 and 256 numbers.
    """
    path = locate("LPIPS heads", weights)
    if path is None:
        return [np.ones(width, np.float32) for width in ALEXNET_WIDTHS]
    arrays = published.read(path)
    return [
        get_checked(arrays, f"lin{i}/kernel", (width,), path)
        for i, width in enumerate(ALEXNET_WIDTHS)
    ]


def resnet(name: str, weights: str) -> keras.Model:
    """Build Keras's ResNet without top, trainable; He et al. (2016).

    float32 [n, h, w, 3], 255 * image less the mean colour, blue first -> [n, h / 32, w / 32, 2048].

    Args:
        name: "resnet50" (23,587,712 parameters) or "resnet101" (42,658,176).
        weights: "imagenet" (downloaded, 94 or 171 MB), or the path of Keras's .h5 without top.
    """
    if Path(weights).suffix == ".npz":
        raise WeightsError(
            f"{weights}: {published.NETWORKS[name]} is read from Keras's .h5 without top alone, "
            f"{Path(published.DOWNLOADS[name][0]).name}"
        )
    applications = keras.applications
    build = applications.ResNet50 if name == "resnet50" else applications.ResNet101
    network = build(weights=None, include_top=False)
    _fill(network, name, weights)
    return network


def adopt_resnet(network: keras.Model, name: str, weights: str) -> Source:
    """Give a network's layers the weights of the layers that `resnet` calls alike; name these."""
    for layer in resnet(name, weights).layers:
        if layer.weights:
            network.get_layer(layer.name).set_weights(layer.get_weights())
    return published.identify(name, weights)


def vgg16(weights: str, top: bool = False) -> keras.Model:
    """Build Keras's VGG-16, trainable; Simonyan and Zisserman (2015).

    float32 [n, h, w, 3], 255 * image less the mean colour, blue first -> [n, h / 32, w / 32, 512].

    Args:
        weights: "imagenet" (downloaded, 60 MB, or 530 MB with `top`), the path of a file of Keras's
            (.h5, .weights.h5 or .keras), or of the .npz of a VGG-19: its convolutions of the same
            names, without top.
        top: With the fully connected layers "fc1" and "fc2", and "predictions".
    """
    path = locate("vgg16 with top" if top else "vgg16", weights) or Path(weights)
    if path.suffix == ".npz" or not path.is_file():
        network = keras.applications.VGG16(weights=None, include_top=False)
        _fill_from_vgg19(network, published.read(path), path)
        return network
    # a file with the fully connected layers serves without them too
    for include_top in (True,) if top else (False, True):
        network = keras.applications.VGG16(weights=None, include_top=include_top)
        fault = _load_keras(network, path)
        if not fault:
            return network
    layers = " with its fully connected layers" if top else ""
    raise WeightsError(f"{path}: contains no weights of Keras's VGG-16{layers} ({fault})")


class _ResizeAsIn2015(keras.layers.Layer):
    """Resize to 299 px bilinearly: pixel i is taken at i * rows / 299, as TensorFlow 1 did."""

    def call(self, images: tf.Tensor) -> tf.Tensor:
        return tf.raw_ops.ResizeBilinear(
            images=images, size=(299, 299), align_corners=False, half_pixel_centers=False
        )

    def compute_output_shape(self, shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return (shape[0], 299, 299, shape[3])


def _use_max_pooling_last(network: keras.Model) -> keras.Model:
    """Replace the last average pooling of Keras's Inception-v3 by a maximum."""
    last = list_by_number(network, keras.layers.AveragePooling2D)[-1]

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if layer.name == last.name:
            return keras.layers.MaxPooling2D(3, 1, "same", name=layer.name)
        return layer.__class__.from_config(layer.get_config())

    return keras.models.clone_model(network, clone_function=clone)


def _fill_inception(network: keras.Model, arrays: Arrays, path: Path) -> None:
    """Give Keras's Inception-v3 the weights of 2015: "convI/kernel", beta, mean and variance."""
    for kind in (keras.layers.Conv2D, keras.layers.BatchNormalization):
        for i, layer in enumerate(list_by_number(network, kind)):
            _set_weights(layer, f"conv{i}", arrays, path)


def _set_weights(layer: keras.layers.Layer, name: str, arrays: Arrays, path: Path) -> None:
    layer.set_weights(
        [get_checked(arrays, f"{name}/{each.name}", each.shape, path) for each in layer.weights]
    )


def _wrap_grey(
    name: str,
    network: keras.Model,
    scale: Sequence[float],
    offset: Sequence[float],
    outputs: Sequence[keras.KerasTensor],
    resize: keras.layers.Layer | None = None,
) -> keras.Model:
    """Build a frozen network of one channel in [0, 1] around `outputs` of a network of three.

    Its input is scaled, and an offset is added.
    """
    image = keras.Input((None, None, 1), dtype="float32", name="image")
    x = image if resize is None else resize(image)
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


def _fill(network: keras.Model, name: str, weights: str) -> Arrays:
    """Give a network its weights; return the "input/scale" and "input/offset" of VGG-19's .npz."""
    path = locate(name, weights)
    if path is None:
        _randomise(network)
        return make_torchvision_input()
    if path.suffix == ".h5" and path.is_file():
        if name == "alexnet":
            raise WeightsError(
                f"{path}: Keras has no AlexNet; tfmammo pretrained convert makes a .npz of "
                "torchvision's"
            )
        if fault := _load_keras(network, path):
            raise WeightsError(
                f"{path}: contains no weights of Keras's {network.name} without top ({fault})"
            )
        return {}
    arrays = published.read(path)
    _fill_by_name(network, arrays, path)
    if name != "vgg19":
        return {}
    return {key: get_checked(arrays, key, (3,), path) for key in make_torchvision_input()}


def _fill_from_vgg19(network: keras.Model, arrays: Arrays, path: Path) -> None:
    """Give VGG-16 the convolutions of a VGG-19, the first one scaled to VGG-16's own input.

    Where the file has torchvision's weights, the mean colours differ by up to 0.5 of 255.
    """
    _fill_by_name(network, arrays, path)
    scale, offset = (
        get_checked(arrays, f"input/{part}", (3,), path) for part in ("scale", "offset")
    )
    from_blue = np.argsort(-offset / scale)  # KERAS_MEAN rises from blue to red
    first = network.get_layer(VGG19_LAYERS[0])
    kernel, bias = first.get_weights()
    first.set_weights([(kernel * (scale[:, None] / np.float32(255)))[:, :, from_blue], bias])


def _fill_by_name(network: keras.Model, arrays: Arrays, path: Path) -> None:
    for layer in network.layers:
        if layer.weights:
            _set_weights(layer, layer.name, arrays, path)


def _randomise(network: keras.Model) -> None:
    """Set He's normal kernels and biases of 0, the same ones in every process."""
    random = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel = random.standard_normal(layer.kernel.shape, np.float32) * np.sqrt(
                2 / np.prod(layer.kernel.shape[:-1])
            )
            layer.set_weights(
                [kernel, *(np.zeros(variable.shape, np.float32) for variable in layer.weights[1:])]
            )


def _load_keras(network: keras.Model, path: Path) -> str:
    """Read a file of Keras's; return why the network does not have all of its weights, or ""."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            network.load_weights(path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        return summarize(error)[:500]
    # Keras only warns of layers that the file leaves random
    messages = (str(one.message) for one in caught if one.category is UserWarning)
    return " ".join(next(messages, "").split())[:500]


def convert_and_print(source: Path, target: Path) -> None:
    """Convert one file and print what it holds."""
    name, path = published.convert(source, target)
    origin = published.identify(name, str(path))
    print(f"{path}: {origin.title}, SHA-256 of its arrays {origin.sha256}")
