"""Shapes and sizes of masses: what is kept of pictures, which masks of a mask GAN are plausible,
and sizes fitted by hand.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.small_mammograms import draw_breast, make_mammogram
from tests.synthesis_archives import make_mass, write_mask
from tfmammo.config import DataConfig
from tfmammo.errors import DataError
from tfmammo.mammogram import Skipped
from tfmammo.models import mask_gan
from tfmammo.synthesis.generators import RECTANGULAR, MaskGenerator, measure_rectangularity
from tfmammo.synthesis.lesion_bank import select_lesions
from tfmammo.synthesis.shapes import NamedShapes, ShapeFiles, draw_shape
from tfmammo.synthesis.sources import fit_sizes


def draw(path, *boxes):
    source = ShapeFiles.find(write_mask(path, *boxes))
    return draw_shape(source, np.random.default_rng(0))[0]


def test_what_is_kept_of_a_picture(tmp_path):
    """Thin parts and the largest region, without its holes."""
    path = tmp_path / "mask.png"
    mask = draw(path, (20, 20, 40, 40), (30, 40, 31, 55))  # a spicule of one px
    expected = np.zeros((20, 35), np.uint8)
    expected[:, :20] = 1
    expected[10, 20:] = 1
    np.testing.assert_array_equal(mask, expected)
    sides = ((5, 5, 6, 25), (25, 5, 26, 25), (5, 5, 26, 6))
    assert not draw(path, *sides).all(), "an open ring"
    mask = draw(path, *sides, (5, 24, 26, 25), (40, 40, 42, 42))
    assert mask.shape == (21, 20) and mask.all()
    with pytest.raises(DataError, match=r"mask.png: its mask is empty"):
        draw(path)


@pytest.mark.parametrize("highest", [1, 65535])
def test_a_mask_of_16_bits(tmp_path, highest):
    path = tmp_path / "mask.png"
    mask = np.zeros((32, 32), np.uint16)
    mask[8:20, 8:24] = highest
    assert cv2.imwrite(str(path), mask)
    shape, _ = draw_shape(ShapeFiles.find(path), np.random.default_rng(0))
    assert shape.shape == (12, 16)


# Masks of a mask GAN


def fit_into(mask, size):
    """As training masks are made: alone in a square 1.2 times as long as the mask's longer side."""
    left, top, width, height = cv2.boundingRect(mask)
    length = round(1.2 * max(width, height))
    above = (length - height) // 2
    before = (length - width) // 2
    square = np.zeros((length, length), np.float32)
    square[above : above + height, before : before + width] = mask[
        top : top + height, left : left + width
    ]
    small = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
    return mask_gan.clean(small[None, ..., None])[0, ..., 0]


def draw_rectangle(random):
    """A rectangle of any orientation with rounded corners and frayed edges: uint8 [512, 512]."""
    longer = random.uniform(230, 400)
    shorter = longer * random.uniform(0.45, 1)
    radius = int(random.uniform(0, 0.12) * shorter)
    angle = random.choice([0, random.uniform(0, 90)])
    sides = (longer - 2 * radius, shorter - 2 * radius)
    corners = cv2.boxPoints(((256, 256), sides, angle)).astype(np.int32)
    mask = cv2.fillPoly(np.zeros((512, 512), np.uint8), [corners], 1)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    soft = cv2.GaussianBlur(cv2.dilate(mask, disc).astype(np.float32), (0, 0), 6)
    noise = cv2.GaussianBlur(random.standard_normal((512, 512)).astype(np.float32), (0, 0), 8)
    frayed = soft + random.uniform(0, 0.15) * noise / noise.std() > 0.5
    return mask_gan.clean(frayed[None, ..., None].astype(np.float32))[0, ..., 0]


def make_gan(mask):
    """A mask GAN that always draws this mask."""
    answer = {"mask": mask[None, ..., None].astype(np.float32)}
    return MaskGenerator(Path(), lambda noise: answer, 4, None, None, {})


@pytest.mark.parametrize("size", [64, 128, 256])
def test_rectangles_are_not_plausible_and_masses_are(size):
    random = np.random.default_rng(0)
    masks = [fit_into(draw_rectangle(random), size) for _ in range(30)]
    assert all(measure_rectangularity(mask) > RECTANGULAR for mask in masks)
    gan = make_gan(masks[0])
    with pytest.raises(DataError, match="rectangles"):
        gan.generate(random)
    assert gan.generate(random, plausible=False).any()
    for name in ("round", "oval", "lobular", "irregular"):
        masks = [fit_into(NamedShapes(name).draw(random)[0], size) for _ in range(25)]
        assert sum(measure_rectangularity(mask) > RECTANGULAR for mask in masks) <= 1
        assert make_gan(masks[0]).generate(random).any()


def test_rectangularity_by_hand():
    mask = np.zeros((60, 60), np.uint8)
    assert measure_rectangularity(mask) == 0
    mask[10:20, 10:40] = 1
    assert measure_rectangularity(mask) == 1
    mask[20:30, 10:25] = 1  # an L: three quarters of its box
    assert measure_rectangularity(mask) == pytest.approx(0.75)
    disc = cv2.circle(np.zeros((400, 400), np.uint8), (200, 200), 150, 1, -1)
    assert measure_rectangularity(disc) == pytest.approx(np.pi / 4, rel=0.01)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("size", [64, 128])
def test_real_masses_are_plausible(real_data, size):
    """Under 2 % of the masks of CBIS-DDSM are refused; measured: 0.5 %."""
    paths = sorted((real_data / "cbis-patches/masks").glob("*"))
    masks = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 127 for path in paths]
    refused = [
        measure_rectangularity(fit_into(mask.astype(np.uint8), size)) > RECTANGULAR
        for mask in masks
    ]
    assert len(refused) > 800 and np.mean(refused) < 0.02


# Sizes


def fit(skipped, spacing=None, kinds=("mass",)):
    """Fit sizes on masses of 10 x 20 and 30 x 60 px; a third one is as high as the mammogram."""
    lesions = [make_mass(5, 5, 10, 20), make_mass(40, 40, 30, 60), make_mass(0, 0, 200, 10)]
    mammogram = make_mammogram(0, draw_breast(0), lesions, spacing=spacing)
    return fit_sizes(select_lesions([mammogram], DataConfig(kinds=kinds)), skipped)


@pytest.mark.parametrize(
    ("spacing", "unit", "scale"), [(None, "px", (1, 1)), ((0.1, 0.2), "mm", (0.1, 0.2))]
)
def test_sizes_are_fitted_by_hand(spacing, unit, scale):
    """Heights 10 and 30, widths 20 and 60: means 20 and 40, standard deviations sqrt(200) and
    sqrt(800), correlation 1; in mm where spacings are known.
    """
    skipped = Skipped()
    sizes = fit(skipped, spacing)
    assert (sizes.unit, sizes.count) == (unit, 2)
    assert sizes.correlation == pytest.approx(1)
    assert sizes.height == pytest.approx((20 * scale[0], 200**0.5 * scale[0]))
    assert sizes.width == pytest.approx((40 * scale[1], 800**0.5 * scale[1]))
    assert skipped.reasons == {"0": "lesion 2: is over half the image high or wide"}
    with pytest.raises(DataError, match="can't be fitted on 0 lesions"):
        fit(Skipped(), kinds=("calcification",))
