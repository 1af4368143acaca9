"""Whole mammograms with their boxes: where a lesion is on the canvas or in a tile, what is taken,
how both are flipped.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from tests.small_mammograms import make_mammogram
from tfmammo.config import DataConfig, PreprocessConfig, TilesConfig
from tfmammo.data.pipeline import batches
from tfmammo.data.whole import (
    find_empty_tiles,
    letterbox,
    make_whole,
    place_tile_around,
)
from tfmammo.errors import DataError
from tfmammo.mammogram import Lesion, Skipped

ROWS = 80
COLS = 60
CONFIG = DataConfig(size=40, kinds=("mass", "calcification"), percentiles=(0, 100))
MASS = Lesion("mass", (20, 8, 40, 24), pathology="malignant")
CALCIFICATION = Lesion("calcification", (60, 30, 70, 39), pathology="benign")
UNKNOWN = {"archive": "made", "laterality": None, "view": None}


def draw_boxes(image, boxes):
    """An image with boxes at full brightness."""
    for top, left, bottom, right in boxes:
        image[top:bottom, left:right] = 1
    return image


def draw_pixels(*boxes, value=0.5):
    image = np.full((ROWS, COLS, 1), 0.1, np.float32)
    image[:5] = value
    return draw_boxes(image, boxes)


def make_flat(number=0, *lesions, draw=draw_pixels, **facts):
    """A mammogram whose lesions are at full brightness."""
    image = draw(*(lesion.box for lesion in lesions))
    known = UNKNOWN | {"image_id": f"i{number}"}
    return make_mammogram(number, image, lesions, **known | facts)


def make(*mammograms, skipped=None, **changes):
    config = CONFIG.model_copy(update=changes)
    return make_whole(mammograms, config, Skipped() if skipped is None else skipped)


def find_bounds(region):
    inside = np.argwhere(region[..., 0])
    return [*inside.min(axis=0).tolist(), *(inside.max(axis=0) + 1).tolist()]


NORMAL = make_flat(1, pathology="normal")


@pytest.mark.parametrize(("canvas", "sides"), [(None, (40, 40)), ((50, 30), (50, 30))])
def test_a_box_is_on_its_lesion(canvas, sides):
    """80 x 60 px are scaled by 1 / 2 in each."""
    whole = make(make_flat(0, MASS), NORMAL, canvas=canvas)
    assert whole.images.shape == whole.masks.shape == (2, *sides, 1)
    np.testing.assert_allclose(whole.boxes[0] * (sides * 2), [[10, 4, 20, 12]], rtol=1e-6)
    assert whole.classes.tolist() == [[0], [0]] and whole.kinds.tolist() == ["mass", "normal"]
    assert whole.pathologies.tolist() == ["malignant", "normal"]
    assert whole.ids.tolist() == ["i0#full", "i1#full"]
    assert find_bounds(whole.masks[0]) == find_bounds(whole.images[0] == 1) == [10, 4, 20, 12]
    assert not whole.images[0, 40:].any() and not whole.images[0, :, 30:].any()
    assert whole.take([1, 0]).take([1]).fingerprint() == whole.take([0]).fingerprint()


def test_what_is_taken():
    asymmetry = Lesion("asymmetry", MASS.box)
    calcification = Lesion("calcification", MASS.box)
    records = [
        make_flat(0, MASS, calcification),
        NORMAL,
        make_flat(2),  # nothing is known of it
        make_flat(3, asymmetry),
        make_flat(4, pathology="malignant"),
        make_flat(5, asymmetry, calcification),
    ]
    whole = make(*records)
    assert whole.patient_ids.tolist() == ["p0", "p1", "p5"]
    assert whole.kinds.tolist() == ["mass", "normal", "calcification"]
    assert whole.boxes.shape == (3, 2, 4) and whole.classes.tolist() == [[0, 1], [0, 0], [1, 0]]
    there = whole.boxes[..., 2] > whole.boxes[..., 0]
    assert there.tolist() == [[True, True], [False, False], [True, False]]
    ill = make_whole(records, CONFIG, Skipped(), normal=False)
    assert ill.patient_ids.tolist() == ["p0", "p5"]


def test_what_cant_be_used_is_noted():
    skipped = Skipped()
    constant = partial(np.zeros, (ROWS, COLS, 1), np.float32)
    bad = replace(make_flat(9, MASS), read=constant)
    assert len(make(bad, make_flat(0, MASS), skipped=skipped)) == 1
    assert "constant" in skipped.reasons["i9"]
    with pytest.raises(DataError, match="first i9"):
        make(bad, NORMAL)


@pytest.mark.parametrize(
    ("rows", "cols", "canvas", "scaled"),
    [
        (60, 80, (40, 40), (30, 40)),
        (20, 10, (40, 40), (40, 20)),
        (80, 60, (40, 60), (40, 30)),
        (81, 57, (48, 32), (45, 32)),  # 81 * 32 / 57 = 45.47
        (1, 400, (30, 40), (1, 40)),
    ],
)
def test_a_mammogram_is_scaled_by_one_factor_and_filled_with_0(rows, cols, canvas, scaled):
    image = np.ones((rows, cols, 1), np.float32)
    filled, scale = letterbox(image, DataConfig(canvas=canvas, window=(0, 1)))
    assert filled.shape == (*canvas, 1) and filled.dtype == np.float32
    expected = np.zeros(canvas, np.float32)
    expected[: scaled[0], : scaled[1]] = 1
    np.testing.assert_allclose(filled[..., 0], expected, atol=1e-6)
    np.testing.assert_allclose(scale, (scaled[0] / rows, scaled[1] / cols))


def test_grey_values_are_stretched_without_the_padding():
    pixels = draw_pixels(MASS.box, value=0.55)
    square, _ = letterbox(pixels, CONFIG)
    np.testing.assert_allclose(square[[0, 30], [0, 2], 0], [0.5, 0], atol=1e-6)
    assert square.max() == 1
    windowed, _ = letterbox(pixels, CONFIG.model_copy(update={"window": (0.05, 0.55)}))
    np.testing.assert_allclose(windowed[[0, 30], [0, 2], 0], [1, 0.1], atol=1e-6)


def test_take_and_fingerprint_know_the_boxes():
    whole = make(*(make_flat(i, MASS) for i in range(3)))
    moved = replace(whole, boxes=whole.boxes / 2)
    renamed = replace(whole, classes=whole.classes + 1)
    assert len({each.fingerprint() for each in (whole, moved, renamed, whole.take([2, 0]))}) == 4
    one, two = make(make_flat(0, MASS)), make(make_flat(1, MASS, CALCIFICATION))
    both = one.concatenate(two)
    np.testing.assert_array_equal(both.boxes, [[*one.boxes[0], [0] * 4], two.boxes[0]])
    assert both.classes.tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"boxes": np.zeros((1, 1, 4))}, "boxes must be float32"),
        ({"boxes": np.zeros((2, 1, 4), np.float32)}, "boxes must be float32"),
        ({"boxes": np.full((1, 1, 4), 2, np.float32)}, r"in \[0, 1\]"),
        ({"classes": np.zeros((1, 2), np.int32)}, "classes must be int32"),
    ],
)
def test_wrong_arrays_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        replace(make(make_flat(0, MASS)), **change)


@pytest.mark.parametrize("canvas", [None, (40, 32)])
def test_batches_carry_boxes_that_are_on_the_flipped_lesion(canvas):
    config = CONFIG.model_copy(update={"canvas": canvas})
    sides = config.shape
    other = make_flat(1, Lesion("calcification", (50, 2, 60, 40)))
    whole = make_whole([make_flat(0, MASS), other], config, Skipped())
    stream = batches(whole, 2, seed=3, augment=True)
    boxes, classes = (stream.element_spec[name] for name in ("boxes", "classes"))
    assert (boxes.shape, boxes.dtype) == ((2, 1, 4), tf.float32)
    assert (classes.shape, classes.dtype) == ((2, 1), tf.int32)
    places = set()
    for batch in stream.take(16):
        for mask, box in zip(batch["mask"].numpy(), batch["boxes"].numpy()[:, 0], strict=True):
            np.testing.assert_allclose(box * (sides * 2), find_bounds(mask), atol=1e-4)
            places.add(tuple(find_bounds(mask)))
    assert len(places) == 8, "two mammograms, four flips each"
    for batch in batches(whole, 2, seed=3, augment=False).take(1):
        order = np.argsort(batch["classes"][:, 0])
        np.testing.assert_allclose(batch["boxes"].numpy()[order], whole.boxes)


# Tiles


def draw_breast(*boxes):
    """A breast of 0.40 to 0.44 on the left, air on the right, and lesions at full brightness."""
    rows, cols = np.mgrid[:ROWS, :COLS]
    inside = ((rows - 39.5) / 40) ** 2 + (cols / 45) ** 2 < 1
    image = np.where(inside, 0.4 + 0.001 * cols, 0).astype(np.float32)[..., np.newaxis]
    return draw_boxes(image, boxes)


make_breast = partial(make_flat, draw=draw_breast)


def cut(*mammograms, empty=2, skipped=None, **changes):
    tiles = TilesConfig(overlap=8, empty=empty)
    return make(*mammograms, skipped=skipped, **{"size": 32, "seed": 1, "tiles": tiles, **changes})


HEALTHY = make_breast(1, pathology="normal")


def test_a_place_around_a_box_by_hand():
    random = np.random.default_rng(0)

    def draw(box, image, shape, count=300):
        return {place_tile_around(box, image, shape, random) for _ in range(count)}

    tops, lefts = zip(*draw((10, 20, 14, 30), (100, 50), (8, 16)), strict=True)
    assert set(tops) == set(range(6, 11)) and set(lefts) == set(range(14, 21))
    # as near the border as that
    assert draw((0, 46, 8, 50), (100, 50), (8, 16)) == {(0, 34)}
    # larger than a tile: its middle
    assert draw((10, 0, 40, 50), (100, 50), (8, 16)) == {(21, 17)}
    # longer than the tile along one axis alone: tops from 40 - 36 on, but within 42 - 36
    assert {top for top, _ in draw((8, 0, 40, 50), (42, 50), (36, 16))} == {4, 5, 6}
    # an image that is shorter
    assert draw((1, 0, 4, 3), (5, 50), (8, 3)) == {(0, 0)}


def test_places_between_lesions_are_those_that_a_slow_count_finds():
    random = np.random.default_rng(0)
    region = (random.random((20, 17, 1)) < 0.12).astype(np.uint8)
    rows, cols = 6, 4
    boxes = [(3, 5, 6, 7), (15, 0, 20, 2)]
    free = find_empty_tiles(region, boxes, (rows, cols))
    lesions = np.zeros((20, 17), bool)
    for top, left, bottom, right in boxes:
        lesions[top:bottom, left:right] = True
    assert free.shape == (15, 14) and 10 < free.sum() < 200
    for top, left in np.ndindex(15, 14):
        place = np.s_[top : top + rows, left : left + cols]
        assert free[top, left] == (region[place].sum() >= 2.4 and not lesions[place].any())
    assert find_empty_tiles(region, [], (30, 4)).shape == (1, 14)


def test_tiles_hold_a_lesion_each_or_none():
    whole = cut(make_breast(0, MASS, CALCIFICATION, pathology="malignant"), HEALTHY)
    assert whole.images.shape == (6, 32, 32, 1)
    assert whole.ids.tolist() == ["i0#0", "i0#1", "i0@0", "i0@1", "i1@0", "i1@1"]
    assert whole.kinds.tolist() == ["mass", "calcification"] + ["normal"] * 4
    assert whole.pathologies.tolist() == ["malignant", "benign"] + ["normal"] * 4
    assert whole.classes[:2, 0].tolist() == [0, 1]
    assert not whole.boxes[2:].any() and not whole.masks[2:].any()
    for row, lesion in enumerate((MASS, CALCIFICATION)):
        inside = find_bounds(whole.images[row] == 1)
        top, left, bottom, right = lesion.box
        size = [inside[2] - inside[0], inside[3] - inside[1]]
        assert size == [bottom - top, right - left], "never scaled"
        np.testing.assert_allclose(whole.boxes[row, 0] * 32, inside, atol=1e-5)
        assert find_bounds(whole.masks[row]) == inside


def test_grey_values_of_tiles_are_normalised_over_the_whole_mammogram():
    """Tissue is 0.40 to 0.44 beside a lesion of 1, also where a tile does not show it, and above
    0.9 in a normal mammogram.
    """
    whole = cut(make_breast(0, MASS), HEALTHY)
    ranges = [(0.4, 0.445)] * 2 + [(0.9, 1)] * 2
    for image, (low, high) in zip(whole.images[1:], ranges, strict=True):
        tissue = image[image > 0]
        assert low - 1e-6 <= tissue.min() < tissue.max() <= high


def test_tiles_do_not_depend_on_order_and_change_with_the_seed():
    records = [make_breast(number, MASS) for number in range(4)]
    one = cut(*records)
    other = cut(*records[::-1]).take([9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2])
    assert one.fingerprint() == other.fingerprint() != cut(*records, seed=2).fingerprint()
    assert len(np.unique(one.boxes[::3, 0], axis=0)) > 1, "each image has places of its own"


def test_another_lesion_in_a_tile_counts_where_half_of_it_is_left():
    """A tile as large as the lesion around it can only be in one place."""
    own, half, less, beside = (
        (20, 20, 36, 36),
        (24, 30, 34, 42),
        (24, 31, 34, 42),
        (24, 36, 34, 42),
    )
    masses = [Lesion("mass", box) for box in (own, half, less, beside)]
    masses.insert(3, Lesion("calcification", (22, 22, 24, 25)))
    whole = cut(make_breast(0, *masses), empty=0, size=16).take([0])
    expected = [[0, 0, 16, 16], [4, 10, 14, 16], [2, 2, 4, 5]]
    np.testing.assert_allclose(whole.boxes[0, :3] * 16, expected)
    assert not whole.boxes[0, 3:].any() and whole.classes[0, :3].tolist() == [0, 0, 1]


def test_a_lesion_larger_than_a_tile_is_seen_by_its_middle(caplog):
    caplog.set_level("INFO")
    whole = cut(make_breast(0, Lesion("mass", (0, 10, 80, 30))))
    assert "i0#0: lesion 0 is larger than a tile, which shows 40 % of its box" in caplog.text
    np.testing.assert_allclose(whole.boxes[0, 0, [0, 2]], [0, 1])
    assert find_bounds(whole.images[0] == 1)[::2] == [0, 32]


def test_a_mammogram_smaller_than_a_tile_is_padded():
    whole = cut(make_breast(0, MASS), HEALTHY, canvas=(96, 64))
    assert whole.images.shape == (3, 96, 64, 1), "no tile of the first is free of its lesion"
    np.testing.assert_allclose(whole.boxes[0, 0] * (96, 64, 96, 64), MASS.box, atol=1e-5)
    np.testing.assert_allclose(whole.images[0, :80, :60], draw_breast(MASS.box), atol=1e-6)
    assert not whole.images[0, 80:].any() and not whole.images[0, :, 60:].any()


def test_empty_tiles_show_no_lesion_of_any_kind_and_may_be_missing():
    wall = Lesion("asymmetry", (0, 0, 80, 5))
    middle = Lesion("asymmetry", (20, 20, 60, 40))
    skipped = Skipped()
    whole = cut(make_breast(0, MASS, wall), make_breast(1, MASS, middle), empty=20, skipped=skipped)
    assert whole.ids.tolist() == ["i0#0", *(f"i0@{number}" for number in range(20)), "i1#0"]
    assert skipped.reasons == {"i1": "no tile of 32 x 32 px is breast without a lesion"}
    empty = whole.images[1:21]
    assert empty.max() < 1
    assert (np.count_nonzero(empty, axis=(1, 2, 3)) >= 102).all(), "a tenth of 32 x 32 px"


def test_tiles_of_mirrored_and_resampled_mammograms():
    """At half the resolution: (20, 8, 40, 24) mirrored in 60 columns is (20, 36, 40, 52), then
    (10, 18, 20, 26).
    """
    preprocess = PreprocessConfig(flip_right=True, spacing=0.2)
    right = make_breast(0, MASS, laterality="R", spacing=(0.1, 0.1))
    whole = cut(right, empty=0, preprocess=preprocess, canvas=(40, 30))
    np.testing.assert_allclose(whole.boxes[0, 0] * (40, 30, 40, 30), (10, 18, 20, 26), atol=1e-5)
    bounds = [find_bounds(region) for region in (whole.images[0] == 1, whole.masks[0])]
    assert bounds == [[10, 18, 20, 26]] * 2
