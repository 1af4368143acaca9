"""Convolutions of small maps as matrix products: Keras's layers, their weights and their values, several times as fast on a CPU.

oneDNN, which computes TensorFlow's convolutions on a CPU, turns a kernel into an order of its own in every call, and its gradient
back. Where maps have few places and a layer has many channels, as within every U-Net, that takes far longer than the arithmetic:
training a transposed convolution of 1024 to 512 channels on a map of 2 x 2 five times as long. A matrix product takes the kernel as
it lies in memory; what it needs besides, patches or what is to be added up, is never larger than the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

UNKNOWN = 4  # maps, where their number is not known


@keras.saving.register_keras_serializable("tfmammo")
class Convolution(keras.layers.Conv2D):
    """keras.layers.Conv2D; where it has at least two filters for each output place, one matrix product, patches x kernel.

    Args:     x: floating [batch, rows, cols, channels]. Returns: [batch, rows / stride, cols / stride, filters], as Keras's.
    """

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolve, without the bias. Args: kernel: [kernel rows, kernel cols, channels, filters]."""
        shape = self.compute_output_shape(inputs.shape)
        if not _is_usual(self) or not pays(inputs.shape[0], shape[1:3], kernel.shape[-1] / 2):
            return super().convolution_op(inputs, kernel)
        pixels, _ = _places(inputs.shape[1:3], self.kernel_size, self.strides, self.padding == "same")
        taps, channels, filters = pixels.shape[1], inputs.shape[-1], kernel.shape[-1]
        patches = tf.reshape(_gather(inputs, pixels), [-1, taps * channels])
        return tf.reshape(tf.matmul(patches, tf.reshape(kernel, [-1, filters])), [-1, *shape[1:3], filters])


@keras.saving.register_keras_serializable("tfmammo")
class TransposedConvolution(keras.layers.Conv2DTranspose):
    """keras.layers.Conv2DTranspose; where it has a channel for each input place, one matrix product whose overlaps are added up.

    Args:     x: floating [batch, rows, cols, channels]. Returns: [batch, rows * stride, cols * stride, filters], as Keras's.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        usual = _is_usual(self) and self.padding == "same" and self.output_padding is None
        if not usual or not pays(inputs.shape[0], inputs.shape[1:3], inputs.shape[-1]):
            return super().call(inputs)
        shape = self.compute_output_shape(inputs.shape)
        _, contributions = _places(shape[1:3], self.kernel_size, self.strides, same=True)
        channels, taps = inputs.shape[-1], self.kernel_size[0] * self.kernel_size[1]
        kernel = tf.reshape(tf.convert_to_tensor(self.kernel), [taps * self.filters, channels])
        # The kernel first: the other way round two threads take three times as long for 16 rows, as only they are shared out.
        products = tf.transpose(tf.matmul(kernel, tf.reshape(inputs, [-1, channels]), transpose_b=True))
        products = tf.reshape(products, [-1, *inputs.shape[1:3], taps, self.filters])
        outputs = tf.reshape(tf.reduce_sum(_gather(products, contributions), axis=2), [-1, *shape[1:]])
        outputs = outputs + self.bias if self.use_bias else outputs
        return self.activation(outputs) if self.activation is not None else outputs


def pays(maps: int | None, places: Sequence[int | None], most: float) -> bool:
    """Whether the matrix product is quicker. Args: maps, places: whose product is its number of rows. most: of them."""
    return None not in places and (maps or UNKNOWN) * math.prod(place or 0 for place in places) <= most


def _is_usual(layer: keras.layers.Layer) -> bool:
    return layer.data_format == "channels_last" and layer.dilation_rate == (1, 1) and getattr(layer, "groups", 1) == 1


def _gather(x: tf.Tensor, places: NDArray[np.int32]) -> tf.Tensor:
    """[batch, ..., n] -> [batch, *places.shape, n]: of the flattened middle; a place behind its end holds zeros."""
    flat = tf.reshape(x, [-1, math.prod(x.shape[1:-1]), x.shape[-1]])
    return tf.gather(tf.pad(flat, [[0, 0], [0, 1], [0, 0]]), places, axis=1)


def _places(
    shape: tuple[int, int], kernel: tuple[int, int], strides: tuple[int, int], same: bool
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Where a convolution looks.

    Args:     shape: rows and columns of what is convolved.
    Returns:  int32 [outputs, taps], the pixel that each tap of each output meets, rows * cols outside the map; and the other way
              round, int32 [rows * cols, n], the output * taps + tap that meet each pixel, outputs * taps where there are fewer.
    """
    (rows, row_taps), (cols, col_taps) = (_axis(*axis, same) for axis in zip(shape, kernel, strides, strict=True))
    inside = ((rows >= 0) & (rows < shape[0]))[:, None, :, None] & ((cols >= 0) & (cols < shape[1]))[None, :, None, :]
    pixels = np.where(inside, rows[:, None, :, None] * shape[1] + cols[None, :, None, :], shape[0] * shape[1])
    pixels = pixels.reshape(-1, row_taps * col_taps).astype(np.int32)
    order = np.argsort(pixels, axis=None, kind="stable")
    met = pixels.ravel()[order]
    counts = np.bincount(met, minlength=shape[0] * shape[1] + 1)
    nth = np.arange(met.size) - (np.cumsum(counts) - counts)[met]
    contributions = np.full((shape[0] * shape[1], counts[:-1].max()), pixels.size, np.int32)
    real = met < shape[0] * shape[1]
    contributions[met[real], nth[real]] = order[real]
    return pixels, contributions


def _axis(length: int, kernel: int, stride: int, same: bool) -> tuple[NDArray[np.int64], int]:
    """[outputs, taps]: the place along one axis, from -1 and the like on, and the number of taps."""
    outputs = -(-length // stride) if same else (length - kernel) // stride + 1
    before = max((outputs - 1) * stride + kernel - length, 0) // 2 if same else 0
    return np.arange(outputs)[:, None] * stride - before + np.arange(kernel), kernel
