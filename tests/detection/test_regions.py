"""Boxes of a two-stage detector: by hand, against NumPy, and by properties."""

import numpy as np
import pytest
import tensorflow as tf

from tfmammo.detection import regions
from tfmammo.metrics.boxes import iou


def corners(random, *shape):
    """Boxes of at least 0.02 in each side, inside the image."""
    low = random.uniform(0, 0.7, (*shape, 2))
    return np.concatenate([low, low + random.uniform(0.02, 0.3, low.shape)], axis=-1).astype(
        np.float32
    )


def test_anchors_by_hand():
    """64 px at stride 16 have centres at 8, 24, 40, 56.

    Scale 2 gives sides of 32, with ratio 2 of 32 * sqrt(2) by 32 / sqrt(2).
    """
    anchors = regions.make_anchors((64, 64), 16, (2, 4), (0.5, 1, 2)) * 64
    assert anchors.shape == (4 * 4 * 2 * 3, 4) and anchors.dtype == np.float32
    long, short = 16 * np.sqrt(2), 16 / np.sqrt(2)
    expected = {
        0: [8 - short, 8 - long, 8 + short, 8 + long],
        1: [-8, -8, 24, 24],
        2: [8 - long, 8 - short, 8 + long, 8 + short],
        4: [-24, -24, 40, 40],  # scale 4
        6 + 1: [-8, 24 - 16, 24, 24 + 16],  # a column further
        4 * 6 + 1: [24 - 16, -8, 24 + 16, 24],  # a row further
    }
    for number, box in expected.items():
        np.testing.assert_allclose(anchors[number], box, rtol=1e-5)
    areas = regions.area(anchors)
    np.testing.assert_allclose(areas, np.tile([1024] * 3 + [4096] * 3, 16), rtol=1e-5)
    # 32 x 64 px have two rows of four cells. Sides of 16 px are a half of the rows and a quarter
    # of the columns.
    anchors = regions.make_anchors((32, 64), 16, (1,), (1,))
    expected = [[0, 0, 0.5, 0.25], [0, 0.25, 0.5, 0.5], [0.5, 0, 1, 0.25], [0.5, 0.75, 1, 1]]
    assert anchors.shape == (2 * 4, 4)
    np.testing.assert_allclose(anchors[[0, 1, 4, 7]], expected)


def test_overlap_is_that_of_the_metrics():
    random = np.random.default_rng(0)
    boxes = corners(random, 2, 30)
    others = corners(random, 2, 5)
    others[0, 1] = 0
    others[1, 2] = [0.5, 0.5, 0.5, 0.9]
    others[1, 0] = boxes[1, 0]
    overlaps = regions.iou(boxes, others).numpy()
    for image in range(2):
        np.testing.assert_allclose(overlaps[image], iou(boxes[image], others[image]), atol=1e-6)
    assert overlaps[1, 0, 0] == pytest.approx(1)
    assert not overlaps[0, :, 1].any() and not overlaps[1, :, 2].any()
    areas = regions.area(tf.constant([[0.2, 0.2, 0.4, 0.7], [0.5, 0.5, 0.4, 0.7]]))
    assert areas.numpy() == pytest.approx([0.1, 0])


def test_encoding_by_hand():
    """A box twice as high and half as wide, its centre 0.1 lower and 0.2 further right."""
    base = tf.constant([0.2, 0.2, 0.4, 0.6])
    delta = regions.encode(tf.constant([0.2, 0.5, 0.6, 0.7]), base, regions.DEVIATIONS)
    expected = [0.5 / 0.1, 0.5 / 0.1, np.log(2) / 0.2, -np.log(2) / 0.2]
    np.testing.assert_allclose(delta, expected, rtol=1e-5)


def test_what_is_without_area_or_beyond_measure_stays_finite():
    nothing = tf.zeros([4])
    box = tf.constant([0.2, 0.2, 0.4, 0.6])
    for pair in ((nothing, box), (box, nothing)):
        assert np.isfinite(regions.encode(*pair)).all()
    wide = regions.decode(tf.constant([0.0, 0, 100, 1]), box).numpy()
    assert wide[2] - wide[0] == pytest.approx(0.2 * 62.5, rel=1e-5)
    np.testing.assert_array_equal(regions.clip(wide), [0, 0, 1, wide[3]])


BASE = np.array(
    [[0, 0, 0.4, 0.4], [0, 0, 0.4, 0.36], [0, 0, 0.4, 0.2], [0.5, 0.5, 1, 1], [0, 0.3, 0.4, 0.7]],
    np.float32,
)


def test_assignment_by_hand():
    """IoUs with the first lesion are 1, 0.9, 0.5, 0 and 1/7.

    The second, small one is nearest to the fourth anchor, 0.04 / 0.25 = 0.16.
    """
    truth = np.array(
        [[[0, 0, 0.4, 0.4], [0.6, 0.6, 0.8, 0.8], [0, 0, 0, 0]], np.zeros((3, 4))], np.float32
    )
    label, target = regions.assign_anchors(tf.constant(BASE), tf.constant(truth), 0.7, 0.3)
    assert label.numpy().tolist() == [[1, 1, -1, 1, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(target[0, :4], truth[0, [0, 0, 0, 1]])
    label, _ = regions.assign_anchors(tf.constant(BASE), tf.constant(truth[:1]), 0.4, 0.1)
    assert label.numpy().tolist() == [[1, 1, 1, 1, -1]]


def test_a_sample_by_hand():
    """At most two positive, the rest negative, as many as there are."""
    label = tf.constant(
        [[1, 0, 1, -1, 1, 0, 0], [0, 0, 0, -1, 0, 0, 1], [-1, -1, 0, -1, -1, -1, -1]]
    )
    random = tf.constant(
        [[0.1, 0.2, 0.9, 1, 0.5, 0.7, 0.3], [0.1, 0.6, 0.2, 1, 0.4, 0.5, 0.0], [0.9] * 7]
    )
    for count, samples in ((4, [[2, 4, 5, 6], [6, 1, 5, 4], [2]]), (256, [6, 6, 1])):
        index, there = (
            value.numpy() for value in regions.sample_anchors(label, random, count, 0.5)
        )
        found = [row[ok].tolist() for row, ok in zip(index, there, strict=True)]
        assert samples in (found, [len(sample) for sample in found])


def test_proposals_by_hand():
    """The surest anchor is moved and clipped, and three are not selected.

    The second overlaps it, the third is too small, the fifth is not among the best four.
    """
    base = np.float32(
        [
            [0.5, 0.5, 0.9, 0.9],
            [0.6, 0.6, 1, 1],
            [0, 0, 0.001, 0.2],
            [0.1, 0.1, 0.3, 0.3],
            [0, 0, 1, 1],
        ]
    )
    deltas = np.zeros((1, 5, 4), np.float32)
    deltas[0, 0, :2] = 0.5  # by half its side down and right
    logits = tf.constant([[3.0, 2, 5, -1, -2]])
    for nms_iou, expected in (
        (0.3, [[0.7, 0.7, 1, 1], base[3]]),
        (0.7, [[0.7, 0.7, 1, 1], base[1], base[3]]),
    ):
        arguments = (logits, tf.constant(deltas), tf.constant(base), 4, 3, nms_iou, (0.01, 0.01))
        proposals, there = regions.select_proposals(*arguments)
        assert there.numpy().tolist() == [[True, True, len(expected) == 3]]
        np.testing.assert_allclose(proposals[0, : len(expected)], expected, atol=1e-6)


def test_no_gradient_passes_the_proposals_and_none_may_be_left():
    logits = tf.Variable([[3.0, 2.0]])
    deltas = tf.Variable(tf.zeros([1, 2, 4]))
    with tf.GradientTape() as tape:
        proposals, there = regions.select_proposals(
            logits, deltas, tf.constant([[0.0, 0, 0.1, 0.1]] * 2), 2, 2, 0.7, (0.5, 0.5)
        )
        total = tf.reduce_sum(proposals)
    assert tape.gradient(total, [logits, deltas]) == [None, None]
    assert not there.numpy().any() and not proposals.numpy().any()


def test_suppression_is_class_by_class_and_in_falling_order():
    boxes = np.array(
        [[[[0, 0, 0.5, 0.5]] * 2, [[0, 0, 0.5, 0.4]] * 2, [[0.6, 0.6, 1, 1]] * 2]], np.float32
    )
    scores = np.array([[[0.9, 0.2], [0.8, 0.0], [0.3, 0.4]]], np.float32)
    kept_boxes, kept_scores, classes, count = regions.suppress(boxes, scores, 6, 0.5)
    assert count.numpy().tolist() == [4]
    np.testing.assert_allclose(kept_scores, [[0.9, 0.4, 0.3, 0.2, 0, 0]])
    assert classes.numpy()[0, :4].tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(kept_boxes[0, :2], [[0, 0, 0.5, 0.5], [0.6, 0.6, 1, 1]])


def test_labels_of_regions():
    """A lesion of class 1 and one of class 0.

    An overlap of less than 0.5, or with a box that is not there, is background.
    """
    truth = np.array([[[0, 0, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9], [0, 0, 0, 0]]], np.float32)
    proposals = np.float32(
        [[[0, 0, 0.4, 0.3], [0.5, 0.5, 0.9, 0.69], [0.5, 0.5, 0.8, 0.9], [0, 0, 0, 0]]]
    )
    label, target = regions.label_regions(proposals, truth, tf.constant([[1, 0, 0]]), 0.5)
    assert label.numpy().tolist() == [[2, 0, 1, 0]]
    np.testing.assert_array_equal(target.numpy()[0, [0, 2]], truth[0, :2])
    label, _ = regions.label_regions(proposals, np.zeros_like(truth), tf.constant([[1, 0, 0]]), 0.5)
    assert label.numpy().tolist() == [[0, 0, 0, 0]]


def test_the_hardest_examples_are_those_of_the_highest_loss():
    every = np.tile(np.linspace(0, 3, 40, dtype=np.float32), (2, 1))
    losses = np.random.default_rng(2).permuted(every, axis=1)
    there = np.ones((2, 40), bool)
    there[1, losses[1] > 1] = False
    index, is_hard = regions.select_hardest(tf.constant(losses), tf.constant(there), 10)
    assert is_hard.numpy().all()
    found = np.take_along_axis(losses, index.numpy(), 1)
    for image in range(2):
        expected = np.sort(losses[image][there[image]])[:-11:-1]
        np.testing.assert_array_equal(found[image], expected)
    assert not regions.select_hardest(losses, tf.zeros([2, 40], tf.bool), 256)[1].numpy().any()


def test_smooth_l1_by_hand():
    difference = tf.constant([[0.5, -0.5, 2.0, 0.0], [0.0, 0.0, 0.0, -3.0]])
    np.testing.assert_allclose(regions.smooth_l1(difference), [0.125 + 0.125 + 1.5, 2.5], rtol=1e-6)
    np.testing.assert_allclose(
        regions.smooth_l1(difference, 0.25), [0.375 + 0.375 + 1.875, 2.875], rtol=1e-6
    )


def slow_ps_roi_align(maps, boxes, bins, samples):
    """Point by point, as the definition says it."""
    batch, rows, cols, channels = maps.shape
    depth = channels // bins**2
    out = np.zeros((batch, boxes.shape[1], bins, bins, depth))
    for image, region, i, j in np.ndindex(*out.shape[:4]):
        top, left, bottom, right = boxes[image, region].astype(float)
        for a in range(samples):
            for b in range(samples):
                row = (top + (bottom - top) * (i + (a + 0.5) / samples) / bins) * rows - 0.5
                col = (left + (right - left) * (j + (b + 0.5) / samples) / bins) * cols - 0.5
                row = min(max(row, 0), rows - 1)
                col = min(max(col, 0), cols - 1)
                for r, c in np.ndindex(rows, cols):
                    weight = max(0, 1 - abs(r - row)) * max(0, 1 - abs(c - col)) / samples**2
                    here = maps[image, r, c, (i * bins + j) * depth :][:depth]
                    out[image, region, i, j] += weight * here
    return out


@pytest.mark.parametrize(
    ("bins", "depth", "samples", "rows", "cols"), [(2, 3, 2, 5, 5), (3, 2, 1, 4, 6)]
)
def test_pooling_against_slow_numpy(bins, depth, samples, rows, cols):
    random = np.random.default_rng(3)
    maps = random.normal(size=(2, rows, cols, bins**2 * depth)).astype(np.float32)
    boxes = corners(random, 2, 4)
    boxes[0, 0] = [0, 0, 1, 1]
    boxes[0, 1] = [0.4, 0.4, 0.4, 0.4]
    boxes[1, 0] = [0.8, 0.9, 1, 1]
    pooled = tf.function(regions.ps_roi_align)(maps, boxes, bins, samples)
    assert pooled.shape == (2, 4, bins, bins, depth)
    np.testing.assert_allclose(pooled, slow_ps_roi_align(maps, boxes, bins, samples), atol=1e-5)


def test_pooling_passes_gradients_to_the_cells_it_reads():
    """The image as one bin of one point reads a quarter of each of the four middle cells."""
    maps = tf.Variable(tf.zeros([1, 4, 4, 1]))
    with tf.GradientTape() as tape:
        pooled = tf.reduce_sum(
            regions.ps_roi_align(tf.convert_to_tensor(maps), tf.constant([[[0.0, 0, 1, 1]]]), 1, 1)
        )
    expected = np.zeros((4, 4))
    expected[1:3, 1:3] = 0.25
    np.testing.assert_allclose(np.asarray(tape.gradient(pooled, maps))[0, ..., 0], expected)
