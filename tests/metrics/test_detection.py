"""Boxes and FROC against numbers worked out by hand, pycocotools, and MONAI's test vector."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from tfmammo.metrics.detection import FPPI, Matches, area, froc, froc_interval, iou, match, match_kinds

coordinates = st.integers(0, 20)
boxes_ = st.lists(st.tuples(coordinates, coordinates, st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5).map(
    lambda rows: np.array([(top, left, top + height, left + width) for top, left, height, width in rows], float)
)


def test_iou_by_hand():
    found = iou(np.array([[0, 0, 2, 2], [0, 0, 4, 4]]), np.array([[1, 1, 3, 3], [0, 0, 2, 2], [2, 0, 4, 2]]))
    np.testing.assert_allclose(found, [[1 / 7, 1, 0], [4 / 16, 4 / 16, 4 / 16]])


@given(boxes_, boxes_)
def test_iou_equals_pycocotools(boxes, others):
    expected = coco.iou(
        *(np.stack([b[:, 1], b[:, 0], b[:, 3] - b[:, 1], b[:, 2] - b[:, 0]], 1) for b in (boxes, others)), [0] * len(others)
    )
    np.testing.assert_allclose(iou(boxes, others), expected, atol=1e-12)
    np.testing.assert_allclose(iou(boxes, others), iou(others, boxes).T)


def test_boxes_without_area_overlap_nothing():
    assert iou(np.zeros((1, 4)), np.zeros((1, 4))) == 0
    assert iou(np.empty((0, 4)), np.ones((3, 4))).shape == (0, 3)
    assert area(np.array([[3, 3, 1, 5.0], [1, 2, 3, 5]])).tolist() == [0, 6]


def test_a_second_detection_of_a_lesion_is_a_false_positive():
    truth = np.array([[0, 0, 10, 10], [20, 20, 30, 30]])
    boxes = np.array([[0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 24], [50, 50, 60, 60]])
    found = match(boxes, np.array([0.9, 0.8, 0.7, 0.6]), truth)
    assert found.hits.tolist() == [0.9] and found.false_positives.tolist() == [0.8, 0.7, 0.6]
    assert (found.lesions, found.images) == (2, 1)
    assert match(boxes, np.array([0.9, 0.8, 0.7, 0.6]), truth, threshold=0.4).hits.tolist() == [0.9, 0.7]


def test_a_detection_falls_back_on_the_lesion_that_is_free():
    truth = np.array([[0, 0, 10, 10], [0, 2, 10, 12]])
    assert match(np.array([[0, 0, 10, 10], [0, 0, 10, 10]]), np.array([0.5, 0.9]), truth).hits.tolist() == [0.9, 0.5]


def test_nothing_found_and_nothing_there():
    nothing, one = np.empty((0, 4)), np.array([[0, 0, 2, 2]])
    assert match(nothing, np.empty(0), one).lesions == 1
    assert match(one, np.array([0.3]), nothing).false_positives.tolist() == [0.3]
    joined = Matches.join([match(nothing, np.empty(0), one), match(one, np.array([0.3]), nothing), match(one, np.array([0.7]), one)])
    assert (joined.lesions, joined.images, joined.hits.tolist(), joined.false_positives.tolist()) == (2, 3, [0.7], [0.3])
    assert joined.froc([1.0]).tolist() == [0.5]


def test_froc_equals_monais_vector():
    """MONAI's test_compute_froc: fp_probs, tp_probs, 4 targets, 2 images; compute_froc_score gives the mean."""
    found = froc(np.array([0.8, 0.6]), np.array([1, 1, 0, 0, 0.8, 0.8, 0]), lesions=4, images=2)
    assert found[0] == pytest.approx(0.75) and found.mean() == pytest.approx(0.95833333)
    assert len(FPPI) == len(found)


def test_froc_by_hand():
    # 2 images, 4 lesions. score >= .9: 1 hit; .8: one false; .7: 2 hits; .2: 3 hits and 3 false.
    hits, false = np.array([0.9, 0.7, 0.2]), np.array([0.8, 0.2, 0.2])
    np.testing.assert_allclose(froc(false, hits, 4, 2, [0, 0.25, 0.5, 1.0, 1.5, 9]), [0.25, 0.25, 0.5, 0.625, 0.75, 0.75])


def test_froc_without_any_detection_is_zero():
    assert froc(np.empty(0), np.empty(0), 3, 2).tolist() == [0] * 6


@pytest.mark.parametrize(("lesions", "images"), [(0, 3), (3, 0)])
def test_froc_needs_lesions_and_images(lesions, images):
    with pytest.raises(ValueError, match=f"{lesions} and {images}"):
        froc(np.empty(0), np.empty(0), lesions, images)


@given(st.lists(st.floats(0.01, 1), max_size=6), st.lists(st.floats(0.01, 1), max_size=6))
def test_froc_never_falls(false, hits):
    found = froc(np.array(false), np.array(hits), 6, 3, np.linspace(0, 4, 33))
    assert np.all(np.diff(found) >= 0) and found[-1] == pytest.approx(len(hits) / 6)


def test_kinds_are_told_apart_and_count_as_one_image():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]])
    found = match_kinds(boxes, np.array([0.9, 0.8]), ["mass", "mass"], boxes, ["calcification", "mass"])
    assert (found.hits.tolist(), found.false_positives.tolist(), found.lesions, found.images) == ([0.8], [0.9], 2, 1)
    nothing = match_kinds(np.empty((0, 4)), np.empty(0), [], np.empty((0, 4)), [])
    assert (nothing.lesions, nothing.images) == (0, 1)


def image(hit, lesions=1):
    return Matches(np.array([0.9] if hit else []), np.empty(0), lesions, 1)


def test_an_interval_draws_patients_and_not_images():
    """Two patients, one found on all of ten images, the other on none: draws are 0, 1/2 or 1, whatever the number of images."""
    images, patients = [image(True)] * 10 + [image(False)] * 10, ["a"] * 10 + ["b"] * 10
    low, high = froc_interval(images, patients, [1.0], samples=200)
    assert (low.tolist(), high.tolist()) == ([0], [1])
    low, high = froc_interval(images, [str(i) for i in range(20)], [1.0], samples=200)
    assert 0.2 < low[0] < 0.4 and 0.6 < high[0] < 0.8
    assert np.array_equal(froc_interval(images, patients, samples=50), froc_interval(images, patients, samples=50)), "the seed decides"


def test_an_interval_of_one_patient_bounds_nothing():
    assert np.isnan(froc_interval([image(True), image(False)], ["a", "a"], [1.0])).all()


def test_an_interval_draws_again_where_no_lesion_came():
    low, high = froc_interval([image(True), image(False, lesions=0)], ["a", "b"], [1.0], samples=50)
    assert (low.tolist(), high.tolist()) == ([1], [1])
    with pytest.raises(ValueError, match="needs lesions"):
        froc_interval([image(False, lesions=0)], ["a"])
