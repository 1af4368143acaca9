"""JAFROC against numbers worked out by hand and slow pseudo-values."""

import numpy as np
import pytest
from scipy import stats

from tfmammo.metrics import jafroc as jafroc_module
from tfmammo.metrics.boxes import Matches
from tfmammo.metrics.detection import Found
from tfmammo.metrics.jafroc import JafrocTest, choose_common_merit, jafroc, jafroc_test


@pytest.fixture
def few_patients_suffice(monkeypatch):
    monkeypatch.setattr(jafroc_module, "FEWEST_PATIENTS", 1)


def image(hits=(), false=(), lesions=0):
    return Matches(np.array(hits, float), np.array(false, float), lesions, 1)


# Two normal images, one with nothing found; two with lesions, of which one is not found.
KNOWN = [image(false=[0.5, 0.3]), image(), image([0.9, 0.5], [0.7], 2), image(lesions=1)]


def test_figure_of_merit_by_hand():
    # Lesions .9, .5 and none against .5 and none: (1 + 1) + (1/2 + 1) + (0 + 1/2), of 6.
    assert jafroc(KNOWN) == pytest.approx(4 / 6)
    # JAFROC1 adds .7, which .9 exceeds alone, and the last image's none: 1 of .9, 1 of .5, 1/2 of
    # none.
    assert jafroc(KNOWN, "jafroc1") == pytest.approx((4 + 1 + 0 + 0 + 1 + 1 + 0.5) / 12)


def slow(images, merit):
    """The double sum over images and lesions."""
    highest = [
        max(one.false_positives, default=-np.inf)
        for one in images
        if merit == "jafroc1" or not one.lesions
    ]
    lesions = [
        rating
        for one in images
        for rating in [*one.hits, *[-np.inf] * (one.lesions - len(one.hits))]
    ]
    return np.mean([1.0 if y > x else 0.5 if y == x else 0.0 for x in highest for y in lesions])


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("merit", ["jafroc", "jafroc1"])
def test_the_test_equals_scipys_paired_t_of_slow_pseudo_values(merit, seeds):
    """A patient is left out of the runs of all seeds, whose figures of merit are averaged."""
    random = np.random.default_rng(1)
    patients = [f"p{number % 9}" for number in range(30)] * seeds
    runs = np.repeat(np.arange(seeds), 30)
    lesions = [*random.integers(3, size=30)] * seeds

    def drawn(shift):
        return [
            image(
                random.random(random.integers(n + 1)).round(1) + shift, random.random(2).round(1), n
            )
            for n in lesions
        ]

    def mean(side, left=None):
        rows = [row for row, patient in enumerate(patients) if patient != left]
        parts = [[side[row] for row in rows if runs[row] == run] for run in range(seeds)]
        return np.mean([slow(part, merit) for part in parts])

    sides = drawn(0.5), drawn(0)
    merits = [mean(side) for side in sides]
    pseudo = []
    for side, theta in zip(sides, merits, strict=True):
        values = 9 * theta - 8 * np.array([mean(side, name) for name in sorted(set(patients))])
        # centred, as Hillis has them: their mean is the figure of merit
        pseudo.append(values - values.mean() + theta)
    expected = stats.ttest_rel(*pseudo)
    found = [Found(side, [(0, int(seed)) for seed in runs]) for side in sides]
    result = jafroc_test(*found, patients, merit)
    assert (result.merit, result.other) == pytest.approx(merits)
    assert result.difference == pytest.approx(merits[0] - merits[1])
    found = result.t, result.degrees, result.p
    assert found == pytest.approx((expected.statistic, 8, expected.pvalue))
    assert (result.low, result.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert result.p < 0.05, "half a point more on every lesion"


def test_few_patients_with_lesions_have_few_degrees_of_freedom():
    """Each patient has one image, and the lesions' marks alone differ: 6 patients, 5 degrees."""
    random = np.random.default_rng(3)
    normal = [image(false=[x]) for x in random.random(100)]
    sides = [
        Found.by_one_run([*(image([y], lesions=1) for y in random.random(6)), *normal])
        for _ in range(2)
    ]
    few = jafroc_test(*sides, [str(number) for number in range(106)])
    assert 5 <= few.degrees < 6
    assert few.p == pytest.approx(2 * stats.t.sf(abs(few.t), few.degrees))
    # where every patient has lesions there is one group
    patients = [str(number % 6) for number in range(106)]
    assert jafroc_test(*sides, patients).degrees == 5


def test_a_difference_without_variance(few_patients_suffice):
    best = Found.by_one_run([image(false=[0.1])] * 2 + [image([0.9], lesions=1)] * 2)
    worst = Found.by_one_run([image(false=[0.9])] * 2 + [image(lesions=1)] * 2)
    result = jafroc_test(best, worst, ["a", "b", "c", "d"])
    # two patients with a lesion: 2^(1-2), and 3 / 2 is more than the whole range
    assert result == JafrocTest(1, 0, 1, 0, 1, np.inf, 3, 0.5)


@pytest.mark.parametrize("patients", [["a"] * 4, ["a", "b", "c", "c"], ["a", "a", "b", "c"]])
def test_a_patient_who_cant_be_left_out_leaves_it_untested(few_patients_suffice, patients):
    """Of one patient alone, or with all lesions or all normal images of one."""
    result = jafroc_test(Found.by_one_run(KNOWN), Found.by_one_run(KNOWN), patients)
    assert (result.merit, result.difference, result.degrees) == (pytest.approx(4 / 6), 0, 0)
    assert np.isnan([result.low, result.high, result.t, result.p]).all()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: jafroc([image(false=[0.5])]), "lesions"),
        (lambda: jafroc([image([0.5], lesions=1)]), "without lesions.*jafroc1"),
        (
            lambda: jafroc_test(Found.by_one_run(KNOWN), Found.by_one_run(KNOWN[::-1]), [*"abcd"]),
            "same images",
        ),
    ],
)
def test_bad_input(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_below_six_patients_nothing_is_tested():
    images = [image([0.9], [0.5], 1), *(image([0.7], [0.8], 1) for _ in range(5))]
    five, six = Found.by_one_run(images[:5]), Found.by_one_run(images)
    assert np.isnan(jafroc_test(five, five, list("abcde"), "jafroc1").p)
    assert jafroc_test(six, six, list("abcdef"), "jafroc1").p == 1


LESION = image([0.9], lesions=1)
EIGHT = [LESION, *[image()] * 6, LESION]
ONE_RUN = Found.by_one_run(EIGHT)
TWO_NORMAL = [LESION] * 8 + [image()] * 2


@pytest.mark.parametrize(
    ("patients", "detectors", "merit"),
    [
        ("abcdefgh", [ONE_RUN], "jafroc"),
        # a run without normal ones
        ("abcdefgh", [Found(EIGHT, [(0, 0)] * 7 + [(1, 0)])], "jafroc1"),
        # without one's patient the second run has none
        ("abcdefgh", [Found(EIGHT, [(0, 0)] * 6 + [(1, 0)] * 2)], "jafroc1"),
        ("abcdefgh", [ONE_RUN] * 2, "jafroc"),
        # whichever is the reference
        ("abcdefgh", [ONE_RUN, Found(EIGHT, [(0, 0)] * 7 + [(1, 0)])], "jafroc1"),
        # normal images of five patients are too few for the jackknife
        ("abbcdefg", [ONE_RUN], "jafroc1"),
        ("abcdefghij", [Found.by_one_run(TWO_NORMAL)], "jafroc1"),
        # a run without lesions has no figure of merit, and its normal images do not count
        (
            "abcdefghijklmnop",
            [Found(TWO_NORMAL + [image()] * 6, [(0, 0)] * 10 + [(1, 0)] * 6)],
            "jafroc1",
        ),
    ],
)
def test_the_merit_is_jafroc_where_every_run_saw_normal_images(patients, detectors, merit):
    assert choose_common_merit(list(patients), *detectors) == merit
