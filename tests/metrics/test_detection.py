"""FROC against MONAI's test vector, slower ways to the same numbers, and numbers by hand."""

import numpy as np
import pytest

from tfmammo.metrics import detection
from tfmammo.metrics.boxes import Matches
from tfmammo.metrics.detection import (
    ALL_DETECTIONS,
    Found,
    false_positives_apart,
    froc,
    froc_by_run,
    froc_interval,
    over_folds,
    scores_at,
)


def test_froc_equals_monais_vector():
    """MONAI's test_compute_froc: fp_probs, tp_probs (a 0 is a target not found), 4 targets, 2
    images; compute_froc_score gives the mean.
    """
    first = Matches(np.array([1, 1, 0.8]), np.array([0.8]), 2, 1)
    curve = froc([first, Matches(np.array([0.8]), np.array([0.6]), 2, 1)])
    assert (curve.tpr[0], curve.tpr.mean()) == pytest.approx((0.75, 0.95833333))


NOTHING = np.empty(0)
# 2 images, 4 lesions. score >= .9: 1 hit; .8: one false; .7: 2 hits; .2: 3 hits and 3 false.
KNOWN = [
    Matches(np.array([0.9]), np.array([0.2]), 1, 1),
    Matches(np.array([0.7, 0.2]), np.array([0.8, 0.2]), 3, 1),
]


def test_froc_by_hand():
    curve = froc(KNOWN, [0, 0.25, 0.5, 1.0, 1.5, 9])
    np.testing.assert_allclose(curve.tpr, [0.25, 0.25, 0.5, 0.625, 0.75, 0.75])
    np.testing.assert_array_equal(froc([Matches.join(KNOWN)], [0.5, 1]).tpr, curve.tpr[2:4])


def test_partial_area_by_hand():
    """Up to 0.5 the height is .25; from there it rises from .5 to .75 within 1, and stays."""
    curve = froc(KNOWN, [0, 0.25, 0.5, 1.0, 1.5, 4.5])
    whole = [0.125 + 0.5 * (0.5 + 0.625) / 2, 0.125 + (0.5 + 0.75) / 2, 0.125 + 0.625 + 3 * 0.75]
    expected = [0.25, 0.25, 0.25, whole[0] / 1, whole[1] / 1.5, whole[2] / 4.5]
    np.testing.assert_allclose(curve.areas, expected)
    everything = froc(KNOWN, [ALL_DETECTIONS])
    assert everything.tpr.tolist() == everything.areas.tolist() == [3 / 4]


def image(hit, lesions=1):
    return Matches(np.array([0.9] if hit else []), NOTHING, lesions, 1)


FOUND, MISSED, NORMAL = image(True), image(False), image(False, lesions=0)
BOTH, TURNED = Found.by_one_run([FOUND, NORMAL]), Found.by_one_run([NORMAL, FOUND])


@pytest.fixture
def few_patients_suffice(monkeypatch):
    monkeypatch.setattr(detection, "FEWEST_PATIENTS", 1)


def test_an_interval_draws_patients_and_not_images(few_patients_suffice):
    """Two patients, one found on all of ten images, the other on none: draws are 0, 1/2 or 1,
    whatever the number of images.
    """
    found = Found.by_one_run([FOUND] * 10 + [MISSED] * 10)
    low, high = froc_interval(found, [*"a" * 10, *"b" * 10], [1.0], samples=200)
    assert (low.tolist(), high.tolist()) == ([0], [1])
    patients = [str(number) for number in range(20)]
    low, high = froc_interval(found, patients, [1.0], samples=200)
    assert 0.2 < low[0] < 0.4 and 0.6 < high[0] < 0.8
    twice = [froc_interval(found, patients, samples=50) for _ in range(2)]
    assert np.array_equal(*twice), "the seed decides"
    # a draw without any lesion is repeated
    low, high = froc_interval(BOTH, ["a", "b"], [1.0], samples=50)
    assert (low.tolist(), high.tolist()) == ([1], [1])


def test_an_interval_counts_patients_with_lesions():
    """Normal images of many patients do not make up for lesions of few."""
    patients = [str(number) for number in range(25)]
    for found, is_unknown in ((5, True), (6, False)):
        images = [FOUND] * found + [NORMAL] * (25 - found)
        interval = froc_interval(Found.by_one_run(images), patients, [1.0], samples=20)
        assert (np.isnan(np.array(interval)) == is_unknown).all()


def slow_interval(images, patients, fppi, of, runs, others=None):
    """Whole patients joined again for each of 40 draws, and the mean over the runs with lesions."""
    random = np.random.default_rng(5)
    names = sorted(set(patients))
    values = []
    while len(values) < 40:
        drawn = [names[number] for number in random.integers(len(names), size=len(names))]
        rows = [row for name in drawn for row, patient in enumerate(patients) if patient == name]
        parts = [[row for row in rows if runs[row] == run] for run in sorted(set(runs))]
        parts = [part for part in parts if sum(images[row].lesions for row in part)]
        means = [
            np.mean([getattr(froc([side[row] for row in part], fppi), of) for part in parts], 0)
            for side in (images, others)
            if parts and side
        ]
        if parts:
            values.append(means[0] - means[1] if others else means[0])
    return np.percentile(values, [2.5, 97.5], axis=0)


@pytest.mark.parametrize("of", ["tpr", "areas"])
@pytest.mark.parametrize("seeds", [1, 2])
def test_an_interval_equals_that_of_patients_joined_again(few_patients_suffice, of, seeds):
    random = np.random.default_rng(3)
    fppi = [0.1, 0.5, 2.0]
    lesions = [1, 0, 2, 0, 1, 0] * seeds
    patients = ["a", "b", "b", "c", "d", "d"] * seeds
    # two folds; whoever is drawn is drawn for both seeds
    runs = [("cd".count(one), n // 6) for n, one in enumerate(patients)]
    if seeds == 1:
        runs = [(0, 0)] * len(patients)
    images, others = (
        [
            Matches(random.random(random.integers(n + 1)).round(1), random.random(2).round(1), n, 1)
            for n in lesions
        ]
        for _ in range(2)
    )
    found, against = Found(images, runs), Found(others, runs)
    options = {"samples": 40, "seed": 5, "of": of}
    interval = froc_interval(found, patients, fppi, **options)
    np.testing.assert_allclose(interval, slow_interval(images, patients, fppi, of, runs))
    interval = froc_interval(found, patients, fppi, **options, against=against)
    expected = slow_interval(images, patients, fppi, of, runs, others)
    np.testing.assert_allclose(interval, expected)
    same = froc_interval(found, patients, fppi, **options, against=found)
    assert not np.any(same), "a detector does not differ from itself, whoever is drawn"


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: froc([Matches(NOTHING, NOTHING, 0, 3)]), "0 and 3"),
        (lambda: froc([Matches(NOTHING, NOTHING, 3, 0)]), "3 and 0"),
        (lambda: Found([NORMAL], []), "1 images .* runs, not 0"),
        (lambda: froc_interval(Found.by_one_run([NORMAL]), ["a"]), "lesions"),
        (lambda: froc_interval(BOTH, ["a"]), "2 images .* patients, not 1"),
        (lambda: froc_interval(BOTH, ["a", "b"], against=TURNED), "same"),
        (lambda: froc_by_run(Found.by_one_run([NORMAL])), "lesions"),
    ],
)
def test_bad_input(call, named):
    with pytest.raises(ValueError, match=named):
        call()


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


def test_the_least_score_at_a_number_of_false_positives():
    """Kept from that score on, no more false positives are left, and the next lower score has."""
    images = [
        Matches(np.array([0.9, 0.35]), np.array([0.8, 0.4]), lesions=2, images=1),
        Matches(np.array([]), np.array([0.4, 0.1]), lesions=0, images=1),
    ]
    # false positives at .8, .4, .4 and .1 in two images
    found = scores_at(images, [0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 8.0])
    np.testing.assert_array_equal(found, [0.9, 0.9, 0.8, 0.8, 0.35, 0.1, 0.1])
    first = [Matches(np.array([0.5]), np.array([0.6]), lesions=1, images=1)]
    assert np.isnan(scores_at(first, [0.0])).all(), "the best score is false"


def test_runs_that_saw_no_lesion_have_no_curve():
    assert list(froc_by_run(Found([FOUND, NORMAL], [(0, 0), (1, 0)]))) == [(0, 0)]


def test_false_positives_of_images_with_and_without_lesions_by_hand():
    """Three normal images with .9, .5, .5 and one with lesions with .7 and .1: 5 false positives in
    4 images.
    """
    normal = [Matches(NOTHING, np.array(scores), 0, 1) for scores in ([0.9], [0.5], [0.5])]
    images = [*normal, Matches(np.array([0.95]), np.array([0.7, 0.1]), 2, 1)]
    found = Found.by_one_run(images)
    without, beside = false_positives_apart(found, [0.25, 0.5, 0.75, 1.0, 1.25, 9])
    # From .9: 1 and 0 boxes. From .7: 1 and 1. From .5: 3 and 1; three of four is half-way. From
    # .1: 3 and 2.
    np.testing.assert_allclose(without, np.array([1, 1, 2, 3, 3, 3]) / 3)
    np.testing.assert_allclose(beside, [0, 1, 1, 1, 2, 2])
    np.testing.assert_allclose((3 * without + beside)[:5] / 4, [0.25, 0.5, 0.75, 1.0, 1.25])
    assert np.isnan(false_positives_apart(Found.by_one_run(images[3:]), [1.0])[0]).all()
    # A second run whose normal images have no box: each of the two counts half.
    quiet = [Matches(NOTHING, NOTHING, 0, 1), images[3]]
    runs = [(0, 0)] * 4 + [(1, 0)] * 2
    both, others = false_positives_apart(Found(images + quiet, runs), [0.5, 1.0])
    np.testing.assert_allclose(both, [1 / 6, 3 / 6])
    np.testing.assert_allclose(others, [(1 + 1) / 2, (1 + 2) / 2])
