"""Patches -> batches: a stateless tf.data pipeline whose n-th batch depends on seed and n alone.

That is what makes a run repeatable, and resumable at any step on one device or several, without
saving an iterator. Draw i belongs to epoch i // n and has place i % n in that epoch's
permutation. A random number that only the seed and i decide rotates and flips it. Of balanced
patches draw i is of class i % classes, and the (i // classes)-th of that class.

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
from tfmammo.data.tfrecord import GREY, PatchSource, Records
from tfmammo.errors import DataError

FOREVER = np.iinfo(np.int64).max
BLOCK_BYTES = 2**26  # what is shuffled at once, read ahead once more
OPEN_SHARDS = 16  # read in turns


# The numbers of draws, with whatever is read for them, and the function from one of them to an
# example.
Draws = tuple[tf.data.Dataset, Callable[..., Any]]


def batches(
    patches: PatchSource,
    batch_size: int,
    seed: int,
    augment: bool,
    start_step: int = 0,
    share: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Make an endless dataset of training batches; an epoch shows every patch once, in a new order.

    Args:
        patches: Patches are kept in memory, so that decoding happens once. Each draw from them
            shuffles their numbers again, which costs time in proportion to how many they are:
            beyond about 20,000 stream Records.
        batch_size: Patches of a batch.
        seed: Of order and augmentation.
        augment: Transform each draw by one of the eight rotations and flips of the square, image
            and mask together. Whole mammograms are flipped, never rotated by 90 degrees.
        start_step: The first batch.
        share: (part, parts): of every batch only this one of so many equal parts, which follow one
            behind the other in it; nothing else is decoded.

    Returns:
        {"image": float32 [batch, size, size, 1] in [0, 1], "mask": the same shape, 0 or 1}.
        Labelled patches add "label", int32 [batch]. Whole mammograms, which need not be square, add
        their "boxes" and "classes".
    """
    part, parts = share
    size = batch_size // parts
    start = start_step * batch_size
    if isinstance(patches, Records):
        numbers, draw = _stream_from_shards(patches, start, seed, augment)
    else:
        numbers, draw = _draw_from_memory(patches, start, seed, augment)
    if parts > 1:
        numbers = numbers.batch(size).shard(parts, part).unbatch()
    examples = numbers.map(draw, num_parallel_calls=2, deterministic=True)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return examples.batch(size, drop_remainder=True).prefetch(2).with_options(options)


def _draw_from_memory(patches: Patches, start: int, seed: int, augment: bool) -> Draws:
    images = tf.constant(patches.images)
    masks = tf.constant(patches.masks)
    targets = {name: tf.constant(values) for name, values in patches.targets.items()}
    groups = [np.arange(len(patches))]
    if patches.balanced and len(patches.labels):
        groups = [np.flatnonzero(patches.labels == label) for label in np.unique(patches.labels)]
    rows = tf.constant(np.concatenate(groups))
    counts = tf.constant([len(group) for group in groups], tf.int64)
    starts = tf.cumsum(counts, exclusive=True)

    def draw(i: tf.Tensor) -> dict[str, tf.Tensor]:
        """Choose patch i by the order of its epoch, then rotate and flip it."""
        group = i % len(groups)
        draw_of_group = i // len(groups)
        count = counts[group]
        epoch = draw_of_group // count
        place = draw_of_group % count
        order_seed = tf.stack([tf.constant(seed, tf.int64), epoch * len(groups) + group])
        # A whole shuffle for one place: index_shuffle keeps eight bits of each seed here, so its
        # orders return after 256 epochs.
        order = tf.random.experimental.stateless_shuffle(tf.range(count), order_seed)
        index = rows[starts[group] + order[place]]
        example = {name: values[index] for name, values in targets.items()}
        example |= {"image": images[index], "mask": tf.cast(masks[index], tf.float32)}
        return _turn(example, seed, i, patches.square) if augment else example

    return tf.data.Dataset.range(start, FOREVER), draw


def _stream_from_shards(records: Records, start: int, seed: int, augment: bool) -> Draws:
    if not len(records):
        raise DataError("there is no patch to draw from")
    records.check()
    size = records.size
    count = len(records)
    shards = records.select_shards()
    paths = tf.constant([str(path) for path, _ in shards])
    wanted = tf.ragged.constant([is_wanted.tolist() for _, is_wanted in shards], tf.bool)
    block = max(16, BLOCK_BYTES // (2 * size * size))
    first, skipped = divmod(start, count)

    def read_shard(number: tf.Tensor) -> tf.data.Dataset:
        """Read the wanted records of one shard, undecoded."""
        keep = wanted[number]
        return (
            tf.data.TFRecordDataset(paths[number])
            .enumerate()
            .filter(lambda i, _: keep[i])
            .map(lambda _, record: record)
        )

    def read_epoch(number: tf.Tensor) -> tf.data.Dataset:
        """Read all wanted records once, in this epoch's order.

        The first epoch begins where the run left it.
        """
        order_seed = tf.stack([tf.constant(seed, tf.int64), number])
        order = tf.random.experimental.stateless_shuffle(tf.range(len(shards)), order_seed)
        interleaved = tf.data.Dataset.from_tensor_slices(order).interleave(
            read_shard, OPEN_SHARDS, 1
        )
        past = tf.where(number == first, tf.constant(skipped, tf.int64), tf.constant(0, tf.int64))

        def shuffle(place: tf.Tensor, records_of: tf.Tensor) -> tf.data.Dataset:
            """Shuffle block number `place` of the epoch, whose records are given."""
            block_seed = tf.random.experimental.stateless_fold_in(order_seed, place)
            order = tf.random.experimental.stateless_shuffle(
                tf.range(tf.size(records_of)), block_seed
            )
            return tf.data.Dataset.from_tensor_slices(tf.gather(records_of, order))

        blocks = interleaved.skip(past // block * block).batch(block).prefetch(1)
        return blocks.enumerate(past // block).flat_map(shuffle).skip(past % block)

    def draw(i: tf.Tensor, record: tf.Tensor) -> dict[str, tf.Tensor]:
        """Decode the record of draw i, then rotate and flip the patch."""
        example = _decode(record, size)
        return _turn(example, seed, i, square=True) if augment else example

    return tf.data.Dataset.range(first, FOREVER).flat_map(read_epoch).enumerate(start), draw


def _decode(record: tf.Tensor, size: int) -> dict[str, tf.Tensor]:
    """Decode image and mask of a record, float32 [size, size, 1] each."""
    text = tf.io.FixedLenFeature([], tf.string)
    features = tf.io.parse_single_example(record, {"image": text, "mask": text})
    stored = tf.reshape(tf.io.decode_raw(features["image"], tf.uint16), [size, size, 1])
    mask = tf.ensure_shape(tf.io.decode_png(features["mask"], channels=1), [size, size, 1])
    return {"image": tf.cast(stored, tf.float32) / GREY, "mask": tf.cast(mask, tf.float32)}


def _turn(
    example: dict[str, tf.Tensor], seed: int, i: tf.Tensor, square: bool
) -> dict[str, tf.Tensor]:
    """Rotate and flip draw i as seed and i decide, by an even turn where it is not square."""
    turn_seed = tf.stack([tf.constant(seed, tf.int64), i])
    turn = tf.random.stateless_uniform([], turn_seed, 0, 8 if square else 4, tf.int32)
    turn = turn if square else 2 * turn
    turned = dict(example)
    for name in ("image", "mask"):
        # An even turn keeps rows and columns, which TensorFlow can't know.
        shape = example[name].shape
        turned[name] = tf.ensure_shape(rotate_and_flip(example[name], turn), shape)
    if "boxes" in example:
        turned["boxes"] = flip_boxes(example["boxes"], turn)
    return turned


def flip_boxes(boxes: tf.Tensor, turn: tf.Tensor | int) -> tf.Tensor:
    """Flip boxes [n, 4] in [0, 1] as `rotate_and_flip` flips an image by the turn 0, 2, 4 or 6."""
    rows = turn % 4 == 2
    cols = tf.not_equal(rows, turn >= 4)  # 2 flips both, 4 the columns, 6 the rows
    mirrored = 1 - tf.gather(boxes, [2, 3, 0, 1], axis=-1)
    return tf.where(tf.stack([rows, cols, rows, cols]), mirrored, boxes)


def rotate_and_flip(image: tf.Tensor, turn: tf.Tensor | int) -> tf.Tensor:
    """Apply one of the eight symmetries of the square to an image [size, size, channels].

    It is rotated by turn % 4 quarter turns counter-clockwise. For turn >= 4 it is then flipped left
    to right. For an even turn its rows and columns may differ.
    """
    rotated = tf.image.rot90(image, turn % 4)
    return tf.where(turn >= 4, tf.reverse(rotated, axis=[1]), rotated)
