"""ImageNet weights for the VGG-16 encoders of FCN-8s and SegNet (Simonyan and Zisserman, 2015).

A VGG-19 serves where no VGG-16 is available: its convolutions of the same names are taken.
VGG-19's block3_conv4, block4_conv4 and block5_conv4 are dropped, so that the layers after them see
other features than those that they were trained on, and fc6 and fc7 start from random weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import keras
import numpy as np
from pydantic import model_validator

from tfmammo.baselines.segmenter import SegmenterConfig
from tfmammo.config import FIXED, Width
from tfmammo.errors import name_key
from tfmammo.nn.pretrained import KERAS_MEAN, vgg16
from tfmammo.nn.published import Source, identify

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = (2, 2, 3, 3, 3)  # convolutions before each pooling
FIRST = "block1_conv1"


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
    offset = [-mean for mean in KERAS_MEAN] if channels == 3 else -float(np.mean(KERAS_MEAN))
    return keras.layers.Rescaling(255.0, offset, dtype="float32")


def adopt(network: keras.Model, weights: str, fc: bool) -> Source:
    """Give a network's layers the weights of VGG-16's of the same names; tell which they are.

    They are block1_conv1 to block5_conv3, and where `fc` VGG-16's fc1 and fc2. A first convolution
    of one channel takes the sum of the three colours' kernels: what VGG-16 sees in a grey image. A
    fully connected layer becomes the convolution that computes the same (Long et al., section 3.1).
    """
    names = {layer.name for layer in network.layers}
    with name_key("model.weights"):
        for layer in vgg16(weights, top=fc).layers:
            if layer.weights and layer.name in names:
                kernel, bias = layer.get_weights()
                target = network.get_layer(layer.name)
                if layer.name == FIRST and target.kernel.shape[2] == 1:
                    kernel = kernel.sum(axis=2, keepdims=True)
                target.set_weights([kernel.reshape(target.kernel.shape), bias])
        if Path(weights).suffix == ".npz":
            return identify("vgg19", weights)
        return identify("vgg16 with top" if fc else "vgg16", weights)
