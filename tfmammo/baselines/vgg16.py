"""ImageNet weights for the VGG-16 encoders of FCN-8s and SegNet (Simonyan and Zisserman, 2015).

Only arrays are read from a file, into the network built here: nothing in it is executed, and
nothing is unpickled.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
from pydantic import PositiveInt, model_validator

from tfmammo.baselines.segmenter import SegmenterConfig
from tfmammo.errors import ConfigError

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = (2, 2, 3, 3, 3)  # convolutions before each pooling
MEANS = (103.939, 116.779, 123.68)  # of ImageNet's blue, green and red, out of 255


class VGG16Config(SegmenterConfig):
    """A baseline on a VGG-16 encoder."""

    widths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt] = WIDTHS
    """Channels of the five blocks."""
    weights: str = "none"
    """The encoder's initial weights: "imagenet" (downloaded by Keras, about 60 MB, or 530 MB with
    the fully connected layers), the path of a Keras VGG-16 file (.h5, .weights.h5 or .keras), or
    "none" (He's random weights). FCN-8s takes the fully connected layers too.
    """

    @property
    def pretrained(self) -> bool:
        """Whether the encoder starts from VGG-16's weights."""
        return self.weights != "none"

    @model_validator(mode="after")
    def _widths_fit(self) -> VGG16Config:
        if self.pretrained and self.widths != WIDTHS:
            raise ValueError(f"weights {self.weights} need VGG-16's own widths {WIDTHS}")
        return self


def normalize(channels: int, pretrained: bool) -> keras.layers.Rescaling:
    """Build a float32 layer that maps [0, 1] to what the encoder expects.

    Args:
        channels: 1, or 3 for blue, green and red.
        pretrained: Map to VGG-16's own input, 255 * image - mean, instead of [-1, 1].
    """
    if not pretrained:
        return keras.layers.Rescaling(2.0, -1.0, dtype="float32")
    offset = [-mean for mean in MEANS] if channels == 3 else -float(np.mean(MEANS))
    return keras.layers.Rescaling(255.0, offset, dtype="float32")


def assign(network: keras.Model, weights: str, fc: bool) -> None:
    """Copy VGG-16's weights into a network's layers of the same names.

    A first convolution of one channel takes the sum of the three colours' kernels: what VGG-16 sees
    in a grey image. A fully connected layer becomes the convolution that computes the same (Long et
    al., section 3.1).

    Args:
        network: Has the layers block1_conv1 to block5_conv3, and fc1 and fc2 where `fc`.
        weights: "imagenet" or a path.
        fc: Copy the fully connected layers fc1 and fc2 too.

    Raises:
        ConfigError: The download failed, or the file is missing or holds no such weights.
    """
    for source in _read(weights, fc).layers:
        if (
            not source.weights
            or source.name == "predictions"
            or (source.name in ("fc1", "fc2") and not fc)
        ):
            continue
        kernel, bias = source.get_weights()
        target = network.get_layer(source.name)
        if source.name == "block1_conv1" and target.kernel.shape[2] == 1:
            kernel = kernel.sum(axis=2, keepdims=True)
        target.set_weights([kernel.reshape(target.kernel.shape), bias])


def _read(weights: str, fc: bool) -> keras.Model:
    if weights == "imagenet":
        try:
            return keras.applications.VGG16(weights="imagenet", include_top=fc)
        except Exception as error:  # Keras raises a bare Exception where a download fails
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"model.weights: VGG-16's ImageNet weights can't be downloaded ({reason}); give a "
                "file's path"
            ) from None
    if not Path(weights).is_file():
        raise ConfigError(f"model.weights: {weights} is neither imagenet nor none nor a file")
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
        ".weights.h5 or .keras form"
    )
