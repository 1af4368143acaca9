"""Patches -> batches: a stateless tf.data pipeline whose n-th batch depends on the seed and on n alone.

That is what makes a run repeatable, and resumable at any step on one device or several, without saving an iterator:
draw i belongs to epoch i // n, stands at place i % n of that epoch's permutation, and is turned by a random number that
only the seed and i decide.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfmammo.data.patches import Patches

FOREVER = np.iinfo(np.int64).max


def batches(patches: Patches, batch_size: int, seed: int, augment: bool, start_step: int = 0) -> tf.data.Dataset:
    """An endless dataset of training batches; every epoch shows every patch once, in a new order.

    Args:     patches: kept in memory, so that decoding happens once. batch_size: patches a batch, over all devices.
              seed: decides order and augmentation. augment: turn each draw by one of the eight rotations and flips of the
              square, image and mask together. start_step: batches already consumed.
    Returns:  {"image": float32 [batch, size, size, 1] in [0, 1], "mask": the same shape, 0 or 1}.
    """
    images, masks = tf.constant(patches.images), tf.constant(patches.masks)
    count = len(patches)

    def draw(i: tf.Tensor) -> dict[str, tf.Tensor]:
        epoch, place = i // count, i % count
        order_seed = tf.stack([tf.constant(seed, tf.int64), epoch])
        # A whole shuffle for one place: index_shuffle keeps eight bits of each seed here, so its orders return after 256 epochs.
        index = tf.random.experimental.stateless_shuffle(tf.range(count), order_seed)[place]
        image, mask = images[index], tf.cast(masks[index], tf.float32)
        if augment:
            turn = tf.random.stateless_uniform([], tf.stack([tf.constant(seed, tf.int64), i]), 0, 8, tf.int32)
            image, mask = dihedral(image, turn), dihedral(mask, turn)
        return {"image": image, "mask": mask}

    numbers = tf.data.Dataset.range(start_step * batch_size, FOREVER)
    drawn = numbers.map(draw, num_parallel_calls=2, deterministic=True)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return drawn.batch(batch_size, drop_remainder=True).prefetch(2).with_options(options)


def dihedral(image: tf.Tensor, turn: tf.Tensor | int) -> tf.Tensor:
    """One of the eight symmetries of the square: turn % 4 quarter turns counter-clockwise, then for turn >= 4 a flip.

    Args:     image: [size, size, channels]. turn: int32 in [0, 8); 0 is the identity.
    Returns:  the same shape and dtype; no value is interpolated.
    """
    turned = tf.image.rot90(image, turn % 4)
    return tf.where(turn >= 4, tf.reverse(turned, axis=[1]), turned)
