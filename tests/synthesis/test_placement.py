"""Sizes, places, seams and blending of inserted lesions, against hand-computed values and
the run's own patches.
"""

import tracemalloc

import cv2
import numpy as np
import pytest

from tests.small_mammograms import draw_breast, make_rectangle
from tfmammo.config import DataConfig, PreprocessConfig
from tfmammo.data.extraction import extract_patches
from tfmammo.errors import DataError
from tfmammo.mammogram import Mammogram, Skipped
from tfmammo.synthesis.compositing import (
    TargetPatch,
    blend,
    blend_patch,
    extract_patch,
    make_blend_mask,
    make_whole_blend_mask,
    measure_gap,
    resize_as_trained,
)
from tfmammo.synthesis.config import SMALLEST, Sizes
from tfmammo.synthesis.placement import (
    Placement,
    TargetMammogram,
    crop_to_mask,
    scale_shape,
)

ROWS = 320
COLS = 240
DATA = DataConfig(size=64, frame="padded", padding=24, window=(0, 1))
NOWHERE = (0, 0, 0, 0)
BREAST = draw_breast(0, ROWS, COLS)


def record(image, laterality="L", **facts):
    """A record of a left breast, or of the same one mirrored."""
    image = image[:, ::-1].copy() if laterality == "R" else image
    return Mammogram("made", "p", "i", *image.shape[:2], lambda: image, laterality, **facts)


def open_target(mammogram, data=DATA):
    return TargetMammogram(mammogram.pixels(), mammogram, data)


def disc(side=41):
    row, col = np.mgrid[:side, :side] - side // 2
    return (np.hypot(row, col) <= side // 2).astype(np.uint8)


def ones(*shape):
    return np.ones(shape, np.uint8)


def draw_place(size, margins=NOWHERE, laterality="L", **facts):
    free = open_target(record(BREAST, laterality))
    return free.draw_place(size, margins, np.random.default_rng(0), **facts)


def place(mask, top=130, left=60, data=DATA, **facts):
    return Placement.at(top, left, mask, record(BREAST, **facts), data)


CONSTANT = record(np.full((ROWS, COLS, 1), 0.5, np.float32))
PERCENTILES = DATA.model_copy(update={"window": None})
RESAMPLED = DATA.model_copy(update={"preprocess": PreprocessConfig(spacing=0.1)})
SQUARE = DataConfig(frame="square", context=1.5)
TIGHT = DataConfig(size=64, frame="tight", window=(0, 1))
NARROW = np.zeros((32, 32), np.uint8)
NARROW[10:20, 3:20] = 1
BAD = {
    "an empty shape": (lambda: crop_to_mask(0 * ones(9, 9)), "its mask is empty"),
    "a cut shape": (lambda: crop_to_mask(ones(9, 9)), "touches the border"),
    "an empty patch": (lambda: measure_gap(0 * ones(32, 32)), "32 px"),
    "a near border": (lambda: measure_gap(NARROW), "4 of 32 px"),
    "a tight patch": (lambda: make_blend_mask(place(disc(), data=TIGHT), 64, 296, 8), "touches"),
    "a large patch": (lambda: place(ones(300, 30), 10, 10, SQUARE), "its patch is larger"),
    "a lesion beyond": (lambda: place(ones(30, 30), -1, 10), "beyond the mammogram"),
    "an unknown spacing": (lambda: place(disc(), data=RESAMPLED), r"data\.preprocess\.spacing"),
    "an unknown spacing of tissue": (
        lambda: resize_as_trained(BREAST[..., 0], open_target(record(BREAST), RESAMPLED), 64),
        r"data\.preprocess\.spacing",
    ),
    "a constant patch": (
        lambda: extract_patch(open_target(CONSTANT, PERCENTILES), place(disc()).window, 64),
        "constant",
    ),
    "too large a mass": (lambda: draw_place((250, 250)), "250 x 250 px"),
    "too large a support": (lambda: draw_place((30, 2), (0, 0, 0, 185)), "part of the breast"),
    "an unknown side": (lambda: draw_place((9, 9), laterality=None), "its laterality"),
    "unknown millimetres": (
        lambda: Sizes(unit="mm", height=(2, 0), width=(1, 0)).draw(None, None),
        "mm per px are not stated",
    ),
    "tiny sizes": (
        lambda: Sizes(height=(1, 0), width=(1, 0)).draw(np.random.default_rng(0), None),
        "hardly ever",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cant_be_placed_is_one_sentence(name):
    act, reason = BAD[name]
    with pytest.raises(DataError, match=reason):
        act()


def test_drawn_sizes_have_the_gaussians_moments():
    random = np.random.default_rng(0)
    sizes = Sizes(height=(200, 30), width=(100, 10), correlation=0.8)
    drawn = np.array([sizes.draw(random, None) for _ in range(4000)])
    np.testing.assert_allclose(drawn.mean(axis=0), (200, 100), rtol=0.02)
    np.testing.assert_allclose(drawn.std(axis=0), (30, 10), rtol=0.05)
    assert np.corrcoef(drawn.T)[0, 1] == pytest.approx(0.8, abs=0.03)
    in_mm = Sizes(unit="mm", height=(20, 0), width=(10, 0))
    assert in_mm.draw(random, (0.1, 0.05)) == (200, 200)
    wide = Sizes(height=(10, 20), width=(10, 20))
    assert min(min(wide.draw(random, None)) for _ in range(200)) >= SMALLEST


def test_nothing_is_scaled_to_more_than_a_mammogram():
    """Before memory is taken for it."""
    tracemalloc.start()
    try:
        for height, width in ((20_000, 20_000), (2, 2**40)):
            with pytest.raises(DataError, match=f"a mass of {height} x {width} px is larger"):
                scale_shape(ones(9, 9), height, width)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("laterality", ["L", "R"])
@pytest.mark.parametrize("flip", [False, True], ids=["as_stored", "flipped"])
@pytest.mark.parametrize(
    ("spacing", "off", "values"),
    [
        (None, 2e-6, {"padding": 24, "window": (0.1, 0.9)}),
        (None, 2e-6, {"frame": "square", "context": 1.6, "percentiles": (1, 99)}),
        ((0.05, 0.05), 2e-6, {"padding": 12, "window": (0, 1)}),
        ((0.04, 0.08), 0.02, {"padding": 12, "window": (0, 1)}),
    ],
    ids=["padded", "square", "resampled", "between_pixels"],
)
def test_the_patch_is_the_trainings(spacing, off, values, flip, laterality):
    """The same lesion as an archive's: tissue, mask and window are those of data.extraction.

    Where training resamples, a lesion on whole resampled px gives the same pixels; between them
    the window is rounded.
    """
    row, col = np.mgrid[:ROWS, :COLS]  # texture without grain, which a shift of a px hardly changes
    smooth = (0.5 + 0.2 * np.sin(row / 15) * np.cos(col / 20)).astype(np.float32)[..., None]
    image = smooth if spacing else BREAST
    side = 60 if spacing else 40
    lesion = make_rectangle(130, 60, 190, 60 + side, size=(ROWS, COLS))
    mammogram = record(image, laterality, spacing=spacing, lesions=(lesion,))
    moves = {"spacing": 0.1} if spacing else {"denoise": 0.7}
    preprocess = PreprocessConfig(flip_right=flip, **moves)
    data = DataConfig(**{"size": 64, "frame": "padded", "preprocess": preprocess, **values})
    (expected,) = extract_patches(mammogram, data, Skipped())
    spot = Placement.at(130, 60, ones(60, side), mammogram, data)
    blend_mask = make_blend_mask(spot, 64, 296, 8)
    patch = extract_patch(open_target(mammogram, data), spot.window, 64)
    np.testing.assert_allclose(patch.tissue, expected.image, atol=off)
    mask = patch.mirror(blend_mask.mask)
    assert (mask != expected.mask[..., 0]).mean() <= (0 if off < 1e-3 else 0.03)


@pytest.mark.parametrize(("feather", "fade"), [(5, 5), (20, 8)])
def test_the_weights_of_a_whole_patch(feather, fade):
    """3 t^2 - 2 t^3 of t = distance to the border over the fade, which ends at the mask; else 1."""
    mask = np.zeros((40, 40), np.uint8)
    mask[12:25, 8:30] = 1  # 8 px from the left border
    assert [measure_gap(np.rot90(mask, turns).copy()) for turns in range(4)] == [8] * 4
    blend_mask = make_whole_blend_mask(mask, (100, 50, 140, 90), feather)
    weights = blend_mask.weights
    assert blend_mask.support == (101, 51, 139, 89) and not blend_mask.around.any()
    t = np.arange(1, fade) / fade
    np.testing.assert_allclose(weights[19, : fade - 1], 3 * t**2 - 2 * t**3, atol=1e-6)
    np.testing.assert_allclose(weights[: fade - 1, 19], 3 * t**2 - 2 * t**3, atol=1e-6)
    assert (weights[fade - 1 : 39 - fade, fade - 1 : 39 - fade] == 1).all()
    np.testing.assert_array_equal(weights, weights[::-1, ::-1])
    twice = make_whole_blend_mask(mask, (100, 50, 180, 130), feather)
    np.testing.assert_allclose(twice.support, (101.5, 51.5, 178.5, 128.5), atol=0.5)
    assert twice.weights[39, 39] == 1


@pytest.mark.parametrize("laterality", ["L", "R"])
def test_places_keep_the_papers_rule(laterality):
    free = open_target(record(BREAST, laterality))
    random = np.random.default_rng(0)
    places = np.array([free.draw_place((30, 20), (8, 8, 8, 8), random) for _ in range(400)])
    rows, cols = (places + (15, 10)).T
    cols = COLS - cols if laterality == "R" else cols
    assert rows.min() >= ROWS / 4 and rows.max() <= 3 * ROWS / 4
    assert cols.min() >= COLS / 10 and cols.max() <= COLS / 2
    # Uniform where all of it is breast: means and spreads of U(80, 240) and U(24, 120), whose lower
    # 4 px have no room.
    assert rows.mean() == pytest.approx(160, abs=6)
    assert rows.std() == pytest.approx(160 / 12**0.5, rel=0.1)
    assert cols.mean() == pytest.approx(72, abs=4)
    assert cols.std() == pytest.approx(96 / 12**0.5, rel=0.1)
    breast = free.image[..., 0] > 0.1
    assert all(breast[top - 8 : top + 38, left - 8 : left + 28].all() for top, left in places)


def test_places_anywhere_on_the_breast_go_beyond_the_rule():
    free = open_target(record(BREAST, laterality=None))
    random = np.random.default_rng(0)
    drawn = [free.draw_place((30, 20), (8, 8, 8, 8), random, by_rule=False) for _ in range(400)]
    supports = [(top - 8, left - 8, top + 38, left + 28) for top, left in drawn]
    assert all(free.is_free(support) for support in supports)
    rows, cols = (np.array(drawn) + (15, 10)).T
    inside = (rows >= 80) & (rows <= 240) & (cols >= 24) & (cols <= 120)
    assert 0.2 < inside.mean() < 0.8
    lows = np.min(supports, axis=0)
    highs = np.max(supports, axis=0)
    border = np.flatnonzero(free.breast.any(axis=0)).max() * free.step
    assert lows[0] < ROWS / 6 and lows[1] < COLS / 20
    assert highs[2] > 5 * ROWS / 6 and highs[3] > 0.9 * border


def test_the_border_shows_no_seam():
    """Of a generator that is brighter than its tissue, tilted and blurred."""
    free = open_target(record(BREAST))
    spot = Placement.at(130, 60, disc(), free.mammogram, DATA)
    blend_mask = make_blend_mask(spot, 64, 296, 8)
    shown = extract_patch(free, spot.window, 64)
    tilt = np.linspace(-0.02, 0.02, 64, dtype=np.float32)[:, None, None]
    blurred = cv2.GaussianBlur(shown.tissue, (0, 0), 1)[..., None]
    image = blurred + 0.15 + tilt + 0.3 * blend_mask.mask[..., None]
    grey = blend(free, spot, blend_mask, shown.compute_difference(image, blend_mask.around))
    top, left, bottom, right = blend_mask.support
    support = np.s_[top:bottom, left:right]
    before = free.image[..., 0].copy()
    after = before.copy()
    after[support] = grey
    changed = np.zeros(before.shape, bool)
    changed[support] = blend_mask.weights > 0
    assert (before == after)[~changed].all() and (after[changed] != before[changed]).mean() > 0.9
    core = np.zeros(before.shape, np.float32)
    core[support] = blend_mask.weights >= 1
    # beyond the margin and its pixel of interpolation
    fading = changed & (cv2.dilate(core, np.ones((5, 5))) == 0)
    border = cv2.morphologyEx(changed.astype(np.uint8), cv2.MORPH_GRADIENT, ones(3, 3)) > 0

    def gradient(values, where):
        steps = np.hypot(np.diff(values, axis=0, append=0), np.diff(values, axis=1, append=0))
        return steps[where].mean()

    assert gradient(after, border) <= 1.02 * gradient(before, border)
    assert gradient(after, fading) <= 1.02 * gradient(before, fading)
    # what a paste does
    assert gradient(before + 0.15 * changed, border) > 1.5 * gradient(before, border)


def test_weights_are_one_on_mask_and_margin_and_fade_to_nothing():
    mammogram = record(BREAST)
    spot = Placement.at(140, 70, disc(), mammogram, DATA)
    assert spot.box == (140, 70, 181, 111) and spot.window == (116, 46, 205, 135)
    blend_mask = make_blend_mask(spot, 89, 296, 10)  # at 89 px the patch is not scaled
    np.testing.assert_array_equal(blend_mask.mask[24:65, 24:65], disc())
    full = np.zeros((89, 89), np.float32)
    top, left, bottom, right = blend_mask.support
    full[top - 116 : bottom - 116, left - 46 : right - 46] = blend_mask.weights
    row, col = np.mgrid[:89, :89] - 44
    distance = np.hypot(row, col)
    assert (full[distance <= 20 * 296 / 256 - 1] == 1).all()  # the margin's outer radius is 23.1 px
    assert (full[distance >= 20 * 296 / 256 + 12] == 0).all()
    ring = full[44, 44 + 24 : 44 + 34]
    assert (np.diff(ring) < 0).all() and ring.max() < 1 and ring[-2] > 0
    # the steepest of 3 t^2 - 2 t^3 over 10 px
    assert np.abs(np.diff(full, axis=0)).max() <= 1.5 / 10 + 0.02
    assert not full[[0, -1]].any() and not full[:, [0, -1]].any()
    alone = make_blend_mask(spot, 89, None, 10)
    assert alone.support[0] > blend_mask.support[0]


@pytest.mark.parametrize("feather", [10, 40])  # of a gap of 24 px
def test_a_patch_is_blended_as_in_a_mammogram(feather):
    free = open_target(record(BREAST))
    spot = Placement.at(140, 70, disc(), free.mammogram, DATA)
    blend_mask = make_blend_mask(spot, 89, None, feather)  # at 89 px the patch is not scaled
    window = np.s_[116:205, 46:135]
    before = free.image[window]
    image = np.clip(before + 0.02 + 0.1 * np.eye(89, dtype=np.float32)[..., None], 0, 1)
    shown = TargetPatch(before, 0.0, 1.0, mirrored=False)
    change = shown.compute_difference(image, blend_mask.around)
    expected = before.copy()
    top, left, bottom, right = blend_mask.support
    inside = np.s_[top - 116 : bottom - 116, left - 46 : right - 46, 0]
    expected[inside] = blend(free, spot, blend_mask, change)
    mask = blend_mask.mask[..., None]
    np.testing.assert_allclose(blend_patch(before, image, mask, feather), expected, atol=1e-3)
    assert np.abs(expected - before).max() > 0.05


def test_what_is_taken_is_not_drawn_again():
    free = open_target(record(BREAST))
    random = np.random.default_rng(0)
    boxes = []
    with pytest.raises(DataError, match="30 x 20 px"):
        for _ in range(100):
            top, left = free.draw_place((30, 20), (5, 5, 5, 5), random)
            support = (top - 5, left - 5, top + 35, left + 25)
            assert free.is_free(support)
            free.occupy(support)
            boxes.append(support)
    taken = np.zeros((ROWS, COLS), int)
    for top, left, bottom, right in boxes:
        taken[top:bottom, left:right] += 1
    assert len(boxes) >= 4 and taken.max() == 1
    assert not free.is_free(boxes[0]) and not free.is_free((-1, 0, 5, 5))


def test_a_mean_change_around_the_lesion_is_taken_off():
    tissue_ = np.full((8, 8, 1), 0.25, np.float32)
    around = np.zeros((8, 8), bool)
    around[0] = True
    image = tissue_ + 0.125
    image[4, 1] += 0.25
    for mirrored in (False, True):
        change = TargetPatch(tissue_, 0.2, 0.6, mirrored).compute_difference(image, around)
        expected = np.zeros((8, 8), np.float32)
        expected[4, 6 if mirrored else 1] = 0.25 * 0.4
        np.testing.assert_allclose(change, expected, atol=1e-7)
