"""Windows by hand: where they lie, and what lies beyond the image."""

import numpy as np
import pytest

from tfmammo.data.windows import crop_image, square_window


@pytest.mark.parametrize(
    ("place", "padding"),
    [
        ((0, 0, 2, 3), ((0, 0), (0, 0))),
        ((-1, 0, 2, 3), ((1, 0), (0, 0))),
        ((0, 0, 4, 3), ((0, 2), (0, 0))),
        ((0, -3, 2, 3), ((0, 0), (3, 0))),
        ((0, 0, 2, 7), ((0, 0), (0, 4))),
        ((-1, -3, 4, 7), ((1, 2), (3, 4))),
    ],
)
def test_beyond_each_side_of_the_image_is_black(place, padding):
    image = np.arange(1, 7, dtype=np.float32).reshape(2, 3, 1)
    expected = np.pad(image[..., 0], padding)
    np.testing.assert_array_equal(crop_image(image, place)[..., 0], expected)


def test_a_crop_inside_the_image_is_its_pixels():
    image = np.arange(20, dtype=np.float32).reshape(4, 5, 1)
    assert crop_image(image, (1, 2, 3, 5))[..., 0].tolist() == [[7, 8, 9], [12, 13, 14]]


@pytest.mark.parametrize(
    ("box", "window"),
    [
        ((40, 40, 60, 50), (30, 25, 70, 65)),  # in the middle of its box
        ((0, 0, 20, 10), (0, 0, 40, 40)),  # moved into the image at its first corner
        ((80, 90, 100, 100), (60, 60, 100, 100)),  # and at its last one
    ],
)
def test_a_square_window_is_twice_the_longer_side_and_stays_inside(box, window):
    assert square_window(box, 100, 100, 2.0) == window


def test_a_square_window_is_square_in_mm():
    """20 rows of 0.1 mm are 2 mm, as are 10 columns of 0.2 mm."""
    assert square_window((40, 40, 60, 50), 100, 100, 2.0, (0.1, 0.2)) == (30, 35, 70, 55)
