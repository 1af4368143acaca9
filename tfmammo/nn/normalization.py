"""Normalisation of maps [batch, rows, cols, channels], by statistics in float32."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

EPSILON = 1e-3


@keras.saving.register_keras_serializable("tfmammo")
class SampleNormalization(keras.layers.Layer):
    """Normalise each sample and channel by its own mean and variance over rows and columns.

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta, mean and (biased) variance in float32.

    At batch 1 this is batch normalisation with the statistics of the batch, the reading under which
    Pix2Pix and CAN train *and* test. It keeps no moving averages. A network therefore gives the
    same output in training and at inference, for any batch size and any number of replicas. gamma
    starts from N(1, 0.02), beta from 0, as in Pix2Pix.

    Deviation: epsilon is Keras's default (CAN is a Keras programme); the Torch original has
    1e-5.

    Source: Isola et al., Image-to-image translation with conditional adversarial networks, section
    6.1.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create gamma and beta, float32 [channels]."""
        channels = (input_shape[-1],)
        self.gamma = self.add_weight(
            shape=channels,
            initializer=keras.initializers.RandomNormal(1.0, 0.02),
            name="gamma",
            autocast=False,
        )
        self.beta = self.add_weight(
            shape=channels, initializer="zeros", name="beta", autocast=False
        )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """See the class."""
        gamma = tf.convert_to_tensor(self.gamma)
        beta = tf.convert_to_tensor(self.beta)
        if x.shape[0] == 1:  # one fused kernel, in which several samples would share statistics
            return tf.compat.v1.nn.fused_batch_norm(
                x, gamma, beta, epsilon=EPSILON, is_training=True
            )[0]
        wide = tf.cast(x, tf.float32)
        mean, variance = tf.nn.moments(wide, axes=[1, 2], keepdims=True)
        return tf.cast(
            tf.nn.batch_normalization(wide, mean, variance, beta, gamma, EPSILON), x.dtype
        )


@keras.saving.register_keras_serializable("tfmammo")
class BatchNormalization(keras.layers.BatchNormalization):
    """keras.layers.BatchNormalization as one fused kernel in training: half the time.

    The numbers are the same. Where replicas share a batch, mean and variance are those of the whole
    batch, so that a network trains alike on any number of devices, and all replicas have the same
    moving averages. No kernel does that, so it takes longer.

    Keras does whatever that kernel can't do: another axis, a mask, no scale or no centre, other
    ranks. There each replica normalises by its own share of a batch, unless `synchronized` is set.
    """

    def call(
        self, x: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """See the class."""
        usual = (
            len(x.shape) == 4
            and self.axis in (-1, len(x.shape) - 1)
            and mask is None
            and self.scale
            and self.center
            and not self.synchronized
        )
        if not (training and self.trainable and usual):
            return super().call(x, training=training, mask=mask)
        gamma = tf.convert_to_tensor(self.gamma)
        beta = tf.convert_to_tensor(self.beta)
        if shares_batch():
            wide = tf.cast(x, tf.float32)
            mean, biased = compute_batch_moments(wide, [0, 1, 2])
            y = tf.nn.batch_normalization(wide, mean, biased, beta, gamma, self.epsilon)
            y = tf.cast(y, x.dtype)
        else:
            y, mean, variance = tf.compat.v1.nn.fused_batch_norm(
                x, gamma, beta, epsilon=self.epsilon, is_training=True
            )
            count = tf.cast(tf.size(x) / x.shape[-1], tf.float32)
            biased = variance * (count - 1.0) / count  # which Keras's moving variance averages
        for average, value in ((self.moving_mean, mean), (self.moving_variance, biased)):
            average.assign(average * self.momentum + value * (1.0 - self.momentum))
        return y


def shares_batch() -> bool:
    """Return whether this replica has only a share of a batch, and others have the rest."""
    context = tf.distribute.get_replica_context()  # None outside replicas
    return context is not None and context.num_replicas_in_sync > 1


def compute_batch_moments(x: tf.Tensor, axes: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Compute mean and (biased) variance of a batch, float32, that replicas share equally.

    Every replica gets the same numbers, and gradients reach all shares. One exchange serves both
    moments: the variance of the whole is the mean of the shares' variances plus the variance of
    their means. The axes to reduce must include the batch's.
    """
    mean, variance = tf.nn.moments(x, axes)
    if not shares_batch():
        return mean, variance
    context = tf.distribute.get_replica_context()
    # a sum in which each replica fills a row of its own leaves all rows to all replicas
    row = tf.one_hot(context.replica_id_in_sync_group, context.num_replicas_in_sync)
    rows = tf.tensordot(row, tf.stack([mean, variance]), axes=0)
    rows = context.all_reduce(tf.distribute.ReduceOp.SUM, rows)
    mean, between = tf.nn.moments(rows[:, 0], [0])
    return mean, tf.reduce_mean(rows[:, 1], 0) + between


@keras.saving.register_keras_serializable("tfmammo")
class GroupNormalization(keras.layers.GroupNormalization):
    """keras.layers.GroupNormalization of maps with two reductions: half the time on a CPU.

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta, mean and (biased) variance in float32
    over rows, columns and the channels of a group. The variance is E[x^2] - E[x]^2. So the numbers
    are Keras's but for rounding, which grows with (mean / deviation)^2: 1e-7 of the variance where
    the mean is 1 deviation, 1e-3 where it is 100. Keras does whatever else its layer offers:
    other axes and ranks, no scale or no centre.
    """

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """See the class."""
        usual = len(x.shape) == 4 and self.axis in (-1, 3) and self.scale and self.center
        if not usual:
            return super().call(x)
        grouped = [self.groups, x.shape[-1] // self.groups]
        wide = tf.cast(x, tf.float32)
        # of each channel first: a group's channels are not side by side
        moments = tf.stack([tf.reduce_mean(wide, [1, 2]), tf.reduce_mean(wide * wide, [1, 2])])
        moments = tf.reduce_mean(tf.reshape(moments, [2, -1, *grouped]), axis=-1, keepdims=True)
        mean, square = tf.unstack(moments)
        variance = tf.nn.relu(square - mean * mean)  # rounding can make it negative
        factor = tf.math.rsqrt(variance + self.epsilon) * tf.reshape(self.gamma, grouped)
        offset = tf.reshape(self.beta, grouped) - mean * factor
        factor, offset = (tf.reshape(part, [-1, 1, 1, x.shape[-1]]) for part in (factor, offset))
        y = wide * factor + offset
        return tf.cast(y, self.compute_dtype)
