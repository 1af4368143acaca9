"""A contextual GAN's lesions back in their mammogram: where they are and how bright they are."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.synthesis_archives import draw_mammogram
from tfmammo.archives.stored import Stored
from tfmammo.config import DataConfig
from tfmammo.nn.postprocessing import Refined
from tfmammo.synthesis.patch_insertion import compute_side, fill_window, reinsert_patches
from tfmammo.synthesis.placement import TargetMammogram

PLACE = (60, 50, 92, 82)  # 32 px, so that nothing is scaled


def make_network(kept=True, **data):
    """A generator of a lesion of 0.5 in the left half of its patch, rows 8 to 24, cols 2 to 10."""

    def generate(image, seed):
        lesion = np.zeros((1, 32, 32, 1), np.float32)
        lesion[:, 8:24, 2:10] = 0.5
        return Refined(image[None], lesion, (lesion > 0).astype(np.uint8), np.array([kept]))

    values = {"size": 32, "window": (0.2, 0.7), "preprocess": {"flip_right": True}, **data}
    return SimpleNamespace(size=32, data=DataConfig(**values), generate=generate)


@pytest.mark.parametrize(("laterality", "left"), [("L", 52), ("R", 72)])
def test_a_lesion_is_added_where_the_generator_sees_it(laterality, left):
    """0.5 of [-1, 1] are a quarter of a grey scale of 0.5; right breasts are shown mirrored."""
    mammogram = draw_mammogram(0, laterality=laterality)
    stored = Stored.of_image(mammogram.pixels(), 16)
    network = make_network()
    target = TargetMammogram(stored.image(), mammogram, network.data)
    patch = fill_window(target, PLACE, network, np.random.default_rng(0))
    assert patch.mask_box == (68, left, 84, left + 8) and patch.mask.sum() == 16 * 8
    expected = target.image[..., 0].copy()
    expected[68:84, left : left + 8] += 0.125
    after = reinsert_patches(target, stored, [patch])
    np.testing.assert_allclose(after.image()[..., 0], np.clip(expected, 0, 1), atol=2e-5)
    assert (after.values != stored.values).sum() == 16 * 8
    nothing = fill_window(target, PLACE, make_network(kept=False), np.random.default_rng(0))
    assert nothing.mask_box is None
    unchanged = reinsert_patches(target, stored, [nothing])
    np.testing.assert_array_equal(unchanged.values, stored.values)


def test_a_patch_is_as_large_as_in_training():
    sampling = {"scale": (0.25, 0.75)}  # 32 px at a half
    assert compute_side(draw_mammogram(0), make_network(sampling=sampling)) == 64
    resampled = make_network(sampling=sampling, preprocess={"spacing": 0.2})
    assert compute_side(draw_mammogram(0, spacing=(0.1, 0.1)), resampled) == 128
