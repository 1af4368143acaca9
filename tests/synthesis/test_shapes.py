"""Outlines of pictures: what is kept of them."""

import cv2
import numpy as np
import pytest

from tfmammo.errors import DataError
from tfmammo.synthesis.shapes import ShapeFiles, draw_shape


def write(path, *boxes):
    mask = np.zeros((64, 64), np.uint8)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = 255
    assert cv2.imwrite(str(path), mask)
    return ShapeFiles.find(path)


def test_outlines_keep_their_thin_parts(tmp_path):
    source = write(tmp_path / "mask.png", (20, 20, 40, 40), (30, 40, 31, 55))  # a spicule of one px
    mask, _ = draw_shape(source, np.random.default_rng(0))
    expected = np.zeros((20, 35), np.uint8)
    expected[:, :20] = 1
    expected[10, 20:] = 1
    np.testing.assert_array_equal(mask, expected)


def test_the_largest_region_stays_and_its_holes_are_filled(tmp_path):
    source = write(tmp_path / "mask.png", (5, 5, 6, 25), (25, 5, 26, 25), (5, 5, 26, 6))
    with pytest.raises(AssertionError):  # open to the right: no hole
        assert draw_shape(source, np.random.default_rng(0))[0].all()
    ring = ((5, 5, 6, 25), (25, 5, 26, 25), (5, 5, 26, 6), (5, 24, 26, 25))
    source = write(tmp_path / "mask.png", *ring, (40, 40, 42, 42))
    mask, _ = draw_shape(source, np.random.default_rng(0))
    assert mask.shape == (21, 20) and mask.all()


def test_an_empty_picture_is_named(tmp_path):
    with pytest.raises(DataError, match=r"mask.png: its mask is empty"):
        draw_shape(write(tmp_path / "mask.png"), np.random.default_rng(0))
