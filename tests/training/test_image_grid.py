"""Image sheets: where panels stand, what colours they bear, what is refused."""

import numpy as np
import pytest

from tfmammo.training.image_grid import (
    BLUE,
    HEADER,
    ORANGE,
    draw_agreement,
    draw_grid,
    draw_outline,
)


def plain(value):
    return np.full((2, 20, 32, 1), value, np.float32)


def test_panels_stand_in_order_with_white_between():
    colour = np.zeros((2, 20, 32, 3), np.float32)
    colour[1, ..., 0] = 1
    sheet = draw_grid({"mask": plain(0.0), "real": plain(0.5), "colour": colour})
    assert sheet.dtype == np.uint8 and sheet.shape == (HEADER + 2 * 23, 3 + 3 * 35, 3)
    expected = np.full(sheet.shape, 255)
    for row, red in ((0, (0, 0, 0)), (1, (255, 0, 0))):
        for column, value in enumerate((0, 128, red)):
            expected[HEADER + row * 23 :][:20, 3 + column * 35 :][:, :32] = value
    np.testing.assert_array_equal(sheet[HEADER:], expected[HEADER:])


@pytest.mark.parametrize("panel", [plain(-0.5), plain(1.5), plain(np.nan), plain(0.5)[..., 0]])
def test_panels_of_another_form_are_refused(panel):
    with pytest.raises(ValueError, match="panel CAN"):
        draw_grid({"real": plain(0.5), "CAN": panel})


def test_outlines_follow_masks_and_holes_over_each_other():
    mask = np.zeros((32, 32, 1), np.float32)
    mask[4:28, 4:28] = 1
    mask[12:20, 12:20] = 0
    border = np.zeros((32, 32), bool)
    border[4:28, 4:28] = True
    border[5:27, 5:27] = False
    border[11:21, 11:21] = True
    border[12:20, 12:20] = False
    once = draw_outline(np.full((32, 32, 1), 0.5, np.float32), mask, BLUE)
    assert once.dtype == np.float32
    expected = np.where(border[..., None], np.array(BLUE) / 255, 0.5)
    np.testing.assert_allclose(once, expected, atol=1e-6)
    second = np.zeros_like(mask)
    second[0:6, 0:6] = 1
    both = draw_outline(once, second, ORANGE)
    assert both[5, 2] == pytest.approx(np.array(ORANGE) / 255)
    assert (both[0, 2] == 0.5).all()  # it runs on beyond the image
    np.testing.assert_array_equal(both[20:], once[20:])
    np.testing.assert_array_equal(draw_outline(once, np.zeros_like(mask)), once)


def test_right_and_wrong_have_their_colours():
    target = np.array([[1, 1], [0, 0]], np.uint8).reshape(1, 2, 2, 1)
    output = np.array([[1, 0], [1, 0]], bool).reshape(1, 2, 2, 1)
    yellow, red, green, black = (1, 1, 0), (1, 0, 0), (0, 1, 0), (0, 0, 0)
    found = draw_agreement(target, output)
    np.testing.assert_array_equal(found, [[[yellow, red], [green, black]]])
    assert found.dtype == np.float32
