"""Convolutions, and a dense layer, of Keras with right and quick gradients on a CPU.

The gradient of a bias is summed as `add_bias` does. Convolutions of small maps are matrix products:
the layers have Keras's weights and values and are several times as fast there. oneDNN, which
computes TensorFlow's convolutions on a CPU, reorders a kernel in every call, and its gradient back.
Where maps have few pixels and a layer has many channels, as within every U-Net, that takes far
longer than the arithmetic: training a transposed convolution of 1024 to 512 channels on a map of 2
x 2 takes five times as long. A matrix product takes the kernel as it is in memory. The other
arrays that it needs, patches or summands, are never larger than the kernel.

Any other device uses Keras's own operations, which is decided where a call is traced: see `on_cpu`.
In float32 both ways agree to rounding. In bfloat16 a matrix product is rounded once and the
summands of a pixel are then added in bfloat16. Transposed outputs and gradients of inputs are
therefore up to 1.6 times as far from float32's as Keras's are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

UNKNOWN = 4  # number of maps that is assumed where it is not known
FEW = 16  # filters: a register of AMX has 16 rows


def on_cpu() -> bool:
    """Return whether an operation that is created here runs on a CPU.

    The device scope decides; without one, whether there is a GPU.
    """
    scope = tf.constant(0.0).device
    return "CPU" in scope if scope else not tf.config.list_logical_devices("GPU")


@tf.custom_gradient
def add_bias(
    x: tf.Tensor, bias: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
    """Add a bias [n] to [..., n].

    TensorFlow's own gradient, BiasAddGrad, also adds up in bfloat16 on a CPU, where a sum of ones
    ends at 256. Keras's layers all use it.
    """

    def gradients(y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return y, tf.reduce_sum(y, list(range(len(x.shape) - 1)))

    return tf.nn.bias_add(x, bias), gradients


def _finish(layer: keras.layers.Layer, outputs: tf.Tensor) -> tf.Tensor:
    if layer.use_bias:
        outputs = add_bias(outputs, tf.convert_to_tensor(layer.bias))
    return outputs if layer.activation is None else layer.activation(outputs)


@keras.saving.register_keras_serializable("tfmammo")
class Dense(keras.layers.Dense):
    """keras.layers.Dense, whose bias has the gradient of `add_bias`."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        return _finish(self, tf.matmul(inputs, tf.convert_to_tensor(self.kernel)))


@keras.saving.register_keras_serializable("tfmammo")
class Convolution(keras.layers.Conv2D):
    """keras.layers.Conv2D, on a CPU as one matrix product, patches x kernel, where that is quicker.

    It is quicker with at least two filters for each output pixel, and where the kernel covers the
    whole map. Kernels of one pixel with few filters are products too, which is safer.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        return _finish(self, self.convolution_op(inputs, self.kernel))

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolve, without the bias."""
        shape = self.compute_output_shape(inputs.shape)
        filters = kernel.shape[-1]
        usual = _is_usual(self, inputs)
        if usual and (self._covers_map(inputs) or self._scores_pixels(filters)):
            patches = inputs
        elif usual and matmul_is_faster(inputs.shape[0], shape[1:3], filters / 2):
            patches = _gather(
                inputs,
                _pixels(inputs.shape[1:3], self.kernel_size, self.strides, self.padding == "same"),
            )
        else:
            return super().convolution_op(inputs, kernel)
        kernel = tf.reshape(kernel, [-1, filters])
        products = tf.matmul(tf.reshape(patches, [-1, kernel.shape[0]]), kernel)
        return tf.reshape(products, [-1, *shape[1:3], filters])

    def _covers_map(self, inputs: tf.Tensor) -> bool:
        """Return whether there is a single patch, all of the map.

        oneDNN 3.7's gradient of such a kernel writes beyond its end in bfloat16, on processors with
        AMX, where several threads share many channels and few filters.
        """
        return self.padding == "valid" and tuple(inputs.shape[1:3]) == self.kernel_size

    def _scores_pixels(self, filters: int) -> bool:
        """Return whether the kernel is of one pixel and has few filters; see `_covers_map`."""
        return self.kernel_size == self.strides == (1, 1) and filters < FEW


@keras.saving.register_keras_serializable("tfmammo")
class TransposedConvolution(keras.layers.Conv2DTranspose):
    """keras.layers.Conv2DTranspose, on a CPU as matrix products where that is quicker.

    The products' overlaps are added up. This is quicker in two cases. Where there is a channel for
    each input pixel it is, in training too. Where the product, kernel size x filters of each pixel,
    is no larger than the input, as in front of an image, it is in the forward pass; gradients are
    then the convolution's.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        usual = self.padding == "same" and self.output_padding is None and _is_usual(self, inputs)
        if usual and matmul_is_faster(inputs.shape[0], inputs.shape[1:3], inputs.shape[-1]):
            outputs = self._convolve_small_map(inputs)
        elif usual and self._is_narrow(inputs.shape[-1]):
            kernel = tf.convert_to_tensor(self.kernel)
            outputs = _convolve_to_few_filters(inputs, kernel, self.strides[0])
        else:
            outputs = keras.ops.conv_transpose(
                inputs,
                self.kernel,
                self.strides,
                self.padding,
                self.output_padding,
                dilation_rate=self.dilation_rate,
            )
        return _finish(self, outputs)

    def _convolve_small_map(self, inputs: tf.Tensor) -> tf.Tensor:
        shape = self.compute_output_shape(inputs.shape)
        contributions = _contributions(
            _pixels(shape[1:3], self.kernel_size, self.strides, same=True), math.prod(shape[1:3])
        )
        channels = inputs.shape[-1]
        taps = self.kernel_size[0] * self.kernel_size[1]
        kernel = tf.reshape(tf.convert_to_tensor(self.kernel), [taps * self.filters, channels])
        # The kernel comes first: the other way round two threads take three times as long for 16
        # rows, because only rows are shared between threads.
        products = tf.transpose(
            tf.matmul(kernel, tf.reshape(inputs, [-1, channels]), transpose_b=True)
        )
        products = tf.reshape(products, [-1, *inputs.shape[1:3], taps, self.filters])
        return tf.reshape(tf.reduce_sum(_gather(products, contributions), axis=2), [-1, *shape[1:]])

    def _is_narrow(self, channels: int) -> bool:
        (rows, cols) = self.kernel_size
        (down, right) = self.strides
        return (
            rows * cols * self.filters <= channels
            and rows == cols
            and down == right
            and rows % down == 0 == (rows - down) % 2
        )


def _convolve_to_few_filters(x: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """Convolve transposed, "same", by a kernel [k, k, filters, channels] of few filters.

    The products of all pixels with the kernel are added up where they overlap, and rearranged from
    channels into space. k is a multiple of the stride.
    """
    side, _, filters, channels = kernel.shape
    count = side // stride
    (rows, cols) = x.shape[1:3]
    before = (side - stride) // 2

    @tf.custom_gradient
    def convolve(
        x: tf.Tensor, kernel: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
        """Compute the result, and the function that computes its gradients.

        A kernel position is stride * part + phase. Its part says which pixel of the sum it
        contributes to, its phase where in that pixel.
        """
        parts = tf.transpose(
            tf.reshape(kernel, [count, stride, count, stride, filters, channels]),
            [0, 2, 1, 3, 4, 5],
        )
        products = tf.matmul(
            tf.reshape(x, [-1, channels]), tf.reshape(parts, [-1, channels]), transpose_b=True
        )
        products = tf.reshape(products, [-1, rows, cols, count, count, stride * stride * filters])
        moved = [
            tf.pad(
                products[:, :, :, i, j], [[0, 0], [i, count - 1 - i], [j, count - 1 - j], [0, 0]]
            )
            for i, j in itertools.product(range(count), repeat=2)
        ]
        summed = tf.nn.depth_to_space(tf.add_n(moved), stride) if stride > 1 else tf.add_n(moved)

        def gradients(y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            strides = [1, stride, stride, 1]
            of_kernel = tf.raw_ops.Conv2DBackpropFilter(
                input=y, filter_sizes=kernel.shape, out_backprop=x, strides=strides, padding="SAME"
            )
            return tf.nn.conv2d(y, kernel, stride, "SAME"), of_kernel

        return summed[
            :, before : before + rows * stride, before : before + cols * stride
        ], gradients

    return convolve(x, kernel)


def matmul_is_faster(maps: int | None, shape: Sequence[int], most: float) -> bool:
    """Return whether a matrix product is quicker: for at most this many pixels of all maps."""
    return (maps or UNKNOWN) * math.prod(shape) <= most


def _is_usual(layer: keras.layers.Layer, inputs: tf.Tensor) -> bool:
    return (
        layer.data_format == "channels_last"
        and layer.dilation_rate == (1, 1)
        and getattr(layer, "groups", 1) == 1
        and None not in inputs.shape[1:3]
        and on_cpu()
    )


def _gather(x: tf.Tensor, indices: NDArray[np.int32]) -> tf.Tensor:
    """Gather [batch, *indices.shape, n] from [batch, ..., n], whose inner axes are flattened.

    An index behind their end gives zeros.
    """
    flat = tf.reshape(x, [-1, math.prod(x.shape[1:-1]), x.shape[-1]])
    return tf.gather(tf.pad(flat, [[0, 0], [0, 1], [0, 0]]), indices, axis=1)


def _pixels(
    shape: tuple[int, int], kernel: tuple[int, int], strides: tuple[int, int], same: bool
) -> NDArray[np.int32]:
    """Find the pixel that each tap of each output of a convolution reads: int32 [outputs, taps].

    Pixels outside the map are rows * cols, one behind its end. `same` is the padding.
    """
    rows, cols = (_axis(*axis, same) for axis in zip(shape, kernel, strides, strict=True))
    inside = ((rows >= 0) & (rows < shape[0]))[:, None, :, None] & (
        (cols >= 0) & (cols < shape[1])
    )[None, :, None, :]
    pixels = np.where(
        inside, rows[:, None, :, None] * shape[1] + cols[None, :, None, :], shape[0] * shape[1]
    )
    return pixels.reshape(-1, math.prod(kernel)).astype(np.int32)


def _contributions(pixels: NDArray[np.int32], count: int) -> NDArray[np.int32]:
    """Invert `_pixels` of a map of `count` pixels: int32 [count, n].

    They are the output * taps + tap that read each pixel, outputs * taps where there are fewer.
    """
    order = np.argsort(pixels, axis=None, kind="stable")
    ordered = pixels.ravel()[order]
    counts = np.bincount(ordered, minlength=count + 1)
    nth = np.arange(ordered.size) - (np.cumsum(counts) - counts)[ordered]
    contributions = np.full((count, counts[:-1].max()), pixels.size, np.int32)
    inside = ordered < count
    contributions[ordered[inside], nth[inside]] = order[inside]
    return contributions


def _axis(length: int, kernel: int, stride: int, same: bool) -> NDArray[np.int64]:
    """Find the positions along one axis that a convolution reads, some of them outside the map."""
    outputs = -(-length // stride) if same else (length - kernel) // stride + 1
    before = max((outputs - 1) * stride + kernel - length, 0) // 2 if same else 0
    return np.arange(outputs)[:, None] * stride - before + np.arange(kernel)
