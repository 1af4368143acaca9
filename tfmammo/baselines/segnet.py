"""SegNet (Badrinarayanan, Kendall and Cipolla, 2017): the second row of CAN's Table I.

Deviations: a grey patch has one channel, and with VGG-16's weights the first kernel is the sum of
its three colours'; one logit per pixel and binary cross-entropy in place of softmax with median
frequency balancing; Adam as CAN's in place of SGD; no local contrast normalisation of the input.
BatchNorm takes each sample's own statistics, at test time too: at batch 1 that is what BatchNorm
does in training, and its moving averages serve a batch of one badly. The encoder starts from random
weights unless `weights` says otherwise, since ImageNet's can't always be downloaded. The paper
starts from ImageNet; CAN does not say. From a VGG-19 the start is approximate.

Limits: its pooling returns the positions of the maxima. XLA can't compile that, so
`training.jit_compile` is refused. TensorFlow has no deterministic gradient of it for GPUs, where
`training.deterministic` fails at the first step; on a CPU it works.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from tfmammo.baselines import vgg16
from tfmammo.baselines.segmenter import Segmenter, check_size
from tfmammo.nn.layers import SampleNormalization


class SegNetConfig(vgg16.VGG16Config):
    """The paper's SegNet; see VGG16Config for the encoder, whose widths the decoder mirrors."""


class SegNet(Segmenter):
    """SegNet from image to mask.

    Args:
        config: The network's and the optimizer's values.
        size: Rows and columns of a patch, px, a multiple of 32.

    Raises:
        ConfigError: The size does not fit, or VGG-16's weights can't be had.
    """

    not_for_xla = "it pools with the places of the maxima (MaxPoolWithArgmax)"

    def __init__(self, config: SegNetConfig | None = None, size: int = 256) -> None:
        config = config or SegNetConfig()
        super().__init__(build_network(size, config.widths, config.pretrained), config, "segnet")
        if config.pretrained:
            vgg16.assign(self.networks["segmenter"], config.weights, fc=False)


def build_network(
    size: int,
    widths: tuple[int, ...] = vgg16.WIDTHS,
    pretrained: bool = False,
    channels: int = 1,
    classes: int = 1,
) -> keras.Model:
    """Build the network.

    image float32 [b, size, size, channels] in [0, 1] -> logits float32 [b, size, size, classes]

    29,442,433 trainable parameters at VGG-16's widths.

    Deviation:
        See the module.

    Source:
        Figure 2 and section 3.
    """
    check_size(size, 32)
    image = keras.Input((size, size, channels), name="image")
    features = vgg16.normalize(channels, pretrained)(image)
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
    logits = keras.layers.Conv2D(classes, 3, padding="same", dtype="float32", name="logits")(
        features
    )
    return keras.Model(image, logits, name="segmenter")


@keras.saving.register_keras_serializable("tfmammo")
class PoolWithIndices(keras.layers.Layer):
    """Maxima of 2x2 windows, and their positions (section 3, "max-pooling indices")."""

    def call(self, features: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Pool.

        Args:
            features: float [b, rows, cols, channels], rows and cols even.

        Returns:
            float [b, rows / 2, cols / 2, channels], and int64 of the same shape: each maximum's
            index into the flattened features. Of equal values the first counts.
        """
        pooled, indices = tf.nn.max_pool_with_argmax(
            features, 2, 2, "VALID", include_batch_in_index=True
        )
        return pooled, indices


@keras.saving.register_keras_serializable("tfmammo")
class Unpool(keras.layers.Layer):
    """The inverse of PoolWithIndices: values go back to their maxima's positions, among zeros."""

    def call(self, pooled: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
        """Unpool.

        Args:
            pooled: float [b, rows, cols, channels].
            indices: int64, same shape, from PoolWithIndices.

        Returns:
            float [b, 2 * rows, 2 * cols, channels].
        """
        batch, rows, cols, channels = pooled.shape
        unpooled = tf.scatter_nd(
            tf.reshape(indices, [-1, 1]), tf.reshape(pooled, [-1]), [4 * tf.size(pooled, tf.int64)]
        )
        return tf.reshape(unpooled, [batch or -1, 2 * rows, 2 * cols, channels])


def _convolution(features: keras.KerasTensor, width: int, name: str) -> keras.KerasTensor:
    features = keras.layers.Conv2D(
        width, 3, padding="same", kernel_initializer="he_normal", name=name
    )(features)
    return keras.layers.Activation("relu")(SampleNormalization(name=f"{name}_norm")(features))
