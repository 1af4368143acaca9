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
    save_grid,
)


@pytest.fixture(autouse=True)
def float32_policy():
    """In place of the fixture for all tests: nothing here touches Keras, so nothing
    waits for it.
    """


def plain(value, count=2, size=32):
    return np.full((count, size, size, 1), value, np.float32)


def test_panels_stand_in_order_with_white_between():
    sheet = draw_grid({"mask": plain(0.0), "real": plain(0.5), "CAN": plain(0.25)}, spacing=3)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (HEADER + 2 * 35, 3 + 3 * 35, 3)
    for row in (0, 1):
        for column, value in enumerate((0, 128, 64)):
            top = HEADER + row * 35
            left = 3 + column * 35
            assert (sheet[top : top + 32, left : left + 32] == value).all()
    blank = np.ones(sheet.shape[:2], bool)
    for row, column in np.ndindex(2, 3):
        blank[HEADER + row * 35 :][:32, 3 + column * 35 :][:, :32] = False
    blank[:HEADER] = False
    assert (sheet[blank] == 255).all()


def test_images_need_not_be_square():
    images = np.full((2, 20, 32, 1), 0.5, np.float32)
    sheet = draw_grid({"image": images, "truth": images}, spacing=3)
    assert sheet.shape == (HEADER + 2 * 23, 3 + 2 * 35, 3)
    for row, column in np.ndindex(2, 2):
        assert (sheet[HEADER + row * 23 :][:20, 3 + column * 35 :][:, :32] == 128).all()
    with pytest.raises(ValueError, match="truth holds"):
        draw_grid({"image": images, "truth": images.transpose(0, 2, 1, 3)})


def test_each_name_is_written_over_its_column_alone():
    named = draw_grid({"mask": plain(0.0), "real": plain(0.5)})
    other = draw_grid({"mask": plain(0.0), "fake": plain(0.5)})
    header = named[:HEADER]
    changed = other[:HEADER]
    assert header[:, 3:35].min() < 100 and header[:, 38:70].min() < 100
    assert (header[:, :38] == changed[:, :38]).all()
    assert (header[:, 38:] != changed[:, 38:]).any()


def test_a_long_name_stays_in_its_column():
    sheet = draw_grid({"a name much longer than its column": plain(0.0), "": plain(0.5)})
    assert (sheet[:HEADER, 35:] == 255).all()


def test_samples_keep_their_rows_and_colours():
    colour = np.zeros((2, 16, 16, 3), np.float32)
    colour[1, ..., 0] = 1
    sheet = draw_grid({"colour": colour})
    assert (sheet[HEADER : HEADER + 16, 3:19] == 0).all()
    assert (sheet[HEADER + 19 : HEADER + 35, 3:19] == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("panels", "reason"),
    [
        ({}, "no panel"),
        ({"real": plain(0.5), "CAN": plain(1.5)}, "CAN has values outside"),
        ({"real": plain(np.nan)}, "real has values outside"),
        ({"real": plain(0.5), "CAN": plain(0.5, size=16)}, "CAN holds 2 images of 16 x 16 px"),
        ({"real": plain(0.5), "CAN": plain(0.5, count=3)}, "CAN holds 3 images"),
        ({"real": plain(0.5)[..., 0]}, "real must be"),
    ],
)
def test_wrong_panels_are_refused(panels, reason):
    with pytest.raises(ValueError, match=reason):
        draw_grid(panels)


def test_outline_follows_the_mask_and_leaves_the_rest():
    mask = np.zeros((32, 32, 1), np.uint8)
    mask[8:24, 10:20] = 1
    drawn = draw_outline(np.full((32, 32, 1), 0.5, np.float32), mask, ORANGE)
    assert drawn.shape == (32, 32, 3) and drawn.dtype == np.float32
    border = np.zeros((32, 32), bool)
    border[8:24, 10:20] = True
    border[9:23, 11:19] = False
    np.testing.assert_allclose(
        drawn[border], np.broadcast_to(np.array(ORANGE) / 255, (border.sum(), 3)), atol=1e-6
    )
    assert (drawn[~border] == 0.5).all()


def test_outlines_of_holes_and_of_several_masks_lie_over_each_other():
    mask = np.zeros((32, 32, 1), np.float32)
    mask[4:28, 4:28] = 1
    mask[12:20, 12:20] = 0
    once = draw_outline(np.zeros((32, 32, 1)), mask, BLUE)
    assert once[4, 10] == pytest.approx(np.array(BLUE) / 255)
    assert once[11, 15].max() > 0  # round the hole
    assert once[15, 15].max() == 0
    second = np.zeros_like(mask)
    second[0:6, 0:6] = 1
    both = draw_outline(once, second, ORANGE)
    assert both[5, 2] == pytest.approx(np.array(ORANGE) / 255)
    assert both[0, 2].max() == 0  # it runs on beyond the image
    assert (both[20:] == once[20:]).all()


def test_an_empty_mask_has_no_outline():
    image = np.random.default_rng(0).random((8, 8, 1), np.float32)
    assert (draw_outline(image, np.zeros((8, 8, 1))) == image).all()


def test_outline_refuses_other_masks():
    image = np.zeros((8, 8, 1), np.float32)
    with pytest.raises(ValueError, match="one size"):
        draw_outline(image, np.zeros((8, 9, 1)))
    with pytest.raises(ValueError, match="nothing but 0 and 1"):
        draw_outline(image, np.full((8, 8, 1), 0.5))


def test_right_and_wrong_have_their_colours():
    target = np.array([[1, 1], [0, 0]], np.uint8).reshape(1, 2, 2, 1)
    output = np.array([[1, 0], [1, 0]], bool).reshape(1, 2, 2, 1)
    yellow = (1, 1, 0)
    red = (1, 0, 0)
    green = (0, 1, 0)
    black = (0, 0, 0)
    found = draw_agreement(target, output)
    np.testing.assert_array_equal(found, [[[yellow, red], [green, black]]])
    assert found.dtype == np.float32


def test_a_grid_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "grid.png").mkdir()
    with pytest.raises(OSError):
        save_grid({"a": np.zeros((1, 4, 4, 1))}, tmp_path / "grid.png")
