"""Intensities, resampling and whole records: hand-computed values and properties."""

import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest

from tests.small_mammograms import make_mammogram, refuse
from tfmammo.archives import phantom
from tfmammo.config import PreprocessConfig
from tfmammo.data import preprocess
from tfmammo.data.anatomy import breast_mask, remove_marks, remove_pectoral
from tfmammo.data.preprocess import (
    apply_window,
    clahe,
    denoise,
    equalise,
    map_to_native,
    normalise,
    preprocess_mammogram,
    preprocess_patch,
    resize_image,
    resize_mask,
    resize_mask_to,
)
from tfmammo.errors import DataError
from tfmammo.mammogram import Lesion, MaskedLesion
from tfmammo.metrics.segmentation import dice


def noise(rows: int, cols: int) -> np.ndarray:
    return np.random.default_rng(0).random((rows, cols, 1), np.float32)


def column(*values):
    return np.float32(values).reshape(-1, 1, 1)


def test_stretching_by_hand():
    image = column(*range(101))  # percentile p is p
    out = normalise(image, (10, 90))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[[0, 10, 50, 90, 100], 0, 0], [0, 0, 0.5, 1, 1], atol=1e-6)
    image = noise(20, 30)
    other = normalise(0.3 * image + 0.2, (1, 99))
    np.testing.assert_allclose(other, normalise(image, (1, 99)), atol=1e-5)
    out = apply_window(column(0, 0.2, 0.35, 0.5, 1), 0.2, 0.5)
    np.testing.assert_allclose(out, column(0, 0, 0.5, 1, 1), atol=1e-6)


CONSTANT = np.full((8, 8, 1), 0.4, np.float32)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: normalise(CONSTANT, (0.5, 99.5)), "the image is constant"),
        (lambda: normalise(0 * CONSTANT, (0.5, 99.5)), "the image is constant"),
        (lambda: apply_window(CONSTANT, 0.5, 0.5), "is empty"),
        (lambda: apply_window(CONSTANT, 0.6, 0.5), "is empty"),
    ],
)
def test_what_cant_be_stretched_is_an_error(call, named):
    with pytest.raises(ValueError, match=named):
        call()


@pytest.mark.parametrize("shape", [(64, 8), (8, 64), (64, 64)])
def test_fine_stripes_turn_grey_not_into_coarse_ones(shape):
    """Free of aliasing along the axis that shrinks, whatever the other does."""
    image = np.indices(shape).sum(axis=0, dtype=np.float32)[..., None] % 2
    out = resize_image(image, 16, 16)
    assert out.shape == (16, 16, 1) and np.abs(out - 0.5).max() < 1e-6


@pytest.mark.parametrize(
    ("old", "new"), [((21, 35), (63, 105)), ((60, 45), (20, 15)), ((9, 13), (31, 35))]
)
def test_each_pixel_of_a_resampled_mask_is_the_nearest_old_one(old, new):
    """No centre of a new pixel is on the border between two old ones, so there is no tie."""
    mask = np.random.default_rng(0).integers(0, 2, (*old, 1), np.uint8)
    rows = ((np.arange(new[0]) + 0.5) * old[0] / new[0]).astype(int)
    cols = ((np.arange(new[1]) + 0.5) * old[1] / new[1]).astype(int)
    np.testing.assert_array_equal(resize_mask(mask, *new), mask[np.ix_(rows, cols)])


@pytest.mark.parametrize(
    ("mask", "size", "expected"),
    [
        ([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], (2, 2), [[1, 0], [0, 0]]),
        ([[1, 0], [1, 0]], (2, 2), [[1, 0], [1, 0]]),
        ([[1, 0]], (2, 6), [[1, 1, 1, 0, 0, 0]] * 2),
    ],
)
def test_coverage_by_hand(mask, size, expected):
    np.testing.assert_array_equal(resize_mask_to(np.uint8(mask), *size), expected)


def test_denoise():
    flat = np.full((20, 20, 1), 0.3, np.float32)
    np.testing.assert_allclose(denoise(flat, 3), flat, atol=1e-6)
    spot = np.zeros((41, 41, 1), np.float32)
    spot[20, 20] = 1
    rows, cols = np.mgrid[-20:21, -20:21]
    expected = np.exp(-(rows**2 + cols**2) / (2 * 1.5**2))
    np.testing.assert_allclose(denoise(spot, 1.5)[..., 0], expected / expected.sum(), atol=1e-4)


def test_equalise_by_hand():
    # above the darkest: two of 4, then one each
    image = np.float32([[0, 0, 0.1], [0.1, 0.4, 0.9]])[..., None]
    np.testing.assert_allclose(equalise(image)[..., 0], [[0, 0, 0.5], [0.5, 0.75, 1]], atol=1e-6)
    np.testing.assert_array_equal(equalise(CONSTANT), CONSTANT)


@pytest.mark.parametrize(
    ("clip", "tiles", "most"), [(2.0, 8, 0.15), (4.0, 4, 0.03), (40.0, 2, 0.03)]
)
def test_clahe_is_about_that_of_opencv(clip, tiles, most):
    """On the full range of 8 bits. The two spread what they clip differently."""
    image = cv2.GaussianBlur(noise(256, 256), (0, 0), 3) ** 2
    levels = np.rint(255 * (image - image.min()) / np.ptp(image)).astype(np.uint8)
    expected = cv2.createCLAHE(clip, (tiles, tiles)).apply(levels) / 255
    out = clahe((levels / np.float32(255))[..., None], clip, tiles)[..., 0]
    assert np.abs(out - expected).max() < most and np.abs(out - expected).mean() < most / 5
    assert out.std() > 1.5 * levels.std() / 255  # it does raise the contrast
    assert len(np.unique(out)) > 5000  # not 256 levels


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (1, 40), (37, 90)])
def test_clahe_of_any_size(shape):
    out = clahe(noise(*shape), 2.0, 8)
    assert out.shape == (*shape, 1) and out.dtype == np.float32
    assert out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize("value", [0.0, 0.6, 1.0])
def test_clahe_leaves_a_constant_image(value):
    image = np.full((16, 16, 1), value, np.float32)
    np.testing.assert_array_equal(clahe(image, 2.0, 8), image)
    image[3, 3] += np.float32(1e-7)  # not on 16 bits
    np.testing.assert_array_equal(clahe(image, 2.0, 8), image)


def test_patches_are_denoised_before_their_contrast_is_raised():
    crop = noise(64, 48)
    smooth = denoise(crop, 1.5)
    expected = {"none": smooth, "equalise": equalise(smooth), "clahe": clahe(smooth, 3.0, 4)}
    for contrast, image in expected.items():
        config = PreprocessConfig(denoise=1.5, contrast=contrast, clahe_clip=3.0, clahe_tiles=4)
        np.testing.assert_array_equal(preprocess_patch(crop, config), image)


# Whole records


OUTLINE = np.float32([[20.25, 5.5], [18, 30], [44, 36.75], [60, 22], [41.5, 8]])
FACTS = {
    "pathology": "malignant",
    "shape": "oval",
    "margin": "spiculated",
    "kind_is_certain": False,
}
FLIP = PreprocessConfig(flip_right=True)
STEPS = {"remove_marks": True, "remove_pectoral": True, "flip_right": True}


def blob() -> np.ndarray:
    mask = np.zeros((80, 64), np.uint8)
    mask[10:50, 4:30] = mask[30:66, 20:44] = 255
    return mask


def mammogram(lesions=(), image=None, **facts):
    image = noise(80, 64) if image is None else image
    known = {"laterality": "R", "spacing": (0.1, 0.1), "patient_id": "aa", **facts}
    return make_mammogram(7, image, lesions, **known)


def three_lesions() -> tuple[Lesion, ...]:
    return (
        Lesion.from_outline("mass", OUTLINE, 80, 64, **FACTS),
        Lesion("calcification", (3, 10, 8, 17), pathology="benign"),
        MaskedLesion("mass", blob, **FACTS),
    )


def test_mirroring_by_hand():
    record = mammogram(three_lesions())
    out = preprocess_mammogram(record, FLIP)
    assert (out.rows, out.cols, out.spacing) == (80, 64, (0.1, 0.1))
    np.testing.assert_array_equal(out.pixels(), record.pixels()[:, ::-1])
    mass, cluster, masked = out.lesions
    outline = np.float32([[20.25, 57.5], [18, 33], [44, 26.25], [60, 41], [41.5, 55]])
    np.testing.assert_array_equal(mass.outlines[0], outline)
    # columns 10 to 16 become 53 to 47
    assert cluster.box == (3, 47, 8, 54) and not cluster.outlines
    assert masked.box == (10, 20, 66, 60)
    np.testing.assert_array_equal(masked.mask(80, 64), (blob() != 0)[:, ::-1])
    for old, new in zip(record.lesions, out.lesions, strict=True):
        assert type(new) is type(old) and (new.kind, new.details) == (old.kind, old.details)
    twice = preprocess_mammogram(out, FLIP)
    np.testing.assert_array_equal(twice.pixels(), record.pixels())
    np.testing.assert_array_equal(twice.lesions[0].outlines[0], OUTLINE)
    np.testing.assert_array_equal(twice.lesions[2].mask(80, 64), record.lesions[2].mask(80, 64))


@pytest.mark.parametrize("laterality", ["L", "R", None])
@pytest.mark.parametrize("wall", ["L", "R"])
def test_the_chest_wall_decides_what_is_mirrored(laterality, wall):
    record = mammogram(three_lesions(), laterality=laterality, chest_wall=wall)
    out = preprocess_mammogram(record, FLIP)
    native = record.pixels()
    np.testing.assert_array_equal(out.pixels(), native[:, ::-1] if wall == "R" else native)
    left, right = record.lesions[0].box[1::2]
    moved = (record.cols - right, record.cols - left) if wall == "R" else (left, right)
    assert out.lesions[0].box[1::2] == moved
    mask = out.lesions[2].mask(out.rows, out.cols)
    native_mask = record.lesions[2].mask(record.rows, record.cols)
    np.testing.assert_array_equal(map_to_native(mask, record, FLIP), native_mask)


def test_the_pectoral_muscle_is_sought_at_the_chest_wall(monkeypatch):
    sides = []
    monkeypatch.setattr(preprocess, "remove_pectoral", lambda image, *of: sides.append(of) or image)
    for wall in ("L", "R", None):
        record = mammogram(view="MLO", chest_wall=wall)
        preprocess_mammogram(record, PreprocessConfig(remove_pectoral=True)).pixels()
    assert sides == [("L", "MLO"), ("R", "MLO"), ("R", "MLO")]


def test_resampling_by_hand():
    # corners of the image, and between
    outline = np.float32([[-0.5, -0.5], [-0.5, 63.5], [79.5, 63.5], [79.5, 31.5]])
    lesions = (
        Lesion.from_outline("mass", outline, 80, 64),
        Lesion("mass", (3, 10, 9, 17)),
        Lesion("mass", (70, 60, 80, 64)),
    )
    out = preprocess_mammogram(mammogram(lesions), PreprocessConfig(spacing=0.2))
    assert (out.rows, out.cols, out.spacing) == (40, 32, (0.2, 0.2))
    means = noise(80, 64).reshape(40, 2, 32, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(out.pixels()[..., 0], means, atol=1e-6)
    expected = [[-0.5, -0.5], [-0.5, 31.5], [39.5, 31.5], [39.5, 15.5]]
    np.testing.assert_allclose(out.lesions[0].outlines[0], expected, atol=1e-6)
    # outwards to whole pixels
    boxes = [(0, 0, 40, 32), (1, 5, 5, 9), (35, 30, 40, 32)]
    assert [lesion.box for lesion in out.lesions] == boxes


@pytest.mark.parametrize(
    ("spacing", "target", "size", "found"),
    [
        # 80 * 0.1 / 0.3 = 26.7 and 64 * 0.07 / 0.3 = 14.9 become whole pixels
        ((0.1, 0.07), 0.3, (27, 15), (8 / 27, 4.48 / 15)),
        ((0.1, 0.2), 0.2, (40, 64), (0.2, 0.2)),
        ((0.1, 0.1), 0.1, (80, 64), (0.1, 0.1)),
        ((0.1, 0.1), 1000, (1, 1), (8, 6.4)),
    ],
)
def test_spacing_is_that_of_the_whole_pixels(spacing, target, size, found):
    out = preprocess_mammogram(mammogram(spacing=spacing), PreprocessConfig(spacing=target))
    assert out.pixels().shape == (*size, 1) == (out.rows, out.cols, 1)
    assert out.spacing == pytest.approx(found)


def test_a_speck_survives_resampling():
    speck = np.zeros((80, 64), np.uint8)
    speck[40, 33] = 1
    outline = np.float32([[40, 33], [40, 34], [41, 33]])
    lesions = (
        MaskedLesion("calcification", speck.copy),
        Lesion.from_outline("mass", outline, 80, 64),
    )
    out = preprocess_mammogram(mammogram(lesions), PreprocessConfig(spacing=0.8))
    for lesion in out.lesions:
        assert lesion.mask(10, 8).sum() >= 1 and lesion.box[:2] == (5, 4)


@pytest.mark.parametrize(
    ("facts", "steps", "fault"),
    [
        ({"laterality": None}, {"flip_right": True}, "flip_right .* 7 "),
        ({"spacing": None}, {"spacing": 0.1}, "spacing .* 7 "),
        ({"spacing": (70.0, 50.0)}, {"spacing": 0.05}, "spacing=0.05 .* 7;"),  # micrometres
        ({"spacing": (1e-300, 1e300)}, {"spacing": 1e-100}, ".* 1 x inf px"),
        ({"view": None}, {"remove_pectoral": True}, "remove_pectoral .*view.* 7 "),
        (
            {"view": "MLO", "laterality": None},
            {"remove_pectoral": True},
            "remove_pectoral .*laterality.* 7 ",
        ),
    ],
)
def test_what_the_archive_does_not_state_is_not_guessed(facts, steps, fault):
    record = replace(mammogram(**facts), read=refuse)
    with pytest.raises(DataError, match=rf"^data\.preprocess\.{fault}"):
        preprocess_mammogram(record, PreprocessConfig(**steps))
    assert preprocess_mammogram(record, PreprocessConfig(remove_marks=True)).image_id == "7"


def test_steps_are_done_in_their_order():
    records = phantom.read(count=8, seed=7)
    record = next(each for each in records if (each.laterality, each.view) == ("R", "MLO"))
    out = preprocess_mammogram(record, PreprocessConfig(**STEPS, spacing=0.4))
    moved = out.pixels()
    image = record.pixels()
    image = remove_pectoral(remove_marks(image, breast_mask(image)), "R", "MLO")
    expected = resize_image(np.ascontiguousarray(image[:, ::-1]), 512, 416)
    np.testing.assert_array_equal(moved, expected)
    # the muscle's corner, now on the left
    assert not moved[:40, :40].any() and moved[:, :40].max() > 0.2
    for lesion in out.lesions:
        region = lesion.mask(512, 416)[..., None] == 1
        # masses are bright: they are where they were drawn
        assert moved[region].mean() > moved[~region & (moved > 0)].mean()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("target", [None, 0.07, 0.23])
def test_a_mask_goes_there_and_back(flip, target):
    mask = (blob() > 0).astype(np.uint8)
    record = mammogram((MaskedLesion("mass", blob),))
    config = PreprocessConfig(flip_right=flip, spacing=target)
    moved = preprocess_mammogram(record, config)
    back = map_to_native(moved.lesions[0].mask(moved.rows, moved.cols), record, config)
    assert back.shape == mask.shape and back.dtype == np.uint8 and set(np.unique(back)) == {0, 1}
    assert dice(back > 0, mask > 0) > (0.9 if target else 0.999)
    centres = [np.argwhere(region).mean(axis=0) for region in (back, mask)]
    off = 5 * target + 0.2 if target else 1e-9  # half a px of the other grid
    np.testing.assert_allclose(*centres, atol=off)


def test_preprocessed_records_pickle():
    config = PreprocessConfig(remove_marks=True, flip_right=True, spacing=0.17)
    record = preprocess_mammogram(mammogram(three_lesions()), config)
    again = pickle.loads(pickle.dumps(record))
    assert again == replace(record, lesions=again.lesions)
    np.testing.assert_array_equal(again.pixels(), record.pixels())
    for old, new in zip(record.lesions, again.lesions, strict=True):
        assert new.box == old.box and new.kind == old.kind and type(new) is type(old)
