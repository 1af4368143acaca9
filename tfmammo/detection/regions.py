"""Boxes of a two-stage detector as pure TensorFlow functions of fixed shapes: anchors,
targets, proposals, pooling, hard examples.

A box is [row_min, col_min, row_max, col_max], half-open, as parts of the image's sides; one without
area is not there, and stands only where a fixed number of boxes is asked for. All of it is float32
and batched: no Python per image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

TINY = 1e-8  # instead of a side of 0, to divide by or to take the logarithm of
# of a predicted logarithm of sides: a box grows so many times at most (as in Detectron)
MOST = math.log(1000 / 16)
DEVIATIONS = (0.1, 0.1, 0.2, 0.2)  # of the head's box targets, as in Faster R-CNN


def anchors(
    shape: tuple[int, int], stride: int, scales: Sequence[float], ratios: Sequence[float]
) -> NDArray[np.float32]:
    """The boxes that the first stage chooses from: every scale with every ratio at the centre of
    every stride x stride square.

    Their area is (scale * stride)^2 px whatever the ratio. They reach beyond the image where they
    have to.

    Args:
        shape: Rows and columns of the image, px, multiples of the stride.
        ratios: Height over width.

    Returns:
        float32 [rows / stride * cols / stride * scales * ratios, 4], by row, column, scale and
        ratio, the last the fastest.

    Source:
        Ren et al., Faster R-CNN (2015), section 3.1.1.
    """
    centres = [(np.arange(side // stride) + 0.5) * stride for side in shape]
    sides = (
        np.array(
            [[s * stride * np.sqrt(r), s * stride / np.sqrt(r)] for s in scales for r in ratios]
        )
        / 2
    )
    rows, cols = (grid[..., np.newaxis] for grid in np.meshgrid(*centres, indexing="ij"))
    boxes = np.stack(
        [rows - sides[:, 0], cols - sides[:, 1], rows + sides[:, 0], cols + sides[:, 1]], axis=-1
    )
    return (boxes.reshape(-1, 4) / (shape * 2)).astype(np.float32)


def area(boxes: tf.Tensor) -> tf.Tensor:
    """Areas of boxes [..., 4]; 0 where one is turned inside out."""
    return tf.reduce_prod(tf.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def iou(boxes: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Intersection over union of every box with every other, image by image.

    Args:
        boxes: float32 [batch, n, 4].
        others: float32 [batch, k, 4].

    Returns:
        float32 [batch, n, k] in [0, 1]; 0 for a box without area.
    """
    a = boxes[:, :, tf.newaxis]
    b = others[:, tf.newaxis]
    # Corner by corner: [batch, n, k, 4] of all anchors would be the largest array of a step.
    rows = tf.minimum(a[..., 2], b[..., 2]) - tf.maximum(a[..., 0], b[..., 0])
    cols = tf.minimum(a[..., 3], b[..., 3]) - tf.maximum(a[..., 1], b[..., 1])
    shared = tf.maximum(rows, 0) * tf.maximum(cols, 0)
    return tf.math.divide_no_nan(shared, area(a) + area(b) - shared)


def encode(
    boxes: tf.Tensor, base: tf.Tensor, deviations: Sequence[float] = (1, 1, 1, 1)
) -> tf.Tensor:
    """How boxes differ from those that they are predicted from.

    t = ((row - row_b) / height_b, (col - col_b) / width_b, log(height / height_b), log(width /
    width_b)) / deviations, row and col being centres; finite for boxes without area too.

    Args:
        boxes: float32 [..., 4].
        base: float32 [..., 4].

    Returns:
        float32 [..., 4], which `decode` turns back.

    Source:
        Girshick et al., Rich feature hierarchies (2014), appendix C.
    """
    sides, base_sides = (tf.maximum(b[..., 2:] - b[..., :2], TINY) for b in (boxes, base))
    shift = ((boxes[..., :2] + boxes[..., 2:]) - (base[..., :2] + base[..., 2:])) / 2 / base_sides
    return tf.concat([shift, tf.math.log(sides / base_sides)], axis=-1) / deviations


def decode(
    deltas: tf.Tensor, base: tf.Tensor, deviations: Sequence[float] = (1, 1, 1, 1)
) -> tf.Tensor:
    """The boxes of what was predicted, not yet clipped to the image; see `encode`.

    Args:
        deltas: float32 [..., 4]. A side grows by 62.5 times at most.
        base: float32 [..., 4]. A side grows by 62.5 times at most.

    Returns:
        float32 [..., 4].
    """
    deltas *= deviations
    base_sides = base[..., 2:] - base[..., :2]
    centres = (base[..., :2] + base[..., 2:]) / 2 + deltas[..., :2] * base_sides
    halves = base_sides * tf.exp(tf.minimum(deltas[..., 2:], MOST)) / 2
    return tf.concat([centres - halves, centres + halves], axis=-1)


def assigned(
    boxes: tf.Tensor, truth: tf.Tensor, high: float, low: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Which anchors show a lesion: those that overlap one by at least `high`, and of every lesion
    those that overlap it most.

    Args:
        boxes: float32 [n, 4], the anchors.
        truth: float32 [batch, k, 4].
        high: IoUs.
        low: IoUs.

    Returns:
        Label int32 [batch, n]: 1 lesion, 0 none (its best IoU is below `low`), -1 neither; and
        float32 [batch, n, 4], the true box that each anchor overlaps most.

    Source:
        Faster R-CNN, section 3.1.2.
    """
    overlaps = iou(boxes[tf.newaxis], truth)
    best = tf.reduce_max(overlaps, axis=2)
    most = tf.reduce_max(overlaps, axis=1, keepdims=True)
    nearest = tf.reduce_any((overlaps == most) & (most > 0), axis=2)
    label = tf.where(nearest | (best >= high), 1, tf.where(best < low, 0, -1))
    return label, tf.gather(truth, tf.argmax(overlaps, axis=2), batch_dims=1)


def drawn(
    label: tf.Tensor, random: tf.Tensor, count: int, share: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """A random sample of anchors: `share` of them positive, fewer where there are not so many,
    negative ones in their stead.

    Args:
        label: int32 [batch, n], as of `assigned`.
        random: float32 [batch, n] in [0, 1): the highest are taken.
        count: Of anchors an image.

    Returns:
        Index int32 [batch, m], positive ones first, and bool [batch, m]: whether that place is of
        the sample.
    """
    n = label.shape[1]
    positives, where_positive = tf.math.top_k(
        tf.where(label == 1, random, -1.0), min(int(count * share), n)
    )
    negatives, where_negative = tf.math.top_k(tf.where(label == 0, random, -1.0), min(count, n))
    left = count - tf.math.count_nonzero(positives >= 0, axis=1, keepdims=True, dtype=tf.int32)
    taken = (negatives >= 0) & (tf.range(negatives.shape[1])[tf.newaxis] < left)
    return tf.concat([where_positive, where_negative], axis=1), tf.concat(
        [positives >= 0, taken], axis=1
    )


def proposals(
    logits: tf.Tensor,
    deltas: tf.Tensor,
    boxes: tf.Tensor,
    before: int,
    after: int,
    nms_iou: float,
    smallest: tuple[float, float],
) -> tuple[tf.Tensor, tf.Tensor]:
    """The first stage's boxes: the surest anchors, moved, clipped to the image, and without those
    that overlap a surer one.

    Args:
        logits: float32 [batch, n], deltas: float32 [batch, n, 4], of the anchors `boxes`, float32
            [n, 4].
        before: How many are left before and after non-maximum suppression.
        after: How many are left before and after non-maximum suppression.
        nms_iou: IoU above which the less sure one goes.
        smallest: Rows and columns below which a box goes, parts of the image's.

    Returns:
        float32 [batch, after, 4], the surest first, and bool [batch, after]: whether there is one.
        No gradient passes.
    """
    logits = tf.stop_gradient(logits)
    deltas = tf.stop_gradient(deltas)
    surest, index = tf.math.top_k(logits, min(before, logits.shape[1]))
    moved = clipped(decode(tf.gather(deltas, index, batch_dims=1), tf.gather(boxes, index)))
    large = tf.reduce_all(moved[..., 2:] - moved[..., :2] >= smallest, axis=-1)
    scores = tf.where(large, tf.sigmoid(surest), 0.0)
    kept, _, _, count = suppressed(moved[:, :, tf.newaxis], scores[..., tf.newaxis], after, nms_iou)
    return kept, tf.range(after)[tf.newaxis] < count[:, tf.newaxis]


def suppressed(
    boxes: tf.Tensor, scores: tf.Tensor, count: int, nms_iou: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Non-maximum suppression of whole batches, class by class; a score of 0 is no box.

    Args:
        boxes: float32 [batch, n, classes, 4].
        scores: float32 [batch, n, classes].
        count: Most boxes an image.

    Returns:
        Boxes float32 [batch, count, 4], the surest first, their scores float32 [batch, count] and
        classes, float32 likewise, from 0 on, and how many there are, int32 [batch]; behind them all
        is 0.
    """
    return tf.image.combined_non_max_suppression(
        boxes, scores, count, count, nms_iou, score_threshold=0.0, clip_boxes=False
    )


def clipped(boxes: tf.Tensor) -> tf.Tensor:
    """Boxes [..., 4] with what lies beyond the image cut off."""
    return tf.clip_by_value(boxes, 0.0, 1.0)


def labelled(
    regions: tf.Tensor, truth: tf.Tensor, classes: tf.Tensor, foreground: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """What the head shall say of regions.

    Args:
        regions: float32 [batch, n, 4].
        truth: float32 [batch, k, 4].
        classes: int32 [batch, k], from 0 on.
        foreground: The least IoU of a region that shows a lesion.

    Returns:
        Label int32 [batch, n], 0 background, else 1 + the class of the lesion that it overlaps
        most, and that lesion's box, float32 [batch, n, 4].
    """
    overlaps = iou(regions, truth)
    nearest = tf.argmax(overlaps, axis=2)
    label = tf.where(
        tf.reduce_max(overlaps, axis=2) >= foreground,
        1 + tf.gather(classes, nearest, batch_dims=1),
        0,
    )
    return label, tf.gather(truth, nearest, batch_dims=1)


def hardest(losses: tf.Tensor, there: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Online hard example mining: in each image the regions of the highest loss.

    Args:
        losses: float32 [batch, n], not negative.
        there: bool [batch, n]: whether there is a region.

    Returns:
        Index int32 [batch, min(count, n)], the highest loss first, and bool of the same shape:
        whether there is one.

    Departure:
        Near duplicates are not suppressed by their losses, since the proposals have already been by
        their scores.

    Source:
        Shrivastava et al., Training region-based object detectors with online hard example mining
        (2016).
    """
    found, index = tf.math.top_k(
        tf.where(there, tf.stop_gradient(losses), -1.0), min(count, losses.shape[1])
    )
    return index, found >= 0


def smooth_l1(difference: tf.Tensor, beta: float = 1.0) -> tf.Tensor:
    """Sum over the last axis of d^2 / (2 beta) where |d| < beta, else |d| - beta / 2.

    Args:
        difference: float32 [..., 4].

    Returns:
        float32 [...].
    """
    distance = tf.abs(difference)
    return tf.reduce_sum(
        tf.where(distance < beta, distance**2 / (2 * beta), distance - beta / 2), axis=-1
    )


def ps_roi_align(maps: tf.Tensor, regions: tf.Tensor, bins: int = 7, samples: int = 2) -> tf.Tensor:
    """Position-sensitive RoI align: bin (i, j) of a region is the mean of its own channels at
    samples x samples points in it.

    A point (r, c) of the image, in parts of its sides, lies at (r * rows - 0.5, c * cols - 0.5)
    between the maps' cells, whose values are taken to be those at their centres; bilinear between
    them, and beyond the outermost as they are there.

    Args:
        maps: floating [batch, rows, cols, bins * bins * c]; channel (i * bins + j) * c + l is the
            l-th of bin (i, j).
        regions: float32 [batch, n, 4].

    Returns:
        [batch, n, bins, bins, c], of the maps' dtype.

    Source:
        Dai et al., R-FCN (2016), Eq. 1, with the sampling of He et al., Mask R-CNN (2017), section
        3.
    """
    batch = tf.shape(maps)[0]
    (rows, cols) = maps.shape[1:3]
    channels = maps.shape[-1] // bins**2
    points = bins * samples
    bin_of = tf.range(bins * samples) // samples
    cells = tf.reshape(maps, [-1, channels])  # one row for every image, row, column and bin
    image = tf.range(batch)[:, tf.newaxis, tf.newaxis, tf.newaxis] * rows
    pooled: tf.Tensor = tf.zeros([], maps.dtype)
    for row, row_weight in _neighbours(regions[..., 0], regions[..., 2], rows, points):
        for col, col_weight in _neighbours(regions[..., 1], regions[..., 3], cols, points):
            place = (image + row[..., tf.newaxis]) * cols + col[:, :, tf.newaxis]
            place = (place * bins + bin_of[:, tf.newaxis]) * bins + bin_of
            weight = tf.cast(row_weight[..., tf.newaxis] * col_weight[:, :, tf.newaxis], maps.dtype)
            pooled += weight[..., tf.newaxis] * tf.gather(cells, place)
    parted = tf.reshape(pooled, [batch, -1, bins, samples, bins, samples, channels])
    return tf.reduce_mean(parted, axis=[3, 5])


def _neighbours(
    low: tf.Tensor, high: tf.Tensor, cells: int, points: int
) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """The two cells around each of so many points between low and high [batch, n]: (int32 number,
    float32 weight) [batch, n, points].
    """
    parts = (tf.range(points, dtype=tf.float32) + 0.5) / points
    at = (low[..., tf.newaxis] + (high - low)[..., tf.newaxis] * parts) * cells - 0.5
    at = tf.clip_by_value(at, 0.0, cells - 1.0)
    before = tf.floor(at)
    number = tf.cast(before, tf.int32)
    return [(number, 1 - (at - before)), (tf.minimum(number + 1, cells - 1), at - before)]
