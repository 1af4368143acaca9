"""Convolutions of small maps as matrix products on a CPU: Keras's layers, their weights
and values, several times as fast there.

oneDNN, which computes TensorFlow's convolutions on a CPU, turns a kernel into an order of its own
in every call, and its gradient back. Where maps have few places and a layer has many channels, as
within every U-Net, that takes far longer than the arithmetic: training a transposed convolution of
1024 to 512 channels on a map of 2 x 2 five times as long. A matrix product takes the kernel as it
lies in memory; what it needs besides, patches or what is to be added up, is never larger than the
kernel.

On any other device Keras's own operations are used, which is decided where a call is traced: see
`on_cpu`. In float32 both ways agree to rounding. In bfloat16 a matrix product is rounded once and
the parts that meet in a place are then added in bfloat16, so that transposed outputs and gradients
of inputs are up to 1.6 times as far from float32's as Keras's are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

UNKNOWN = 4  # maps, where their number is not known


def on_cpu() -> bool:
    """Whether an operation that is created here runs on a CPU: by the device scope, else because
    there is no GPU.
    """
    scope = tf.constant(0.0).device
    return "CPU" in scope if scope else not tf.config.list_logical_devices("GPU")


@keras.saving.register_keras_serializable("tfmammo")
class Convolution(keras.layers.Conv2D):
    """keras.layers.Conv2D; on a CPU, with at least two filters for each output place, one matrix
    product, patches x kernel.

    X: floating [batch, rows, cols, channels].

    Returns:
        [batch, rows / stride, cols / stride, filters], as Keras's.
    """

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolve, without the bias.

        Args:
            kernel: [kernel rows, kernel cols, channels, filters].
        """
        shape = self.compute_output_shape(inputs.shape)
        if not (
            _is_usual(self) and pays(inputs.shape[0], shape[1:3], kernel.shape[-1] / 2) and on_cpu()
        ):
            return super().convolution_op(inputs, kernel)
        pixels = _pixels(inputs.shape[1:3], self.kernel_size, self.strides, self.padding == "same")
        taps = pixels.shape[1]
        channels = inputs.shape[-1]
        filters = kernel.shape[-1]
        patches = tf.reshape(_gather(inputs, pixels), [-1, taps * channels])
        return tf.reshape(
            tf.matmul(patches, tf.reshape(kernel, [-1, filters])), [-1, *shape[1:3], filters]
        )


@keras.saving.register_keras_serializable("tfmammo")
class TransposedConvolution(keras.layers.Conv2DTranspose):
    """keras.layers.Conv2DTranspose; on a CPU as matrix products whose overlaps are added up where
    that is quicker.

    So it is where there is a channel for each input place, in training too, and where the product,
    kernel places x filters of each pixel, is no larger than what comes in, as in front of an image;
    the latter's gradients are those of the convolution.

    X: floating [batch, rows, cols, channels].

    Returns:
        [batch, rows * stride, cols * stride, filters], as Keras's.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        usual = _is_usual(self) and self.padding == "same" and self.output_padding is None
        usual = usual and None not in inputs.shape[1:3] and on_cpu()
        if usual and pays(inputs.shape[0], inputs.shape[1:3], inputs.shape[-1]):
            outputs = self._of_small_map(inputs)
        elif usual and self._is_narrow(inputs.shape[-1]):
            outputs = _to_few_filters(inputs, tf.convert_to_tensor(self.kernel), self.strides[0])
        else:
            return super().call(inputs)
        outputs = outputs + self.bias if self.use_bias else outputs
        return self.activation(outputs) if self.activation is not None else outputs

    def _of_small_map(self, inputs: tf.Tensor) -> tf.Tensor:
        shape = self.compute_output_shape(inputs.shape)
        contributions = _contributions(
            _pixels(shape[1:3], self.kernel_size, self.strides, same=True), math.prod(shape[1:3])
        )
        channels = inputs.shape[-1]
        taps = self.kernel_size[0] * self.kernel_size[1]
        kernel = tf.reshape(tf.convert_to_tensor(self.kernel), [taps * self.filters, channels])
        # The kernel first: the other way round two threads take three times as long for 16 rows, as
        # only they are shared out.
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


def _to_few_filters(x: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """Transposed convolution, "same": the products of all pixels with the kernel; those that meet
    added up; out of channels into space.

    Args:
        x: floating [batch, rows, cols, channels].
        kernel: [k, k, filters, channels], k a multiple of the stride.

    Returns:
        [batch, rows * stride, cols * stride, filters].
    """
    side, _, filters, channels = kernel.shape
    count = side // stride
    (rows, cols) = x.shape[1:3]
    before = (side - stride) // 2

    @tf.custom_gradient
    def convolved(
        x: tf.Tensor, kernel: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
        # A kernel place is stride * part + phase: its part says which pixel of the sum it meets,
        # its phase where in there.
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

    return convolved(x, kernel)


def pays(maps: int | None, places: Sequence[int | None], most: float) -> bool:
    """Whether the matrix product is quicker.

    Args:
        maps: Whose product is its number of rows.
        places: Whose product is its number of rows.
        most: Of them.
    """
    return (
        None not in places and (maps or UNKNOWN) * math.prod(place or 0 for place in places) <= most
    )


def _is_usual(layer: keras.layers.Layer) -> bool:
    return (
        layer.data_format == "channels_last"
        and layer.dilation_rate == (1, 1)
        and getattr(layer, "groups", 1) == 1
    )


def _gather(x: tf.Tensor, places: NDArray[np.int32]) -> tf.Tensor:
    """[batch, ..., n] -> [batch, *places.shape, n]: of the flattened middle; a place behind its end
    holds zeros.
    """
    flat = tf.reshape(x, [-1, math.prod(x.shape[1:-1]), x.shape[-1]])
    return tf.gather(tf.pad(flat, [[0, 0], [0, 1], [0, 0]]), places, axis=1)


def _pixels(
    shape: tuple[int, int], kernel: tuple[int, int], strides: tuple[int, int], same: bool
) -> NDArray[np.int32]:
    """Where a convolution looks.

    Args:
        shape: Rows and columns of what is convolved.

    Returns:
        int32 [outputs, taps], the pixel that each tap of each output meets, rows * cols outside the
        map.
    """
    (rows, row_taps), (cols, col_taps) = (
        _axis(*axis, same) for axis in zip(shape, kernel, strides, strict=True)
    )
    inside = ((rows >= 0) & (rows < shape[0]))[:, None, :, None] & (
        (cols >= 0) & (cols < shape[1])
    )[None, :, None, :]
    pixels = np.where(
        inside, rows[:, None, :, None] * shape[1] + cols[None, :, None, :], shape[0] * shape[1]
    )
    return pixels.reshape(-1, row_taps * col_taps).astype(np.int32)


def _contributions(pixels: NDArray[np.int32], count: int) -> NDArray[np.int32]:
    """The other way round.

    Args:
        pixels: As `_pixels` gives them.
        count: How many pixels the map has.

    Returns:
        int32 [count, n], the output * taps + tap that meet each pixel, outputs * taps where there
        are fewer.
    """
    order = np.argsort(pixels, axis=None, kind="stable")
    met = pixels.ravel()[order]
    counts = np.bincount(met, minlength=count + 1)
    nth = np.arange(met.size) - (np.cumsum(counts) - counts)[met]
    contributions = np.full((count, counts[:-1].max()), pixels.size, np.int32)
    real = met < count
    contributions[met[real], nth[real]] = order[real]
    return contributions


def _axis(length: int, kernel: int, stride: int, same: bool) -> tuple[NDArray[np.int64], int]:
    """[outputs, taps]: the place along one axis, from -1 and the like on, and the
    number of taps.
    """
    outputs = -(-length // stride) if same else (length - kernel) // stride + 1
    before = max((outputs - 1) * stride + kernel - length, 0) // 2 if same else 0
    return np.arange(outputs)[:, None] * stride - before + np.arange(kernel), kernel
