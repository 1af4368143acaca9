"""Boxes of a two-stage detector: anchors, targets, proposals, pooling, hard examples.

`make_anchors` is NumPy. All others are TensorFlow of fixed shapes, and take whole batches. A box is
[row_min, col_min, row_max, col_max], half-open, as shares of the image's rows and columns. A box
without area means none and fills up a fixed number of boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

TINY = 1e-8  # instead of a side of 0, to divide by or to take the logarithm of
# largest predicted logarithm of a side's growth, as in Detectron
MOST = math.log(1000 / 16)
DEVIATIONS = (0.1, 0.1, 0.2, 0.2)  # of the head's box targets, as in Faster R-CNN


def make_anchors(
    shape: tuple[int, int], stride: int, scales: Sequence[float], ratios: Sequence[float]
) -> NDArray[np.float32]:
    """Make the anchors: every scale with every ratio at the centre of every cell.

    A cell is stride x stride px. An anchor's area is (scale * stride)^2 px whatever its ratio.
    Anchors may reach beyond the image.

    Args:
        shape: Rows and columns of the image, px, multiples of the stride.
        scales: Square root of the anchors' area over the stride.
        ratios: Height over width.

    Returns:
        float32 [rows / stride * cols / stride * scales * ratios, 4], by row, column, scale and
        ratio, the last the fastest.

    Source:
        Ren et al., Faster R-CNN (2015), section 3.1.1.
    """
    centres = [(np.arange(side // stride) + 0.5) * stride for side in shape]
    heights, widths = np.array(
        [[s * stride * np.sqrt(r), s * stride / np.sqrt(r)] for s in scales for r in ratios]
    ).T
    rows, cols = (grid[..., np.newaxis] for grid in np.meshgrid(*centres, indexing="ij"))
    boxes = np.stack(
        [rows - heights / 2, cols - widths / 2, rows + heights / 2, cols + widths / 2], axis=-1
    )
    return (boxes.reshape(-1, 4) / (shape * 2)).astype(np.float32)


def area(boxes: tf.Tensor) -> tf.Tensor:
    """Compute the areas of boxes [..., 4]; 0 where one is turned inside out."""
    return tf.reduce_prod(tf.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def iou(boxes: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Compute intersection over union of every box with every other, image by image.

    Boxes [batch, n, 4] and others [batch, k, 4] -> [batch, n, k] in [0, 1]; 0 without area.
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
    """Encode how boxes [..., 4] differ from those [..., 4] that they are predicted from.

    t = ((row - row_b) / height_b, (col - col_b) / width_b, log(height / height_b), log(width /
    width_b)) / deviations, row and col being centres; finite for boxes without area too.

    Source:
        Girshick et al., Rich feature hierarchies (2014), appendix C.
    """
    sides = tf.maximum(boxes[..., 2:] - boxes[..., :2], TINY)
    base_sides = tf.maximum(base[..., 2:] - base[..., :2], TINY)
    shift = ((boxes[..., :2] + boxes[..., 2:]) - (base[..., :2] + base[..., 2:])) / 2 / base_sides
    return tf.concat([shift, tf.math.log(sides / base_sides)], axis=-1) / deviations


def decode(
    deltas: tf.Tensor, base: tf.Tensor, deviations: Sequence[float] = (1, 1, 1, 1)
) -> tf.Tensor:
    """Decode predictions to boxes, not yet clipped to the image: the inverse of `encode`.

    A side grows by 62.5 times at most.
    """
    deltas *= deviations
    base_sides = base[..., 2:] - base[..., :2]
    centres = (base[..., :2] + base[..., 2:]) / 2 + deltas[..., :2] * base_sides
    halves = base_sides * tf.exp(tf.minimum(deltas[..., 2:], MOST)) / 2
    return tf.concat([centres - halves, centres + halves], axis=-1)


def assign_anchors(
    boxes: tf.Tensor, truth: tf.Tensor, high: float, low: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decide which anchors [n, 4] show a lesion of `truth` [batch, k, 4].

    An anchor does if its IoU with a lesion is at least `high`, or if no anchor overlaps the lesion
    more.

    Returns:
        Label int32 [batch, n]: 1 lesion, 0 none (its best IoU is below `low`), -1 neither.
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


def sample_anchors(
    label: tf.Tensor, random: tf.Tensor, count: int, share: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Sample `count` anchors of each image at random, at most `share` of them positive.

    Negative anchors fill up the sample where there are fewer positive ones.

    Args:
        label: int32 [batch, n], from `assign_anchors`.
        random: float32 [batch, n] in [0, 1); the highest are sampled.

    Returns:
        Index int32 [batch, m], positive ones first, and bool [batch, m]: whether that entry belongs
        to the sample.
    """
    n = label.shape[1]
    positives, where_positive = tf.math.top_k(
        tf.where(label == 1, random, -1.0), min(int(count * share), n)
    )
    negatives, where_negative = tf.math.top_k(tf.where(label == 0, random, -1.0), min(count, n))
    is_positive = positives >= 0
    left = count - tf.math.count_nonzero(is_positive, axis=1, keepdims=True, dtype=tf.int32)
    is_negative = (negatives >= 0) & (tf.range(negatives.shape[1])[tf.newaxis] < left)
    index = tf.concat([where_positive, where_negative], axis=1)
    return index, tf.concat([is_positive, is_negative], axis=1)


def select_proposals(
    logits: tf.Tensor,
    deltas: tf.Tensor,
    boxes: tf.Tensor,
    before: int,
    after: int,
    nms_iou: float,
    smallest: tuple[float, float],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Select the first stage's boxes: the surest anchors, moved and clipped to the image.

    Those that overlap a surer one are removed. No gradient passes.

    Args:
        logits: float32 [batch, n], of the anchors.
        deltas: float32 [batch, n, 4], of the anchors.
        boxes: float32 [n, 4], the anchors.
        before: How many enter non-maximum suppression, which leaves `after`.
        smallest: Rows and columns below which a box goes, as shares of the image's.

    Returns:
        float32 [batch, after, 4], the surest first, and bool [batch, after]: whether there is one.
    """
    logits = tf.stop_gradient(logits)
    deltas = tf.stop_gradient(deltas)
    surest, index = tf.math.top_k(logits, min(before, logits.shape[1]))
    moved = clip(decode(tf.gather(deltas, index, batch_dims=1), tf.gather(boxes, index)))
    large = tf.reduce_all(moved[..., 2:] - moved[..., :2] >= smallest, axis=-1)
    scores = tf.where(large, tf.sigmoid(surest), 0.0)
    proposals, _, _, count = suppress(
        moved[:, :, tf.newaxis], scores[..., tf.newaxis], after, nms_iou
    )
    return proposals, tf.range(after)[tf.newaxis] < count[:, tf.newaxis]


def suppress(
    boxes: tf.Tensor, scores: tf.Tensor, count: int, nms_iou: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Suppress non-maxima of whole batches, class by class; a score of 0 is no box.

    Args:
        boxes: float32 [batch, n, classes, 4].
        scores: float32 [batch, n, classes].
        count: Most boxes of each image.

    Returns:
        Boxes float32 [batch, count, 4], the surest first; their scores and their classes from 0 on,
        float32 [batch, count]; their number, int32 [batch]. All values after the last box are 0.
    """
    return tf.image.combined_non_max_suppression(
        boxes, scores, count, count, nms_iou, score_threshold=0.0, clip_boxes=False
    )


def clip(boxes: tf.Tensor) -> tf.Tensor:
    """Clip boxes [..., 4] to the image."""
    return tf.clip_by_value(boxes, 0.0, 1.0)


def label_regions(
    regions: tf.Tensor, truth: tf.Tensor, classes: tf.Tensor, foreground: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Label regions [batch, n, 4] with what the head shall predict.

    Args:
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


def select_hardest(losses: tf.Tensor, valid: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Select the regions of the highest loss in each image: online hard example mining.

    Args:
        losses: float32 [batch, n], not negative.
        valid: bool [batch, n]: whether there is a region.

    Returns:
        Index int32 [batch, min(count, n)], the highest loss first, and bool of the same shape:
        whether there is one.

    Deviation:
        Near duplicates are not suppressed by their losses, since the proposals have already been by
        their scores.

    Source:
        Shrivastava et al., Training region-based object detectors with online hard example mining
        (2016).
    """
    highest, index = tf.math.top_k(
        tf.where(valid, tf.stop_gradient(losses), -1.0), min(count, losses.shape[1])
    )
    return index, highest >= 0


def smooth_l1(difference: tf.Tensor, beta: float = 1.0) -> tf.Tensor:
    """Sum d^2 / (2 beta) where |d| < beta, else |d| - beta / 2, over the last axis."""
    distance = tf.abs(difference)
    return tf.reduce_sum(
        tf.where(distance < beta, distance**2 / (2 * beta), distance - beta / 2), axis=-1
    )


def ps_roi_align(maps: tf.Tensor, regions: tf.Tensor, bins: int = 7, samples: int = 2) -> tf.Tensor:
    """Pool regions by position-sensitive RoI align.

    Bin (i, j) of a region is the mean of the bin's own channels at samples x samples points in it.
    A point (r, c) of the image, as shares of its rows and columns, is at (r * rows - 0.5, c *
    cols - 0.5) between the maps' cells. Values are those of the cells' centres, bilinear between
    them, and constant beyond the outermost.

    Args:
        maps: floating [batch, rows, cols, bins * bins * c]; channel (i * bins + j) * c + l is the
            l-th of bin (i, j).
        regions: float32 [batch, n, 4].
        bins: Rows and columns of the result.
        samples: Points along either side of a bin.

    Returns:
        [batch, n, bins, bins, c], of the maps' dtype.

    Source:
        Dai et al., R-FCN (2016), Eq. 1, with the sampling of He et al., Mask R-CNN (2017), section
        3.
    """
    batch = tf.shape(maps)[0]
    rows, cols = maps.shape[1:3]
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
    """Find the two cells around each of some points between low and high [batch, n].

    For each of the two int32 numbers and float32 weights, [batch, n, points].
    """
    shares = (tf.range(points, dtype=tf.float32) + 0.5) / points
    at = (low[..., tf.newaxis] + (high - low)[..., tf.newaxis] * shares) * cells - 0.5
    at = tf.clip_by_value(at, 0.0, cells - 1.0)
    before = tf.floor(at)
    number = tf.cast(before, tf.int32)
    return [(number, 1 - (at - before)), (tf.minimum(number + 1, cells - 1), at - before)]
