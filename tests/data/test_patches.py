"""Crops around lesions: where they lie, what their masks show, what is skipped."""

from functools import partial

import numpy as np
import pytest

from tfmammo.archives import cdd_cesm
from tfmammo.config import DataConfig
from tfmammo.data.patches import DataError, Patches, lesion_patches, window
from tfmammo.record import ArchiveError, Lesion, Mammogram, Skipped


def noise(rows, cols, seed=0):
    """Grey noise in [0.2, 0.8]."""
    return np.random.default_rng(seed).uniform(0.2, 0.8, (rows, cols, 1)).astype(np.float32)


def refuse():
    """What a broken file does."""
    raise ArchiveError("P1.jpg: broken")


def rectangle(top, left, bottom, right, rows=100, cols=120, kind="mass", **details):
    """A lesion that covers these pixels, half-open."""
    outline = np.array([[top, left], [top, right - 1], [bottom - 1, right - 1], [bottom - 1, left]])
    return Lesion.from_outline(kind, outline, rows, cols, **details)


def mammogram(*lesions, image_id="a", patient="p", rows=100, cols=120, read=None, **details):
    """A mammogram of noise."""
    return Mammogram("test", patient, image_id, rows, cols, read or partial(noise, rows, cols), lesions=lesions, **details)


def test_window_by_hand():
    assert window((40, 50, 60, 60), 100, 120, 1.5) == (35, 40, 65, 70)  # side 30 around (50, 55)
    assert window((0, 110, 20, 120), 100, 120, 1.5) == (0, 90, 30, 120)  # moved down and to the left
    assert window((0, 10, 100, 20), 100, 120, 1.1) == (-5, 0, 105, 110)  # too long for the rows only
    assert window((0, 0, 100, 120), 100, 120, 1.5) == (-40, -30, 140, 150)


def test_window_is_square_in_millimetres():
    # 20 px of 0.2 mm are 4 mm, 20 px of 0.1 mm are 2 mm: the side is 6 mm
    assert window((40, 50, 60, 70), 100, 120, 1.5, (0.2, 0.1)) == (35, 30, 65, 90)


@pytest.mark.parametrize("context", [1.0, 1.25, 1.5, 2.0])
def test_windows_hold_their_lesion_and_the_image(context):
    rng = np.random.default_rng(0)
    for _ in range(200):
        top, left = rng.integers(0, 90), rng.integers(0, 110)
        box = (top, left, rng.integers(top + 1, 101), rng.integers(left + 1, 121))
        place = window(box, 100, 120, context)
        assert place[2] - place[0] == place[3] - place[1]
        assert place[0] <= box[0] and place[1] <= box[1] and place[2] >= box[2] and place[3] >= box[3]
        for axis, extent in enumerate((100, 120)):
            outside = place[axis] < 0 or place[axis + 2] > extent
            assert outside == (place[axis + 2] - place[axis] > extent)


def test_a_patch_is_the_crop_and_its_mask():
    lesion = rectangle(42, 50, 58, 66)  # 16 px, so the crop of 32 px at context 2 is not resampled
    config = DataConfig(size=32, context=2, percentiles=(0, 100))
    patches = lesion_patches([mammogram(lesion)], config, Skipped())
    crop = noise(100, 120)[34:66, 42:74]
    np.testing.assert_allclose(patches.images[0], (crop - crop.min()) / (crop.max() - crop.min()), atol=1e-5)
    expected = np.zeros((32, 32, 1), np.uint8)
    expected[8:24, 8:24] = 1
    np.testing.assert_array_equal(patches.masks[0], expected)
    assert patches.ids.tolist() == ["a#0"] and patches.patient_ids.tolist() == ["p"]


def test_neighbours_of_wanted_kinds_are_in_the_mask():
    lesions = (rectangle(42, 50, 58, 66), rectangle(42, 67, 58, 72), rectangle(59, 50, 64, 66, kind="calcification"))
    one, two = DataConfig(size=32, context=2), DataConfig(size=32, context=2, kinds=("mass", "calcification"))
    masses, all_kinds = (lesion_patches([mammogram(*lesions)], config, Skipped()) for config in (one, two))
    assert masses.ids.tolist() == ["a#0", "a#1"] and all_kinds.ids.tolist() == ["a#0", "a#1", "a#2"]
    assert masses.masks[0].sum() == 16 * 16 + 16 * 5
    assert all_kinds.masks[0].sum() == 16 * 16 + 16 * 5 + 5 * 16


def test_mixed_findings():
    lesions = (rectangle(42, 50, 58, 66, kind_is_certain=False), rectangle(10, 10, 20, 20))
    config = DataConfig(size=32)
    assert len(lesion_patches([mammogram(*lesions)], config, Skipped())) == 2
    certain = lesion_patches([mammogram(*lesions)], config.model_copy(update={"mixed_findings": False}), Skipped())
    assert certain.ids.tolist() == ["a#1"]


def test_padding_is_black_and_outside_the_mask():
    lesion = rectangle(0, 0, 100, 120)
    patches = lesion_patches([mammogram(lesion)], DataConfig(size=60, context=1.5, pad=True), Skipped())  # 180 px: 40 above, 30 left
    rows, cols = patches.masks[0, :, 30, 0], patches.masks[0, 30, :, 0]
    assert rows[:13].sum() == rows[-13:].sum() == cols[:10].sum() == cols[-10:].sum() == 0
    assert rows[14:46].all() and cols[10:50].all()
    assert patches.images[0, :13].max() == 0 and patches.images[0, 15:45, 11:49].min() > 0


def test_a_patch_larger_than_its_mammogram_is_left_out():
    skipped = Skipped()
    large, small = rectangle(0, 0, 100, 120), rectangle(10, 10, 30, 30)
    patches = lesion_patches([mammogram(large, small)], DataConfig(size=60, context=1.5), skipped)
    assert patches.ids.tolist() == ["a#1"] and "lesion 0: its patch is larger than the mammogram" in skipped.reasons["a"]


def test_pixels_are_read_once_and_only_where_wanted():
    reads = []

    def read():
        reads.append(1)
        return noise(100, 120)

    lesions = (rectangle(42, 50, 58, 66), rectangle(10, 10, 20, 20))
    lesion_patches([mammogram(*lesions, read=read)], DataConfig(size=16), Skipped())
    assert len(reads) == 1
    others = mammogram(rectangle(10, 10, 20, 20, kind="asymmetry"), image_id="b", read=read)
    lesion_patches([mammogram(*lesions, read=read), others, mammogram(read=read)], DataConfig(size=16), Skipped())
    assert len(reads) == 2


def test_what_makes_no_patch_is_skipped_with_a_reason():
    good = rectangle(42, 50, 58, 66)
    dust = Lesion.from_outline("mass", np.array([[10, 10], [10, 10], [89, 10]]), 100, 120)  # a line of one pixel
    skipped = Skipped()
    patches = lesion_patches(
        [
            mammogram(good, Lesion("mass", (1, 2, 30, 40)), image_id="box"),
            mammogram(good, image_id="broken", read=refuse),
            mammogram(good, image_id="other_size", read=partial(noise, 10, 10)),
            mammogram(good, image_id="black", read=partial(np.zeros, (100, 120, 1))),
            mammogram(dust, image_id="dust"),
        ],
        DataConfig(size=4, context=1.5, pad=True),
        skipped,
    )
    assert patches.ids.tolist() == ["box#0"]
    assert skipped.reasons == {
        "box": "lesion 1: the archive gives its box but no outline",
        "broken": "P1.jpg: broken",
        "other_size": "other_size: pixels have shape (10, 10, 1), the record says (100, 120, 1)",
        "black": "lesion 0: the image is constant: its percentiles 0.5 and 99.5 are both 0",
        "dust": "lesion 0: nothing of its mask is left at 4 px",
    }


def test_nothing_left_says_what_was_found():
    skipped = Skipped({"earlier.jpg": "another reason"})
    images = [mammogram(rectangle(10, 10, 20, 20, kind="asymmetry")), mammogram(rectangle(10, 10, 20, 20), read=refuse, image_id="b")]
    with pytest.raises(DataError) as error:
        lesion_patches(images, DataConfig(), skipped)
    expected = "no patch of a mass can be made: 2 mammograms hold 1 asymmetry, 1 mass; 1 skipped, first b: P1.jpg: broken"
    assert str(error.value) == expected
    with pytest.raises(DataError, match="of a mass whose kind is certain can be made: 0 mammograms hold no lesion$"):
        lesion_patches([], DataConfig(mixed_findings=False), Skipped())


def patches(count=3, size=4):
    """Patches of noise."""
    rng = np.random.default_rng(count)
    return Patches(
        rng.random((count, size, size, 1), np.float32),
        rng.integers(0, 2, (count, size, size, 1), np.uint8),
        np.array([f"p{i}" for i in range(count)]),
        np.array([f"i{i}#0" for i in range(count)]),
    )


def test_take_keeps_rows_together():
    some = patches(5)
    taken = some.take([4, 0, 4])
    assert len(taken) == 3 and taken.ids.tolist() == ["i4#0", "i0#0", "i4#0"] and taken.patient_ids.tolist() == ["p4", "p0", "p4"]
    np.testing.assert_array_equal(taken.images, some.images[[4, 0, 4]])
    np.testing.assert_array_equal(taken.masks, some.masks[[4, 0, 4]])
    assert len(some.take([])) == 0


def test_fingerprint_follows_the_contents():
    some = patches()
    assert some.fingerprint() == patches().fingerprint() and len(some.fingerprint()) == 12
    images, masks = some.images.copy(), some.masks.copy()
    images[0, 0, 0, 0] = 0
    masks[0, 0, 0, 0] ^= 1
    others = [
        Patches(images, some.masks, some.patient_ids, some.ids),
        Patches(some.images, masks, some.patient_ids, some.ids),
        Patches(some.images, some.masks, some.patient_ids[::-1], some.ids),
        Patches(some.images, some.masks, some.patient_ids, some.ids[::-1]),
        some.take([1, 0, 2]),
    ]
    assert len({some.fingerprint(), *(other.fingerprint() for other in others)}) == 6
    wider = Patches(some.images, some.masks, some.patient_ids.astype("<U40"), some.ids)
    assert wider.fingerprint() == some.fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((3, 4, 5, 1), np.float32)}, "must both have the shape"),
        ({"masks": np.zeros((3, 4, 4), np.uint8)}, "must both have the shape"),
        ({"images": np.zeros((3, 4, 4, 1))}, "images must be float32"),
        ({"masks": np.zeros((3, 4, 4, 1), np.float32)}, "images must be float32 and masks uint8"),
        ({"ids": np.array(["a"])}, "3 patient_ids and 1 ids for 3 patches"),
        ({"patient_ids": np.arange(3)}, "arrays of str"),
        ({"images": np.full((3, 4, 4, 1), 1.5, np.float32)}, r"lie in \[0, 1\]"),
        ({"images": np.full((3, 4, 4, 1), np.nan, np.float32)}, r"lie in \[0, 1\]"),
        ({"masks": np.full((3, 4, 4, 1), 255, np.uint8)}, "hold 0 and 1 alone"),
    ],
)
def test_wrong_arrays_are_refused(change, message):
    some = patches()
    arrays = {"images": some.images, "masks": some.masks, "patient_ids": some.patient_ids, "ids": some.ids}
    with pytest.raises(ValueError, match=message):
        Patches(**arrays | change)


@pytest.mark.data
@pytest.mark.slow
def test_real_mass_patches(real_data):
    mammograms = cdd_cesm.read(real_data / "cdd-cesm")
    skipped = Skipped()
    mixed = lesion_patches(mammograms, DataConfig(pad=True), skipped)
    assert len(mixed) == 69 and len(set(mixed.patient_ids)) == 23 and not skipped.reasons
    assert len(lesion_patches(mammograms, DataConfig(pad=True, mixed_findings=False), skipped)) == 31
    fitting = lesion_patches(mammograms, DataConfig(), skipped)
    assert len(fitting) == 63 and len(set(fitting.patient_ids)) == 23 and len(skipped) == 6
    share = mixed.masks.mean(axis=(1, 2, 3))
    assert np.mean(2 * share / (1 + share)) == pytest.approx(0.42, abs=0.005)  # Dice of filling the whole patch
