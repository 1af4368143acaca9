"""COCO's average precision of a few boxes by hand: 101 points of recall, the best precision from
each on.
"""

import sys

import numpy as np
import pytest

from tfmammo.errors import DataError
from tfmammo.metrics.average_precision import MOST, Boxes, average_precision

A = (0, 0, 10, 10)
B = (20, 20, 40, 30)
ELSEWHERE = (60, 60, 70, 70)


def one(boxes, scores, truth, kinds=None, true_kinds=None):
    boxes, truth = (np.array(rows, float).reshape(-1, 4) for rows in (boxes, truth))
    kinds = kinds or ["mass"] * len(boxes)
    return Boxes(boxes, np.array(scores), kinds, truth, true_kinds or ["mass"] * len(truth))


FOUND = ["mass", "mass", "asymmetry"]
SEVERAL = one([A, B, ELSEWHERE], [0.9, 0.8, 0.95], [A, B], FOUND, ["mass", "calcification"])
BY_HAND = [
    # Hit, false positive, hit: precision 1 up to a recall of one half (51 points), 2/3 beyond (50).
    ([one([A, ELSEWHERE, B], [0.9, 0.8, 0.7], [A, B])], *[(51 + 50 * 2 / 3) / 101] * 3, 1),
    # B has 20 rows and 10 columns: shifted by 4 rows its IoU is 160/240, a hit at four of ten; by 4
    # columns 120/280, at none.
    ([one([(24, 20, 44, 30)], [0.9], [B])], 0.4, 1, 0, 0.4),
    ([one([(20, 24, 40, 34)], [0.9], [B])], 0, 0, 0, 0),
    # An IoU of .62 is a hit at .5, .55 and .6.
    ([one([(0, 0, 6.2, 10)], [0.9], [A])], 0.3, 1, 0, 0.3),
    # Kinds are matched separately and averaged: calcifications are not found, and what is found of
    # a kind that is not annotated counts nowhere.
    ([SEVERAL], *[0.5] * 4),
    # Normal images hold false positives.
    ([one([A], [0.5], [A]), one([ELSEWHERE], [0.9], [])], *[0.5] * 3, 1),
    # A detector that finds nothing, and boxes without area.
    ([one([], [], [A])], 0, 0, 0, 0),
    ([one([(5, 5, 5, 5), (10, 10, 0, 0)], [0.9, 0.8], [(10, 10, 20, 20)])], 0, 0, 0, 0),
]


@pytest.mark.parametrize(("images", "ap", "ap50", "ap75", "ar"), BY_HAND)
def test_by_hand(images, ap, ap50, ap75, ar, capsys):
    expected = {"ap": ap, "ap50": ap50, "ap75": ap75, "ar": ar}
    assert average_precision(images) == pytest.approx(expected)
    assert capsys.readouterr().out == ""


def test_the_surest_alone_count():
    for elsewhere, recall in ((MOST - 1, 1), (MOST, 0)):
        image = one([A, *[ELSEWHERE] * elsewhere], [0.5, *[0.9] * elsewhere], [A])
        assert average_precision([image])["ar"] == pytest.approx(recall)


@pytest.mark.parametrize(
    ("image", "named"), [(one([A], [0.9], []), "lesions"), (one([A], [np.nan], [A]), "not finite")]
)
def test_bad_input(image, named):
    with pytest.raises(DataError, match=named):
        average_precision([image])


def test_without_pycocotools(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(DataError, match="pip install pycocotools"):
        average_precision([one([A], [0.9], [A])])
