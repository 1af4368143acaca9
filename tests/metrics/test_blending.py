"""Seams, backgrounds and contrasts of blended patches, by hand."""

import numpy as np
import pytest

from tfmammo.metrics.blending import background_error, lesion_contrast, seam_strength


def batch(*images, dtype=np.float32):
    return np.asarray(images, dtype)[..., None]


def square():
    mask = np.zeros((1, 40, 40, 1), np.uint8)
    mask[:, 12:28, 12:28] = 1
    return mask


def noise(seed=0, count=1):
    random = np.random.default_rng(seed)
    return np.clip(random.normal(0.4, 0.02, (count, 40, 40, 1)), 0, 1).astype(np.float32)


def test_a_seam_by_hand():
    """One pixel inside, a ring of 1 px: the four pixels beside it (a disc of radius 1), none of
    them neighbours, so there is no denominator; of 2 px: the sixteen pixels named below, whose
    pairs of neighbours are counted there.
    """
    mask = np.zeros((7, 7), np.uint8)
    mask[3, 3] = 1
    image = np.zeros((7, 7))
    image[3, 3] = 0.8
    image[3, 4] = 0.2
    image[3, 5] = 0.1
    assert np.isnan(seam_strength(batch(image), batch(mask), ring=1))
    # Across the border: 0.6 to the right, 0.8 three times. The disc of radius 2: rows 2 to 4 of
    # columns 1 to 5, and (1, 3), (5, 3).
    disc = {(row, col) for row in (2, 3, 4) for col in range(1, 6)} | {(1, 3), (5, 3)}
    ring = disc - {(3, 3)}
    jumps = [
        abs(image[row, col] - image[below, right])
        for row, col in ring
        for below, right in ((row + 1, col), (row, col + 1))
        if (below, right) in ring
    ]
    assert len(jumps) == 20
    # Other than 0: 0.2 up and down from (3, 4), 0.1 up and down from (3, 5), 0.1 between them.
    assert sum(jumps) == pytest.approx(0.7)
    expected = (0.6 + 3 * 0.8) / 4 / (0.7 / 20)
    assert seam_strength(batch(image), batch(mask), ring=2) == pytest.approx([expected])


def test_contrast_by_hand():
    """0.7 inside; the ring of 4 px is 0.4 but for 8 pixels of 0.5 beside the mask; what is beyond
    doesn't count.
    """
    mask = square()
    image = np.where(mask == 1, 0.7, 0.9).astype(np.float32)
    image[:, 8:32, 8:32][mask[:, 8:32, 8:32] == 0] = 0.4
    image[:, 11, 14:22] = 0.5
    # A disc of radius 4 round the square's corners covers 16 * 4 px on each side, and of each
    # corner a quarter without its axes.
    rows, cols = np.mgrid[1:5, 1:5]
    quarter = int(np.sum(rows**2 + cols**2 <= 20))
    around = 4 * 64 + 4 * quarter
    expected = 0.7 - (0.4 + 0.1 * 8 / around)
    assert lesion_contrast(image, mask, ring=4) == pytest.approx([expected], abs=2e-4)
    assert lesion_contrast(1 - image, mask, ring=4) == pytest.approx([-expected], abs=2e-4)


@pytest.mark.parametrize("value", [0, 1])
def test_without_mask_or_background_there_is_nothing_to_say(value):
    image = noise()
    mask = np.full((1, 40, 40, 1), value, np.uint8)
    assert np.isnan(seam_strength(image, mask)) and np.isnan(lesion_contrast(image, mask))
    for scores in background_error(image, image, mask).values():
        assert np.isnan(scores).all() == (value == 1)


def test_a_ring_without_any_texture_gives_no_strength():
    mask = square()
    image = mask.astype(np.float32)
    assert np.isnan(seam_strength(image, mask)) and lesion_contrast(image, mask) == 1


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (
            lambda: seam_strength(noise(), square()[:, 1:]),
            r"images and masks .* \(1, 39, 40, 1\)",
        ),
        (lambda: seam_strength(noise() * np.float32(np.nan), square()), "images"),
        (lambda: seam_strength(noise(), 255 * square()), "masks"),
        (lambda: lesion_contrast(noise() + 1, square()), "images"),
        (lambda: background_error(noise() + 1, noise(), square()), "images"),
        (lambda: background_error(noise(), noise() + 1, square()), "tissue"),
        (lambda: seam_strength(noise(), square(), ring=0), "ring .* not 0"),
    ],
)
def test_bad_input(call, named):
    with pytest.raises(ValueError, match=named):
        call()
