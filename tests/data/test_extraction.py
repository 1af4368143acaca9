"""Patches of mammograms: where they are, what their masks show, what is skipped."""

from functools import partial

import numpy as np
import pytest

from tests.small_mammograms import draw_noise, make_noisy, make_normal, make_rectangle, refuse
from tfmammo.archives import phantom
from tfmammo.config import DataConfig, PreprocessConfig, SamplingConfig, TilesConfig
from tfmammo.data import preprocess, sampling
from tfmammo.data.extraction import (
    extract_patches,
    make_patches,
    make_patches_of,
    make_sampler,
    make_shape_patches,
)
from tfmammo.data.patches import stack_patches
from tfmammo.data.whole import make_whole
from tfmammo.errors import DataError
from tfmammo.mammogram import Lesion, MaskedLesion, Skipped

RAW = {"window": (0, 1), "percentiles": (0, 100)}  # intensities as they are
SQUARE = make_rectangle(42, 50, 58, 66)  # 16 px: at context 2 a crop of 32 px
CROP = draw_noise()[34:66, 42:74]
MASK = np.zeros((32, 32, 1), np.uint8)
MASK[8:24, 8:24] = 1


def read_mask():
    """A mask file's content: the square."""
    return SQUARE.mask(100, 120) * 255


def extract(*mammograms, skipped=None, **values):
    """Patches around lesions, of 32 px at context 2."""
    config = DataConfig(**{"size": 32, "context": 2, **values})
    return make_patches(mammograms, config, Skipped() if skipped is None else skipped)


# Around lesions


def test_a_patch_is_the_crop_and_its_mask():
    patches = extract(make_noisy(SQUARE), percentiles=(0, 100))
    expected = (CROP - CROP.min()) / (CROP.max() - CROP.min())
    np.testing.assert_allclose(patches.images[0], expected, atol=1e-5)
    np.testing.assert_array_equal(patches.masks[0], MASK)
    assert patches.ids.tolist() == ["a#0"] and patches.patient_ids.tolist() == ["p"]
    windowed = extract(make_noisy(SQUARE), window=(0.3, 0.5)).images[0]
    np.testing.assert_allclose(windowed, np.clip((CROP - 0.3) / 0.2, 0, 1), atol=1e-5)


def test_which_lesions_are_wanted():
    lesions = (
        make_rectangle(42, 50, 58, 66, pathology="benign", kind_is_certain=False),
        make_rectangle(10, 10, 20, 20, pathology="malignant"),
        make_rectangle(70, 70, 90, 90),
    )
    mammogram = make_noisy(*lesions)
    for values, numbers in (
        ({}, (0, 1, 2)),
        ({"mixed_findings": False}, (1, 2)),
        ({"pathologies": ("malignant",)}, (1,)),
        ({"pathologies": ("benign", "malignant")}, (0, 1)),
    ):
        assert extract(mammogram, **values).ids.tolist() == [f"a#{number}" for number in numbers]
    malignant = DataConfig(pathologies=("malignant",))
    assert len(sampling.list_unselected(mammogram, malignant)) == 2


def test_padding_is_black_and_outside_the_mask():
    whole = make_rectangle(0, 0, 100, 120)
    # 180 px: 40 above, 30 left
    patches = extract(make_noisy(whole), size=60, context=1.5, pad=True)
    rows = patches.masks[0, :, 30, 0]
    cols = patches.masks[0, 30, :, 0]
    assert rows[:13].sum() == rows[-13:].sum() == cols[:10].sum() == cols[-10:].sum() == 0
    assert rows[14:46].all() and cols[10:50].all()
    assert patches.images[0, :13].max() == 0 and patches.images[0, 15:45, 11:49].min() > 0
    skipped = Skipped()
    two = make_noisy(whole, make_rectangle(10, 10, 30, 30))
    assert extract(two, skipped=skipped, context=1.5).ids.tolist() == ["a#1"]
    assert "lesion 0: its patch is larger than the mammogram" in skipped.reasons["a"]


def test_a_mask_file_is_read_for_wanted_kinds_only_and_a_broken_one_is_a_skip():
    lesions = (
        MaskedLesion("asymmetry", lambda: pytest.fail("was read")),
        MaskedLesion("mass", refuse),
        MaskedLesion("mass", read_mask, shape="oval", margin="spiculated"),
        MaskedLesion("mass", partial(np.zeros, (100, 120), np.uint8)),
    )
    skipped = Skipped()
    patches = extract(make_noisy(*lesions), skipped=skipped)
    assert (patches.ids.tolist(), patches.shapes.tolist()) == (["a#2"], ["oval"])
    assert patches.margins.tolist() == ["spiculated"]
    np.testing.assert_array_equal(patches.masks[0], MASK)
    reason = "lesion 1: P1.jpg: broken; lesion 3: the mask of a lesion marks nothing"
    assert skipped.reasons == {"a": reason}
    # and no pixel is read in vain
    unread = make_noisy(lesions[1], read=lambda: pytest.fail("was read"))
    with pytest.raises(DataError, match="P1.jpg"):
        extract(unread)


def test_a_mask_that_fails_when_it_is_moved_costs_its_lesion_alone():
    masks = iter([read_mask])
    skipped = Skipped()
    right = make_noisy(
        MaskedLesion("mass", lambda: next(masks, refuse)()),
        make_rectangle(10, 10, 20, 20),
        laterality="R",
    )
    flip = PreprocessConfig(flip_right=True)
    assert extract(right, skipped=skipped, preprocess=flip).ids.tolist() == ["a#1"]
    assert skipped.reasons == {"a": "lesion 0: P1.jpg: broken"}


def test_a_full_frame_holds_all_wanted_lesions_of_its_mammogram():
    facts = {"pathology": "benign", "shape": "round"}
    small = make_rectangle(10, 10, 20, 20, kind="calcification", **facts)
    large = make_rectangle(50, 60, 90, 100, pathology="malignant", shape="round")
    other = make_rectangle(0, 0, 5, 5, kind="asymmetry")
    patches = extract(
        make_noisy(small, large, other),
        make_noisy(large, name="b", pathology="benign"),
        make_noisy(other, name="c", read=refuse),
        size=60,
        frame="full",
        kinds=("mass", "calcification"),
    )
    assert patches.ids.tolist() == ["a#full", "b#full"]
    assert patches.kinds.tolist() == ["mass", "mass"]
    # the mammogram's own, where the archive states it
    assert patches.pathologies.tolist() == ["malignant", "benign"]
    assert patches.shapes.tolist() == ["round", "round"]
    assert patches.masks.sum(axis=(1, 2, 3)).tolist() == [6 * 5 + 24 * 20, 24 * 20]


@pytest.mark.parametrize(
    "other",
    [
        Lesion("mass", (1, 2, 30, 40)),
        MaskedLesion("mass", refuse),
        MaskedLesion("mass", partial(lambda masks: next(masks, refuse)(), iter([read_mask]))),
    ],
    ids=["box", "unreadable", "fails when it is moved"],
)
def test_a_full_frame_that_would_show_a_lesion_as_background_is_left_out(other):
    skipped = Skipped()
    config = {"frame": "full", "preprocess": PreprocessConfig(spacing=0.2), "pad": True}
    records = [
        make_noisy(SQUARE, name="whole", spacing=(0.1, 0.1)),
        make_noisy(SQUARE, other, spacing=(0.1, 0.1)),
    ]
    assert extract(*records, skipped=skipped, **config).ids.tolist() == ["whole#full"]
    assert skipped.reasons["a"].startswith("lesion 1: ")
    # a patch around the other one stays
    assert extract(*records, preprocess=config["preprocess"]).ids.tolist() == ["whole#0", "a#0"]


def test_preprocessing_is_applied_to_mammogram_and_crop():
    right = make_noisy(SQUARE, laterality="R", view="CC")
    flipped = extract(right, preprocess=PreprocessConfig(flip_right=True), **RAW)
    np.testing.assert_allclose(flipped.images[0], CROP[:, ::-1], atol=1e-6)
    steps = PreprocessConfig(denoise=1.5, contrast="equalise")
    expected = preprocess.preprocess_patch(CROP, steps)
    found = extract(right, preprocess=steps, **RAW).images[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_makes_no_patch_is_skipped_with_a_reason():
    # a line of one pixel
    dust = Lesion.from_outline("mass", np.array([[10, 10], [10, 10], [89, 10]]), 100, 120)
    skipped = Skipped()
    patches = extract(
        make_noisy(SQUARE, Lesion("mass", (1, 2, 30, 40)), name="box"),
        make_noisy(SQUARE, name="broken", read=refuse),
        make_noisy(SQUARE, name="other_size", read=partial(draw_noise, 10, 10)),
        make_noisy(SQUARE, name="black", read=partial(np.zeros, (100, 120, 1))),
        make_noisy(dust, name="dust"),
        skipped=skipped,
        size=4,
        context=1.5,
        pad=True,
    )
    assert patches.ids.tolist() == ["box#0"]
    for name, reason in (
        ("box", "lesion 1: the archive gives its box but no outline"),
        ("broken", "P1.jpg: broken"),
        ("other_size", "pixels have shape (10, 10, 1)"),
        ("black", "lesion 0: the image is constant"),
        ("dust", "lesion 0: nothing of its mask is left at 4 px"),
    ):
        assert reason in skipped.reasons[name]


def test_nothing_left_says_what_was_found():
    other = make_rectangle(10, 10, 20, 20)
    asymmetry = make_noisy(make_rectangle(10, 10, 20, 20, kind="asymmetry"))
    earlier = Skipped({"earlier.jpg": "another reason"})
    with pytest.raises(DataError, match="hold 1 asymmetry, 1 mass; 1 skipped, first b: P1.jpg"):
        extract(asymmetry, make_noisy(other, read=refuse, name="b"), skipped=earlier)
    with pytest.raises(DataError, match="kind is certain"):
        extract(mixed_findings=False)
    malignant = DataConfig(pathologies=("malignant",))
    for make in (make_patches, make_whole):
        with pytest.raises(DataError, match="a malignant mass"):
            make([make_noisy(other)], malignant, Skipped())


# At random places


def configure(patches="offset", **changes):
    """Thirty patches of 32 px near masses, of unscaled intensities."""
    values = {"count": 30, "offset": 10, "scale": (1, 1), **changes}
    return DataConfig(patches=patches, size=32, sampling=SamplingConfig(**values), **RAW)


def draw(*mammograms, config=None, skipped=None, **changes):
    skipped = Skipped() if skipped is None else skipped
    return make_patches(list(mammograms), config or configure(**changes), skipped)


def find_corner(patch, image):
    """Find the corner at which the image equals a patch that was not scaled."""
    windows = np.lib.stride_tricks.sliding_window_view(image[..., 0], patch.shape[:2])
    ((top, left),) = np.argwhere(np.isclose(windows, patch[..., 0], atol=1e-6).all(axis=(2, 3)))
    return int(top), int(left)


def test_offset_patches_are_windows_near_the_lesion():
    lesions = (
        make_rectangle(42, 50, 58, 66, shape="oval", pathology="benign"),
        make_rectangle(3, 100, 9, 108),
        make_rectangle(80, 10, 90, 20, kind="asymmetry"),
    )
    both = np.maximum(*(lesion.mask(100, 120) for lesion in lesions[:2]))
    mammogram = make_noisy(*lesions, official_split="test")
    patches = draw(mammogram)
    assert [name.partition("@")[2] for name in patches.ids] == [str(i) for i in range(30)]
    assert {name.partition("@")[0] for name in patches.ids} == {"a#0", "a#1"}
    assert set(patches.official_splits) == {"test"}
    for patch in patches:
        top, left = find_corner(patch.image, draw_noise())
        np.testing.assert_array_equal(patch.mask[..., 0], both[top : top + 32, left : left + 32])
        lesion = lesions[int(patch.id[2])]
        assert lesion.mask(100, 120)[top : top + 32, left : left + 32].any()
        assert patch.shape == (lesion.shape or "")
        # A centre is at most 10 px from the lesion's box, but for a window that was moved inside.
        for axis, (start, extent) in enumerate(((top, 100), (left, 120))):
            moved = start in (0, extent - 32)
            assert moved or lesion.box[axis] - 10 <= start + 16 < lesion.box[axis + 2] + 10
    again = make_patches_of("offset", [mammogram], configure("lesion"), Skipped())
    assert again.fingerprint() == patches.fingerprint()


def test_a_mammograms_random_patches_depend_on_seed_and_count_alone():
    images = [make_noisy(SQUARE, name=name) for name in "abc"]

    def fingerprint(patches, name):
        rows = np.flatnonzero([each[0] == name for each in patches.ids])
        return patches.take(rows).fingerprint()

    def extract_alone(count, **changes):
        config = configure().model_copy(update=changes)
        return stack_patches(extract_patches(images[1], config, Skipped(), count))

    forward = draw(*images)
    backward = draw(*images[::-1])
    alone = extract_alone(sampling.draw_quota(images, configure())["b"])
    assert fingerprint(forward, "b") == fingerprint(backward, "b") == alone.fingerprint()
    assert fingerprint(forward, "a") == fingerprint(backward, "a")
    few = extract_alone(3)
    assert few.ids.tolist() == ["b#0@0", "b#0@1", "b#0@2"]
    assert extract_alone(7).take([0, 1, 2]).fingerprint() == few.fingerprint()
    assert extract_alone(3, seed=1).fingerprint() != few.fingerprint()
    assert list(extract_patches(images[1], configure(), Skipped(), 0)) == []
    with pytest.raises(ValueError, match="sampling.draw_quota"):
        extract_patches(images[1], configure(), Skipped())
    sampler = make_sampler(images[1], configure(), Skipped())
    for number in (2, 0):
        assert sampler(number).id == few.ids[number]
        np.testing.assert_array_equal(sampler(number).image, few.images[number])
    assert make_sampler(make_normal(), configure(), Skipped()) is None


def test_scaled_windows_and_windows_larger_than_the_mammogram():
    mammogram = make_noisy(SQUARE)
    patches = draw(mammogram, scale=(2, 2), offset=0, count=5)
    assert patches.masks.shape[1] == 32 and (patches.masks.sum(axis=(1, 2, 3)) > 200).all()
    large = {"scale": (0.3, 0.3), "count": 5}
    with pytest.raises(DataError, match="its patch is larger"):
        draw(mammogram, **large)
    padded = draw(mammogram, config=configure(**large).model_copy(update={"pad": True}))
    assert len(padded) == 5 and padded.masks.any(axis=(1, 2, 3)).all()


def test_normal_patches_are_of_breast(caplog):
    config = configure("normal", count=40)
    images = [
        make_normal("n"),
        make_normal("m", patient_id="q", official_split="train"),
        make_noisy(read=refuse),
        make_normal("wrong", read=refuse),
    ]
    skipped = Skipped()
    with caplog.at_level("INFO"):
        patches = draw(*images, config=config, skipped=skipped)
    expected = sampling.draw_quota(images, config)
    assert len(patches) == expected["n"] + expected["m"] < 40
    assert f"{len(patches)} patches of 40 asked for of 2 patients" in caplog.text
    assert set(patches.kinds) == set(patches.pathologies) == {"normal"}
    assert not patches.masks.any() and set(patches.shapes) == {""}
    subsets = ["train" if name[0] == "m" else "" for name in patches.ids]
    assert patches.official_splits.tolist() == subsets
    assert skipped.reasons == {"wrong": "P1.jpg: broken"}
    shares = (patches.images > 0).mean(axis=(1, 2, 3))
    assert 0.85 < shares.min() < 1, "the border of the breast is found within a pixel or two"


def test_a_normal_mammogram_without_room_is_skipped_with_the_reason():
    config = configure("normal", count=4, tissue=1.0).model_copy(update={"size": 100})
    with pytest.raises(DataError, match="first n: 4 of 4 random places: no square of 100 px"):
        draw(make_normal(), config=config)


def test_normal_tissue_beside_a_lesion():
    """The mass is at 40 to 60 on 120 x 90 px of breast: no patch of normal tissue may show it."""
    record = make_noisy(make_rectangle(40, 40, 60, 60))
    config = configure("normal", normal="tissue")
    patches = list(extract_patches(record, config, Skipped(), 60))
    assert len(patches) >= 20
    for patch in patches:
        assert patch.kind == patch.pathology == "normal" and not patch.mask.any()
        top, left, bottom, right = patch.place
        assert bottom <= 40 or top >= 60 or right <= 40 or left >= 60
    unread = make_noisy(*record.lesions, MaskedLesion("calcification", refuse))
    for normal, of in ((record, configure("normal")), (unread, config)):
        assert list(extract_patches(normal, of, Skipped(), 5)) == []


def test_a_box_stands_for_its_lesion_where_that_is_asked_for():
    boxed = make_noisy(Lesion("mass", (40, 40, 60, 60), pathology="malignant"))
    with pytest.raises(DataError, match="data.patches=offset"):
        draw(boxed)
    patches = draw(boxed, boxes=True)
    outlined = draw(make_noisy(make_rectangle(40, 40, 60, 60)))
    np.testing.assert_array_equal(patches.images, outlined.images)
    np.testing.assert_array_equal(patches.masks, outlined.masks)
    assert set(patches.pathologies) == {"malignant"}


def make_shapes(*mammograms, skipped=None, size=22):
    skipped = Skipped() if skipped is None else skipped
    return make_shape_patches(mammograms, DataConfig(size=size), skipped)


def test_shapes_by_hand(caplog):
    caplog.set_level("INFO")
    facts = {"pathology": "benign", "margin": "spiculated"}
    # 20 x 10 px in a square of 22: one px above, six on the left
    tall = make_rectangle(10, 10, 30, 20, shape="lobulated", **facts)
    # 12 x 6 px in a square of 13, enlarged
    region = make_rectangle(30, 50, 42, 56).mask(100, 120)
    masked = MaskedLesion("mass", region.copy, shape="oval")
    others = [make_rectangle(50, 50, 60, 60, shape=word) for word in ("round-oval", None, None)]
    cluster = make_rectangle(70, 70, 80, 80, kind="calcification", shape="round")
    skipped = Skipped()
    patches = make_shapes(
        make_noisy(cluster, tall, *others, official_split="test", read=refuse),
        make_noisy(masked, name="b", patient_id="q"),
        make_noisy(MaskedLesion("mass", refuse, shape="round"), name="c"),
        make_noisy(Lesion("mass", (1, 2, 30, 40), shape="round"), name="d"),
        skipped=skipped,
    )
    assert patches.ids.tolist() == ["a#1", "b#0"] and patches.patient_ids.tolist() == ["p", "q"]
    assert patches.shapes.tolist() == ["lobular", "oval"] and patches.labels.tolist() == [1, 2]
    assert patches.pathologies.tolist() == ["benign", ""]
    assert patches.margins.tolist() == ["spiculated", ""]
    assert patches.official_splits.tolist() == ["test", ""]
    np.testing.assert_array_equal(patches.images, patches.masks)
    first = np.zeros((22, 22), np.uint8)
    first[1:21, 6:16] = 1
    np.testing.assert_array_equal(patches.masks[0, ..., 0], first)
    sides = np.ptp(np.argwhere(patches.masks[1, ..., 0]), axis=0) + 1
    np.testing.assert_allclose(sides, (12 * 22 / 13, 6 * 22 / 13), atol=1)
    assert skipped.reasons["c"] == "lesion 0: P1.jpg: broken"
    assert "lesion 0: this lesion has a box but no outline" in skipped.reasons["d"]
    assert "of other shapes skipped: 2 not stated, 1 round-oval" in caplog.text
    (mask,) = make_shapes(make_noisy(make_rectangle(0, 0, 40, 40, shape="round")), size=44).masks
    assert mask.sum() == 1600 and mask[2:42, 2:42].all(), "at the image's border"


def test_no_shape_is_an_error():
    for lesion, reason in (
        (make_rectangle(1, 1, 9, 9), "1 not stated"),
        (MaskedLesion("mass", refuse, shape="oval"), "none; 1 mammograms skipped"),
    ):
        with pytest.raises(DataError, match=f"other masses: {reason}"):
            make_shapes(make_noisy(lesion))


@pytest.mark.parametrize(
    ("key", "value"), [("canvas", (64, 32)), ("tiles", TilesConfig(overlap=8))]
)
@pytest.mark.parametrize("make", [make_patches, make_shape_patches])
def test_what_detectors_alone_can_do_is_refused_by_its_key(key, value, make):
    with pytest.raises(DataError, match=f"^data.{key}: is for detectors"):
        make(phantom.read(count=2), DataConfig(size=64, **{key: value}), Skipped())
