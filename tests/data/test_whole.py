"""Whole mammograms with their boxes: where a lesion lies in the square, what is taken, how both are flipped."""

from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from tfmammo.config import DataConfig, PreprocessConfig
from tfmammo.data.patches import DataError
from tfmammo.data.pipeline import batches, dihedral, flipped
from tfmammo.data.whole import Whole, letterbox, make_whole, view
from tfmammo.record import Lesion, Mammogram, Skipped

ROWS, COLS = 80, 60
CONFIG = DataConfig(size=40, kinds=("mass", "calcification"), percentiles=(0, 100))


def pixels(box=None, value=0.5):
    image = np.full((ROWS, COLS, 1), 0.1, np.float32)
    image[:5] = value
    if box:
        image[box[0] : box[2], box[1] : box[3]] = 1
    return image


def mammogram(number=0, lesions=(), pathology=None, box=None, **facts):
    read = partial(pixels, box or (lesions[0].box if lesions else None))
    return Mammogram("made", f"p{number}", f"i{number}", ROWS, COLS, read, lesions=tuple(lesions), pathology=pathology, **facts)


MASS = Lesion("mass", (20, 8, 40, 24), pathology="malignant")


def test_a_box_lies_on_its_lesion_in_the_square():
    whole = make_whole([mammogram(0, [MASS])], CONFIG, Skipped())
    np.testing.assert_allclose(whole.boxes, [[[20 / 80, 8 / 80, 40 / 80, 24 / 80]]])
    assert whole.classes.tolist() == [[0]] and whole.kinds.tolist() == ["mass"] and whole.pathologies.tolist() == ["malignant"]
    np.testing.assert_array_equal(whole.images[0, 10:20, 4:12], 1)
    np.testing.assert_array_equal(np.argwhere(whole.masks[0, ..., 0])[[0, -1]], [[10, 4], [19, 11]])
    assert whole.images[0, :, 30:].max() == 0 and whole.ids.tolist() == ["i0#full"]


def test_an_outline_is_drawn_and_a_mask_is_not_its_box():
    outline = np.array([[20, 8], [40, 24], [40, 8]], np.float32)
    whole = make_whole([mammogram(0, [Lesion.from_outline("mass", outline, ROWS, COLS)])], CONFIG, Skipped())
    assert 0.4 < whole.masks.sum() / (10 * 8) < 0.75


def test_what_is_taken():
    asymmetry, calcification = Lesion("asymmetry", MASS.box), Lesion("calcification", MASS.box)
    found = [
        mammogram(0, [MASS, calcification]),
        mammogram(1, pathology="normal"),
        mammogram(2),  # nothing is known of it
        mammogram(3, [asymmetry]),
        mammogram(4, pathology="malignant"),
        mammogram(5, [asymmetry, calcification]),
    ]
    whole = make_whole(found, CONFIG, Skipped())
    assert whole.patient_ids.tolist() == ["p0", "p1", "p5"] and whole.kinds.tolist() == ["mass", "normal", "calcification"]
    assert whole.boxes.shape == (3, 2, 4) and whole.classes.tolist() == [[0, 1], [0, 0], [1, 0]]
    assert (whole.boxes[..., 2] > whole.boxes[..., 0]).tolist() == [[True, True], [False, False], [True, False]]
    assert make_whole(found, CONFIG, Skipped(), normal=False).patient_ids.tolist() == ["p0", "p5"]


def test_flip_right_moves_the_box():
    config = CONFIG.model_copy(update={"preprocess": PreprocessConfig(flip_right=True)})
    whole = make_whole([mammogram(0, [MASS], laterality="R")], config, Skipped())
    np.testing.assert_allclose(whole.boxes[0, 0], np.array([20, 60 - 24, 40, 60 - 8]) / 80)
    np.testing.assert_array_equal(whole.images[0, 10:20, 18:26], 1)


def test_what_cant_be_used_is_noted():
    def constant():
        return np.zeros((ROWS, COLS, 1), np.float32)

    skipped, bad = Skipped(), Mammogram("made", "p9", "i9", ROWS, COLS, constant, lesions=(MASS,))
    assert len(make_whole([bad, mammogram(0, [MASS])], CONFIG, skipped)) == 1
    assert "constant" in skipped.reasons["i9"]
    with pytest.raises(DataError, match="no mammogram with a mass or calcification.*first i9: the image is constant"):
        make_whole([bad, mammogram(1, pathology="normal")], CONFIG, Skipped())


@pytest.mark.parametrize(
    ("rows", "cols", "scaled"), [(80, 60, (40, 30)), (60, 80, (30, 40)), (20, 10, (40, 20)), (40, 40, (40, 40)), (400, 1, (40, 1))]
)
def test_letterbox(rows, cols, scaled):
    square, scale = letterbox(np.ones((rows, cols, 1), np.float32), 40)
    assert square.shape == (40, 40, 1) and square.dtype == np.float32
    expected = np.zeros((40, 40), np.float32)
    expected[: scaled[0], : scaled[1]] = 1
    np.testing.assert_array_equal(square[..., 0], expected)
    np.testing.assert_allclose(scale, (scaled[0] / rows, scaled[1] / cols))


def test_view_stretches_grey_values_without_the_padding():
    square, _ = view(pixels((20, 8, 40, 24), 0.55), CONFIG)
    assert square[30, 2, 0] == 0 and square.max() == 1
    np.testing.assert_allclose(square[0, 0, 0], 0.5, atol=1e-6)
    windowed, _ = view(pixels((20, 8, 40, 24), 0.55), CONFIG.model_copy(update={"window": (0.05, 0.55)}))
    np.testing.assert_allclose(windowed[[0, 30], [0, 2], 0], [1, 0.1], atol=1e-6)


def test_take_and_fingerprint_know_the_boxes():
    whole = make_whole([mammogram(i, [MASS]) for i in range(3)], CONFIG, Skipped())
    some = whole.take([2, 0])
    assert isinstance(some, Whole) and some.patient_ids.tolist() == ["p2", "p0"] and some.boxes.shape == (2, 1, 4)
    moved = Whole(whole.images, whole.masks, whole.patient_ids, whole.ids, boxes=whole.boxes / 2, classes=whole.classes)
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


@pytest.mark.parametrize("turn", [0, 2, 4, 6])
def test_boxes_are_flipped_as_the_image_is(turn):
    image = np.zeros((40, 40, 1), np.float32)
    image[4:10, 12:32] = 1
    inside = np.argwhere(dihedral(image, turn).numpy()[..., 0])
    expected = [*inside.min(axis=0) / 40, *(inside.max(axis=0) + 1) / 40]
    boxes = np.array([[4, 12, 10, 32], [0, 0, 0, 0]], np.float32) / 40
    found = tf.function(flipped)(boxes, tf.constant(turn)).numpy()
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    assert found[1, 0] == found[1, 2] and found[1, 1] == found[1, 3], "what is not there stays so"


def test_batches_carry_boxes_that_lie_on_the_flipped_lesion():
    whole = make_whole([mammogram(0, [MASS]), mammogram(1, [Lesion("calcification", (50, 2, 60, 40))])], CONFIG, Skipped())
    places = set()
    for batch in batches(whole, 2, seed=3, augment=True).take(16):
        assert {name: (value.shape.as_list(), value.dtype) for name, value in batch.items()} == {
            "image": ([2, 40, 40, 1], tf.float32),
            "mask": ([2, 40, 40, 1], tf.float32),
            "boxes": ([2, 1, 4], tf.float32),
            "classes": ([2, 1], tf.int32),
        }
        for mask, box in zip(batch["mask"].numpy()[..., 0], batch["boxes"].numpy()[:, 0], strict=True):
            inside = np.argwhere(mask)
            np.testing.assert_allclose(box * 40, [*inside.min(axis=0), *(inside.max(axis=0) + 1)], atol=1e-4)
            places.add(tuple(np.rint(box * 40).astype(int).tolist()))
    assert len(places) == 8, "two mammograms, four flips each"
    for batch in batches(whole, 2, seed=3, augment=False).take(1):
        order = np.argsort(batch["classes"][:, 0])
        np.testing.assert_allclose(batch["boxes"].numpy()[order], whole.boxes)
