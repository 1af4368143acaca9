"""Breast and pectoral muscle: the phantom's known geometry, film scans made of it, and
real mammograms.
"""

import cv2
import numpy as np
import pytest

from tfmammo.archives import cdd_cesm, phantom, phantom_anatomy
from tfmammo.data.anatomy import breast_mask, pectoral_mask, remove_marks, remove_pectoral
from tfmammo.metrics.segmentation import dice

ROWS = phantom.ROWS
COLS = phantom.COLS


def truth(mammogram):
    """(breast, pectoral muscle), bool [rows, cols] each, from what the phantom was
    rendered from.
    """
    key = mammogram.read.args[0]
    anatomy = phantom_anatomy.draw_anatomy(key)
    rows = np.arange(ROWS, dtype=float)[:, None]
    cols = np.arange(COLS, dtype=float)[None]
    breast = cols < anatomy.skin[:, None]
    muscle = phantom_anatomy.muscle_distance(anatomy, rows, cols) > 0
    return (breast[:, ::-1], muscle[:, ::-1]) if key.laterality == "R" else (breast, muscle)


@pytest.fixture(scope="module")
def breasts():
    """(record, pixels, breast, muscle) of four views of two sides, letters above the breast."""
    records = phantom.read(count=4, seed=7)
    assert len({(record.laterality, record.view) for record in records}) == 4
    return [(record, record.pixels(), *truth(record)) for record in records]


def disc(rows=200, cols=160, radius=60.0):
    """A breast of even grey, half a disc on the left border, on black air."""
    distance = np.hypot(np.arange(rows)[:, None] - (rows - 1) / 2, np.arange(cols)[None])
    return (distance < radius).astype(np.uint8), (0.5 * (distance < radius)).astype(np.float32)


def test_a_half_disc_by_hand():
    inside, image = disc()
    mask = breast_mask(image[..., None])
    assert mask.shape == (200, 160, 1) and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
    assert dice(mask[..., 0], inside) > 0.97  # a rim of a pixel or two


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (17, 9), (64, 1)])
@pytest.mark.parametrize("value", [0.0, 0.4])
def test_a_constant_image_has_no_breast(shape, value):
    assert not breast_mask(np.full((*shape, 1), value, np.float32)).any()


def test_without_air_everything_is_breast():
    tissue = cv2.GaussianBlur(np.random.default_rng(0).random((300, 200), np.float32), (0, 0), 4)
    assert breast_mask((0.3 + tissue)[..., None]).all()


def test_dark_fat_inside_and_at_the_chest_wall_is_breast():
    inside, image = disc()
    image[90:105, 20:40] = 0
    image[60:70, 0:12] = 0
    assert dice(breast_mask(image[..., None])[..., 0], inside) > 0.97


def film(image, random):
    """Grey air that brightens downwards, grain, half of the contrast."""
    air = 0.1 + 0.05 * np.arange(ROWS, dtype=np.float32)[:, None] / ROWS
    return np.clip(air + 0.7 * image + random.normal(0, 0.015, image.shape), 0, 1).astype(
        np.float32
    )


def label(image, random):
    image = film(image, random)
    is_left = image[500:, 0].mean() > image[500:, -1].mean()
    far = np.s_[20:100, -120:-20] if is_left else np.s_[20:100, 20:120]
    image[far] = 0.95
    image[far][30:50, 10:60] = 0.2
    return image


def borders(image, random):
    image = film(image, random)
    image[:5] = image[:, :4] = 1
    image[-4:] = 0.97
    image[:, -4:] = 0
    return image


def noise(image, random):
    return np.clip(image + random.normal(0, 0.06, image.shape), 0, 1).astype(np.float32)


@pytest.mark.parametrize("scan", [None, label, borders, noise])
def test_breasts_of_the_phantom(breasts, scan):
    for number, (_, image, breast, _) in enumerate(breasts):
        if scan is not None:
            image = scan(image[..., 0], np.random.default_rng(number))[..., None]
        mask = breast_mask(image)[..., 0]
        assert dice(mask, breast) >= 0.97
        assert cv2.connectedComponents(mask)[0] == 2


def test_marks_are_removed_and_tissue_is_not_touched(breasts):
    for record, image, breast, _ in breasts:
        clean = remove_marks(image, breast_mask(image))[..., 0]
        assert clean.dtype == np.float32 and clean.shape == (ROWS, COLS)
        letters = np.s_[:100, -200:] if record.laterality == "L" else np.s_[:100, :200]
        assert image[letters].max() > 0.8
        breast = breast.astype(np.uint8)
        near = cv2.dilate(breast, np.ones((9, 9))) == 1
        assert not clean[letters][~near[letters]].any()
        wider = cv2.copyMakeBorder(breast, 9, 9, 9, 9, cv2.BORDER_REPLICATE)
        deep = cv2.erode(wider, np.ones((15, 15)))[9:-9, 9:-9] == 1
        np.testing.assert_array_equal(clean[deep], image[deep, 0])


@pytest.mark.parametrize("laterality", ["L", "R"])
def test_a_muscle_by_hand(laterality):
    rows, cols = np.mgrid[:200, :160]
    inside = np.hypot(rows - 100, cols) < 130
    muscle = inside & (rows / 110 + cols / 60 < 1)
    image = np.where(inside, np.where(muscle, 0.8, 0.4), 0).astype(np.float32)[..., None]
    if laterality == "R":
        image = image[:, ::-1]
        muscle = muscle[:, ::-1]
    assert dice(pectoral_mask(image, laterality)[..., 0], muscle) > 0.95
    assert not pectoral_mask(image, "R" if laterality == "L" else "L").any()


def test_what_shows_no_muscle_is_refused():
    _, image = disc()
    corner = np.add.outer(np.arange(200) / 120, np.arange(160) / 60) < 1
    darker = np.where(corner, 0.6 * image, image).astype(np.float32)
    for picture in (image, 0 * image, noise(image, np.random.default_rng(0)), darker):
        assert not pectoral_mask(picture[..., None], "L").any()


def test_the_muscle_is_removed_on_mlo_views_alone(breasts):
    for record, image, _, muscle in breasts:
        out = remove_pectoral(image, record.laterality, record.view)
        if record.view == "CC":
            assert out is image
        else:
            assert out.dtype == np.float32 and out[muscle].mean() < 0.1 * image[muscle].mean()
            kept = out != 0
            np.testing.assert_array_equal(out[kept], image[kept])


@pytest.mark.slow
@pytest.mark.data
def test_real_mlo_views(real_data):
    """Most show a muscle; none of it reaches the lower end of the breast, and hardly a lesion is
    cut.
    """
    with_muscle = 0
    cut = []
    seen = 0
    for path in sorted((real_data / "cdd-cesm-512" / "images").glob("*_MLO.jpg")):
        image = cdd_cesm._read_pixels(path)
        mask = pectoral_mask(image, "L" if "_L_" in path.name else "R")[..., 0]
        lesion = cdd_cesm._read_pixels(path.parents[1] / "masks" / path.name)[..., 0] > 0.5
        seen += 1
        with_muscle += mask.any()
        assert mask.mean() < 0.5 * (image > 0.02).mean(), path.name
        if lesion.any():
            cut.append(mask[lesion].mean())
    assert seen == 122 and 95 <= with_muscle <= 118
    assert np.mean(np.array(cut) > 0.5) < 0.06
