"""Boxes and their matching against the rule in words and numbers by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfmammo.metrics.boxes import (
    Matches,
    area,
    find_hits,
    find_spared,
    ior,
    iou,
    match,
    match_kinds,
    overlap,
)

CRITERIA = ("iou", "ior", "centre")
NOTHING = np.empty((0, 4))
TWO = np.array([[0, 0, 10, 10], [20, 20, 30, 30]])
coordinates = st.integers(0, 20)
sides = st.integers(1, 9)
boxes_ = st.lists(st.tuples(coordinates, coordinates, sides, sides), min_size=1, max_size=5).map(
    lambda rows: np.array([(top, left, top + h, left + w) for top, left, h, w in rows], float)
)


def count(matches):
    """(hits, false positives, lesions, images)."""
    scores = matches.hits.tolist(), matches.false_positives.tolist()
    return *scores, matches.lesions, matches.images


def test_iou_by_hand():
    boxes = np.array([[0, 0, 2, 2], [0, 0, 4, 4]])
    overlaps = iou(boxes, np.array([[1, 1, 3, 3], [0, 0, 2, 2], [2, 0, 4, 2]]))
    np.testing.assert_allclose(overlaps, [[1 / 7, 1, 0], [4 / 16, 4 / 16, 4 / 16]])


def test_boxes_without_area_overlap_nothing():
    assert iou(np.zeros((1, 4)), np.zeros((1, 4))) == 0
    assert iou(NOTHING, np.ones((3, 4))).shape == (0, 3)
    assert area(np.array([[3, 3, 1, 5.0], [1, 2, 3, 5]])).tolist() == [0, 6]


def test_ior_and_centres_by_hand():
    boxes = np.array([[0, 0, 4, 4], [0, 0, 2, 2], [3, 3, 3, 9]])
    truth = np.array([[0, 0, 2, 2], [2, 2, 9, 9]])
    np.testing.assert_allclose(ior(boxes, truth), [[4 / 16, 4 / 16], [1, 0], [0, 0]])
    # The first one's centre is at (2, 2), where the second lesion begins and the first has ended:
    # 4 px shared of 16 + 49.
    np.testing.assert_allclose(overlap(boxes, truth, "centre"), [[0, 4 / 61], [1, 0], [0, 0]])
    at_its_end = np.array([[0, 0, 4, 2], [0, 0, 2, 4]])  # in rows or in columns
    assert not np.any(overlap(at_its_end, truth[:1], "centre"))
    np.testing.assert_array_equal(overlap(boxes, truth), iou(boxes, truth))


def test_a_hit_overlaps_more_than_half():
    """Both papers: higher than 0.5."""
    truth = np.array([[0, 0, 10, 10]])
    for bottom, threshold, hits in ((5, 0.5, 0), (5.01, 0.5, 1), (5, 0.49, 1)):
        box = np.array([[0, 0, bottom, 10]])
        assert match(box, np.array([0.5]), truth, threshold).hits.size == hits


def test_centres_hit_whatever_the_threshold():
    boxes = [[0, 0, 4, 4], [1, 1, 40, 40]]
    lesion = [[0, 0, 8, 8]]
    assert find_hits(boxes, lesion, 0.5, "centre").tolist() == [[True], [False]]
    assert find_hits(boxes, lesion, 0.2, "iou").tolist() == [[True], [False]]
    assert find_hits(boxes, lesion, 0.25, "iou").tolist() == [[False], [False]]


def test_detections_on_unwanted_lesions_alone_are_spared():
    boxes = np.array([*TWO, [50, 50, 60, 60], TWO[0]])
    wanted, unwanted = boxes[:1], boxes[[0, 1]]
    # the first hits both, the second an unwanted one alone, the third nothing
    spared = find_spared(boxes, wanted, unwanted, 0.5)
    assert spared.tolist() == [False, True, False, False]
    assert find_spared(boxes, NOTHING, unwanted, 0.5).tolist() == [True, True, False, True]
    assert not find_spared(boxes, wanted, NOTHING, 0.5).any()
    assert find_spared(NOTHING, wanted, unwanted, 0.5).shape == (0,)


def test_a_second_detection_of_a_lesion_is_a_false_positive():
    boxes = np.array([[0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 24.5], [50, 50, 60, 60]])
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    assert count(match(boxes, scores, TWO)) == ([0.9], [0.8, 0.7, 0.6], 2, 1)
    assert match(boxes, scores, TWO, threshold=0.4).hits.tolist() == [0.9, 0.7]


def slow_match(boxes, scores, truth, threshold):
    """The rule in words, one detection after the other."""
    free = set(range(len(truth)))
    hits = []
    false = []
    for row in sorted(range(len(boxes)), key=lambda row: -scores[row]):
        overlaps = {
            lesion: iou(boxes[row : row + 1], truth[lesion : lesion + 1]).item()
            for lesion in sorted(free)
        }
        best = max(overlaps, key=overlaps.get, default=None)
        is_hit = best is not None and overlaps[best] > threshold
        if is_hit:
            free.remove(best)
        (hits if is_hit else false).append(scores[row])
    return hits, false


@given(boxes_, boxes_, st.sampled_from([0.0, 0.2, 0.5]), st.randoms(use_true_random=False))
def test_matching_equals_the_rule_one_by_one(boxes, truth, threshold, random):
    scores = [random.choice([0.1, 0.2, 0.3, 0.4]) for _ in boxes]
    matches = match(boxes, np.array(scores), truth, threshold)
    assert count(matches)[:2] == slow_match(boxes, scores, truth, threshold)


def test_nothing_found_and_nothing_there():
    one = TWO[:1]
    missed = match(NOTHING, np.empty(0), one)
    false = match(one, np.array([0.3]), NOTHING)
    assert missed.lesions == 1 and false.false_positives.tolist() == [0.3]
    joined = Matches.join([missed, false, match(one, np.array([0.7]), one)])
    assert count(joined) == ([0.7], [0.3], 2, 3)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_boxes_without_area_and_outside_the_image_hit_nothing(criterion):
    truth = np.array([[0, 0, 10, 10], [4, 4, 4, 9]])
    boxes = np.array([[5, 5, 5, 5], [7, 7, 3, 3], [-30, -30, -20, -20], [4, 4, 4, 9]])
    assert count(match(boxes, np.full(4, 0.5), truth, 0, criterion)) == ([], [0.5] * 4, 2, 1)
    # what is partly outside is compared as it is
    assert match(np.array([[-5, 0, 10, 10]]), np.array([0.5]), truth).hits.size == 1


ONE_BOX = np.array([[0, 0, 2, 2.0]])


@pytest.mark.parametrize(
    ("boxes", "scores", "truth", "named"),
    [
        (ONE_BOX * np.nan, [0.5], ONE_BOX, "box"),
        (ONE_BOX, [np.inf], ONE_BOX, "score"),
        (ONE_BOX, [0.5], np.full((1, 4), np.inf), "box"),
        (np.ones((2, 4)), np.ones(3), ONE_BOX, "2 boxes"),
    ],
)
def test_bad_input(boxes, scores, truth, named):
    with pytest.raises(ValueError, match=named):
        match(boxes, scores, truth)


def test_kinds_are_matched_separately_and_count_as_one_image():
    matches = match_kinds(TWO, np.array([0.9, 0.8]), ["mass"] * 2, TWO, ["calcification", "mass"])
    assert count(matches) == ([0.8], [0.9], 2, 1)
    assert count(match_kinds(NOTHING, np.empty(0), [], NOTHING, [])) == ([], [], 0, 1)


def test_detections_of_kinds_without_annotations_are_dropped():
    """A right box around a calcification is no false mass."""
    kinds = ["mass", "calcification"]
    of = TWO, np.array([0.9, 0.95]), kinds, TWO[:1], ["mass"]
    assert count(match_kinds(*of, annotated=["mass"])) == ([0.9], [], 1, 1)
    assert match_kinds(*of, annotated=kinds).false_positives.tolist() == [0.95]
