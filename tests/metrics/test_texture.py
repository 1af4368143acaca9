"""Local deviation, its range, defects, checkerboards and the finest wavelet band, by hand."""

import numpy as np
import pytest

from tfmammo.metrics import texture


@pytest.fixture
def noise():
    return np.random.default_rng(0).random((8, 32, 32, 1))


def test_the_local_deviation_is_that_of_the_window(noise):
    deviations = texture.compute_local_deviation(noise, window=5)
    assert deviations[2, 10, 20, 0] == pytest.approx(noise[2, 8:13, 18:23, 0].std())
    assert texture.compute_local_deviation(np.full((1, 9, 9, 1), 0.3)).max() < 1e-7


def test_the_range_is_of_textured_tissue_outside_the_masks(noise):
    masks = np.zeros(noise.shape, np.uint8)
    masks[:, 8:24, 8:24] = 1
    images = np.where(masks, 10 * noise, noise)
    images[0] = 0  # air
    deviations = texture.compute_local_deviation(images)
    expected = np.quantile(deviations[(masks == 0) & (deviations > 0)], (0.05, 0.95))
    limits = texture.measure_range(images, masks, tail=0.05)
    assert (limits.low, limits.high) == pytest.approx(tuple(expected))
    images[0] = 0.7  # saturated; the squares of a constant leave rounding errors
    assert texture.measure_range(images, masks, tail=0.05) == limits
    for grey in (0, 0.7, 1):
        with pytest.raises(ValueError, match="no real patch has any texture outside its mask"):
            texture.measure_range(np.full((1, 8, 8, 1), grey), np.zeros((1, 8, 8, 1)))


def test_a_hole_is_flat_and_a_blotch_is_harsh(noise):
    masks = np.zeros(noise.shape, np.uint8)
    masks[:, :, :4] = 1
    image = 0.5 + 0.1 * (noise[:1] - 0.5)
    image[:, 10:24, 10:24] = 0.5
    image[:, 2:6, 20] = 1
    limits = texture.TextureRange(0.01, 0.1)
    flat, harsh = texture.find_defects(image, masks[:1], limits)
    assert flat[0, 13:21, 13:21].all() and not flat[0, :, 26:].any()
    assert harsh[0, 2:6, 18:23].all() and not harsh[0, 12:].any()
    empty = np.full_like(image, 0.5)
    flat, harsh = texture.find_defects(empty, masks[:1], limits)
    assert not flat[:, :, :4].any() and flat[:, :, 4:].all() and not harsh.any()


@pytest.mark.parametrize("period", [4, 8])
def test_a_checkerboard_exceeds_its_surroundings(noise, period):
    lattice = np.zeros((32, 32, 1))
    lattice[::period, ::period] = 0.3
    plain = texture.compute_lattice(0.1 * noise, period)
    assert abs(plain.mean()) < 1.5
    assert texture.compute_lattice(0.1 * noise + lattice, period).min() > 10
    assert texture.compute_lattice(np.full((2, 32, 32, 1), 0.4)).tolist() == [0, 0]


@pytest.mark.parametrize("period", [2, 4, 8])
def test_noise_has_no_checkerboard_of_any_period(period):
    noise = np.random.default_rng(0).normal(0.5, 0.05, (400, 32, 32, 1))
    scores = texture.compute_lattice(noise, period)
    assert abs(scores.mean()) < 4 * scores.std() / 20


@pytest.mark.parametrize("size", [24, 60])
def test_a_checkerboard_needs_patches_that_it_fits(size):
    with pytest.raises(ValueError, match=f"32, not {size}"):
        texture.compute_lattice(np.zeros((1, size, size, 1)))


def test_the_finest_band_of_wavelets():
    stripes = np.zeros((1, 4, 4, 1))
    stripes[:, :, ::2] = 1  # (1 - 0 + 1 - 0) / 2 = 1 in every square, the other two details 0
    assert texture.compute_fine_energy(stripes).tolist() == [1]
    single = np.zeros((2, 4, 4, 1))
    single[0, 0, 0] = 1  # three details of 1 / 2 in one of four squares
    assert texture.compute_fine_energy(single).tolist() == [3 / 16, 0]
    masks = np.zeros((2, 4, 4, 1), np.uint8)
    masks[0, :2, :3] = 1  # one whole square, and half of another
    energy = texture.compute_fine_energy(single, masks)
    assert energy[0] == 3 / 4 and np.isnan(energy[1])
