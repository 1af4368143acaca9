"""Windows by hand: where they are in each crop mode, and what is beyond the image."""

import numpy as np
import pytest

from tests.small_mammograms import make_noisy
from tfmammo.archives import cdd_cesm
from tfmammo.config import DataConfig
from tfmammo.data import sampling
from tfmammo.data.windows import crop_image, crop_window, square_window
from tfmammo.mammogram import Skipped


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
    np.testing.assert_array_equal(crop_image(image, place)[..., 0], np.pad(image[..., 0], padding))


@pytest.mark.parametrize(
    ("box", "context", "spacing", "window"),
    [
        ((40, 50, 60, 60), 1.5, None, (35, 40, 65, 70)),  # side 30 around (50, 55)
        ((0, 110, 20, 120), 1.5, None, (0, 90, 30, 120)),  # moved down and to the left
        ((0, 10, 100, 20), 1.1, None, (-5, 0, 105, 110)),  # too long for the rows only
        ((0, 0, 100, 120), 1.5, None, (-40, -30, 140, 150)),
        # 20 px of 0.2 mm are 4 mm, 20 px of 0.1 mm are 2 mm: the side is 6 mm
        ((40, 50, 60, 70), 1.5, (0.2, 0.1), (35, 30, 65, 90)),
    ],
)
def test_a_square_window_by_hand(box, context, spacing, window):
    assert square_window(box, 100, 120, context, spacing) == window


BOX = (40, 50, 60, 61)  # 20 x 11 px


@pytest.mark.parametrize(
    ("values", "box", "window"),
    [
        ({"frame": "square", "context": 1.5}, BOX, square_window(BOX, 100, 120, 1.5)),
        ({"frame": "tight"}, BOX, BOX),
        ({"frame": "full"}, BOX, (0, 0, 100, 120)),
        ({"frame": "loose"}, BOX, (30, 45, 70, 67)),  # 40 x 22 px
        ({"frame": "loose"}, (4, 0, 24, 30), (0, 0, 34, 45)),
        ({"frame": "loose"}, (80, 100, 99, 118), (71, 91, 100, 120)),
        ({"frame": "padded", "padding": 30}, BOX, (10, 20, 90, 91)),
        ({"frame": "padded", "padding": 30}, (80, 100, 99, 118), (50, 70, 100, 120)),
        ({"frame": "padded"}, BOX, (0, 0, 100, 120)),  # 100 px on every side
    ],
)
def test_crop_modes_by_hand(values, box, window):
    assert crop_window(box, make_noisy(), DataConfig(**values)) == window


@pytest.mark.data
def test_the_default_context_gives_the_share_of_the_lesion_that_cans_table_implies(real_data):
    """36 % of a patch: tests/models/test_can_crop.py."""

    def measure_share(context: float) -> float:
        shares = []
        for one in cdd_cesm.read(real_data / "cdd-cesm", Skipped()):
            lesions = sampling.select_lesions(one, DataConfig()).values()
            masks = [lesion.mask(one.rows, one.cols) for lesion in lesions]
            for lesion in lesions:
                top, left, bottom, right = square_window(lesion.box, one.rows, one.cols, context)
                if bottom - top <= one.rows and right - left <= one.cols:
                    shares.append(np.max(masks, axis=0)[top:bottom, left:right].mean())
        return float(np.mean(shares))

    assert 0.355 <= measure_share(DataConfig().context) <= 0.365
    assert measure_share(1.5) < 0.30
