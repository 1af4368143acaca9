"""FROC against MONAI's test vector, slower ways to the same numbers, and numbers by hand."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfmammo.metrics import detection
from tfmammo.metrics.boxes import Matches, match
from tfmammo.metrics.detection import (
    ALL_DETECTIONS,
    FPPI,
    false_positives_apart,
    froc,
    froc_by_run,
    froc_interval,
    over_folds,
)


def test_froc_equals_monais_vector():
    """MONAI's test_compute_froc: fp_probs, tp_probs (a 0 is a target not found), 4 targets, 2
    images; compute_froc_score gives the mean.
    """
    first = Matches(np.array([1, 1, 0.8]), np.array([0.8]), 2, 1)
    curve = froc([first, Matches(np.array([0.8]), np.array([0.6]), 2, 1)])
    assert (curve.tpr[0], curve.tpr.mean()) == pytest.approx((0.75, 0.95833333))
    assert curve.fppi.tolist() == list(FPPI)


NOTHING = np.empty(0)
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
    np.testing.assert_array_equal(froc([Matches.join(KNOWN)], [0.5, 1]).tpr, curve.tpr[2:4])


def test_partial_area_by_hand():
    """Up to 0.5 the height is .25; from there it rises from .5 to .75 within 1, and stays."""
    curve = froc(KNOWN, [0, 0.25, 0.5, 1.0, 1.5, 4.5])
    whole = [0.125 + 0.5 * (0.5 + 0.625) / 2, 0.125 + (0.5 + 0.75) / 2, 0.125 + 0.625 + 3 * 0.75]
    expected = [0.25, 0.25, 0.25, whole[0] / 1, whole[1] / 1.5, whole[2] / 4.5]
    np.testing.assert_allclose(curve.areas, expected)
    everything = froc(KNOWN, [ALL_DETECTIONS])
    assert everything.tpr.tolist() == everything.areas.tolist() == [3 / 4]


def test_froc_without_any_detection_is_zero():
    curve = froc([Matches(NOTHING, NOTHING, 3, 2)])
    assert curve.tpr.tolist() == curve.areas.tolist() == [0] * 6
    assert curve.thresholds.tolist() == [np.inf]


scores_ = st.lists(st.floats(-1, 1), max_size=6).map(np.array)


@given(scores_, scores_, st.sampled_from([0.2, 1.0, 3.0]))
def test_a_curve_never_falls_and_its_area_is_a_sum_of_strips(false, hits, width):
    matches = [Matches(hits, false, 6, 3)]
    curve = froc(matches, np.linspace(0, 4, 33))
    assert np.all(np.diff(curve.tpr) >= 0) and curve.tpr[-1] == pytest.approx(len(hits) / 6)
    assert np.all(curve.areas <= curve.tpr + 1e-12) and np.all(np.diff(curve.areas) >= -1e-12)
    middles = (np.arange(3000) + 0.5) * width / 3000
    curve = froc(matches, np.append(width, middles))
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


def image(hit, lesions=1):
    return Matches(np.array([0.9] if hit else []), NOTHING, lesions, 1)


FOUND, MISSED, NORMAL = image(True), image(False), image(False, lesions=0)


@pytest.fixture
def few_patients_suffice(monkeypatch):
    monkeypatch.setattr(detection, "FEWEST_PATIENTS", 1)


def test_an_interval_draws_patients_and_not_images(few_patients_suffice):
    """Two patients, one found on all of ten images, the other on none: draws are 0, 1/2 or 1,
    whatever the number of images.
    """
    images = [FOUND] * 10 + [MISSED] * 10
    low, high = froc_interval(images, [*"a" * 10, *"b" * 10], [1.0], samples=200)
    assert (low.tolist(), high.tolist()) == ([0], [1])
    patients = [str(number) for number in range(20)]
    low, high = froc_interval(images, patients, [1.0], samples=200)
    assert 0.2 < low[0] < 0.4 and 0.6 < high[0] < 0.8
    twice = [froc_interval(images, patients, samples=50) for _ in range(2)]
    assert np.array_equal(*twice), "the seed decides"
    # a draw without any lesion is repeated
    low, high = froc_interval([FOUND, NORMAL], ["a", "b"], [1.0], samples=50)
    assert (low.tolist(), high.tolist()) == ([1], [1])


def test_an_interval_counts_patients_with_lesions():
    """Normal images of many patients do not make up for lesions of few."""
    patients = [str(number) for number in range(25)]
    for found, is_unknown in ((5, True), (6, False)):
        images = [FOUND] * found + [NORMAL] * (25 - found)
        interval = np.array(froc_interval(images, patients, [1.0], samples=20))
        assert (np.isnan(interval) == is_unknown).all()


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
def test_an_interval_equals_that_of_patients_joined_again(few_patients_suffice, of):
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
    interval = froc_interval(images, patients, fppi, samples=40, seed=5, of=of)
    np.testing.assert_allclose(interval, slow_interval(images, patients, fppi, 40, 5, of))
    interval = froc_interval(images, patients, fppi, samples=40, seed=5, of=of, against=others)
    np.testing.assert_allclose(interval, slow_interval(images, patients, fppi, 40, 5, of, others))
    same = froc_interval(images, patients, fppi, samples=40, of=of, against=images)
    assert not np.any(same), "a detector does not differ from itself, whoever is drawn"


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: froc([Matches(NOTHING, NOTHING, 0, 3)]), "0 and 3"),
        (lambda: froc([Matches(NOTHING, NOTHING, 3, 0)]), "3 and 0"),
        (lambda: froc([]), "0 and 0"),
        (lambda: froc(KNOWN, [1, -1]), "0 or more"),
        (lambda: froc_interval([NORMAL], ["a"]), "lesions"),
        (lambda: froc_interval([FOUND, MISSED], ["a"]), "2 images .* patients, not 1"),
        (lambda: froc_interval([FOUND, NORMAL], ["a", "b"], against=[NORMAL, FOUND]), "same"),
        (lambda: froc_interval([FOUND, MISSED], ["a", "b"], against=[FOUND]), "same images"),
        (lambda: froc_by_run([NORMAL], [(0, 0)]), "lesions"),
        (lambda: froc_by_run([FOUND, NORMAL], [(0, 0)]), "2 images .* runs, not 1"),
    ],
)
def test_bad_input(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def perfect(shift):
    """Every lesion above every false positive: a lesion and a false positive in each of twelve
    images.
    """
    return [Matches(np.array([0.3 + shift]), np.array([0.2 + shift]), 1, 1) for _ in range(12)]


def test_runs_whose_scores_lie_elsewhere_are_each_as_good_as_they_are():
    """Two perfect runs half a point apart: pooled, the lower one's lesions rank below
    the higher one's false positives.
    """
    images = perfect(0) + perfect(0.5)
    runs = [(0, 0)] * 12 + [(0, 1)] * 12
    patients = [str(n) for n in range(12)] * 2
    assert froc(images, [0.25]).tpr.tolist() == [0.5]
    curves = froc_by_run(images, runs, [0.25, 0])
    assert {run: curve.tpr.tolist() for run, curve in curves.items()} == dict.fromkeys(
        [(0, 0), (0, 1)], [1, 1]
    )
    low, high = froc_interval(images, patients, [0.25], samples=50, runs=runs)
    assert (low.tolist(), high.tolist()) == ([1], [1])
    others = perfect(0.1) + perfect(0.2)
    kept = {"runs": runs, "others_runs": runs}
    assert not np.any(froc_interval(images, patients, [0.25], samples=50, against=others, **kept))


def test_an_interval_of_runs_has_the_mean_of_theirs_in_every_draw(few_patients_suffice):
    random = np.random.default_rng(4)
    names = list("abcdefgh")
    fppi = [0.2, 1.0]
    lesions = [1, 0, 2, 0, 1, 1, 0, 1] * 2
    runs = [(n % 2, n // 8) for n in range(16)]
    images = [
        Matches(random.random(random.integers(n + 1)), random.random(2), n, 1) for n in lesions
    ]
    values = []
    drawn = np.random.default_rng(7)
    while len(values) < 30:
        rows = [int(number) for number in drawn.integers(8, size=8)]
        rows += [row + 8 for row in rows]  # whoever is drawn is drawn for both seeds
        parts = {run: [images[row] for row in rows if runs[row] == run] for run in set(runs)}
        curves = [
            froc(part, fppi).tpr for part in parts.values() if sum(one.lesions for one in part)
        ]
        if curves:
            values.append(np.mean(curves, axis=0))
    interval = froc_interval(images, names * 2, fppi, samples=30, seed=7, runs=runs)
    np.testing.assert_allclose(interval, np.percentile(values, [2.5, 97.5], axis=0))


@pytest.mark.parametrize(
    ("values", "mean", "deviation"),
    [
        # means of folds .5 and .8, which are .15 beside .65
        ({(0, 0): 0.4, (0, 1): 0.6, (1, 0): 0.7, (1, 1): 0.9}, 0.65, 0.3 / 2**0.5),
        # each run counts once in the mean, not each fold: .3 and .9 are .3 from their middle
        ({(0, 0): 0.2, (0, 1): 0.4, (1, 0): 0.9}, 0.5, 0.6 / 2**0.5),
        ({(2, 0): 0.4, (2, 1): 0.6}, 0.5, np.nan),  # one fold does not scatter
    ],
)
def test_mean_over_runs_and_deviation_over_folds(values, mean, deviation):
    found = over_folds({run: np.array([value]) for run, value in values.items()})
    np.testing.assert_allclose(found, [[mean], [deviation]])


def test_runs_that_saw_no_lesion_have_no_curve():
    assert list(froc_by_run([FOUND, NORMAL], [(0, 0), (1, 0)])) == [(0, 0)]


def test_false_positives_of_images_with_and_without_lesions_by_hand():
    """Three normal images with .9, .5, .5 and one with lesions with .7 and .1: 5 false positives in
    4 images.
    """
    normal = [Matches(NOTHING, np.array(scores), 0, 1) for scores in ([0.9], [0.5], [0.5])]
    images = [*normal, Matches(np.array([0.95]), np.array([0.7, 0.1]), 2, 1)]
    without, beside = false_positives_apart(images, [(0, 0)] * 4, [0.25, 0.5, 0.75, 1.0, 1.25, 9])
    # From .9: 1 and 0 boxes. From .7: 1 and 1. From .5: 3 and 1; three of four is half-way. From
    # .1: 3 and 2.
    np.testing.assert_allclose(without, np.array([1, 1, 2, 3, 3, 3]) / 3)
    np.testing.assert_allclose(beside, [0, 1, 1, 1, 2, 2])
    np.testing.assert_allclose((3 * without + beside)[:5] / 4, [0.25, 0.5, 0.75, 1.0, 1.25])
    assert np.isnan(false_positives_apart(images[3:], [(0, 0)], [1.0])[0]).all()
    # A second run whose normal images have no box: each of the two counts half.
    quiet = [Matches(NOTHING, NOTHING, 0, 1), images[3]]
    runs = [(0, 0)] * 4 + [(1, 0)] * 2
    both, others = false_positives_apart(images + quiet, runs, [0.5, 1.0])
    np.testing.assert_allclose(both, [1 / 6, 3 / 6])
    np.testing.assert_allclose(others, [(1 + 1) / 2, (1 + 2) / 2])
