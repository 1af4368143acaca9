"""Patches -> batches: a stateless tf.data pipeline whose n-th batch depends on the seed
and on n alone.

That is what makes a run repeatable, and resumable at any step on one device or several, without
saving an iterator: draw i belongs to epoch i // n, stands at place i % n of that epoch's
permutation, and is turned by a random number that only the seed and i decide. Of balanced patches
draw i is of class i % classes, and the (i // classes)-th of that class.

Patches in memory are drawn in uniformly random order. `Records` are streamed: an epoch takes their
shards in random order, a few at a time, and shuffles what arrives in blocks of about 64 MB, so that
the memory needed does not depend on how many patches there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfmammo.data.patches import Patches
from tfmammo.data.tfrecord import GREY, Records
from tfmammo.data.whole import Whole
from tfmammo.errors import DataError

FOREVER = np.iinfo(np.int64).max
BLOCK_BYTES = 2**26  # what is shuffled at once, read ahead once more
OPEN_SHARDS = 16  # read in turns


def batches(
    patches: Patches | Records,
    batch_size: int,
    seed: int,
    augment: bool,
    start_step: int = 0,
    share: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """An endless dataset of training batches; every epoch shows every patch once, in a new order.

    Args:
        patches: Patches are kept in memory, so that decoding happens once; each draw from them
            shuffles their numbers anew, which costs time in proportion to how many they are: beyond
            about 20,000 stream Records.
        batch_size: Patches a batch, over all devices.
        seed: Decides order and augmentation.
        augment: Turn each draw by one of the eight rotations and flips of the square, image and
            mask together.
        start_step: Batches already consumed; of Records at most one epoch is read over, undecoded.
        share: (part, parts): of every batch only this one of so many equal parts, which stand one
            behind the other in it; nothing else is decoded. Whole mammograms are flipped, never
            turned.

    Returns:
        {"image": float32 [batch, size, size, 1] in [0, 1], "mask": the same shape, 0 or 1}; of
        labelled patches "label" too, int32 [batch]; of Whole mammograms, which need not be square,
        "boxes" and "classes" too, as they are there.

    Raises:
        DataError: Records hold no patch, or a shard is missing or not what its manifest says.
    """
    start = start_step * batch_size
    (part, parts) = share
    if isinstance(patches, Records):
        numbers, draw = _streamed(patches, start, seed, augment)
    else:
        numbers, draw = _remembered(patches, start, seed, augment)
    size = batch_size // parts
    if parts > 1:
        numbers = numbers.batch(size).shard(parts, part).unbatch()
    drawn = numbers.map(draw, num_parallel_calls=2, deterministic=True)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return drawn.batch(size, drop_remainder=True).prefetch(2).with_options(options)


def _remembered(
    patches: Patches, start: int, seed: int, augment: bool
) -> tuple[tf.data.Dataset, Callable[..., Any]]:
    """Draws start, start + 1, ... of patches in memory: their numbers, and what makes a draw of
    one.
    """
    images = tf.constant(patches.images)
    masks = tf.constant(patches.masks)
    groups = (
        [np.flatnonzero(patches.labels == label) for label in np.unique(patches.labels)]
        if patches.balanced
        else []
    )
    groups = groups or [np.arange(len(patches))]
    rows = tf.constant(np.concatenate(groups))
    counts = tf.constant([len(group) for group in groups], tf.int64)
    starts = tf.cumsum(counts, exclusive=True)

    def draw(i: tf.Tensor) -> dict[str, tf.Tensor]:
        """Draw i: which patch, by a new order in every epoch, and how it is turned."""
        group = i % len(groups)
        turn_of_group = i // len(groups)
        count = counts[group]
        epoch = turn_of_group // count
        place = turn_of_group % count
        order_seed = tf.stack([tf.constant(seed, tf.int64), epoch * len(groups) + group])
        # A whole shuffle for one place: index_shuffle keeps eight bits of each seed here, so its
        # orders return after 256 epochs.
        index = rows[
            starts[group]
            + tf.random.experimental.stateless_shuffle(tf.range(count), order_seed)[place]
        ]
        mask = tf.cast(masks[index], tf.float32)
        if isinstance(patches, Whole):
            turn = 2 * _draw_turn(seed, i, 4) if augment else tf.constant(0)
            # An even turn keeps rows and columns, which TensorFlow can't know.
            image, mask = (
                tf.ensure_shape(dihedral(one, turn), images.shape[1:])
                for one in (images[index], mask)
            )
            boxes = flipped(tf.constant(patches.boxes)[index], turn)
            return {
                "image": image,
                "mask": mask,
                "boxes": boxes,
                "classes": tf.constant(patches.classes)[index],
            }
        example = _example(images[index], mask, seed, i, augment)
        return example | (
            {"label": tf.constant(patches.labels)[index]} if len(patches.labels) else {}
        )

    return tf.data.Dataset.range(start, FOREVER), draw


def _streamed(
    records: Records, start: int, seed: int, augment: bool
) -> tuple[tf.data.Dataset, Callable[..., Any]]:
    """Draws start, start + 1, ... of patches on disk: their numbers with their records, and what
    makes a draw of both.
    """
    if not len(records):
        raise DataError("there is no patch to draw from")
    records.check()
    size = records.size
    count = len(records)
    chosen = records.chosen()
    paths = tf.constant([str(path) for path, _ in chosen])
    wanted = tf.ragged.constant([part.tolist() for _, part in chosen], tf.bool)
    block = max(16, BLOCK_BYTES // (2 * size * size))
    first, skipped = divmod(start, count)

    def shard(number: tf.Tensor) -> tf.data.Dataset:
        """The wanted records of one shard, undecoded."""
        keep = wanted[number]
        return (
            tf.data.TFRecordDataset(paths[number])
            .enumerate()
            .filter(lambda i, _: keep[i])
            .map(lambda _, record: record)
        )

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        """All wanted records once, in this epoch's order; the first epoch begins where the run left
        it.
        """
        order_seed = tf.stack([tf.constant(seed, tf.int64), number])
        order = tf.random.experimental.stateless_shuffle(tf.range(len(chosen)), order_seed)
        in_turns = tf.data.Dataset.from_tensor_slices(order).interleave(shard, OPEN_SHARDS, 1)
        past = tf.where(number == first, tf.constant(skipped, tf.int64), tf.constant(0, tf.int64))

        def shuffled(place: tf.Tensor, block_of: tf.Tensor) -> tf.data.Dataset:
            block_seed = tf.random.experimental.stateless_fold_in(order_seed, place)
            order = tf.random.experimental.stateless_shuffle(
                tf.range(tf.size(block_of)), block_seed
            )
            return tf.data.Dataset.from_tensor_slices(tf.gather(block_of, order))

        blocks = in_turns.skip(past // block * block).batch(block).prefetch(1)
        return blocks.enumerate(past // block).flat_map(shuffled).skip(past % block)

    def draw(i: tf.Tensor, record: tf.Tensor) -> dict[str, tf.Tensor]:
        text = tf.io.FixedLenFeature([], tf.string)
        found = tf.io.parse_single_example(record, {"image": text, "mask": text})
        image = (
            tf.cast(
                tf.reshape(tf.io.decode_raw(found["image"], tf.uint16), [size, size, 1]), tf.float32
            )
            / GREY
        )
        mask = tf.ensure_shape(tf.io.decode_png(found["mask"], channels=1), [size, size, 1])
        return _example(image, tf.cast(mask, tf.float32), seed, i, augment)

    return tf.data.Dataset.range(first, FOREVER).flat_map(epoch).enumerate(start), draw


def _example(
    image: tf.Tensor, mask: tf.Tensor, seed: int, i: tf.Tensor, augment: bool
) -> dict[str, tf.Tensor]:
    """Draw i, turned by what the seed and i decide."""
    if augment:
        turn = _draw_turn(seed, i, 8)
        image = dihedral(image, turn)
        mask = dihedral(mask, turn)
    return {"image": image, "mask": mask}


def _draw_turn(seed: int, i: tf.Tensor, count: int) -> tf.Tensor:
    return tf.random.stateless_uniform(
        [], tf.stack([tf.constant(seed, tf.int64), i]), 0, count, tf.int32
    )


def flipped(boxes: tf.Tensor, turn: tf.Tensor | int) -> tf.Tensor:
    """Boxes of an image to which `dihedral` does a flip, or both: turn 0, 2, 4 or 6.

    Args:
        boxes: float32 [n, 4], [row_min, col_min, row_max, col_max] as parts of the image's sides.
        turn: int32, even.

    Returns:
        The same shape; a box without area keeps none.
    """
    rows = turn % 4 == 2
    cols = tf.not_equal(rows, turn >= 4)  # 2 flips both, 4 the columns, 6 the rows
    mirrored = 1 - tf.gather(boxes, [2, 3, 0, 1], axis=-1)
    return tf.where(tf.stack([rows, cols, rows, cols]), mirrored, boxes)


def dihedral(image: tf.Tensor, turn: tf.Tensor | int) -> tf.Tensor:
    """One of the eight symmetries of the square: turn % 4 quarter turns counter-clockwise, then for
    turn >= 4 a flip.

    Args:
        image: [size, size, channels]; for an even turn its rows and columns may differ.
        turn: int32 in [0, 8); 0 is the identity.

    Returns:
        The same shape and dtype; no value is interpolated.
    """
    turned = tf.image.rot90(image, turn % 4)
    return tf.where(turn >= 4, tf.reverse(turned, axis=[1]), turned)
