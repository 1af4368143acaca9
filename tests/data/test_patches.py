"""Crops around lesions: where they lie, what their masks show, what is skipped."""

from functools import partial

import numpy as np
import pytest
from pydantic import ValidationError

from tfmammo.archives import cdd_cesm, phantom
from tfmammo.config import DataConfig, PreprocessConfig, SamplingConfig, TilesConfig
from tfmammo.data import preprocess, sampling
from tfmammo.data.extraction import (
    extract_patches,
    make_lesion_patches,
    make_normal_patches,
    make_offset_patches,
    make_patches,
    make_sampler,
    make_shape_patches,
)
from tfmammo.data.labelled import make_pathology_patches
from tfmammo.data.patches import Patch, Patches, stack_patches, worst_pathology
from tfmammo.data.sampling import list_unselected
from tfmammo.data.whole import make_whole
from tfmammo.data.windows import crop_window, extract_window, square_window
from tfmammo.errors import ArchiveError, DataError
from tfmammo.mammogram import Lesion, Mammogram, MaskedLesion, Skipped

FACTS = ("kinds", "pathologies", "shapes", "margins", "official_splits")
RAW = {"window": (0, 1), "percentiles": (0, 100)}  # grey values as they are


def noise(rows, cols, seed=0):
    """Grey noise in [0.2, 0.8]."""
    return np.random.default_rng(seed).uniform(0.2, 0.8, (rows, cols, 1)).astype(np.float32)


def refuse():
    """What a broken file does."""
    raise ArchiveError("P1.jpg: broken")


def stored(rows, cols):
    """A mask file's content: a square of 16 px."""
    mask = np.zeros((rows, cols), np.uint8)
    mask[42:58, 50:66] = 255
    return mask


def half(rows=120, cols=150):
    """A breast that fills the left 90 columns, noise in [0.4, 0.6]; right of it black."""
    image = np.random.default_rng(5).uniform(0.4, 0.6, (rows, cols, 1)).astype(np.float32)
    image[:, 90:] = 0
    return image


def normal(image_id="n", read=half, **details):
    """A normal mammogram."""
    return mammogram(
        image_id=image_id, rows=120, cols=150, read=read, pathology="normal", **details
    )


def rectangle(top, left, bottom, right, rows=100, cols=120, kind="mass", **details):
    """A lesion that covers these pixels, half-open."""
    outline = np.array([[top, left], [top, right - 1], [bottom - 1, right - 1], [bottom - 1, left]])
    return Lesion.from_outline(kind, outline, rows, cols, **details)


def mammogram(*lesions, image_id="a", patient="p", rows=100, cols=120, read=None, **details):
    """A mammogram of noise."""
    return Mammogram(
        "test",
        patient,
        image_id,
        rows,
        cols,
        read or partial(noise, rows, cols),
        lesions=lesions,
        **details,
    )


def test_window_by_hand():
    assert square_window((40, 50, 60, 60), 100, 120, 1.5) == (
        35,
        40,
        65,
        70,
    )  # side 30 around (50, 55)
    # moved down and to the left
    assert square_window((0, 110, 20, 120), 100, 120, 1.5) == (0, 90, 30, 120)
    # too long for the rows only
    assert square_window((0, 10, 100, 20), 100, 120, 1.1) == (-5, 0, 105, 110)
    assert square_window((0, 0, 100, 120), 100, 120, 1.5) == (-40, -30, 140, 150)


def test_window_is_square_in_millimetres():
    # 20 px of 0.2 mm are 4 mm, 20 px of 0.1 mm are 2 mm: the side is 6 mm
    assert square_window((40, 50, 60, 70), 100, 120, 1.5, (0.2, 0.1)) == (35, 30, 65, 90)


@pytest.mark.parametrize("context", [1.0, 1.25, 1.5, 2.0])
def test_windows_hold_their_lesion_and_the_image(context):
    rng = np.random.default_rng(0)
    for _ in range(200):
        top = rng.integers(0, 90)
        left = rng.integers(0, 110)
        box = (top, left, rng.integers(top + 1, 101), rng.integers(left + 1, 121))
        place = square_window(box, 100, 120, context)
        assert place[2] - place[0] == place[3] - place[1]
        assert (
            place[0] <= box[0] and place[1] <= box[1] and place[2] >= box[2] and place[3] >= box[3]
        )
        for axis, extent in enumerate((100, 120)):
            outside = place[axis] < 0 or place[axis + 2] > extent
            assert outside == (place[axis + 2] - place[axis] > extent)


def test_a_patch_is_the_crop_and_its_mask():
    lesion = rectangle(42, 50, 58, 66)  # 16 px, so the crop of 32 px at context 2 is not resampled
    config = DataConfig(size=32, context=2, percentiles=(0, 100))
    patches = make_lesion_patches([mammogram(lesion)], config, Skipped())
    crop = noise(100, 120)[34:66, 42:74]
    np.testing.assert_allclose(
        patches.images[0], (crop - crop.min()) / (crop.max() - crop.min()), atol=1e-5
    )
    expected = np.zeros((32, 32, 1), np.uint8)
    expected[8:24, 8:24] = 1
    np.testing.assert_array_equal(patches.masks[0], expected)
    assert patches.ids.tolist() == ["a#0"] and patches.patient_ids.tolist() == ["p"]


def test_neighbours_of_wanted_kinds_are_in_the_mask():
    lesions = (
        rectangle(42, 50, 58, 66),
        rectangle(42, 67, 58, 72),
        rectangle(59, 50, 64, 66, kind="calcification"),
    )
    one = DataConfig(size=32, context=2)
    two = DataConfig(size=32, context=2, kinds=("mass", "calcification"))
    masses, all_kinds = (
        make_lesion_patches([mammogram(*lesions)], config, Skipped()) for config in (one, two)
    )
    assert masses.ids.tolist() == ["a#0", "a#1"] and all_kinds.ids.tolist() == ["a#0", "a#1", "a#2"]
    assert masses.masks[0].sum() == 16 * 16 + 16 * 5
    assert all_kinds.masks[0].sum() == 16 * 16 + 16 * 5 + 5 * 16


def test_mixed_findings():
    lesions = (rectangle(42, 50, 58, 66, kind_is_certain=False), rectangle(10, 10, 20, 20))
    config = DataConfig(size=32)
    assert len(make_lesion_patches([mammogram(*lesions)], config, Skipped())) == 2
    certain = make_lesion_patches(
        [mammogram(*lesions)], config.model_copy(update={"mixed_findings": False}), Skipped()
    )
    assert certain.ids.tolist() == ["a#1"]


def test_lesions_of_other_and_of_unknown_pathologies_are_left_out():
    lesions = (
        rectangle(42, 50, 58, 66, pathology="benign"),
        rectangle(10, 10, 20, 20, pathology="malignant"),
        rectangle(70, 70, 90, 90),
    )
    config = DataConfig(size=32, pathologies=("malignant",))
    malignant = make_lesion_patches([mammogram(*lesions)], config, Skipped())
    assert malignant.ids.tolist() == ["a#1"] and malignant.pathologies.tolist() == ["malignant"]
    either = config.model_copy(update={"pathologies": ("benign", "malignant")})
    assert len(make_lesion_patches([mammogram(*lesions)], either, Skipped())) == 2
    assert len(make_lesion_patches([mammogram(*lesions)], DataConfig(size=32), Skipped())) == 3
    assert len(list_unselected(mammogram(*lesions), config)) == 2, "no detection of them is wrong"


def test_an_archive_without_the_wanted_pathology_is_refused_in_one_sentence():
    config = DataConfig(pathologies=("malignant",))
    with pytest.raises(DataError, match="a malignant mass .* 1 mass of unknown pathology$"):
        make_lesion_patches([mammogram(rectangle(10, 10, 20, 20))], config, Skipped())
    with pytest.raises(DataError, match="a malignant mass"):
        make_whole([mammogram(rectangle(10, 10, 20, 20))], config, Skipped())
    for wrong in (("cancer",), ()):
        with pytest.raises(ValidationError, match="pathologies"):
            DataConfig(pathologies=wrong)


def test_padding_is_black_and_outside_the_mask():
    lesion = rectangle(0, 0, 100, 120)
    # 180 px: 40 above, 30 left
    patches = make_lesion_patches(
        [mammogram(lesion)], DataConfig(size=60, context=1.5, pad=True), Skipped()
    )
    rows = patches.masks[0, :, 30, 0]
    cols = patches.masks[0, 30, :, 0]
    assert rows[:13].sum() == rows[-13:].sum() == cols[:10].sum() == cols[-10:].sum() == 0
    assert rows[14:46].all() and cols[10:50].all()
    assert patches.images[0, :13].max() == 0 and patches.images[0, 15:45, 11:49].min() > 0


def test_a_patch_larger_than_its_mammogram_is_left_out():
    skipped = Skipped()
    large = rectangle(0, 0, 100, 120)
    small = rectangle(10, 10, 30, 30)
    patches = make_lesion_patches(
        [mammogram(large, small)], DataConfig(size=60, context=1.5), skipped
    )
    assert (
        patches.ids.tolist() == ["a#1"]
        and "lesion 0: its patch is larger than the mammogram" in skipped.reasons["a"]
    )


def test_pixels_are_read_once_and_only_where_wanted():
    reads = []

    def read():
        reads.append(1)
        return noise(100, 120)

    lesions = (rectangle(42, 50, 58, 66), rectangle(10, 10, 20, 20))
    make_lesion_patches([mammogram(*lesions, read=read)], DataConfig(size=16), Skipped())
    assert len(reads) == 1
    others = mammogram(rectangle(10, 10, 20, 20, kind="asymmetry"), image_id="b", read=read)
    make_lesion_patches(
        [mammogram(*lesions, read=read), others, mammogram(read=read)],
        DataConfig(size=16),
        Skipped(),
    )
    assert len(reads) == 2


def test_a_mask_file_is_read_for_wanted_kinds_only_and_a_broken_one_is_a_skip():
    good = MaskedLesion("mass", partial(stored, 100, 120), shape="oval", margin="spiculated")
    broken = MaskedLesion("mass", refuse)
    unwanted = MaskedLesion("asymmetry", lambda: pytest.fail("was read"))
    empty = MaskedLesion("mass", partial(np.zeros, (100, 120), np.uint8))
    skipped = Skipped()
    patches = make_lesion_patches(
        [mammogram(unwanted, broken, good, empty)], DataConfig(size=32, context=2), skipped
    )
    assert patches.ids.tolist() == ["a#2"] and patches.shapes.tolist() == ["oval"]
    assert patches.margins.tolist() == ["spiculated"]
    expected = np.zeros((32, 32, 1), np.uint8)
    expected[8:24, 8:24] = 1
    np.testing.assert_array_equal(patches.masks[0], expected)
    assert skipped.reasons == {
        "a": "lesion 1: P1.jpg: broken; lesion 3: the mask of a lesion marks nothing"
    }
    # and no pixel is read in vain
    with pytest.raises(DataError, match="P1.jpg"):
        make_lesion_patches(
            [mammogram(broken, image_id="b", read=lambda: pytest.fail("was read"))],
            DataConfig(size=32),
            Skipped(),
        )


def test_a_mask_that_fails_when_it_is_moved_costs_its_lesion_alone():
    reads = []

    def once():
        reads.append(1)
        return stored(100, 120) if len(reads) == 1 else refuse()

    flipped = DataConfig(size=32, preprocess=PreprocessConfig(flip_right=True))
    skipped = Skipped()
    right = mammogram(MaskedLesion("mass", once), rectangle(10, 10, 20, 20), laterality="R")
    assert make_lesion_patches([right], flipped, skipped).ids.tolist() == [
        "a#1"
    ] and skipped.reasons == {"a": "lesion 0: P1.jpg: broken"}
    with pytest.raises(DataError, match="data.preprocess.flip_right"):
        make_lesion_patches([mammogram(rectangle(10, 10, 20, 20))], flipped, Skipped())


def test_frames_by_hand():
    # 20 x 11 px
    image = mammogram()
    box = (40, 50, 60, 61)
    assert crop_window(box, image, DataConfig(frame="square", context=1.5)) == square_window(
        box, 100, 120, 1.5
    )
    assert crop_window(box, image, DataConfig(frame="tight")) == box
    assert crop_window(box, image, DataConfig(frame="loose")) == (30, 45, 70, 67)  # 40 x 22 px
    assert crop_window(box, image, DataConfig(frame="full")) == (0, 0, 100, 120)
    loose = DataConfig(frame="loose")
    assert crop_window((4, 0, 24, 30), image, loose) == (0, 0, 34, 45) and crop_window(
        (80, 100, 99, 118), image, loose
    ) == (71, 91, 100, 120)
    padded = DataConfig(frame="padded", padding=30)
    assert crop_window(box, image, padded) == (10, 20, 90, 91) and crop_window(
        (80, 100, 99, 118), image, padded
    ) == (50, 70, 100, 120)
    assert crop_window(box, image, DataConfig(frame="padded")) == (0, 0, 100, 120), (
        "100 px on every side, cut at the border"
    )


@pytest.mark.parametrize(
    ("name", "rows", "cols"),
    [
        ("tight", slice(40, 60), slice(50, 60)),
        ("loose", slice(30, 70), slice(45, 65)),
        ("padded", slice(30, 70), slice(40, 70)),
        ("full", slice(100), slice(120)),
    ],
)
def test_frames_are_scaled_to_a_square(name, rows, cols):
    patches = make_patches(
        [mammogram(rectangle(40, 50, 60, 60))],
        DataConfig(size=40, frame=name, padding=10, **RAW),
        Skipped(),
    )
    (mask,) = patches.masks
    (image,) = patches.images
    np.testing.assert_allclose(
        image, preprocess.resize_image(noise(100, 120)[rows, cols], 40, 40), atol=1e-6
    )
    height = 20 / len(range(100)[rows])
    width = 10 / len(range(120)[cols])
    assert mask.mean() == pytest.approx(height * width, rel=0.15)
    if name == "loose":
        assert mask[10:30, 10:30].all() and mask.sum() == 400


def test_a_full_frame_holds_all_wanted_lesions_of_its_mammogram():
    small = rectangle(10, 10, 20, 20, kind="calcification", pathology="benign", shape="round")
    large = rectangle(50, 60, 90, 100, pathology="malignant", shape="round")
    other = rectangle(0, 0, 5, 5, kind="asymmetry")
    config = DataConfig(size=60, frame="full", kinds=("mass", "calcification"))
    images = [
        mammogram(small, large, other),
        mammogram(large, image_id="b", pathology="benign"),
        mammogram(other, image_id="c", read=refuse),
    ]
    patches = make_patches(images, config, Skipped())
    assert patches.ids.tolist() == ["a#full", "b#full"] and patches.kinds.tolist() == [
        "mass",
        "mass",
    ]
    assert patches.pathologies.tolist() == ["malignant", "benign"], (
        "the mammogram's own, where the archive states it"
    )
    assert patches.shapes.tolist() == ["round", "round"]
    assert patches.masks[0].sum() == 6 * 5 + 24 * 20 and patches.masks[1].sum() == 24 * 20


def test_a_window_of_grey_values_replaces_percentiles():
    config = DataConfig(size=32, context=2, window=(0.3, 0.5))
    patches = make_lesion_patches([mammogram(rectangle(42, 50, 58, 66))], config, Skipped())
    np.testing.assert_allclose(
        patches.images[0], np.clip((noise(100, 120)[34:66, 42:74] - 0.3) / 0.2, 0, 1), atol=1e-5
    )


def test_preprocessing_is_applied_to_mammogram_and_crop():
    lesion = rectangle(42, 50, 58, 66)
    right = mammogram(lesion, laterality="R", view="CC")
    flipped = DataConfig(size=32, context=2, preprocess=PreprocessConfig(flip_right=True), **RAW)
    patches = make_lesion_patches([right], flipped, Skipped())
    np.testing.assert_allclose(patches.images[0], noise(100, 120)[34:66, 42:74][:, ::-1], atol=1e-6)
    steps = PreprocessConfig(denoise=1.5, contrast="equalise")
    patches = make_lesion_patches(
        [right], DataConfig(size=32, context=2, preprocess=steps, **RAW), Skipped()
    )
    np.testing.assert_allclose(
        patches.images[0],
        preprocess.preprocess_patch(noise(100, 120)[34:66, 42:74], steps),
        atol=1e-6,
    )


def test_what_makes_no_patch_is_skipped_with_a_reason():
    good = rectangle(42, 50, 58, 66)
    # a line of one pixel
    dust = Lesion.from_outline("mass", np.array([[10, 10], [10, 10], [89, 10]]), 100, 120)
    skipped = Skipped()
    patches = make_lesion_patches(
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
    images = [
        mammogram(rectangle(10, 10, 20, 20, kind="asymmetry")),
        mammogram(rectangle(10, 10, 20, 20), read=refuse, image_id="b"),
    ]
    with pytest.raises(DataError) as error:
        make_lesion_patches(images, DataConfig(), skipped)
    expected = (
        "no patch of a mass can be made: 2 mammograms hold 1 asymmetry, 1 mass; 1 skipped, "
        "first b: P1.jpg: broken"
    )
    assert str(error.value) == expected
    with pytest.raises(DataError, match="kind is certain"):
        make_lesion_patches([], DataConfig(mixed_findings=False), Skipped())


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
    assert (
        len(taken) == 3
        and taken.ids.tolist() == ["i4#0", "i0#0", "i4#0"]
        and taken.patient_ids.tolist() == ["p4", "p0", "p4"]
    )
    np.testing.assert_array_equal(taken.images, some.images[[4, 0, 4]])
    np.testing.assert_array_equal(taken.masks, some.masks[[4, 0, 4]])
    assert len(some.take([])) == 0


def test_fingerprint_follows_the_contents():
    some = patches()
    assert some.fingerprint() == patches().fingerprint() and len(some.fingerprint()) == 12
    images = some.images.copy()
    masks = some.masks.copy()
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
    arrays = {
        "images": some.images,
        "masks": some.masks,
        "patient_ids": some.patient_ids,
        "ids": some.ids,
    }
    with pytest.raises(ValueError, match=message):
        Patches(**arrays | change)


def offset_config(**changes):
    """Thirty patches of 32 px near masses, of unscaled grey values."""
    values = {"count": 30, "offset": 10, "scale": (1, 1), **changes}
    return DataConfig(patches="offset", size=32, sampling=SamplingConfig(**values), **RAW)


def test_patches_near_a_lesion_hold_as_much_breast_as_asked_for():
    image = noise(100, 120) * np.float32(0.5) + np.float32(0.5)
    image[:, 60:] = 0  # background
    record = mammogram(rectangle(48, 50, 52, 58), read=lambda: image, laterality="L")
    dark = {}
    for name, asked in (("any", {"lesion_tissue": 0}), ("the paper's", {})):
        patches = make_patches([record], offset_config(**asked), Skipped())
        assert len(patches) == 30
        dark[name] = (patches.images == 0).mean(axis=(1, 2, 3))
    assert dark["the paper's"].max() <= 0.1 and dark["any"].max() > 0.2
    assert dark["the paper's"].max() > 0  # no more than asked for


def found_at(patch, image):
    """Where a patch that was not scaled lies: the corner at which it equals the image."""
    size = len(patch)
    corners = np.argwhere(
        np.isclose(
            image[: len(image) - size + 1, : image.shape[1] - size + 1, 0],
            patch[0, 0, 0],
            atol=1e-7,
        )
    )
    hits = [
        (int(r), int(c))
        for r, c in corners
        if np.allclose(image[r : r + size, c : c + size], patch, atol=1e-6)
    ]
    assert len(hits) == 1
    return hits[0]


def test_offset_patches_are_windows_near_the_lesion():
    lesions = (
        rectangle(42, 50, 58, 66, shape="oval", pathology="benign"),
        rectangle(3, 100, 9, 108),
        rectangle(80, 10, 90, 20, kind="asymmetry"),
    )
    both = np.maximum(*(lesion.mask(100, 120) for lesion in lesions[:2]))
    patches = make_patches([mammogram(*lesions, official_split="test")], offset_config(), Skipped())
    assert len(patches) == 30 and [name.partition("@")[2] for name in patches.ids] == [
        str(i) for i in range(30)
    ]
    assert {name.partition("@")[0] for name in patches.ids} == {"a#0", "a#1"} and set(
        patches.official_splits
    ) == {"test"}
    for image, mask, name, shape in zip(
        patches.images, patches.masks, patches.ids, patches.shapes, strict=True
    ):
        top, left = found_at(image, noise(100, 120))
        np.testing.assert_array_equal(mask[..., 0], both[top : top + 32, left : left + 32])
        lesion = lesions[int(name[2])]
        assert lesion.mask(100, 120)[top : top + 32, left : left + 32].any() and shape == (
            lesion.shape or ""
        )
        # A centre is at most 10 px from the lesion's box, but for a window that was moved inside.
        for axis, (start, extent) in enumerate(((top, 100), (left, 120))):
            moved = start in (0, extent - 32)
            assert moved or lesion.box[axis] - 10 <= start + 16 < lesion.box[axis + 2] + 10
    again = make_offset_patches(
        [mammogram(*lesions)], offset_config().model_copy(update={"patches": "lesion"}), Skipped()
    )
    assert again.fingerprint() == patches.fingerprint()


def test_a_mammograms_random_patches_depend_on_seed_and_count_alone():
    lesion = rectangle(42, 50, 58, 66)
    images = [mammogram(lesion, image_id=name) for name in "abc"]
    forward, backward = (
        make_patches(order, offset_config(), Skipped()) for order in (images, images[::-1])
    )
    order = np.argsort(forward.ids), np.argsort(backward.ids)
    assert forward.take(order[0]).fingerprint() == backward.take(order[1]).fingerprint()
    few, many = (
        stack_patches(extract_patches(images[1], offset_config(), Skipped(), count))
        for count in (3, 7)
    )
    assert many.take([0, 1, 2]).fingerprint() == few.fingerprint() and few.ids.tolist() == [
        "b#0@0",
        "b#0@1",
        "b#0@2",
    ]
    alone = stack_patches(
        extract_patches(
            images[1], offset_config(), Skipped(), sampling.draw_quota(images, offset_config())["b"]
        )
    )
    assert (
        alone.fingerprint()
        == forward.take([i for i, name in enumerate(forward.ids) if name[0] == "b"]).fingerprint()
    )
    other = stack_patches(
        extract_patches(images[1], offset_config().model_copy(update={"seed": 1}), Skipped(), 3)
    )
    assert other.fingerprint() != few.fingerprint()
    assert list(extract_patches(images[1], offset_config(), Skipped(), 0)) == []
    with pytest.raises(ValueError, match="sampling.draw_quota"):
        extract_patches(images[1], offset_config(), Skipped())


def test_patches_of_one_mammogram_come_one_at_a_time():
    reads = []

    def read():
        reads.append(1)
        return noise(100, 120)

    stream = extract_patches(
        mammogram(rectangle(42, 50, 58, 66), read=read), offset_config(), Skipped(), 10**9
    )
    assert not reads
    assert isinstance(next(stream), Patch) and next(stream).id == "a#0@1" and len(reads) == 1


def test_scaled_windows_and_windows_larger_than_the_mammogram():
    lesion = rectangle(42, 50, 58, 66)  # 16 px
    patches = make_patches(
        [mammogram(lesion)], offset_config(scale=(2, 2), offset=0, count=5), Skipped()
    )
    assert patches.masks.shape[1] == 32 and set(
        np.unique(patches.masks.sum(axis=(1, 2, 3)) > 200)
    ) == {True}
    skipped = Skipped()
    with pytest.raises(DataError, match="its patch is larger"):
        make_patches([mammogram(lesion)], offset_config(scale=(0.3, 0.3), count=5), skipped)
    padded = make_patches(
        [mammogram(lesion)],
        offset_config(scale=(0.3, 0.3), count=5).model_copy(update={"pad": True}),
        Skipped(),
    )
    assert len(padded) == 5 and padded.masks.any(axis=(1, 2, 3)).all()


def test_normal_patches_are_of_breast(caplog):
    config = DataConfig(
        patches="normal", size=32, sampling=SamplingConfig(count=40, scale=(1, 1)), **RAW
    )
    images = [
        normal("n"),
        normal("m", patient="q", official_split="train"),
        mammogram(read=refuse),
        normal("wrong", read=refuse),
    ]
    skipped = Skipped()
    with caplog.at_level("INFO"):
        patches = make_patches(images, config, skipped)
    expected = sampling.draw_quota(images, config)
    assert (
        len(patches) == expected["n"] + expected["m"] < 40
        and f"{len(patches)} patches of 40 asked for of 2 patients" in caplog.text
    )
    assert (
        set(patches.kinds) == set(patches.pathologies) == {"normal"}
        and not patches.masks.any()
        and set(patches.shapes) == {""}
    )
    assert patches.official_splits.tolist() == [
        "train" if name[0] == "m" else "" for name in patches.ids
    ]
    assert skipped.reasons == {"wrong": "P1.jpg: broken"}
    shares = (patches.images > 0).mean(axis=(1, 2, 3))
    assert shares.min() > 0.85 and shares.min() < 1, (
        "the border of the breast is found within a pixel or two, and is reached"
    )
    assert (
        make_normal_patches(
            images[:2], config.model_copy(update={"patches": "lesion"}), Skipped()
        ).ids[0]
        == "n@0"
    )


def test_a_normal_mammogram_without_room_is_skipped_with_the_reason():
    config = DataConfig(patches="normal", size=100, sampling=SamplingConfig(count=4, scale=(1, 1)))
    skipped = Skipped()
    with pytest.raises(DataError, match="first n: 4 of 4"):
        make_patches(
            [normal()],
            config.model_copy(
                update={"sampling": config.sampling.model_copy(update={"tissue": 1.0})}
            ),
            skipped,
        )
    assert skipped.reasons == {"n": "4 of 4 random places: no square of 100 px is 100 % breast"}


def test_facts_follow_lesion_and_mammogram():
    lesions = (
        rectangle(42, 50, 58, 66, pathology="malignant", shape="irregular", margin="spiculated"),
        rectangle(10, 10, 20, 20, kind="calcification"),
    )
    config = DataConfig(size=16, kinds=("mass", "calcification"))
    patches = make_lesion_patches(
        [mammogram(*lesions, official_split="train", pathology="malignant")], config, Skipped()
    )
    assert [getattr(patches, name).tolist() for name in FACTS] == [
        ["mass", "calcification"],
        ["malignant", ""],
        ["irregular", ""],
        ["spiculated", ""],
        ["train", "train"],
    ]
    taken = patches.take([1, 1, 0])
    assert taken.kinds.tolist() == [
        "calcification",
        "calcification",
        "mass",
    ] and taken.shapes.tolist() == ["", "", "irregular"]


def test_facts_are_optional_and_outside_the_fingerprint():
    some = patches(2)
    for name in FACTS:
        assert getattr(some, name).tolist() == ["", ""] and getattr(some.take([]), name).shape == (
            0,
        )
    facts = {name: np.array(["x", "yy"]) for name in FACTS}
    stated = Patches(some.images, some.masks, some.patient_ids, some.ids, **facts)
    assert stated.fingerprint() == some.fingerprint()
    for name in FACTS:
        for wrong in (np.array(["x"]), np.arange(2)):
            with pytest.raises(ValueError, match=f"{name} must be an array of 2 str"):
                Patches(
                    some.images, some.masks, some.patient_ids, some.ids, **facts | {name: wrong}
                )


def test_the_fingerprint_is_what_runs_have_written():
    fixed = Patches(
        np.full((1, 2, 2, 1), 0.5, np.float32),
        np.ones((1, 2, 2, 1), np.uint8),
        np.array(["p"]),
        np.array(["a#0"]),
    )
    assert fixed.fingerprint() == "646d58a1b3f8"  # by the code before facts were added


def test_stack_keeps_order_and_facts():
    some = patches(3)
    rows = [
        Patch(
            some.images[i], some.masks[i], f"p{i}", f"i{i}#0", *(letter * i for letter in "abcde")
        )
        for i in range(3)
    ]
    stacked = stack_patches(iter(rows))
    assert stacked.fingerprint() == some.fingerprint()
    assert [getattr(stacked, name).tolist() for name in FACTS] == [
        ["", letter, letter * 2] for letter in "abcde"
    ]
    with pytest.raises(DataError, match="no patch to stack"):
        stack_patches([])


def test_the_worst_pathology():
    assert (
        worst_pathology(["benign", "", "malignant", "normal"]) == "malignant"
        and worst_pathology(["normal", "", "benign"]) == "benign"
    )
    assert (
        worst_pathology(["", "normal"]) == "normal"
        and worst_pathology([""]) == worst_pathology([]) == ""
    )


def test_phantom_patches_of_every_sort():
    images = phantom.read(None, count=8, seed=0)
    mass = next(image for image in images if any(lesion.kind == "mass" for lesion in image.lesions))
    healthy = next(image for image in images if image.pathology == "normal")
    config = DataConfig(size=128, sampling=SamplingConfig(count=6))
    near = make_offset_patches([mass], config, Skipped())
    clean = make_normal_patches([healthy], config, Skipped())
    assert (
        len(near) == len(clean) == 6
        and near.masks.any(axis=(1, 2, 3)).all()
        and not clean.masks.any()
    )
    assert (
        set(near.kinds) == {"mass"}
        and set(near.pathologies) <= {"benign", "malignant"}
        and set(near.shapes) <= {"round", "oval", "lobular", "irregular"}
    )


@pytest.mark.data
@pytest.mark.slow
def test_real_mass_patches(real_data):
    mammograms = cdd_cesm.read(real_data / "cdd-cesm")
    skipped = Skipped()
    mixed = make_lesion_patches(mammograms, DataConfig(pad=True), skipped)
    assert len(mixed) == 66 and len(set(mixed.patient_ids)) == 23 and not skipped.reasons
    assert (
        len(make_lesion_patches(mammograms, DataConfig(pad=True, mixed_findings=False), skipped))
        == 31
    )
    fitting = make_lesion_patches(mammograms, DataConfig(), skipped)
    assert len(fitting) == 64 and len(set(fitting.patient_ids)) == 23 and len(skipped) == 2
    share = mixed.masks.mean(axis=(1, 2, 3))
    # Dice of filling the whole patch
    assert np.mean(2 * share / (1 + share)) == pytest.approx(0.510, abs=0.005)
    assert set(fitting.kinds) == {"mass"} and set(fitting.pathologies) <= {
        "",
        "benign",
        "malignant",
    }
    near = make_offset_patches(
        mammograms[:6], DataConfig(sampling=SamplingConfig(count=12)), skipped
    )
    assert len(near) == 12 and near.masks.any(axis=(1, 2, 3)).all()


@pytest.mark.data
@pytest.mark.slow
def test_real_normal_patches(real_data):
    """Nearly black pixels are few where at least 90 % is breast."""
    normals = [
        image for image in cdd_cesm.read(real_data / "cdd-cesm") if sampling.is_normal(image)
    ]
    assert len(normals) == 48
    skipped = Skipped()
    patches = make_normal_patches(
        normals[:4], DataConfig(sampling=SamplingConfig(count=12), **RAW), skipped
    )
    assert (
        len(patches) == 12
        and not skipped.reasons
        and set(patches.kinds) == {"normal"}
        and not patches.masks.any()
    )
    assert (patches.images > 0.02).mean(axis=(1, 2, 3)).min() > 0.85


def test_labels_are_carried_and_known_to_the_fingerprint(random_patches):
    patches = random_patches(5)
    labelled = patches.with_labels([3, 1, 4, 1, 5])
    assert len(patches.labels) == 0 and labelled.labels.dtype == np.int32
    assert labelled.take([4, 0]).labels.tolist() == [5, 3] and len(patches.take([4, 0]).labels) == 0
    assert (
        len(
            {
                patches.fingerprint(),
                labelled.fingerprint(),
                patches.with_labels([3, 1, 4, 1, 6]).fingerprint(),
            }
        )
        == 3
    )
    with pytest.raises(ValueError, match="labels must be 5 int32"):
        patches.with_labels([1, 2])


@pytest.mark.parametrize("value", [0.0, 0.3, 0.5, 1 / 3])
def test_what_is_seen_of_a_constant_is_an_error_and_no_stretched_rounding_error(value):
    image = np.full((90, 70, 1), value, np.float32)
    with pytest.raises(ValueError, match="the image is constant"):
        extract_window(image, (5, 5, 80, 60), DataConfig(size=64))
    windowed = extract_window(image, (5, 5, 80, 60), DataConfig(size=64, window=(0, 2)))
    np.testing.assert_allclose(windowed, np.full((64, 64, 1), value / 2), atol=1e-6)


def test_what_is_seen_beyond_the_border_is_0():
    image = np.ones((40, 40, 1), np.float32)
    window = extract_window(image, (-20, 0, 20, 40), DataConfig(size=40, window=(0, 1)))
    np.testing.assert_array_equal(
        window[..., 0], np.repeat([[0.0], [1.0]], 20, axis=0) * np.ones(40)
    )


def with_pathologies(*names):
    """One mammogram of one mass for each name, "" being unknown, and a normal one."""
    lesions = [rectangle(40, 40, 60, 60, pathology=name or None) for name in names]
    return [
        *(mammogram(lesion, image_id=f"m{i}", patient=f"p{i}") for i, lesion in enumerate(lesions)),
        normal(patient="q"),
    ]


def test_pathologies_are_labels_that_share_every_batch():
    skipped = Skipped()
    patches = make_pathology_patches(
        with_pathologies("malignant", "benign", ""), offset_config(), skipped
    )
    assert patches.balanced and patches.balanced_classes == 3 and set(patches.labels) == {0, 1, 2}
    for name, label in (("malignant", 0), ("benign", 1), ("normal", 2)):
        assert (patches.labels[patches.pathologies == name] == label).all()
    unknown = [
        name
        for name, reason in skipped.reasons.items()
        if "does not state the lesion's pathology" in reason
    ]
    assert unknown and all(name.startswith("m2#0@") for name in unknown)
    assert len(patches) + len(unknown) == 2 * offset_config().sampling.count


def test_normal_patches_can_be_more_than_those_near_lesions():
    records = with_pathologies("malignant", "benign")
    skipped = Skipped()
    patches = make_pathology_patches(records, offset_config(count=6, normals=15), skipped)
    assert np.bincount(patches.labels)[2] == 15 and np.sum(patches.labels < 2) == 6
    assert (
        np.bincount(make_pathology_patches(records, offset_config(count=6), skipped).labels)[2] == 6
    )


def test_patches_that_are_stretched_one_by_one_are_pointed_out(caplog):
    caplog.set_level("WARNING")  # another test may have set it lower
    records = with_pathologies("malignant", "benign")
    make_pathology_patches(
        records, offset_config().model_copy(update={"window": (0, 1)}), Skipped()
    )
    assert not caplog.records
    make_pathology_patches(records, offset_config().model_copy(update={"window": None}), Skipped())
    (said,) = (record.getMessage() for record in caplog.records)
    assert (
        said == "data.window is not set: percentiles 0 and 100 of each patch become 0 and 1, which "
        "hides what a lesion adds"
    )


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["malignant"],
            "no benign patch",
        ),
        ([""], "no malignant and no benign patch"),
    ],
)
def test_a_missing_class_is_one_sentence(names, said):
    with pytest.raises(DataError, match=said):
        make_pathology_patches(with_pathologies(*names), offset_config(), Skipped())


def test_patches_with_less_tissue_than_asked_are_one_sentence():
    def narrow():
        image = half()
        image[:, 30:] = 0
        return image

    records = [*with_pathologies("malignant", "benign")[:2], normal(read=narrow, patient="q")]
    with pytest.raises(DataError, match="32 px is 100 % breast"):
        make_pathology_patches(records, offset_config(tissue=1.0), Skipped())


def test_every_lesion_counts_where_pathology_is_not_asked_for():
    patches = make_pathology_patches(
        with_pathologies("malignant", "benign", ""), offset_config(), Skipped(), malignant=False
    )
    assert set(patches.labels) == {0, 2} and patches.balanced_classes == 2
    np.testing.assert_array_equal(patches.labels == 2, patches.kinds == "normal")
    assert {name.partition("#")[0] for name in patches.ids[patches.labels == 0]} == {
        "m0",
        "m1",
        "m2",
    }


def test_normal_tissue_beside_a_lesion():
    """The mass is at 40 to 60 on 120 x 90 px of breast: no patch of normal tissue may show any of
    it.
    """
    config = offset_config(normal="tissue").model_copy(update={"patches": "normal"})
    record = with_pathologies("malignant")[0]
    skipped = Skipped()
    patches = list(extract_patches(record, config, skipped, 60))
    assert len(patches) >= 20 and all(
        patch.kind == patch.pathology == "normal" and not patch.mask.any() for patch in patches
    )
    for top, left, bottom, right in (patch.place for patch in patches):
        assert bottom <= 40 or top >= 60 or right <= 40 or left >= 60
    assert (
        list(
            extract_patches(
                record, offset_config().model_copy(update={"patches": "normal"}), skipped, 5
            )
        )
        == []
    )


def test_a_drawer_gives_the_same_patch_for_the_same_number():
    record = with_pathologies("malignant")[0]
    config = offset_config().model_copy(update={"patches": "offset"})
    draw = make_sampler(record, config, Skipped())
    again = list(extract_patches(record, config, Skipped(), 4))
    for number in (3, 0):
        np.testing.assert_array_equal(draw(number).image, again[number].image)
        assert draw(number).id == again[number].id and draw(number).place == again[number].place
    assert make_sampler(normal(patient="q"), config, Skipped()) is None


def test_a_box_stands_for_its_lesion_where_that_is_asked_for():
    record = mammogram(
        Lesion("mass", (40, 40, 60, 60), pathology="malignant"), image_id="m", patient="p"
    )
    with pytest.raises(DataError, match="data.patches=offset"):
        make_offset_patches([record], offset_config(), Skipped())
    patches = make_offset_patches([record], offset_config(boxes=True), Skipped())
    outlined = mammogram(
        rectangle(40, 40, 60, 60, pathology="malignant"), image_id="m", patient="p"
    )
    drawn = make_offset_patches([outlined], offset_config(), Skipped())
    np.testing.assert_array_equal(patches.images, drawn.images)
    np.testing.assert_array_equal(patches.masks, drawn.masks)
    assert set(patches.pathologies) == {"malignant"}


@pytest.mark.parametrize(
    ("key", "value"), [("canvas", (64, 32)), ("tiles", TilesConfig(overlap=8))]
)
@pytest.mark.parametrize("make", [make_patches, make_shape_patches])
def test_what_detectors_alone_can_do_is_refused_by_its_key(key, value, make):
    with pytest.raises(DataError, match=f"^data.{key}: is for detectors"):
        make(phantom.read(count=2), DataConfig(size=64, **{key: value}), Skipped())
