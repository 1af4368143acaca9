"""What a synthesis takes from archives: sizes, fitted by hand."""

import numpy as np
import pytest

from tests.small_mammograms import make_mammogram, textured_breast
from tfmammo.config import DataConfig
from tfmammo.errors import DataError
from tfmammo.mammogram import Lesion, Skipped
from tfmammo.synthesis.sources import fit_sizes, select_lesions


def draw_square(top, left, bottom, right):
    corners = [[top, left], [top, right - 1], [bottom - 1, right - 1], [bottom - 1, left]]
    return Lesion.from_outline("mass", np.array(corners), 200, 150)


def fit(skipped, spacing=None, kinds=("mass",)):
    """Fit sizes on masses of 10 x 20 and 30 x 60 px; a third one is as high as the mammogram."""
    boxes = ((5, 5, 15, 25), (40, 40, 70, 100), (0, 0, 200, 10))
    lesions = [draw_square(*box) for box in boxes]
    mammogram = make_mammogram(0, textured_breast(0), lesions, spacing=spacing)
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


def test_sizes_need_two_lesions():
    with pytest.raises(DataError, match="can't be fitted on 0 lesions"):
        fit(Skipped(), kinds=("calcification",))
