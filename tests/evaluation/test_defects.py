"""Defects of images whose defects are known."""

import numpy as np
import pytest

from tfmammo.data.patches import Patches
from tfmammo.evaluation import defects
from tfmammo.evaluation.defects import DefectsConfig
from tfmammo.metrics.texture import measure_range

SIZE = 32
CONFIG = DefectsConfig(models={"A": "a"}, rows=2)


@pytest.fixture(scope="module")
def patches():
    random = np.random.default_rng(0)
    images = (0.3 + 0.4 * random.random((6, SIZE, SIZE, 1))).astype(np.float32)
    masks = np.zeros(images.shape, np.uint8)
    masks[:, 12:20, 12:20] = 1
    images[masks == 1] += 0.2
    names = np.array([f"p{number}" for number in range(6)])
    return Patches(images, masks, names, names)


def test_real_patches_and_two_grey_values_are_the_ends_of_the_scale(patches):
    baselines = defects.make_baselines(patches)
    outputs = {name: [images] for name, images in baselines.items()}
    limits = measure_range(patches.images, patches.masks, tail=0.05)
    scores = defects.measure_defects(outputs, patches, CONFIG, limits)
    (real,) = scores[defects.REAL]
    (grey,) = scores[defects.TWO_GREYS]
    # By definition 5 % each of the tissue; quantiles are between pixels.
    tissue = SIZE**2 - 64
    assert real["flat"].mean() == pytest.approx(0.05, abs=1 / tissue)
    assert real["harsh"].mean() == pytest.approx(0.05, abs=1 / tissue)
    assert real["haar"].mean() == pytest.approx(1)
    # Without texture everywhere but within three px of the mass.
    assert grey["flat"].min() >= (SIZE**2 - 14**2) / tissue
    assert grey["haar"] == pytest.approx(0, abs=1e-9)
