"""Grey values and resampling: hand-computed values and properties."""

import numpy as np
import pytest

from tfmammo.data.preprocess import normalise, resize_image, resize_mask


def test_normalise_by_hand():
    image = np.arange(101, dtype=np.float32).reshape(101, 1, 1)  # percentile p is p
    out = normalise(image, (10, 90))
    assert out.dtype == np.float32 and out.shape == (101, 1, 1)
    np.testing.assert_allclose(out[[0, 10, 50, 90, 100], 0, 0], [0, 0, 0.5, 1, 1], atol=1e-6)


def test_normalise_ignores_gain_and_offset():
    image = np.random.default_rng(0).random((20, 30, 1), np.float32)
    np.testing.assert_allclose(normalise(0.3 * image + 0.2, (1, 99)), normalise(image, (1, 99)), atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.4])
def test_a_constant_image_is_an_error(value):
    with pytest.raises(ValueError, match="the image is constant"):
        normalise(np.full((8, 8, 1), value, np.float32), (0.5, 99.5))


def test_shrinking_averages_blocks():
    image = np.random.default_rng(0).random((32, 64, 1), np.float32)
    expected = image.reshape(8, 4, 16, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(resize_image(image, 8, 16)[..., 0], expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 8), (8, 64), (64, 64)])
def test_fine_stripes_turn_grey_not_into_coarse_ones(shape):
    """Free of aliasing along the axis that shrinks, whatever the other does."""
    image = np.indices(shape).sum(axis=0, dtype=np.float32)[..., None] % 2
    out = resize_image(image, 16, 16)
    assert out.shape == (16, 16, 1) and np.abs(out - 0.5).max() < 1e-6


def test_growing_stays_in_range_and_keeps_a_ramp():
    edge = np.zeros((8, 8, 1), np.float32)
    edge[:, 4:] = 1
    out = resize_image(edge, 32, 32)
    assert out.dtype == np.float32 and out.min() == 0 and out.max() == 1
    ramp = np.tile(np.linspace(0, 1, 9, dtype=np.float32)[None, :, None], (9, 1, 1))
    positions = (np.arange(36) + 0.5) / 4 - 0.5
    np.testing.assert_allclose(resize_image(ramp, 36, 36)[0, :, 0], np.clip(positions / 8, 0, 1), atol=1e-5)


def test_same_size_changes_nothing():
    image = np.random.default_rng(0).random((17, 23, 1), np.float32)
    np.testing.assert_allclose(resize_image(image, 17, 23), image, atol=1e-6)
    mask = (image > 0.5).astype(np.uint8)
    np.testing.assert_array_equal(resize_mask(mask, 17, 23), mask)


@pytest.mark.parametrize(("old", "new"), [(64, 16), (60, 16), (48, 36), (16, 64), (25, 256)])
def test_masks_stay_binary_and_in_place(old, new):
    mask = np.zeros((old, old, 1), np.uint8)
    low, high = old // 4, old - old // 4  # symmetric, so a shifted grid shows
    mask[low:high, low:high] = 1
    out = resize_mask(mask, new, new)
    assert out.shape == (new, new, 1) and out.dtype == np.uint8 and set(np.unique(out)) == {0, 1}
    np.testing.assert_array_equal(out, out[::-1])
    np.testing.assert_array_equal(out, out[:, ::-1])
    centres = (np.arange(new) + 0.5) * old / new
    assert out.sum() == pytest.approx(((centres > low) & (centres < high)).sum() ** 2, rel=0.1)
