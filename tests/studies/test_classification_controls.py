"""The controls of the classifier study, on patches whose content is known."""

import numpy as np
import pytest

from tfmammo.data.patches import Patches
from tfmammo.errors import DataError
from tfmammo.studies.classification_controls import CONTROLS, make_control

SIZE = 8


def make_patches(values, kinds, masked, prefix):
    """Patches of one intensity each, with a square mask in the middle of those that are masked."""
    count = len(values)
    images = np.full((count, SIZE, SIZE, 1), np.reshape(values, (-1, 1, 1, 1)), np.float32)
    masks = np.zeros((count, SIZE, SIZE, 1), np.uint8)
    masks[np.flatnonzero(masked), 2:6, 2:6] = 1
    names = np.array([f"{prefix}{number}" for number in range(count)])
    return Patches(images, masks, names, names, kinds=np.array(kinds))


@pytest.fixture
def real():
    """Two normal patches, 0.1 and 0.2, and two lesions, 0.8 and 0.9; the last has no outline."""
    kinds = ["normal", "normal", "mass", "mass"]
    patches = make_patches([0.1, 0.2, 0.8, 0.9], kinds, [0, 0, 1, 0], "p")
    return patches.with_labels(np.array([0, 0, 1, 1]))


@pytest.fixture
def synthetic():
    """Twelve lesions of 0.5 and four normal patches, which show what was removed."""
    kinds = ["mass"] * 12 + ["normal"] * 4
    return make_patches([0.5] * 12 + [0.3] * 4, kinds, [1] * 16, "s")


@pytest.mark.parametrize("control", CONTROLS)
def test_each_takes_the_set_s_place_with_training_patches(real, synthetic, control):
    made = make_control(control, real, synthetic)
    assert made.kinds.tolist() == synthetic.kinds.tolist()
    assert set(made.patient_ids.tolist()) <= set(real.patient_ids.tolist())
    assert made.images.dtype == np.float32 and made.images.min() >= 0 and made.images.max() <= 1
    again = make_control(control, real, synthetic)
    np.testing.assert_array_equal(made.images, again.images)
    other = make_control(control, real, synthetic, seed=1)
    assert made.patient_ids.tolist() != other.patient_ids.tolist()
    benign = make_control(control, real.with_labels(np.array([0, 0, 1, 0])), synthetic)
    for one in (made, benign):  # the normal patches are real ones, untouched; no benign lesion
        assert set(np.unique(one.images[12:]).tolist()) <= set(np.float32([0.1, 0.2]).tolist())


def test_copies_are_the_training_patches_themselves(real, synthetic):
    made = make_control("copies", real, synthetic)
    assert set(np.unique(made.images[:12]).tolist()) == set(np.float32([0.8, 0.9]).tolist())
    assert set(made.patient_ids[:12].tolist()) == {"p2", "p3"}


def test_a_pasted_lesion_ends_at_its_outline(real, synthetic):
    made = make_control("pasted", real, synthetic)
    inside = made.images[:12, 2:6, 2:6]
    outside = made.images[:12, 0]
    assert np.all(inside == np.float32(0.8)), "the one without an outline is no source"
    assert set(np.unique(outside).tolist()) == set(np.float32([0.1, 0.2]).tolist())
    np.testing.assert_array_equal(made.masks[:12], synthetic.masks[:12])
    assert not made.masks[12:].any()


def test_brightened_tissue_is_as_bright_as_synthetic_lesions_on_average(real, synthetic):
    made = make_control("brightened", real, synthetic)
    inside = made.images[:12, 2:6, 2:6].mean(axis=(1, 2, 3))
    outside = made.images[:12, 0, 0, 0]
    assert inside.mean() == pytest.approx(0.5, abs=1e-6)
    # one dose for all: lesions stay apart as their tissue does
    np.testing.assert_allclose(inside - outside, 0.5 - outside.mean(), atol=1e-6)


def test_what_a_control_needs_is_named(real, synthetic):
    made = make_control("fresh", real, synthetic)
    assert set(np.unique(made.images[:12]).tolist()) == set(np.float32([0.8, 0.9]).tolist())
    boxless = make_patches([0.1, 0.8], ["normal", "mass"], [0, 0], "p")
    for control, given, said in (
        ("fresh", real.take([]), "the control fresh: no patient is held back"),
        ("pasted", boxless.with_labels(np.array([0, 1])), "no training patch shows the outline"),
    ):
        with pytest.raises(DataError, match=said):
            make_control(control, given, synthetic)
