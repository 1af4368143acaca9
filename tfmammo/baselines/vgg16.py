"""ImageNet weights for the VGG-16 encoders of FCN-8s and SegNet (Simonyan and Zisserman, 2015).

A VGG-19 serves where no VGG-16 is available: its convolutions of the same names are taken.
VGG-19's block3_conv4, block4_conv4 and block5_conv4 are dropped, so that the layers after them see
other features than those that they were trained on, and fc6 and fc7 start from random weights.

Only arrays are read from a file, into the network built here: nothing in it is executed.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Annotated

import keras
import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from tfmammo.baselines.segmenter import SegmenterConfig
from tfmammo.config import FIXED, Width
from tfmammo.errors import ConfigError
from tfmammo.nn import published

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = (2, 2, 3, 3, 3)  # convolutions before each pooling
CONVOLUTIONS = tuple(
    f"block{block}_conv{index}"
    for block, depth in enumerate(DEPTHS, 1)
    for index in range(1, depth + 1)
)
FIRST = CONVOLUTIONS[0]
FC = ("fc1", "fc2")
MEANS = (103.939, 116.779, 123.68)  # of ImageNet's blue, green and red, out of 255

Parameters = dict[str, list[NDArray[np.float32]]]  # layer -> kernel and bias


class VGG16Config(SegmenterConfig):
    """A baseline on a VGG-16 encoder."""

    widths: tuple[Width, Width, Width, Width, Width] = WIDTHS
    """Channels of the five blocks."""
    weights: Annotated[str, FIXED] = "none"
    """The encoder's initial weights: "imagenet" (downloaded by Keras, about 60 MB, or 530 MB with
    the fully connected layers), the path of a Keras VGG-16 file (.h5, .weights.h5 or .keras), the
    path of a VGG-19 (.npz, as tfmammo pretrained convert writes it), or "none" (He's random
    weights). FCN-8s takes VGG-16's fully connected layers too. Of a VGG-19 both take the thirteen
    convolutions that VGG-16 has by the same names, which is approximate: see the module.
    """

    @property
    def pretrained(self) -> bool:
        """Whether the encoder starts from ImageNet's weights."""
        return self.weights != "none"

    @model_validator(mode="after")
    def _widths_fit(self) -> VGG16Config:
        if self.pretrained and self.widths != WIDTHS:
            raise ValueError(f"weights {self.weights} need VGG-16's own widths {WIDTHS}")
        return self


def normalize(channels: int, pretrained: bool) -> keras.layers.Rescaling:
    """Build a float32 layer that maps [0, 1] to what the encoder expects.

    That is [-1, 1], or with its `pretrained` weights 255 * image - mean, blue, green and red.
    """
    if not pretrained:
        return keras.layers.Rescaling(2.0, -1.0, dtype="float32")
    offset = [-mean for mean in MEANS] if channels == 3 else -float(np.mean(MEANS))
    return keras.layers.Rescaling(255.0, offset, dtype="float32")


def assign(network: keras.Model, weights: str, fc: bool) -> None:
    """Copy the weights of VGG-16, or of VGG-19, into a network's layers of the same names.

    They are block1_conv1 to block5_conv3, and where `fc` VGG-16's fc1 and fc2. A first convolution
    of one channel takes the sum of the three colours' kernels: what VGG-16 sees in a grey image. A
    fully connected layer becomes the convolution that computes the same (Long et al., section 3.1).
    """
    for name, (kernel, bias) in _read(network, weights, fc).items():
        target = network.get_layer(name)
        if name == FIRST and target.kernel.shape[2] == 1:
            kernel = kernel.sum(axis=2, keepdims=True)
        target.set_weights([kernel.reshape(target.kernel.shape), bias])


def _read(network: keras.Model, weights: str, fc: bool) -> Parameters:
    if weights != "imagenet" and not Path(weights).is_file():
        raise ConfigError(f"model.weights: {weights} is neither imagenet nor none nor a file")
    if Path(weights).suffix == ".npz":
        return _read_vgg19(network, Path(weights))
    return {
        layer.name: layer.get_weights()
        for layer in _load_vgg16(weights, fc).layers
        if layer.weights and (layer.name.startswith("block") or (fc and layer.name in FC))
    }


def _read_vgg19(network: keras.Model, path: Path) -> Parameters:
    """Read VGG-16's convolutions from a VGG-19, the first one for VGG-16's own input.

    Where the file has torchvision's weights, the mean colours differ by up to 0.5 of 255.
    """
    arrays = published.read(path)
    parameters = {}
    before = 3
    for name in CONVOLUTIONS:
        width = network.get_layer(name).kernel.shape[-1]
        kernel = published.get_checked(arrays, f"{name}/kernel", (3, 3, before, width), path)
        bias = published.get_checked(arrays, f"{name}/bias", (width,), path)
        parameters[name] = [kernel, bias]
        before = width
    scale, offset = (
        published.get_checked(arrays, f"input/{part}", (3,), path) for part in ("scale", "offset")
    )
    from_blue = np.argsort(-offset / scale)  # MEANS rise from blue to red
    scaled = parameters[FIRST][0] * (scale[:, None] / np.float32(255))
    parameters[FIRST][0] = scaled[:, :, from_blue]
    return parameters


def _load_vgg16(weights: str, fc: bool) -> keras.Model:
    if weights == "imagenet":
        try:
            return keras.applications.VGG16(weights="imagenet", include_top=fc)
        except Exception as error:  # Keras raises a bare Exception where a download fails
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"model.weights: VGG-16's ImageNet weights can't be downloaded ({reason}); give a "
                "file's path"
            ) from None
    # a file with the fully connected layers serves the encoder as well
    for top in (True,) if fc else (False, True):
        model = keras.applications.VGG16(weights=None, include_top=top)
        try:
            with warnings.catch_warnings():
                # Keras only warns of layers that the file leaves random
                warnings.simplefilter("error", UserWarning)
                model.load_weights(weights)
        except (OSError, ValueError, KeyError, UserWarning, zipfile.BadZipFile):
            continue
        return model
    layers = "with its fully connected layers (include_top=True) " if fc else ""
    raise ConfigError(
        f"model.weights: {weights} does not hold the weights of a Keras VGG-16 {layers}in .h5, "
        ".weights.h5 or .keras form, nor of a VGG-19 in .npz form"
    )
