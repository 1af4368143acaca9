"""Layers that two or more rooms use identically."""

from __future__ import annotations

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("tfmammo")
class SampleNormalization(keras.layers.Layer):
    """Normalise each sample and channel by its own mean and variance over rows and columns, then scale and shift.

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta, mean and (biased) variance in float32 over axes 1 and 2.

    At batch 1 this is batch normalisation with the statistics of the batch, the reading under which Pix2Pix and CAN train
    *and* test: it keeps no moving averages, so a network answers alike in training and at inference, for any batch size
    and any number of replicas. gamma starts from N(1, 0.02), beta from 0, as in Pix2Pix.

    Args:     x: floating [batch, rows, cols, channels].
    Returns:  the same shape and dtype.
    Source:   Isola et al., Image-to-image translation with conditional adversarial networks, section 6.1. Departure:
              epsilon 1e-3 is Keras's default (CAN is a Keras programme); the Torch original has 1e-5.
    """

    def __init__(self, epsilon: float = 1e-3, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create gamma and beta, float32 [channels]."""
        channels = (input_shape[-1],)
        self.gamma = self.add_weight(shape=channels, initializer=keras.initializers.RandomNormal(1.0, 0.02), name="gamma", autocast=False)
        self.beta = self.add_weight(shape=channels, initializer="zeros", name="beta", autocast=False)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """See the class."""
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        if x.shape[0] == 1:  # one fused kernel; more samples would share their statistics in it
            return tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=self.epsilon, is_training=True)[0]
        wide = tf.cast(x, tf.float32)
        mean, variance = tf.nn.moments(wide, axes=[1, 2], keepdims=True)
        return tf.cast(tf.nn.batch_normalization(wide, mean, variance, beta, gamma, self.epsilon), x.dtype)

    def get_config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return {**super().get_config(), "epsilon": self.epsilon}
