"""Boxes and FROC against numbers worked out by hand, pycocotools, MONAI's test vector, and
slower ways to the same numbers.
"""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from tfmammo.metrics.detection import (
    ALL_DETECTIONS,
    FPPI,
    Matches,
    area,
    false_positives_apart,
    find_hits,
    find_spared,
    froc,
    froc_by_training,
    froc_interval,
    ior,
    iou,
    match,
    match_kinds,
    over_folds,
    overlap,
)

coordinates = st.integers(0, 20)
boxes_ = st.lists(
    st.tuples(coordinates, coordinates, st.integers(1, 9), st.integers(1, 9)),
    min_size=1,
    max_size=5,
).map(
    lambda rows: np.array(
        [(top, left, top + height, left + width) for top, left, height, width in rows], float
    )
)


def test_iou_by_hand():
    overlaps = iou(
        np.array([[0, 0, 2, 2], [0, 0, 4, 4]]), np.array([[1, 1, 3, 3], [0, 0, 2, 2], [2, 0, 4, 2]])
    )
    np.testing.assert_allclose(overlaps, [[1 / 7, 1, 0], [4 / 16, 4 / 16, 4 / 16]])


@given(boxes_, boxes_)
def test_iou_equals_pycocotools(boxes, others):
    expected = coco.iou(
        *(
            np.stack([b[:, 1], b[:, 0], b[:, 3] - b[:, 1], b[:, 2] - b[:, 0]], 1)
            for b in (boxes, others)
        ),
        [0] * len(others),
    )
    np.testing.assert_allclose(iou(boxes, others), expected, atol=1e-12)
    np.testing.assert_allclose(iou(boxes, others), iou(others, boxes).T)


def test_boxes_without_area_overlap_nothing():
    assert iou(np.zeros((1, 4)), np.zeros((1, 4))) == 0
    assert iou(np.empty((0, 4)), np.ones((3, 4))).shape == (0, 3)
    assert area(np.array([[3, 3, 1, 5.0], [1, 2, 3, 5]])).tolist() == [0, 6]


def test_ior_and_centres_by_hand():
    boxes = np.array([[0, 0, 4, 4], [0, 0, 2, 2], [3, 3, 3, 9]])
    truth = np.array([[0, 0, 2, 2], [2, 2, 9, 9]])
    np.testing.assert_allclose(ior(boxes, truth), [[4 / 16, 4 / 16], [1, 0], [0, 0]])
    # The first one's centre lies at (2, 2), where the second lesion begins and the first has ended:
    # 4 px shared of 16 + 49.
    np.testing.assert_allclose(overlap(boxes, truth, "centre"), [[0, 4 / 61], [1, 0], [0, 0]])
    assert not np.any(overlap(np.array([[0, 0, 4, 2], [0, 0, 2, 4]]), truth[:1], "centre")), (
        "at its end, in rows or in columns"
    )
    np.testing.assert_array_equal(overlap(boxes, truth), iou(boxes, truth))
    with pytest.raises(ValueError, match="iou, ior or centre, not dice"):
        overlap(boxes, truth, "dice")


def test_a_hit_overlaps_more_than_half():
    """Both papers: higher than 0.5."""
    truth = np.array([[0, 0, 10, 10]])
    score = np.array([0.5])
    assert match(np.array([[0, 0, 5, 10]]), score, truth).hits.size == 0
    assert match(np.array([[0, 0, 5.01, 10]]), score, truth).hits.size == 1
    assert match(np.array([[0, 0, 5, 10]]), score, truth, 0.49).hits.size == 1


def test_each_criterion_finds_its_own():
    """A small box in the middle of a lesion, a large one around it, and one half beside it."""
    truth = np.array([[10, 10, 20, 20]])
    score = np.array([0.5])
    boxes = {"inside": [14, 14, 16, 16], "around": [5, 5, 25, 25], "beside": [10, 16, 20, 22]}
    hits = {
        (name, criterion)
        for name, box in boxes.items()
        for criterion in ("iou", "ior", "centre")
        if match(np.array([box]), score, truth, 0.5, criterion).hits.size
    }
    assert hits == {
        ("inside", "ior"),
        ("inside", "centre"),
        ("around", "centre"),
        ("beside", "ior"),
        ("beside", "centre"),
    }


def test_centres_hit_whatever_the_threshold():
    boxes = [[0, 0, 4, 4], [1, 1, 40, 40]]
    lesion = [[0, 0, 8, 8]]
    assert find_hits(boxes, lesion, 0.5, "centre").tolist() == [[True], [False]]
    assert find_hits(boxes, lesion, 0.2, "iou").tolist() == [[True], [False]]
    assert find_hits(boxes, lesion, 0.25, "iou").tolist() == [[False], [False]]


def test_detections_on_unwanted_lesions_alone_are_spared():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60], [0, 0, 10, 10]])
    wanted, unwanted = boxes[:1], boxes[[0, 1]]
    # the first hits both, the second an unwanted one alone, the third nothing
    spared = find_spared(boxes, wanted, unwanted, 0.5)
    assert spared.tolist() == [False, True, False, False]
    none = np.zeros((0, 4))
    assert find_spared(boxes, none, unwanted, 0.5).tolist() == [True, True, False, True]
    assert not find_spared(boxes, wanted, none, 0.5).any()
    assert find_spared(none, wanted, unwanted, 0.5).shape == (0,)


def test_a_second_detection_of_a_lesion_is_a_false_positive():
    truth = np.array([[0, 0, 10, 10], [20, 20, 30, 30]])
    boxes = np.array([[0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 24.5], [50, 50, 60, 60]])
    matches = match(boxes, np.array([0.9, 0.8, 0.7, 0.6]), truth)
    assert matches.hits.tolist() == [0.9] and matches.false_positives.tolist() == [0.8, 0.7, 0.6]
    assert (matches.lesions, matches.images) == (2, 1)
    assert match(boxes, np.array([0.9, 0.8, 0.7, 0.6]), truth, threshold=0.4).hits.tolist() == [
        0.9,
        0.7,
    ]


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
        if best is not None and overlaps[best] > threshold:
            free.remove(best)
        (hits if best is not None and overlaps[best] > threshold else false).append(scores[row])
    return hits, false


@given(boxes_, boxes_, st.sampled_from([0.0, 0.2, 0.5]), st.randoms(use_true_random=False))
def test_matching_equals_the_rule_one_by_one(boxes, truth, threshold, random):
    scores = [random.choice([0.1, 0.2, 0.3, 0.4]) for _ in boxes]
    matches = match(boxes, np.array(scores), truth, threshold)
    assert (matches.hits.tolist(), matches.false_positives.tolist()) == slow_match(
        boxes, scores, truth, threshold
    )


def test_a_detection_falls_back_on_the_lesion_that_is_free():
    truth = np.array([[0, 0, 10, 10], [0, 2, 10, 12]])
    assert match(
        np.array([[0, 0, 10, 10], [0, 0, 10, 10]]), np.array([0.5, 0.9]), truth
    ).hits.tolist() == [0.9, 0.5]


def test_nothing_found_and_nothing_there():
    nothing = np.empty((0, 4))
    one = np.array([[0, 0, 2, 2]])
    assert match(nothing, np.empty(0), one).lesions == 1
    assert match(one, np.array([0.3]), nothing).false_positives.tolist() == [0.3]
    joined = Matches.join(
        [
            match(nothing, np.empty(0), one),
            match(one, np.array([0.3]), nothing),
            match(one, np.array([0.7]), one),
        ]
    )
    assert (
        joined.lesions,
        joined.images,
        joined.hits.tolist(),
        joined.false_positives.tolist(),
    ) == (2, 3, [0.7], [0.3])
    assert joined.froc([1.0]).tolist() == [0.5]


def test_boxes_without_area_and_outside_the_image_hit_nothing():
    truth = np.array([[0, 0, 10, 10], [4, 4, 4, 9]])
    boxes = np.array([[5, 5, 5, 5], [7, 7, 3, 3], [-30, -30, -20, -20], [4, 4, 4, 9]])
    for criterion in ("iou", "ior", "centre"):
        matches = match(boxes, np.full(4, 0.5), truth, 0, criterion)
        assert (len(matches.hits), len(matches.false_positives), matches.lesions) == (0, 4, 2)
    assert match(np.array([[-5, 0, 10, 10]]), np.array([0.5]), truth).hits.size == 1, (
        "what lies partly outside is compared as it is"
    )


@pytest.mark.parametrize("wrong", ["box", "score", "truth"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(wrong, value):
    values = {
        "box": np.array([[0, 0, 2, 2.0]]),
        "score": np.array([0.5]),
        "truth": np.array([[0, 0, 2, 2.0]]),
    }
    values[wrong].flat[0] = value
    with pytest.raises(ValueError, match="no finite number"):
        match(*values.values())


def test_every_box_has_a_score():
    with pytest.raises(ValueError, match="2 boxes need as many scores"):
        match(np.ones((2, 4)), np.ones(3), np.ones((1, 4)))


def test_recall_and_detections_below_a_score():
    matches = Matches(np.array([0.9, 0.4]), np.array([0.8, 0.3]), 4, 2)
    assert (matches.recall(), matches.above(0.4).recall(), matches.above(0.5).recall()) == (
        0.5,
        0.5,
        0.25,
    )
    nothing = matches.above(0.95)
    assert (
        nothing.recall() == 0
        and nothing.false_positives.size == 0
        and nothing.froc().tolist() == [0] * 6
    )
    with pytest.raises(ValueError, match="0 and 2"):
        Matches(np.empty(0), np.array([0.5]), 0, 2).recall()


def test_froc_equals_monais_vector():
    """MONAI's test_compute_froc: fp_probs, tp_probs (a 0 is a target not found), 4 targets, 2
    images; compute_froc_score gives the mean.
    """
    curve = froc(
        [
            Matches(np.array([1, 1, 0.8]), np.array([0.8]), 2, 1),
            Matches(np.array([0.8]), np.array([0.6]), 2, 1),
        ]
    )
    assert curve.tpr[0] == pytest.approx(0.75) and curve.mean == pytest.approx(0.95833333)
    assert curve.fppi.tolist() == list(FPPI)


# 2 images, 4 lesions. score >= .9: 1 hit; .8: one false; .7: 2 hits; .2: 3 hits and 3 false.
KNOWN = [
    Matches(np.array([0.9]), np.array([0.2]), 1, 1),
    Matches(np.array([0.7, 0.2]), np.array([0.8, 0.2]), 3, 1),
]


def test_froc_by_hand():
    curve = froc(KNOWN, [0, 0.25, 0.5, 1.0, 1.5, 9])
    np.testing.assert_allclose(curve.tpr, [0.25, 0.25, 0.5, 0.625, 0.75, 0.75])
    assert curve.thresholds.tolist() == [np.inf, 0.9, 0.8, 0.7, 0.2]
    np.testing.assert_allclose(curve.curve_fppi, [0, 0, 0.5, 0.5, 1.5])
    np.testing.assert_allclose(curve.curve_tpr, [0, 0.25, 0.25, 0.5, 0.75])
    np.testing.assert_array_equal(Matches.join(KNOWN).froc([0.5, 1]), curve.tpr[2:4])


def test_partial_area_by_hand():
    """Up to 0.5 the height is .25; from there it rises from .5 to .75 within 1, and stays."""
    curve = froc(KNOWN, [0, 0.25, 0.5, 1.0, 1.5, 4.5])
    whole = [0.125 + 0.5 * (0.5 + 0.625) / 2, 0.125 + (0.5 + 0.75) / 2, 0.125 + 0.625 + 3 * 0.75]
    np.testing.assert_allclose(
        curve.areas, [0.25, 0.25, 0.25, whole[0] / 1, whole[1] / 1.5, whole[2] / 4.5]
    )


def test_froc_without_any_detection_is_zero():
    curve = froc([Matches(np.empty(0), np.empty(0), 3, 2)])
    assert curve.tpr.tolist() == curve.areas.tolist() == [0] * 6 and curve.thresholds.tolist() == [
        np.inf
    ]


@pytest.mark.parametrize(("lesions", "images"), [(0, 3), (3, 0)])
def test_froc_needs_lesions_and_images(lesions, images):
    with pytest.raises(ValueError, match=f"{lesions} and {images}"):
        froc([Matches(np.empty(0), np.empty(0), lesions, images)])
    with pytest.raises(ValueError, match="0 and 0"):
        froc([])


def test_froc_needs_numbers_of_false_positives():
    with pytest.raises(ValueError, match="0 or more"):
        froc(KNOWN, [1, -1])


scores_ = st.lists(st.floats(-1, 1), max_size=6).map(np.array)


@given(scores_, scores_)
def test_froc_never_falls(false, hits):
    at = np.linspace(0, 4, 33)
    curve = froc([Matches(hits, false, 6, 3)], at)
    assert np.all(np.diff(curve.tpr) >= 0) and curve.tpr[-1] == pytest.approx(len(hits) / 6)
    assert np.all(curve.areas <= curve.tpr + 1e-12) and np.all(np.diff(curve.areas) >= -1e-12)


@given(scores_, scores_, st.sampled_from([0.2, 1.0, 3.0]))
def test_partial_area_equals_a_sum_of_strips(false, hits, width):
    middles = (np.arange(3000) + 0.5) * width / 3000
    curve = froc([Matches(hits, false, 6, 3)], np.append(width, middles))
    assert curve.areas[0] == pytest.approx(curve.tpr[1:].mean(), abs=1e-3)


@pytest.mark.alone
def test_ten_thousand_images_in_two_seconds_of_work():
    random = np.random.default_rng(0)
    corners = random.uniform(0, 2500, (10_000, 102, 2))
    sides = random.uniform(50, 500, (10_000, 102, 2))
    boxes = np.concatenate([corners, corners + sides], axis=-1)
    scores = random.random((10_000, 100))
    start = time.process_time()
    curve = froc(
        [match(of[:100], score, of[100:]) for of, score in zip(boxes, scores, strict=True)]
    )
    assert time.process_time() - start < 2 and len(curve.thresholds) == 1_000_001


def test_kinds_are_told_apart_and_count_as_one_image():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]])
    matches = match_kinds(
        boxes, np.array([0.9, 0.8]), ["mass", "mass"], boxes, ["calcification", "mass"]
    )
    assert (
        matches.hits.tolist(),
        matches.false_positives.tolist(),
        matches.lesions,
        matches.images,
    ) == (
        [0.8],
        [0.9],
        2,
        1,
    )
    nothing = match_kinds(np.empty((0, 4)), np.empty(0), [], np.empty((0, 4)), [])
    assert (nothing.lesions, nothing.images) == (0, 1)


def image(hit, lesions=1):
    return Matches(np.array([0.9] if hit else []), np.empty(0), lesions, 1)


def test_an_interval_draws_patients_and_not_images():
    """Two patients, one found on all of ten images, the other on none: draws are 0, 1/2 or 1,
    whatever the number of images.
    """
    images = [image(True)] * 10 + [image(False)] * 10
    patients = ["a"] * 10 + ["b"] * 10
    low, high = froc_interval(images, patients, [1.0], samples=200, fewest=2)
    assert (low.tolist(), high.tolist()) == ([0], [1])
    low, high = froc_interval(images, [str(i) for i in range(20)], [1.0], samples=200)
    assert 0.2 < low[0] < 0.4 and 0.6 < high[0] < 0.8
    twice = [froc_interval(images, [str(i) for i in range(20)], samples=50) for _ in range(2)]
    assert np.array_equal(*twice), "the seed decides"


def test_an_interval_of_one_patient_bounds_nothing():
    assert np.isnan(froc_interval([image(True), image(False)], ["a", "a"], [1.0], fewest=1)).all()


def test_an_interval_counts_patients_with_lesions():
    """Normal images of many patients do not make up for lesions of few."""
    images = [image(True)] * 5 + [image(False, lesions=0)] * 20
    patients = [str(number) for number in range(25)]
    assert np.isnan(froc_interval(images, patients, [1.0], samples=20)).all()
    images[5] = image(False)
    assert not np.isnan(froc_interval(images, patients, [1.0], samples=20)).any()


def test_an_interval_draws_again_where_no_lesion_came():
    low, high = froc_interval(
        [image(True), image(False, lesions=0)], ["a", "b"], [1.0], samples=50, fewest=1
    )
    assert (low.tolist(), high.tolist()) == ([1], [1])
    with pytest.raises(ValueError, match="needs lesions"):
        froc_interval([image(False, lesions=0)], ["a"])


def slow_interval(images, patients, fppi, samples, seed, of, others=None):
    """Whole patients joined again for every draw."""
    random = np.random.default_rng(seed)
    names = sorted(set(patients))
    values = []
    while len(values) < samples:
        drawn = [names[number] for number in random.integers(len(names), size=len(names))]
        rows = [row for name in drawn for row, patient in enumerate(patients) if patient == name]
        if sum(images[row].lesions for row in rows):
            values.append(getattr(froc([images[row] for row in rows], fppi), of))
            if others is not None:
                values[-1] = values[-1] - getattr(froc([others[row] for row in rows], fppi), of)
    return np.percentile(values, [2.5, 97.5], axis=0)


@pytest.mark.parametrize("of", ["tpr", "areas"])
def test_an_interval_equals_that_of_patients_joined_again(of):
    random = np.random.default_rng(3)
    fppi = [0.1, 0.5, 2.0]

    def drawn(lesions):
        return [
            Matches(random.random(random.integers(n + 1)).round(1), random.random(2).round(1), n, 1)
            for n in lesions
        ]

    lesions = [1, 0, 2, 0, 1, 0]
    patients = ["a", "b", "b", "c", "d", "d"]
    images = drawn(lesions)
    others = drawn(lesions)
    interval = froc_interval(images, patients, fppi, samples=40, seed=5, of=of, fewest=3)
    np.testing.assert_allclose(interval, slow_interval(images, patients, fppi, 40, 5, of))
    interval = froc_interval(
        images, patients, fppi, samples=40, seed=5, of=of, against=others, fewest=3
    )
    np.testing.assert_allclose(interval, slow_interval(images, patients, fppi, 40, 5, of, others))
    same = froc_interval(images, patients, fppi, samples=40, of=of, against=images, fewest=3)
    assert not np.any(same), "a detector does not differ from itself, whoever is drawn"


def test_an_interval_needs_the_same_images():
    with pytest.raises(ValueError, match="2 images need as many patients, not 1"):
        froc_interval([image(True), image(False)], ["a"])
    with pytest.raises(ValueError, match="the same images"):
        froc_interval(
            [image(True), image(False)], ["a", "b"], against=[image(True), image(False, lesions=2)]
        )
    with pytest.raises(ValueError, match="the same images"):  # as many lesions in other places
        froc_interval(
            [image(True), image(False, lesions=0)],
            ["a", "b"],
            against=[image(False, lesions=0), image(True)],
        )
    with pytest.raises(ValueError, match="the same images"):
        froc_interval([image(True), image(False)], ["a", "b"], against=[image(True)])


def test_below_six_patients_nothing_is_bounded():
    """Flipping the signs of five patients gives no p below 2 / 2^5 = 0.0625."""
    images = [image(number % 2) for number in range(6)]
    assert np.isnan(froc_interval(images[:5], list("abcde"), [1.0], samples=20)).all()
    assert np.isfinite(froc_interval(images, list("abcdef"), [1.0], samples=20)).all()


def perfect(shift):
    """Every lesion above every false positive: a lesion and a false positive in each of twelve
    images.
    """
    return [Matches(np.array([0.3 + shift]), np.array([0.2 + shift]), 1, 1) for _ in range(12)]


def test_trainings_whose_scores_lie_elsewhere_are_each_as_good_as_they_are():
    """Two perfect trainings half a point apart: pooled, the lower one's lesions stand below the
    higher one's false positives.
    """
    images = perfect(0) + perfect(0.5)
    trainings = [(0, 0)] * 12 + [(0, 1)] * 12
    patients = [str(n) for n in range(12)] * 2
    assert froc(images, [0.25]).tpr.tolist() == [0.5]
    curves = froc_by_training(images, trainings, [0.25, 0])
    assert {training: curve.tpr.tolist() for training, curve in curves.items()} == {
        (0, 0): [1, 1],
        (0, 1): [1, 1],
    }
    low, high = froc_interval(images, patients, [0.25], samples=50, trainings=trainings)
    assert (low.tolist(), high.tolist()) == ([1], [1])
    others = perfect(0.1) + perfect(0.2)
    kept = {"trainings": trainings, "others_trainings": trainings}
    assert not np.any(froc_interval(images, patients, [0.25], samples=50, against=others, **kept))


def test_an_interval_of_trainings_has_the_mean_of_theirs_in_every_draw():
    random = np.random.default_rng(4)
    names = list("abcdefgh")
    fppi = [0.2, 1.0]
    lesions = [1, 0, 2, 0, 1, 1, 0, 1] * 2
    trainings = [(n % 2, n // 8) for n in range(16)]
    images = [
        Matches(random.random(random.integers(n + 1)), random.random(2), n, 1) for n in lesions
    ]
    values = []
    drawn = np.random.default_rng(7)
    while len(values) < 30:
        rows = [int(number) for number in drawn.integers(8, size=8)]
        rows += [row + 8 for row in rows]  # whoever is drawn is drawn for both seeds
        parts = {
            training: [images[row] for row in rows if trainings[row] == training]
            for training in set(trainings)
        }
        curves = [
            froc(part, fppi).tpr for part in parts.values() if sum(one.lesions for one in part)
        ]
        if curves:
            values.append(np.mean(curves, axis=0))
    interval = froc_interval(
        images, names * 2, fppi, samples=30, seed=7, trainings=trainings, fewest=5
    )
    np.testing.assert_allclose(interval, np.percentile(values, [2.5, 97.5], axis=0))


def test_mean_over_trainings_and_deviation_over_folds():
    """Folds 0 and 1 with two seeds each: means .5 and .8, which lie .15 beside .65: a deviation of
    .3 / sqrt(2).
    """
    values = {
        (0, 0): np.array([0.4]),
        (0, 1): np.array([0.6]),
        (1, 0): np.array([0.7]),
        (1, 1): np.array([0.9]),
    }
    mean, deviation = over_folds(values)
    assert mean.tolist() == pytest.approx([0.65]) and deviation.tolist() == pytest.approx(
        [0.3 / 2**0.5]
    )
    assert np.isnan(over_folds({(2, 0): np.array([0.4]), (2, 1): np.array([0.6])})[1]).all(), (
        "one fold does not scatter"
    )


def test_of_unequal_numbers_of_seeds_each_training_counts_once_in_the_mean():
    """Mean of .2, .4, .9, not of the folds' .3 and .9, which are .3 from their middle."""
    values = {(0, 0): np.array([0.2]), (0, 1): np.array([0.4]), (1, 0): np.array([0.9])}
    mean, deviation = over_folds(values)
    assert mean.tolist() == pytest.approx([0.5])
    assert deviation.tolist() == pytest.approx([0.6 / 2**0.5])


def test_trainings_that_judged_no_lesion_have_no_curve():
    images = [image(True), image(False, lesions=0)]
    trainings = [(0, 0), (1, 0)]
    assert list(froc_by_training(images, trainings)) == [(0, 0)]
    with pytest.raises(ValueError, match="needs lesions"):
        froc_by_training(images[1:], trainings[1:])
    with pytest.raises(ValueError, match="2 images need as many trainings, not 1"):
        froc_by_training(images, trainings[:1])


def test_false_positives_of_images_with_and_without_lesions_by_hand():
    """Three normal images with .9, .5, .5 and one with lesions with .7 and .1: 5 false positives in
    4 images.
    """
    normal = [Matches(np.empty(0), np.array(scores), 0, 1) for scores in ([0.9], [0.5], [0.5])]
    images = [*normal, Matches(np.array([0.95]), np.array([0.7, 0.1]), 2, 1)]
    without, beside = false_positives_apart(images, [(0, 0)] * 4, [0.25, 0.5, 0.75, 1.0, 1.25, 9])
    # From .9: 1 and 0 boxes. From .7: 1 and 1. From .5: 3 and 1; three of four lies half-way. From
    # .1: 3 and 2.
    np.testing.assert_allclose(without, np.array([1, 1, 2, 3, 3, 3]) / 3)
    np.testing.assert_allclose(beside, [0, 1, 1, 1, 2, 2])
    np.testing.assert_allclose((3 * without + beside)[:5] / 4, [0.25, 0.5, 0.75, 1.0, 1.25])
    assert np.isnan(false_positives_apart(images[3:], [(0, 0)], [1.0])[0]).all()
    # A second training whose normal images have no box: each of the two counts half.
    quiet = [Matches(np.empty(0), np.empty(0), 0, 1), images[3]]
    trainings = [(0, 0)] * 4 + [(1, 0)] * 2
    both, others = false_positives_apart(images + quiet, trainings, [0.5, 1.0])
    np.testing.assert_allclose(both, [1 / 6, 3 / 6])
    np.testing.assert_allclose(others, [(1 + 1) / 2, (1 + 2) / 2])


def test_recall_of_all_detections():
    curve = froc(KNOWN, [ALL_DETECTIONS])
    assert curve.tpr.tolist() == [0.75] == [
        Matches.join(KNOWN).recall()
    ] and curve.areas.tolist() == [0.75]


def test_detections_of_kinds_that_are_not_judged_are_no_false_positives():
    """A right box around a calcification is no false mass."""
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]])
    kinds = ["mass", "calcification"]
    of = boxes, np.array([0.9, 0.95]), kinds, boxes[:1], ["mass"]
    matches = match_kinds(*of, judged=["mass"])
    assert (matches.hits.tolist(), matches.false_positives.tolist()) == ([0.9], [])
    assert match_kinds(*of, judged=["mass", "calcification"]).false_positives.tolist() == [0.95]
    assert match_kinds(*of, judged=["mass"]).images == 1
