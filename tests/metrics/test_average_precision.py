"""COCO's average precision of a few boxes, worked out by hand: 101 points of recall, the
best precision from each on.
"""

import sys

import numpy as np
import pytest

from tfmammo.errors import AveragePrecisionError
from tfmammo.metrics.average_precision import Boxes, average_precision

A = (0, 0, 10, 10)
B = (20, 20, 40, 30)
ELSEWHERE = (60, 60, 70, 70)


def one(boxes, scores, truth, kinds=None, true_kinds=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    truth = np.array(truth, float).reshape(-1, 4)
    return Boxes(
        boxes,
        np.array(scores, np.float32),
        kinds or ["mass"] * len(boxes),
        truth,
        true_kinds or ["mass"] * len(truth),
    )


def test_by_hand():
    """Hit, false positive, hit: precision 1 up to a recall of one half (51 points), 2/3 beyond
    (50).
    """
    measures = average_precision([one([A, ELSEWHERE, B], [0.9, 0.8, 0.7], [A, B])])
    assert measures == pytest.approx(
        dict.fromkeys(("ap", "ap50", "ap75"), (51 + 50 * 2 / 3) / 101) | {"ar": 1}
    )


def test_rows_are_rows():
    """B has 20 rows and 10 columns: shifted by 4 rows its IoU is 160/240, a hit at four of ten; by
    4 columns 120/280, at none.
    """
    rows, cols = (
        average_precision([one([box], [0.9], [B])])["ap"]
        for box in ((24, 20, 44, 30), (20, 24, 40, 34))
    )
    assert (rows, cols) == pytest.approx((0.4, 0))


def test_overlap_decides():
    """An IoU of .62 is a hit at .5, .55 and .6."""
    measures = average_precision([one([(0, 0, 6.2, 10)], [0.9], [A])])
    assert measures == pytest.approx({"ap": 0.3, "ap50": 1, "ap75": 0, "ar": 0.3})


def test_kinds_are_matched_separately_and_averaged():
    """Calcifications are not found, and what is found of a kind that is not annotated
    counts nowhere.
    """
    kinds = ["mass", "mass", "asymmetry"]
    true_kinds = ["mass", "calcification"]
    assert average_precision([one([A, B, ELSEWHERE], [0.9, 0.8, 0.95], [A, B], kinds, true_kinds)])[
        "ap"
    ] == pytest.approx(0.5)


def test_normal_images_hold_false_positives():
    images = [one([A], [0.5], [A]), one([ELSEWHERE], [0.9], [])]
    assert average_precision(images)["ap"] == pytest.approx(0.5) and average_precision(images[:1])[
        "ap"
    ] == pytest.approx(1)


def test_the_surest_alone_count():
    image = one([A, ELSEWHERE], [0.5, 0.9], [A])
    assert (
        average_precision([image], most=1)["ar"],
        average_precision([image], most=2)["ar"],
    ) == pytest.approx((0, 1))


def test_a_detector_that_finds_nothing():
    assert average_precision([one([], [], [A])]) == dict.fromkeys(("ap", "ap50", "ap75", "ar"), 0)


def test_boxes_without_area_hit_nothing():
    assert average_precision([one([(5, 5, 5, 5), (9, 9, 3, 3)], [0.9, 0.8], [A])])["ap"] == 0


def test_nothing_is_printed(capsys):
    average_precision([one([A], [0.9], [A])])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("image", "named"),
    [(one([A], [0.9], []), "lesions"), (one([A], [np.nan], [A]), "not finite")],
)
def test_bad_input(image, named):
    with pytest.raises(AveragePrecisionError, match=named):
        average_precision([image])


def test_without_pycocotools(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(AveragePrecisionError, match="pip install pycocotools"):
        average_precision([one([A], [0.9], [A])])
