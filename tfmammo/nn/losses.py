"""Pure loss functions of float32 logits and images.

Each returns the mean over the batch, a float32 scalar.

A patch discriminator gives many logits l_i for each sample. The papers average "all the
responses" into one probability P = mean_i sigmoid(l_i) (`average="responses"`); Pix2Pix's code
averages the logarithms instead (`average="losses"`).
"""

from __future__ import annotations

from typing import Literal

import tensorflow as tf

Adversarial = Literal["non_saturating", "as_printed"]
Average = Literal["responses", "losses"]


def log_real(logits: tf.Tensor, average: Average = "responses") -> tf.Tensor:
    """Compute log P, P being the probability that the discriminator gives to "real".

    "responses": log mean_i sigmoid(l_i) = logsumexp_i(log sigmoid(l_i)) - log n. "losses": mean_i
    log sigmoid(l_i). The logits are [batch, rows, cols, 1].

    Examples:
        >>> undecided = np.zeros((2, 4, 4, 1), np.float32)  # sigmoid(0) = 1/2
        >>> round(float(log_real(undecided)), 4)
        -0.6931
    """
    log_sigmoids = tf.math.log_sigmoid(tf.cast(logits, tf.float32))
    if average == "losses":
        return tf.reduce_mean(log_sigmoids)
    responses = tf.cast(tf.reduce_prod(tf.shape(logits)[1:]), tf.float32)
    sums = tf.reduce_logsumexp(log_sigmoids, axis=[1, 2, 3])
    return tf.reduce_mean(sums - tf.math.log(responses))


def log_fake(logits: tf.Tensor, average: Average = "responses") -> tf.Tensor:
    """Compute log(1 - P), since 1 - sigmoid(l) = sigmoid(-l); see `log_real`."""
    return log_real(-logits, average)


def deceive(fake: tf.Tensor, adversarial: Adversarial, average: Average = "responses") -> tf.Tensor:
    """Compute what a generator minimises of D's logits for its fakes: -log P, or log(1 - P)."""
    return log_fake(fake, average) if adversarial == "as_printed" else -log_real(fake, average)


def l1(target: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
    """Compute the mean of |target - output| over all elements, float32."""
    return tf.reduce_mean(tf.abs(tf.cast(target, tf.float32) - tf.cast(output, tf.float32)))


def mean_square(target: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
    """Compute the mean of (target - output)^2 over all elements, float32."""
    return tf.reduce_mean(
        tf.math.squared_difference(tf.cast(target, tf.float32), tf.cast(output, tf.float32))
    )


def l2_norm(target: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
    """Compute each sample's Euclidean norm of target - output, averaged over the batch, float32.

    The square root's gradient is infinite at 0; 1e-12 under it keeps that of an exact output
    finite.
    """
    squared = tf.math.squared_difference(tf.cast(target, tf.float32), tf.cast(output, tf.float32))
    return tf.reduce_mean(tf.sqrt(tf.reduce_sum(squared, axis=[1, 2, 3]) + 1e-12))


def dice_loss(target: tf.Tensor, output: tf.Tensor, smooth: float = 1.0) -> tf.Tensor:
    """Compute 1 - Dice of each sample's soft masks in [0, 1], averaged over the batch, float32.

    1 - (2 sum(y * o) + smooth) / (sum(y) + sum(o) + smooth); with `smooth` two empty masks agree
    (0) and the gradient of an empty target stays finite.

    Examples:
        >>> mask = np.ones((1, 4, 4, 1), np.float32)
        >>> float(dice_loss(mask, mask)), round(float(dice_loss(mask, 0 * mask)), 3)
        (0.0, 0.941)
    """
    target = tf.cast(target, tf.float32)
    output = tf.cast(output, tf.float32)
    overlap = tf.reduce_sum(target * output, axis=[1, 2, 3])
    total = tf.reduce_sum(target, axis=[1, 2, 3]) + tf.reduce_sum(output, axis=[1, 2, 3])
    return tf.reduce_mean(1 - (2 * overlap + smooth) / (total + smooth))
