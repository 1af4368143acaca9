"""Poisson image editing against a dense solve and OpenCV, and guides worked out by hand."""

import numpy as np
import pytest

from tfmammo.baselines.poisson import METHODS, opencv, poisson


def image(values):
    return np.asarray(values, np.float32)[..., None]


def grid(rows=64, cols=48):
    return np.mgrid[:rows, :cols].astype(np.float64)


def disc(radius=14, shape=(64, 48)):
    rows, cols = grid(*shape)
    inside = np.hypot(rows - shape[0] // 2, cols - shape[1] // 2) < radius
    return inside.astype(np.uint8)[..., None]


def noise(seed, shape=(64, 48)):
    return image(np.random.default_rng(seed).uniform(0.3, 0.7, shape))


def dense(tissue, lesion, mask, mixed):
    """The same equations, pixel by pixel and by numpy's dense solver."""
    x = tissue[..., 0].astype(np.float64)
    e = lesion[..., 0].astype(np.float64)
    inside = mask[..., 0] == 1
    unknown = {tuple(place): number for number, place in enumerate(np.argwhere(inside).tolist())}
    matrix = np.zeros((len(unknown),) * 2)
    right = np.zeros(len(unknown))
    for (row, col), number in unknown.items():
        for q in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)):
            matrix[number, number] += 1
            of_tissue = x[row, col] - x[q]
            of_lesion = e[row, col] - e[q]
            right[number] += of_tissue if mixed and abs(of_tissue) > abs(of_lesion) else of_lesion
            if q in unknown:
                matrix[number, unknown[q]] -= 1
            else:
                right[number] += x[q]
    x[inside] = np.linalg.solve(matrix, right)
    return np.clip(x, 0, 1)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_dense_solve_gives_the_same(mixed):
    """Two regions, one with a hole, and a pixel without neighbours; some values are clipped."""
    tissue = noise(0, (17, 21))
    lesion = image(np.random.default_rng(1).uniform(0, 1, (17, 21)))
    mask = np.zeros((17, 21, 1), np.uint8)
    mask[2:9, 3:10] = 1
    mask[5, 6] = 0
    mask[11:16, 12:20] = 1
    mask[13, 3] = 1
    expected = dense(tissue, lesion, mask, mixed)
    assert (expected == 0).any() or (expected == 1).any()
    np.testing.assert_allclose(poisson(tissue, lesion, mask, mixed)[..., 0], expected, atol=1e-6)


def test_ties_are_the_lesions():
    """Differences of 1/8 are exact in float32; the tissue's are the lesion's, turned round."""
    tissue = image(np.full((3, 3), 0.5))
    lesion = image(np.full((3, 3), 0.5))
    tissue[1, 1] = 0.375
    lesion[1, 1] = 0.625
    assert poisson(tissue, lesion, disc(1, (3, 3)), mixed=True)[1, 1, 0] == 0.625


@pytest.mark.parametrize(("mixed", "bound"), [(False, 6), (True, 12)])
def test_opencv_agrees_but_for_its_outline(mixed, bound):
    """Within 2.5 grey levels on average and `bound` at most; pasting is 26 levels away.

    OpenCV takes the tissue's differences in the mask's outermost 3 px, where this lesion still has
    a slope, lets pixels beyond the mask, but in its bounding box, go along, and rounds.
    """
    rows, cols = grid(64, 64) - 32
    tissue = image(0.4 + 0.003 * rows + 0.02 * np.sin(cols / 5))  # without grain
    lesion = image(0.5 + 0.3 * np.exp(-(rows**2 + cols**2) / 50))  # which fades inside the mask
    mask = disc(20, (64, 64))
    ours, theirs = (
        255 * function(tissue, lesion, mask, mixed)[mask == 1] for function in (poisson, opencv)
    )
    assert np.abs(ours - theirs).mean() < 2.5 and np.abs(ours - theirs).max() < bound
    assert np.abs(ours - 255 * lesion[mask == 1]).mean() > 20


def test_opencv_clones_where_the_mask_is():
    """A mask of odd and of even sides, off the middle: the lesion's peak stays at its pixel."""
    for height, width in ((21, 17), (20, 16)):
        rows, cols = grid()
        lesion = image(0.4 + 0.4 * np.exp(-((rows - 20) ** 2 + (cols - 30) ** 2) / 8))
        mask = np.zeros((64, 48, 1), np.uint8)
        mask[12 : 12 + height, 22 : 22 + width] = 1
        blended = opencv(image(np.full((64, 48), 0.4)), lesion, mask)
        assert np.unravel_index(blended.argmax(), blended.shape) == (20, 30, 0)
        # the outermost 3 px are flat, as the tissue
        np.testing.assert_allclose(blended, lesion, atol=6 / 255)


@pytest.mark.parametrize("name", METHODS)
def test_the_background_stays_bit_by_bit_and_equal_images_all(name):
    tissue, lesion, mask = noise(0), noise(1), disc()
    before = tissue.copy()
    found = METHODS[name](tissue, lesion, mask)
    assert found.dtype == np.float32 and found.min() >= 0 and found.max() <= 1
    np.testing.assert_array_equal(found[mask == 0], tissue[mask == 0])
    assert (found[mask == 1] != tissue[mask == 1]).mean() > 0.9
    np.testing.assert_array_equal(tissue, before)
    tolerance = 2 / 255 if "opencv" in name else 1e-6  # it rounds down, in 8 bits
    np.testing.assert_allclose(METHODS[name](tissue, tissue, mask), tissue, atol=tolerance)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"mask": np.zeros((64, 48, 1), np.uint8)}, "the mask is empty"),
        *(
            ({"mask": np.roll(disc(), shift, axis)}, "border")
            for axis, shift in ((0, -19), (0, 18), (1, -11), (1, 10))
        ),
        ({"mask": disc()[:-1]}, r"\(63, 48, 1\)"),
        ({"lesion": noise(1)[..., 0]}, r"\(64, 48\)"),
        (
            {"tissue": np.zeros((8, 8)), "lesion": np.zeros((8, 8)), "mask": disc()[:8, :8, 0]},
            "all",
        ),
        ({"mask": disc() * 255}, "the mask must be .* up to 255"),
        ({"mask": disc().astype(np.float32)}, "the mask must be .* float32"),
        ({"tissue": noise(0).astype(np.float64)}, "the tissue must be float32"),
        ({"lesion": (255 * noise(1)).astype(np.uint8)}, "the lesion must be float32"),
        ({"lesion": noise(1) + 0.5}, "the lesion's values"),
        ({"tissue": -noise(0)}, "the tissue's values"),
        ({"tissue": np.where(disc() == 1, np.float32(np.nan), noise(0))}, "the tissue's values"),
    ],
)
def test_wrong_input_is_refused(changed, named):
    given = {"tissue": noise(0), "lesion": noise(1), "mask": disc(), **changed}
    with pytest.raises(ValueError, match=named):
        poisson(**given)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_checks_its_input(name):
    with pytest.raises(ValueError, match="the mask is empty"):
        METHODS[name](noise(0), noise(1), np.zeros((64, 48, 1), np.uint8))


def test_masks_that_opencv_cannot_clone_are_refused():
    mask = np.zeros((64, 48, 1), np.uint8)
    mask[30:32, 10:20] = 1
    with pytest.raises(ValueError, match="2 x 10 px"):
        opencv(noise(0), noise(1), mask)
    assert np.isfinite(poisson(noise(0), noise(1), mask)).all()
