"""Post-processing on drawn cases and against SciPy; removal is addition with opposite signs."""

import numpy as np
import pytest
from scipy import ndimage

from tfmammo.nn.postprocessing import PostprocessConfig, postprocess

SIZE = 64


def draw_lesion():
    """Draw a lesion channel on a patch of one grey.

    It has a disc of 20 px radius, a speck, a weak haze and a dark ring.
    """
    rows, cols = np.mgrid[:SIZE, :SIZE]
    distance = np.hypot(rows - 30, cols - 34)
    lesion = np.full((SIZE, SIZE), 0.09)  # below the threshold
    lesion[distance < 28] = -0.3  # darker than the patch around the object
    lesion[distance < 20] = 0.5
    lesion[60:63, 2:5] = 0.9  # a speck, brighter than the object
    return lesion[None, ..., None].astype(np.float32), distance < 20


def test_a_drawn_case():
    lesion, disc = draw_lesion()
    image = np.full(lesion.shape, 0.4, np.float32)
    refined = postprocess(image, lesion)
    assert refined.kept.tolist() == [True] and refined.mask.dtype == np.uint8
    np.testing.assert_array_equal(refined.mask[0, ..., 0], disc)
    wide = ndimage.distance_transform_edt(~disc) <= 5
    edge = ndimage.gaussian_filter(wide.astype(np.float64), 10, mode="mirror")
    np.testing.assert_allclose(refined.lesion[0, ..., 0], edge * lesion[0, ..., 0], atol=2e-3)
    np.testing.assert_allclose(refined.image, np.clip(image + refined.lesion / 2, 0, 1), atol=1e-7)
    # of the speck's 0.9
    assert refined.image.dtype == np.float32 and abs(refined.lesion[0, 61, 3, 0]) < 0.1


def test_removal_is_addition_with_the_signs_changed():
    lesion, _ = draw_lesion()
    image = np.full(lesion.shape, 0.5, np.float32)
    added = postprocess(image, lesion)
    removed = postprocess(image, -lesion, removal=True)
    np.testing.assert_array_equal(removed.mask, added.mask)
    np.testing.assert_array_equal(removed.lesion, -added.lesion)
    np.testing.assert_allclose(removed.image - 0.5, 0.5 - added.image, atol=1e-7)
    assert postprocess(image, lesion, removal=True).mask.sum() != added.mask.sum()  # the ring


@pytest.mark.parametrize(
    ("squares", "kept"),
    [([], False), ([(10, 20)], False), ([(10, 21)], True), ([(4, 18), (40, 18)], False)],
)
def test_what_is_below_a_tenth_of_the_patch_is_discarded(squares, kept):
    """A tenth of 64 x 64 px is 409.6: 20 x 20 = 400, 21 x 21 = 441, and 18 x 18 = 324, twice."""
    lesion = np.zeros((2, SIZE, SIZE, 1), np.float32)  # the first one has nothing
    for first, side in squares:
        lesion[1, first : first + side, first : first + side] = 0.2
    image = np.random.default_rng(0).random(lesion.shape, np.float32)
    refined = postprocess(image, lesion)
    assert refined.kept.tolist() == [False, kept] and refined.mask[1].any() == kept
    np.testing.assert_array_equal(refined.image[0], image[0])
    assert np.array_equal(refined.image[1], image[1]) == (not kept)


def test_the_threshold_is_strict_and_without_edge_and_expansion_the_object_is_cut_out():
    lesion = np.full((1, SIZE, SIZE, 1), 0.1, np.float32)
    lesion[0, :32] = 0.11
    config = PostprocessConfig(threshold=float(np.float32(0.1)), dilation=0, edge=0)
    refined = postprocess(np.zeros_like(lesion), lesion, config)
    np.testing.assert_array_equal(refined.lesion[0, :32], lesion[0, :32])
    assert not refined.lesion[0, 32:].any()


def test_the_largest_object_of_each_image_against_one_at_a_time():
    binary = np.random.default_rng(0).random((20, 16, 24)) < 0.35
    binary[3] = False
    lesion = binary[..., None].astype(np.float32)
    refined = postprocess(np.zeros_like(lesion), lesion, PostprocessConfig(smallest=0))
    for image, mask in zip(binary, refined.mask[..., 0], strict=True):
        labels, count = ndimage.label(image, np.ones((3, 3)))
        areas = [np.sum(labels == label) for label in range(1, count + 1)]
        own = np.unique(labels[mask > 0])  # of two equally large ones either
        assert len(own) == min(count, 1) and mask.sum() == max(areas, default=0)
        np.testing.assert_array_equal(mask > 0, np.isin(labels, own))


@pytest.mark.parametrize(
    "shapes",
    [((1, 8, 8, 1), (1, 8, 8)), ((2, 8, 8, 1), (1, 8, 8, 1)), ((0, 8, 8, 1), (0, 8, 8, 1))],
)
def test_other_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match="must both be"):
        postprocess(*(np.zeros(shape, np.float32) for shape in shapes))
