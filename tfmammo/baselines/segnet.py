"""SegNet (Badrinarayanan, Kendall and Cipolla, 2017): the second row of CAN's Table I.

Deviations: a grey patch has one channel, and with VGG-16's weights the first kernel is the sum of
its three colours'; one logit per pixel and binary cross-entropy in place of softmax with median
frequency balancing; Adam as CAN's in place of SGD; no local contrast normalisation of the input.
BatchNorm takes each sample's own statistics, at test time too: at batch 1 that is what BatchNorm
does in training, and its moving averages serve a batch of one badly. The encoder starts from random
weights unless `weights` says otherwise, since ImageNet's can't always be downloaded. The paper
starts from ImageNet; CAN does not say. From a VGG-19 the start is approximate.

Pooling with places and its inverse are made of slices and stacks, because TensorFlow's
MaxPoolWithArgmax has no XLA kernel and no deterministic gradient on GPUs. Products choose among the
values of a window: on a CPU tf.where takes up to four times as long.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from tfmammo.baselines import vgg16
from tfmammo.baselines.segmenter import Segmenter
from tfmammo.nn.convolutions import Convolution
from tfmammo.nn.networks import halve
from tfmammo.nn.normalization import SampleNormalization


class SegNetConfig(vgg16.VGG16Config):
    """The paper's SegNet; see VGG16Config for the encoder, whose widths the decoder mirrors."""


class SegNet(Segmenter):
    """SegNet from image to mask."""

    def __init__(self, config: SegNetConfig | None = None, size: int = 256) -> None:
        config = config or SegNetConfig()
        super().__init__(build_network(size, config.widths, config.pretrained), config, "segnet")
        if config.pretrained:
            network = self.networks["segmenter"]
            self.pretrained = {"segmenter": vgg16.adopt(network, config.weights, fc=False)}


def build_network(
    size: int, widths: tuple[int, ...] = vgg16.WIDTHS, pretrained: bool = False
) -> keras.Model:
    """Build the network.

    image float32 [b, size, size, 1] in [0, 1] -> logits float32 [b, size, size, 1]

    29,442,433 trainable parameters at VGG-16's widths.

    Source:
        Figure 2 and section 3.
    """
    halve("widths", size, len(widths))
    image = keras.Input((size, size, 1), name="image")
    features = vgg16.normalize(1, pretrained)(image)
    indices = []
    for block, (width, depth) in enumerate(zip(widths, vgg16.DEPTHS, strict=True), 1):
        for index in range(1, depth + 1):
            features = _convolution(features, width, f"block{block}_conv{index}")
        features, positions = PoolWithIndices(name=f"pool{block}")(features)
        indices.append(positions)
    for block in range(len(widths), 0, -1):
        features = Unpool(name=f"unpool{block}")(features, indices[block - 1])
        for index in range(vgg16.DEPTHS[block - 1], 1, -1):
            features = _convolution(features, widths[block - 1], f"decode{block}_conv{index}")
        if block > 1:  # the last convolution of a block has the next block's width
            features = _convolution(features, widths[block - 2], f"decode{block}_conv1")
    logits = keras.layers.Conv2D(1, 3, padding="same", dtype="float32", name="logits")
    return keras.Model(image, logits(features), name="segmenter")


@keras.saving.register_keras_serializable("tfmammo")
class PoolWithIndices(keras.layers.Layer):
    """Maxima of 2x2 windows, and their positions (section 3, "max-pooling indices").

    Call arguments:
        features: floating [batch, rows, cols, channels], rows and cols even.

    Call returns:
        floating [batch, rows / 2, cols / 2, channels], and int8 of the same shape: the place of
        each maximum in its window, row by row, 0 to 3. Of equal values the first counts.
    """

    def call(self, features: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See the class."""
        return _pool(features)


@keras.saving.register_keras_serializable("tfmammo")
class Unpool(keras.layers.Layer):
    """The inverse of PoolWithIndices: values go back to their maxima's places, among zeros.

    Call arguments:
        pooled: floating [batch, rows, cols, channels].
        places: int8, same shape, from PoolWithIndices.

    Call returns:
        floating [batch, 2 * rows, 2 * cols, channels].
    """

    def call(self, pooled: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        """See the class."""
        return _unpool(pooled, places)


@tf.custom_gradient
def _pool(features: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable[..., tf.Tensor]]:
    (top_left, top_right), (bottom_left, bottom_right) = _split_windows(features)
    top = tf.maximum(top_left, top_right)
    bottom = tf.maximum(bottom_left, bottom_right)
    in_bottom = bottom > top
    in_right = tf.where(in_bottom, bottom_right > bottom_left, top_right > top_left)
    places = 2 * tf.cast(in_bottom, tf.int8) + tf.cast(in_right, tf.int8)
    return (tf.maximum(top, bottom), places), lambda gradient, _: _put(gradient, places)


@tf.custom_gradient
def _unpool(
    pooled: tf.Tensor, places: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, None]]]:
    return _put(pooled, places), lambda gradient: (_pick(gradient, places), None)


def _put(values: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """Put a value into each window, zeros around it."""
    _, rows, cols, channels = values.shape
    windows = [values * tf.cast(places == place, values.dtype) for place in range(4)]
    top, bottom = (
        tf.reshape(tf.stack(pair, axis=3), [-1, rows, 2 * cols, channels])
        for pair in (windows[:2], windows[2:])
    )
    return tf.reshape(tf.stack([top, bottom], axis=2), [-1, 2 * rows, 2 * cols, channels])


def _pick(values: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """Pick one value of each window."""
    windows = [value for row in _split_windows(values) for value in row]
    return tf.add_n(
        [value * tf.cast(places == place, value.dtype) for place, value in enumerate(windows)]
    )


def _split_windows(values: tf.Tensor) -> list[list[tf.Tensor]]:
    """Return the four values of all windows: [[top left, top right], [bottom left, ...]]."""
    _, rows, cols, channels = values.shape
    columns = tf.unstack(tf.reshape(values, [-1, rows, cols // 2, 2, channels]), axis=3)
    halves = [
        tf.unstack(tf.reshape(column, [-1, rows // 2, 2, cols // 2, channels]), axis=2)
        for column in columns
    ]
    return [list(row) for row in zip(*halves, strict=True)]


def _convolution(features: keras.KerasTensor, width: int, name: str) -> keras.KerasTensor:
    features = Convolution(width, 3, padding="same", kernel_initializer="he_normal", name=name)(
        features
    )
    return keras.layers.Activation("relu")(SampleNormalization(name=f"{name}_norm")(features))
