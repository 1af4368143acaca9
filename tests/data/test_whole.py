"""Whole mammograms with their boxes: where a lesion lies on the canvas or in a tile, what
is taken, how both are flipped.
"""

import numpy as np
import pytest
import tensorflow as tf

from tests.small_mammograms import make_mammogram
from tfmammo.config import DataConfig, PreprocessConfig, TilesConfig
from tfmammo.data.pipeline import batches, flip_boxes, rotate_and_flip
from tfmammo.data.whole import (
    Whole,
    extract_tile,
    find_empty_tiles,
    letterbox,
    make_whole,
    place_tile_around,
)
from tfmammo.errors import DataError
from tfmammo.mammogram import Lesion, Mammogram, Skipped

ROWS = 80
COLS = 60
CONFIG = DataConfig(size=40, kinds=("mass", "calcification"), percentiles=(0, 100))


def pixels(box=None, value=0.5):
    image = np.full((ROWS, COLS, 1), 0.1, np.float32)
    image[:5] = value
    if box:
        image[box[0] : box[2], box[1] : box[3]] = 1
    return image


def record(number, image, lesions, **facts):
    """A mammogram whose archive states no laterality and no view, unless `facts` do."""
    known = {"archive": "made", "image_id": f"i{number}", "laterality": None, "view": None}
    return make_mammogram(number, image, lesions, **known | facts)


def mammogram(number=0, lesions=(), box=None, **facts):
    image = pixels(box or (lesions[0].box if lesions else None))
    return record(number, image, lesions, **facts)


MASS = Lesion("mass", (20, 8, 40, 24), pathology="malignant")


def test_a_box_lies_on_its_lesion_in_the_square():
    whole = make_whole([mammogram(0, [MASS])], CONFIG, Skipped())
    np.testing.assert_allclose(whole.boxes, [[[20 / 80, 8 / 80, 40 / 80, 24 / 80]]])
    assert (
        whole.classes.tolist() == [[0]]
        and whole.kinds.tolist() == ["mass"]
        and whole.pathologies.tolist() == ["malignant"]
    )
    np.testing.assert_array_equal(whole.images[0, 10:20, 4:12], 1)
    np.testing.assert_array_equal(np.argwhere(whole.masks[0, ..., 0])[[0, -1]], [[10, 4], [19, 11]])
    assert whole.images[0, :, 30:].max() == 0 and whole.ids.tolist() == ["i0#full"]


def test_an_outline_is_drawn_and_a_mask_is_not_its_box():
    outline = np.array([[20, 8], [40, 24], [40, 8]], np.float32)
    whole = make_whole(
        [mammogram(0, [Lesion.from_outline("mass", outline, ROWS, COLS)])], CONFIG, Skipped()
    )
    assert 0.4 < whole.masks.sum() / (10 * 8) < 0.75


def test_what_is_taken():
    asymmetry = Lesion("asymmetry", MASS.box)
    calcification = Lesion("calcification", MASS.box)
    records = [
        mammogram(0, [MASS, calcification]),
        mammogram(1, pathology="normal"),
        mammogram(2),  # nothing is known of it
        mammogram(3, [asymmetry]),
        mammogram(4, pathology="malignant"),
        mammogram(5, [asymmetry, calcification]),
    ]
    whole = make_whole(records, CONFIG, Skipped())
    assert whole.patient_ids.tolist() == ["p0", "p1", "p5"] and whole.kinds.tolist() == [
        "mass",
        "normal",
        "calcification",
    ]
    assert whole.boxes.shape == (3, 2, 4) and whole.classes.tolist() == [[0, 1], [0, 0], [1, 0]]
    assert (whole.boxes[..., 2] > whole.boxes[..., 0]).tolist() == [
        [True, True],
        [False, False],
        [True, False],
    ]
    assert make_whole(records, CONFIG, Skipped(), normal=False).patient_ids.tolist() == ["p0", "p5"]


def test_flip_right_moves_the_box():
    config = CONFIG.model_copy(update={"preprocess": PreprocessConfig(flip_right=True)})
    whole = make_whole([mammogram(0, [MASS], laterality="R")], config, Skipped())
    np.testing.assert_allclose(whole.boxes[0, 0], np.array([20, 60 - 24, 40, 60 - 8]) / 80)
    np.testing.assert_array_equal(whole.images[0, 10:20, 18:26], 1)


def test_what_cant_be_used_is_noted():
    def constant():
        return np.zeros((ROWS, COLS, 1), np.float32)

    skipped = Skipped()
    bad = Mammogram("made", "p9", "i9", ROWS, COLS, constant, lesions=(MASS,))
    assert len(make_whole([bad, mammogram(0, [MASS])], CONFIG, skipped)) == 1
    assert "constant" in skipped.reasons["i9"]
    with pytest.raises(DataError, match="first i9"):
        make_whole([bad, mammogram(1, pathology="normal")], CONFIG, Skipped())


SQUARE = (40, 40)


@pytest.mark.parametrize(
    ("rows", "cols", "canvas", "scaled"),
    [
        (80, 60, SQUARE, (40, 30)),
        (60, 80, SQUARE, (30, 40)),
        (20, 10, SQUARE, (40, 20)),
        (40, 40, SQUARE, (40, 40)),
        (400, 1, SQUARE, (40, 1)),
        (80, 60, (50, 30), (40, 30)),
        (80, 60, (40, 60), (40, 30)),
        (20, 10, (40, 20), (40, 20)),
        (81, 57, (48, 32), (45, 32)),  # 81 * 32 / 57 = 45.47
        (1, 400, (30, 40), (1, 40)),
    ],
)
def test_a_mammogram_is_scaled_by_one_factor_and_filled_with_0(rows, cols, canvas, scaled):
    filled, scale = letterbox(
        np.ones((rows, cols, 1), np.float32), DataConfig(canvas=canvas, window=(0, 1))
    )
    assert filled.shape == (*canvas, 1) and filled.dtype == np.float32
    expected = np.zeros(canvas, np.float32)
    expected[: scaled[0], : scaled[1]] = 1
    np.testing.assert_allclose(filled[..., 0], expected, atol=1e-6)
    np.testing.assert_allclose(scale, (scaled[0] / rows, scaled[1] / cols))


def test_a_box_lies_on_its_lesion_on_a_canvas():
    """80 x 60 px on 50 x 30: the columns decide, by 1 / 2."""
    config = CONFIG.model_copy(update={"canvas": (50, 30)})
    whole = make_whole([mammogram(0, [MASS]), mammogram(1, pathology="normal")], config, Skipped())
    assert whole.images.shape == whole.masks.shape == (2, 50, 30, 1)
    np.testing.assert_allclose(whole.boxes[0], [[10 / 50, 4 / 30, 20 / 50, 12 / 30]], rtol=1e-6)
    np.testing.assert_array_equal(whole.images[0, 10:20, 4:12], 1)
    np.testing.assert_array_equal(np.argwhere(whole.masks[0, ..., 0])[[0, -1]], [[10, 4], [19, 11]])
    assert whole.images[0, 40:].max() == 0 < whole.images[0, :40].min() + 1e-3
    assert whole.take([1, 0]).take([1]).fingerprint() == whole.take([0]).fingerprint()


def test_a_square_canvas_is_the_square_of_that_size():
    records = [mammogram(0, [MASS]), mammogram(1, pathology="normal")]
    square = make_whole(records, CONFIG, Skipped())
    assert (
        make_whole(
            records, CONFIG.model_copy(update={"canvas": (40, 40), "size": 7}), Skipped()
        ).fingerprint()
        == square.fingerprint()
    )


def test_view_stretches_grey_values_without_the_padding():
    square, _ = letterbox(pixels((20, 8, 40, 24), 0.55), CONFIG)
    assert square[30, 2, 0] == 0 and square.max() == 1
    np.testing.assert_allclose(square[0, 0, 0], 0.5, atol=1e-6)
    windowed, _ = letterbox(
        pixels((20, 8, 40, 24), 0.55), CONFIG.model_copy(update={"window": (0.05, 0.55)})
    )
    np.testing.assert_allclose(windowed[[0, 30], [0, 2], 0], [1, 0.1], atol=1e-6)


def test_take_and_fingerprint_know_the_boxes():
    whole = make_whole([mammogram(i, [MASS]) for i in range(3)], CONFIG, Skipped())
    some = whole.take([2, 0])
    assert (
        isinstance(some, Whole)
        and some.patient_ids.tolist() == ["p2", "p0"]
        and some.boxes.shape == (2, 1, 4)
    )
    moved = Whole(
        whole.images,
        whole.masks,
        whole.patient_ids,
        whole.ids,
        boxes=whole.boxes / 2,
        classes=whole.classes,
    )
    assert len({whole.fingerprint(), moved.fingerprint(), some.fingerprint()}) == 3
    assert whole.take([0, 1, 2]).fingerprint() == whole.fingerprint()


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
    whole = make_whole([mammogram(0, [MASS])], CONFIG, Skipped())
    arrays = {"boxes": whole.boxes, "classes": whole.classes} | change
    with pytest.raises(ValueError, match=said):
        Whole(whole.images, whole.masks, whole.patient_ids, whole.ids, **arrays)


@pytest.mark.parametrize("rows", [40, 24])
@pytest.mark.parametrize("turn", [0, 2, 4, 6])
def test_boxes_are_flipped_as_the_image_is(turn, rows):
    image = np.zeros((rows, 40, 1), np.float32)
    image[4:10, 12:32] = 1
    turned = tf.function(rotate_and_flip)(image, tf.constant(turn)).numpy()
    assert turned.shape == image.shape
    inside = np.argwhere(turned[..., 0])
    sides = np.array([rows, 40])
    expected = [*inside.min(axis=0) / sides, *(inside.max(axis=0) + 1) / sides]
    boxes = np.array([[4, 12, 10, 32], [0, 0, 0, 0]], np.float32) / np.tile(sides, 2).astype(
        np.float32
    )
    flipped = tf.function(flip_boxes)(boxes, tf.constant(turn)).numpy()
    np.testing.assert_allclose(flipped[0], expected, atol=1e-6)
    assert flipped[1, 0] == flipped[1, 2] and flipped[1, 1] == flipped[1, 3], (
        "what is not there stays so"
    )


@pytest.mark.parametrize("canvas", [None, (40, 32)])
def test_batches_carry_boxes_that_lie_on_the_flipped_lesion(canvas):
    config = CONFIG.model_copy(update={"canvas": canvas})
    whole = make_whole(
        [mammogram(0, [MASS]), mammogram(1, [Lesion("calcification", (50, 2, 60, 40))])],
        config,
        Skipped(),
    )
    sides = config.shape
    places = set()
    assert batches(whole, 2, seed=3, augment=True).element_spec["image"].shape.as_list() == [
        2,
        *sides,
        1,
    ], "networks are built by it"
    for batch in batches(whole, 2, seed=3, augment=True).take(16):
        assert {name: (value.shape.as_list(), value.dtype) for name, value in batch.items()} == {
            "image": ([2, *sides, 1], tf.float32),
            "mask": ([2, *sides, 1], tf.float32),
            "boxes": ([2, 1, 4], tf.float32),
            "classes": ([2, 1], tf.int32),
        }
        for mask, box in zip(
            batch["mask"].numpy()[..., 0], batch["boxes"].numpy()[:, 0], strict=True
        ):
            inside = np.argwhere(mask)
            np.testing.assert_allclose(
                box * (sides * 2), [*inside.min(axis=0), *(inside.max(axis=0) + 1)], atol=1e-4
            )
            places.add(tuple(np.rint(box * (sides * 2)).astype(int).tolist()))
    assert len(places) == 8, "two mammograms, four flips each"
    for batch in batches(whole, 2, seed=3, augment=False).take(1):
        order = np.argsort(batch["classes"][:, 0])
        np.testing.assert_allclose(batch["boxes"].numpy()[order], whole.boxes)


# Tiles


TILED = CONFIG.model_copy(update={"size": 32, "tiles": TilesConfig(overlap=8, empty=2), "seed": 1})


def half_ellipse(*boxes):
    """A breast of 0.40 to 0.44 on the left, nothing on the right, and lesions at full
    brightness.
    """
    rows, cols = np.mgrid[:ROWS, :COLS]
    image = np.where(
        ((rows - 39.5) / 40) ** 2 + (cols / 45) ** 2 < 1, 0.4 + 0.001 * cols, 0
    ).astype(np.float32)[..., np.newaxis]
    for top, left, bottom, right in boxes:
        image[top:bottom, left:right] = 1
    return image


def breast(number=0, lesions=(), **facts):
    return record(number, half_ellipse(*(lesion.box for lesion in lesions)), lesions, **facts)


def bounds(region):
    inside = np.argwhere(region[..., 0])
    return [*inside.min(axis=0).tolist(), *(inside.max(axis=0) + 1).tolist()]


def test_a_tile_is_cut_and_filled_below_and_on_the_right():
    image = np.arange(20, dtype=np.float32).reshape(4, 5, 1)
    np.testing.assert_array_equal(
        extract_tile(image, 1, 2, (2, 3))[..., 0], [[7, 8, 9], [12, 13, 14]]
    )
    np.testing.assert_array_equal(
        extract_tile(image, 3, 3, (2, 3))[..., 0], [[18, 19, 0], [0, 0, 0]]
    )


def test_a_place_around_a_box_by_hand():
    random = np.random.default_rng(0)
    drawn = [place_tile_around((10, 20, 14, 30), (100, 50), (8, 16), random) for _ in range(300)]
    assert {top for top, _ in drawn} == set(range(6, 11)) and {left for _, left in drawn} == set(
        range(14, 21)
    )
    assert place_tile_around((0, 46, 8, 50), (100, 50), (8, 16), random) == (0, 34), (
        "as near the border as that"
    )
    assert place_tile_around((10, 0, 40, 50), (100, 50), (8, 16), random) == (21, 17), (
        "larger than a tile: its middle"
    )
    assert place_tile_around((2, 0, 40, 50), (42, 50), (36, 16), random)[0] in range(2, 7)
    assert place_tile_around((1, 0, 4, 3), (5, 50), (8, 3), random) == (0, 0), (
        "an image that is shorter"
    )


def test_places_between_lesions_are_those_that_a_slow_count_finds():
    random = np.random.default_rng(0)
    region = (random.random((20, 17, 1)) < 0.12).astype(np.uint8)
    rows = 6
    cols = 4
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
    calcification = Lesion("calcification", (60, 30, 70, 39), pathology="benign")
    records = [
        breast(0, [MASS, calcification], pathology="malignant"),
        breast(1, pathology="normal"),
    ]
    whole = make_whole(records, TILED, Skipped())
    assert whole.images.shape == (6, 32, 32, 1) and whole.ids.tolist() == [
        "i0#0",
        "i0#1",
        "i0@0",
        "i0@1",
        "i1@0",
        "i1@1",
    ]
    assert whole.kinds.tolist() == ["mass", "calcification"] + ["normal"] * 4
    assert whole.pathologies.tolist() == ["malignant", "benign"] + ["normal"] * 4
    assert (
        whole.classes[:2, 0].tolist() == [0, 1]
        and not whole.boxes[2:].any()
        and not whole.masks[2:].any()
    )
    for row, box in enumerate((MASS.box, calcification.box)):
        inside = bounds(whole.images[row] == 1)
        assert [inside[2] - inside[0], inside[3] - inside[1]] == [
            box[2] - box[0],
            box[3] - box[1],
        ], "never scaled"
        np.testing.assert_allclose(whole.boxes[row, 0] * 32, inside, atol=1e-5)
        assert bounds(whole.masks[row]) == inside


def test_grey_values_of_tiles_are_normalised_over_the_whole_mammogram():
    """Tissue is 0.40 to 0.44 beside a lesion of 1, also where a tile does not show it, and above
    0.9 in a normal mammogram.
    """
    whole = make_whole([breast(0, [MASS]), breast(1, pathology="normal")], TILED, Skipped())
    assert whole.ids[1:].tolist() == ["i0@0", "i0@1", "i1@0", "i1@1"]
    for row, (low, high) in enumerate([(0.4, 0.445), (0.4, 0.445), (0.9, 1), (0.9, 1)], 1):
        tissue = whole.images[row][whole.images[row] > 0]
        assert low - 1e-6 <= tissue.min() < tissue.max() <= high


def test_tiles_do_not_depend_on_order_and_change_with_the_seed():
    records = [breast(number, [MASS]) for number in range(4)]
    one = make_whole(records, TILED, Skipped())
    other = make_whole(records[::-1], TILED, Skipped())
    assert one.fingerprint() == other.take([9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2]).fingerprint()
    assert len(np.unique(one.boxes[::3, 0], axis=0)) > 1, "each image has places of its own"
    assert (
        make_whole(records, TILED.model_copy(update={"seed": 2}), Skipped()).fingerprint()
        != one.fingerprint()
    )


def test_of_other_lesions_in_a_tile_those_count_of_which_half_is_left():
    """A tile as large as the lesion around it can lie in one place only."""
    own = Lesion("mass", (20, 20, 36, 36))
    half = Lesion("mass", (24, 30, 34, 42))
    less = Lesion("mass", (24, 31, 34, 42))
    inside = Lesion("calcification", (22, 22, 24, 25))
    beside = Lesion("mass", (24, 36, 34, 42))
    config = TILED.model_copy(update={"size": 16, "tiles": TilesConfig(overlap=8, empty=0)})
    whole = make_whole([breast(0, [own, half, less, inside, beside])], config, Skipped()).take([0])
    np.testing.assert_allclose(
        whole.boxes[0] * 16,
        [[0, 0, 16, 16], [4, 10, 14, 16], [2, 2, 4, 5], *[[0] * 4] * (whole.boxes.shape[1] - 3)],
    )
    assert whole.classes[0, :3].tolist() == [0, 0, 1]


def test_a_lesion_larger_than_a_tile_is_seen_by_its_middle(caplog):
    caplog.set_level("INFO")
    lesion = Lesion("mass", (0, 10, 80, 30))
    whole = make_whole([breast(0, [lesion])], TILED, Skipped())
    assert "i0#0: lesion 0 is larger than a tile, which shows 40 % of its box" in caplog.text
    np.testing.assert_allclose(whole.boxes[0, 0, [0, 2]], [0, 1])
    assert bounds(whole.images[0] == 1)[::2] == [0, 32]


def test_a_mammogram_smaller_than_a_tile_is_padded():
    config = TILED.model_copy(update={"canvas": (96, 64)})
    whole = make_whole([breast(0, [MASS]), breast(1, pathology="normal")], config, Skipped())
    assert whole.images.shape == (3, 96, 64, 1), "no tile of the first is free of its lesion"
    np.testing.assert_allclose(whole.boxes[0, 0] * (96, 64, 96, 64), MASS.box, atol=1e-5)
    np.testing.assert_allclose(whole.images[0, :80, :60], half_ellipse(MASS.box), atol=1e-6)
    assert not whole.images[0, 80:].any() and not whole.images[0, :, 60:].any()


def test_empty_tiles_show_no_lesion_of_any_kind_and_may_be_missing():
    asymmetry = Lesion("asymmetry", (0, 0, 80, 5))
    skipped = Skipped()
    config = TILED.model_copy(update={"tiles": TilesConfig(overlap=8, empty=20)})
    whole = make_whole(
        [breast(0, [MASS, asymmetry]), breast(1, [MASS, Lesion("asymmetry", (20, 20, 60, 40))])],
        config,
        skipped,
    )
    assert whole.ids.tolist() == ["i0#0", *(f"i0@{number}" for number in range(20)), "i1#0"]
    assert whole.images[1:21].max() < 1 and skipped.reasons == {
        "i1": "no tile of 32 x 32 px is breast without a lesion"
    }
    assert all(len(np.flatnonzero(image)) >= 102 for image in whole.images[1:21]), (
        "a tenth of 32 x 32 px"
    )


def test_tiles_of_mirrored_and_resampled_mammograms():
    """Seen at half the resolution: (20, 8, 40, 24) mirrored in 60 columns is (20, 36, 40, 52), then
    (10, 18, 20, 26).
    """
    preprocess = PreprocessConfig(flip_right=True, spacing=0.2)
    config = TILED.model_copy(
        update={
            "preprocess": preprocess,
            "canvas": (40, 30),
            "tiles": TilesConfig(overlap=8, empty=0),
        }
    )
    whole = make_whole([breast(0, [MASS], laterality="R", spacing=(0.1, 0.1))], config, Skipped())
    np.testing.assert_allclose(whole.boxes[0, 0] * (40, 30, 40, 30), (10, 18, 20, 26), atol=1e-5)
    assert bounds(whole.images[0] == 1) == bounds(whole.masks[0]) == [10, 18, 20, 26]
