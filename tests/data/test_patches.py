"""Patches in arrays: what they refuse, how they are taken, stacked, labelled and hashed."""

from dataclasses import replace

import numpy as np
import pytest

from tests.data.test_splits import many as make_patches
from tfmammo.data.patches import TEXTS, Patch, stack_patches
from tfmammo.errors import DataError

FACTS = ("kinds", "pathologies", "shapes", "margins", "official_splits")


def test_take_keeps_rows_together():
    some = make_patches(5)
    facts = {name: np.array([f"{name}{i}" for i in range(5)]) for name in FACTS}
    taken = replace(some, **facts).take([4, 0, 4])
    assert taken.ids.tolist() == ["4#0", "0#0", "4#0"]
    assert taken.patient_ids.tolist() == ["p4", "p0", "p4"]
    for name in FACTS:
        assert getattr(taken, name).tolist() == [f"{name}{i}" for i in (4, 0, 4)]
    np.testing.assert_array_equal(taken.images, some.images[[4, 0, 4]])
    np.testing.assert_array_equal(taken.masks, some.masks[[4, 0, 4]])
    assert len(some.take([])) == 0


def test_the_fingerprint_follows_the_contents():
    some = make_patches(3)
    assert some.fingerprint() == make_patches(3).fingerprint() and len(some.fingerprint()) == 12
    images = some.images.copy()
    images[0, 0, 0, 0] = 0
    masks = some.masks.copy()
    masks[0, 0, 0, 0] ^= 1
    changes = {"images": images, "masks": masks, "patient_ids": some.patient_ids[::-1]}
    changes["ids"] = some.ids[::-1]
    others = [replace(some, **{name: value}) for name, value in changes.items()]
    others += [some.with_labels([1, 2, 3]), some.with_labels([1, 2, 4]), some.take([1, 0, 2])]
    assert len({some.fingerprint(), *(other.fingerprint() for other in others)}) == 8
    facts = {name: np.array(["x", "yy", ""]) for name in FACTS}
    same = replace(some, patient_ids=some.patient_ids.astype("<U40"), **facts)
    assert same.fingerprint() == some.fingerprint()


BAD = [
    ({"images": np.zeros((3, 4, 5, 1), np.float32)}, "must both have the shape"),
    ({"masks": np.zeros((3, 4, 4), np.uint8)}, "must both have the shape"),
    ({"images": np.zeros((3, 4, 4, 1))}, "images must be float32"),
    ({"masks": np.zeros((3, 4, 4, 1), np.float32)}, "images must be float32 and masks uint8"),
    ({"images": np.full((3, 4, 4, 1), 1.5, np.float32)}, r"be in \[0, 1\]"),
    ({"images": np.full((3, 4, 4, 1), np.nan, np.float32)}, r"be in \[0, 1\]"),
    ({"masks": np.full((3, 4, 4, 1), 255, np.uint8)}, "hold 0 and 1 alone"),
    ({"labels": np.array([1, 2], np.int32)}, "labels must be 3 int32"),
    *(({name: np.array(["x"])}, f"{name} must be an array of 3 str") for name in TEXTS),
    *(({name: np.arange(3)}, f"{name} must be an array of 3 str") for name in TEXTS),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_wrong_arrays_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(make_patches(3), **change)


def test_stack_keeps_order_and_facts():
    some = make_patches(3)
    rows = [
        Patch(image, mask, f"p{i}", f"{i}#0", *(letter * i for letter in "abcde"))
        for i, (image, mask) in enumerate(zip(some.images, some.masks, strict=True))
    ]
    stacked = stack_patches(iter(rows))
    assert stacked.fingerprint() == some.fingerprint()
    for name, letter in zip(FACTS, "abcde", strict=True):
        assert getattr(stacked, name).tolist() == ["", letter, letter * 2]
    assert [patch.shape for patch in stacked] == ["", "c", "cc"]
    with pytest.raises(DataError, match="no patch to stack"):
        stack_patches([])
