"""Turned copies: where points, boxes, outlines and pixels go, and that copies follow from
seed, image and number alone.
"""

from dataclasses import replace

import numpy as np
import pytest

from tfmammo.archives import phantom
from tfmammo.config import AddedConfig, DataConfig
from tfmammo.data.copies import Transform, make_copies, transform_mammogram
from tfmammo.errors import ArchiveError, DataError
from tfmammo.mammogram import Lesion, Mammogram, MaskedLesion, Skipped

ROWS = 40
COLS = 60


def mammogram(*lesions, pixels=None, **facts):
    """One of 40 x 60 px, dark where nothing is given."""
    image = np.zeros((ROWS, COLS, 1), np.float32) if pixels is None else pixels
    return Mammogram(
        "made", "patient", "image", ROWS, COLS, lambda: image, lesions=lesions, **facts
    )


def square(top, left, side):
    corners = np.array(
        [
            (top, left),
            (top, left + side - 1),
            (top + side - 1, left + side - 1),
            (top + side - 1, left),
        ],
        np.float32,
    )
    return Lesion.from_outline(
        "mass", corners, ROWS, COLS, pathology="malignant", shape="oval", kind_is_certain=False
    )


def config(**added):
    return DataConfig(added=AddedConfig(**added))


def test_the_centre_stays_and_a_quarter_turn_is_counter_clockwise_as_shown():
    matrix = Transform(90, 1, False).matrix(ROWS, COLS)
    # (x, y)
    centre = np.array([29.5, 19.5, 1])
    right = np.array([39.5, 19.5, 1])
    np.testing.assert_allclose(matrix @ centre, centre[:2])
    np.testing.assert_allclose(matrix @ right, (29.5, 9.5))  # what was on the right is above


def test_the_box_of_two_outlines_holds_both():
    two = Lesion("mass", (5, 10, 33, 38), square(5, 10, 8).outlines + square(25, 30, 8).outlines)
    for mirrored, expected in ((False, (5, 10, 33, 38)), (True, (5, COLS - 38, 33, COLS - 10))):
        moved = transform_mammogram(mammogram(two), Transform(0, 1, mirrored), 1, Skipped())
        assert moved.lesions[0].box == expected and len(moved.lesions[0].outlines) == 2


def test_a_mirrored_image_and_its_lesion_are_numpys():
    random = np.random.default_rng(0)
    pixels = random.random((ROWS, COLS, 1), np.float32)
    moved = transform_mammogram(
        mammogram(square(5, 10, 8), pixels=pixels, laterality="L", spacing=(0.1, 0.2)),
        Transform(0, 1, True),
        1,
        Skipped(),
    )
    np.testing.assert_allclose(moved.pixels(), pixels[:, ::-1], atol=1e-6)
    assert moved.lesions[0].box == (5, COLS - 18, 13, COLS - 10)
    assert (moved.laterality, moved.spacing, moved.image_id) == ("R", (0.1, 0.2), "image~1")
    details = moved.lesions[0]
    assert (details.pathology, details.shape, details.kind_is_certain) == (
        "malignant",
        "oval",
        False,
    )


def test_growing_by_two_doubles_a_lesion_and_halves_the_spacing():
    moved = transform_mammogram(
        mammogram(square(15, 25, 9), spacing=(0.1, 0.1)), Transform(0, 2, False), 1, Skipped()
    )
    # corners are pixels' centres: 8 px between them become 16
    top, left, bottom, right = moved.lesions[0].box
    assert (bottom - top, right - left) == (17, 17)
    assert moved.spacing == (0.05, 0.05)


@pytest.mark.parametrize("turn", [Transform(33, 0.9, False), Transform(-12, 1.1, True)])
def test_outline_and_pixels_go_together(turn):
    lesion = square(12, 22, 11)
    pixels = lesion.mask(ROWS, COLS)[..., None].astype(np.float32)
    moved = transform_mammogram(mammogram(lesion, pixels=pixels), turn, 1, Skipped())
    mask = moved.lesions[0].mask(ROWS, COLS)
    shown = moved.pixels()[..., 0] > 0.5
    assert 2 * np.sum(mask & shown) / (mask.sum() + shown.sum()) > 0.93


def test_a_lesion_known_by_its_box_gets_the_box_around_the_turned_one():
    moved = transform_mammogram(
        mammogram(Lesion("mass", (10, 20, 20, 30))), Transform(45, 1, False), 1, Skipped()
    )
    top, left, bottom, right = moved.lesions[0].box
    assert (bottom - top, right - left) == (14, 14)  # 10 times the root of 2


def test_what_is_out_of_sight_is_left_out_and_said():
    skipped = Skipped()
    moved = transform_mammogram(
        mammogram(square(15, 25, 9), square(0, 0, 4)), Transform(0, 2, False), 3, skipped
    )
    assert len(moved.lesions) == 1 and "lesion 1: is not in sight" in skipped.reasons["image~3"]
    with pytest.raises(ValueError, match="no lesion is in sight"):
        transform_mammogram(mammogram(square(0, 0, 4)), Transform(0, 2, False), 1, skipped)


def test_an_unreadable_mask_is_noted():
    def fails():
        raise ArchiveError("mask.png: can't be read")

    skipped = Skipped()
    transform_mammogram(
        mammogram(square(15, 25, 9), MaskedLesion("mass", fails)),
        Transform(0, 1, False),
        1,
        skipped,
    )
    assert "mask.png: can't be read" in skipped.reasons["image~1"]


def test_copies_are_spread_evenly_and_more_begin_with_the_fewer():
    records = [record for record in phantom.read(count=12)]
    few, many = (list(make_copies(records, config(copies=count), Skipped())) for count in (5, 23))
    assert [one.image_id for one in few] == [one.image_id for one in many[:5]]
    assert [[lesion.box for lesion in one.lesions] for one in few] == [
        [lesion.box for lesion in one.lesions] for one in many[:5]
    ]
    masses = [
        record.image_id
        for record in records
        if any(lesion.kind == "mass" for lesion in record.lesions)
    ]
    times = [sum(one.image_id.split("~")[0] == name for one in many) for name in masses]
    assert sum(times) == 23 and max(times) - min(times) <= 1
    assert {one.patient_id for one in many} <= {record.patient_id for record in records}


def test_a_copy_does_not_depend_on_the_other_mammograms():
    records = [
        record
        for record in phantom.read(count=12)
        if any(lesion.kind == "mass" for lesion in record.lesions)
    ]
    alone = {one.image_id: one for one in make_copies(records[:1], config(copies=2), Skipped())}
    among = {
        one.image_id: one
        for one in make_copies(records, config(copies=2 * len(records)), Skipped())
    }
    assert alone and all(
        among[name].lesions[0].box == one.lesions[0].box for name, one in alone.items()
    )


def test_angles_and_factors_stay_in_their_ranges():
    one = mammogram(square(15, 25, 9), spacing=(1.0, 1.0))
    copies = list(make_copies([one], config(copies=60, rotate=0, resize=(0.8, 1.25)), Skipped()))
    factors = np.array([1 / copy.spacing[0] for copy in copies])
    assert factors.min() >= 0.8 and factors.max() <= 1.25 and np.ptp(factors) > 0.3
    upright = replace(one, spacing=None)
    assert (
        len(
            {
                copy.lesions[0].box
                for copy in make_copies(
                    [upright], config(copies=60, rotate=0, resize=(1, 1)), Skipped()
                )
            }
        )
        == 2
    )  # mirrored or not


def test_no_wanted_lesion_is_an_error():
    with pytest.raises(DataError, match="data.added.copies"):
        list(make_copies([mammogram()], config(copies=1), Skipped()))
