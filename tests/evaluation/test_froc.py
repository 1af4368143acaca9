"""What a FROC figure shows."""

import numpy as np
import pytest

from tfmammo.evaluation.froc import Detected, compare_recall
from tfmammo.metrics.boxes import Matches
from tfmammo.metrics.detection import Found

HALF = [
    Matches(np.array([0.9]), np.array([0.8]), 1, 1),
    Matches(np.empty(0), np.array([0.3]), 1, 1),
] * 3
NOTHING = [Matches(np.empty(0), np.empty(0), 1, 1)] * 6


def test_curves_and_bands():
    found = {name: Found.by_one_run(images) for name, images in (("a", HALF), ("none", NOTHING))}
    detected = Detected(
        found, list("abcdef"), (1, 2), (50, 0, 0.95), "recall", "phantom", titles={"a": "ours"}
    )
    (axes,) = detected.draw().axes
    ours, none = axes.get_lines()
    assert np.interp([0, 0.5, 2], *ours.get_data()).tolist() == [0.5] * 3
    assert not np.any(none.get_ydata())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ours", "none"]
    band, of_nothing = (each.get_datalim(axes.transData) for each in axes.collections)
    assert 0 <= band.y0 < 0.5 < band.y1 <= 1
    # six patients without a hit do not exclude all recall above 0
    assert of_nothing.y0 == 0 < of_nothing.y1 < 1
    assert (axes.get_title(), axes.get_ylabel(), axes.get_xlim()) == ("phantom", "recall", (0, 2))
    (axes,) = detected.draw(["a"], "another").axes
    assert axes.get_legend() is None and axes.get_title() == "another"


def test_a_difference_of_all_from_nothing_is_not_certain():
    everything = [Matches(np.array([0.9]), np.empty(0), 1, 1)] * 6
    lists = {"all": everything, "none": NOTHING, "again": everything}
    found = {name: Found.by_one_run(images) for name, images in lists.items()}
    detected = Detected(found, list("abcdef"), (1,), (50, 0, 0.95), "recall", "phantom")
    bound = -100 * np.log(0.05) / 6  # the rule of three, as of JAFROC
    for fact in compare_recall(detected, "all", "none"):
        assert (fact.value, fact.low, fact.high) == pytest.approx((100, 100 - bound, 100))
    for fact in compare_recall(detected, "none", "all"):
        assert (fact.value, fact.low, fact.high) == pytest.approx((-100, -100, bound - 100))
    for fact in compare_recall(detected, "again", "all"):
        assert (fact.value, fact.low, fact.high) == (0, 0, 0)


def test_recall_of_all_lesions_is_no_surer_than_its_draws():
    """All are hit before half a false positive per image, unless a draw repeats a noisy patient."""
    surest = Matches(np.array([0.9]), np.empty(0), 1, 1)
    noisy = Matches(np.array([0.9]), np.full(6, 0.6), 1, 1)
    unsure = Matches(np.array([0.5]), np.empty(0), 1, 1)
    found = Found.by_one_run([surest] * 30 + [noisy] * 4 + [unsure] * 26)
    patients = [str(number) for number in range(60)]
    detected = Detected({"a": found}, patients, (0.45,), (500, 0, 0.95), "recall", "phantom")
    mean, _, low, high = detected.measure("a", detected.rates)
    # 0.4 false positives per image before the last 26; 5 noisy patients in a draw make 0.5
    assert mean.tolist() == high.tolist() == [1, 1]
    assert low[0] < 0.7, "not the rule of three, which excludes what many draws show"
    assert low[1] == pytest.approx(1 + np.log(0.05) / 60), "the rule of three, of all detections"
