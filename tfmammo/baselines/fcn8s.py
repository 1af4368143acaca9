"""FCN-8s on VGG-16 (Long, Shelhamer and Darrell, 2015): the first row of CAN's Table I.

Deviations: "same" padding in place of the 100 px around the image and the later crop; the three
strides are trained at once and not one after the other; all three up-samplings start bilinear and
are learnt (the paper fixes the last one); Adam as CAN's in place of SGD with momentum;
cross-entropy is the mean over pixels, not the sum. The encoder starts from random weights unless
`weights` says otherwise, since ImageNet's can't always be downloaded. The paper starts from
ImageNet; CAN does not say. From a VGG-19 the start is approximate, and fc6 and fc7 start from
random weights. A grey patch is repeated as three equal colours.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from pydantic import Field, model_validator

from tfmammo.baselines import vgg16
from tfmammo.baselines.segmenter import Segmenter
from tfmammo.config import Width
from tfmammo.nn.convolutions import Convolution
from tfmammo.nn.layers import Dropout
from tfmammo.nn.networks import halve

FC_WIDTH = 4096
CLASSES = 2  # background and lesion


class FCN8sConfig(vgg16.VGG16Config):
    """The paper's FCN-8s for lesion and background."""

    fc_width: Width = FC_WIDTH
    """Channels of fc6 and fc7."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share dropped after each of them."""

    @model_validator(mode="after")
    def _fc_width_fits(self) -> FCN8sConfig:
        if self.pretrained and self.fc_width != FC_WIDTH:
            raise ValueError(f"weights {self.weights} need VGG-16's own fc_width {FC_WIDTH}")
        return self


class FCN8s(Segmenter):
    """FCN-8s from image to mask."""

    def __init__(self, config: FCN8sConfig | None = None, size: int = 256) -> None:
        config = config or FCN8sConfig()
        super().__init__(build_network(config, size), config, "fcn8s")
        if config.pretrained:
            network = self.networks["segmenter"]
            self.pretrained = {"segmenter": vgg16.adopt(network, config.weights, fc=True)}

    def logits(self, image: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Compute the lesion's log-odds: their sigmoid is its softmax of the two scores."""
        scores = super().logits(image, training)
        return scores[..., 1:] - scores[..., :1]


def build_network(config: FCN8sConfig, size: int) -> keras.Model:
    """Build the network.

    image float32 [b, size, size, 1] in [0, 1] -> scores of background and lesion, float32 [b, size,
    size, 2]

    134,271,430 parameters.

    Source:
        Figure 3 and section 4.
    """
    halve("widths", size, len(config.widths))
    image = keras.Input((size, size, 1), name="image")
    features = keras.layers.Concatenate(dtype="float32")([image] * 3)
    features = vgg16.normalize(3, config.pretrained)(features)
    pools = []
    for block, (width, depth) in enumerate(zip(config.widths, vgg16.DEPTHS, strict=True), 1):
        for index in range(1, depth + 1):
            features = _convolution(width, 3, f"block{block}_conv{index}")(features)
        features = keras.layers.MaxPooling2D(2, name=f"pool{block}")(features)
        pools.append(features)
    for kernel, name in ((7, "fc1"), (1, "fc2")):
        features = _convolution(config.fc_width, kernel, name)(features)
        features = Dropout(config.dropout)(features)
    scores = _score("score_fc7")(features)  # stride 32
    for pool, name in ((pools[3], "score_pool4"), (pools[2], "score_pool3")):  # strides 16 and 8
        scores = keras.layers.Add()([_upsample(2)(scores), _score(name)(pool)])
    scores = _upsample(8, dtype="float32")(scores)
    return keras.Model(image, scores, name="segmenter")


@keras.saving.register_keras_serializable("tfmammo")
def bilinear(shape: tuple[int, int, int, int], dtype: str | None = None) -> tf.Tensor:
    """Make the kernel of a transposed convolution that interpolates each channel bilinearly.

    It enlarges by half the kernel's size. The shape is [2 * factor, 2 * factor, channels,
    channels]. Each channel's kernel is the product of two triangles of height 1 - 1 / (2 * factor).

    Source:
        Section 3.3; the authors' surgery.py, upsample_filt.
    """
    factor = shape[0] // 2
    triangle = 1 - np.abs(np.arange(2 * factor) - (factor - 0.5)) / factor
    kernel = np.multiply.outer(triangle, triangle)[..., None, None] * np.eye(shape[2])
    return tf.constant(kernel, dtype or "float32")


def _convolution(width: int, kernel: int, name: str) -> keras.layers.Layer:
    return Convolution(
        width, kernel, padding="same", activation="relu", kernel_initializer="he_normal", name=name
    )


def _score(name: str) -> keras.layers.Layer:
    # zeros: section 4.3
    return Convolution(CLASSES, 1, kernel_initializer="zeros", name=name)


def _upsample(factor: int, **options: str) -> keras.layers.Layer:
    return keras.layers.Conv2DTranspose(
        CLASSES,
        2 * factor,
        factor,
        padding="same",
        use_bias=False,
        kernel_initializer=bilinear,
        **options,
    )
