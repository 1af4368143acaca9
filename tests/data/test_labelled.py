"""Patches of lesions and of normal tissue: the windows of both."""

from dataclasses import replace

import numpy as np
import pytest

from tfmammo.archives import phantom
from tfmammo.config import DataConfig
from tfmammo.data.extraction import make_normal_patches
from tfmammo.data.labelled import make_blend_patches, measure_scale
from tfmammo.errors import ConfigError
from tfmammo.mammogram import Skipped

DATA = DataConfig.model_validate(
    {
        "size": 32,
        "frame": "square",
        "context": 2,
        "window": (0, 1),
        "sampling": {"count": 40, "scale": None},
    }
)


@pytest.fixture(scope="module")
def mammograms():
    return phantom.read(count=24)


def with_scale(data, scale):
    return data.model_copy(update={"sampling": data.sampling.model_copy(update={"scale": scale})})


def measure_windows(mammograms):
    """The windows of all masses, twice as wide as their boxes' longer sides."""
    boxes = np.array(
        [
            lesion.box
            for record in mammograms
            for lesion in record.lesions
            if lesion.kind == "mass" and lesion.is_outlined
        ]
    )
    return 2 * np.max(boxes[:, 2:] - boxes[:, :2], axis=1)


@pytest.mark.parametrize("size", [32, 64, 256])
def test_the_scale_of_tissue_is_that_of_most_lesions(mammograms, size):
    data = DATA.model_copy(update={"size": size})
    expected = np.percentile(size / measure_windows(mammograms), [10, 90])
    assert measure_scale(mammograms, data) == pytest.approx(expected.tolist(), rel=0.01)


def test_the_scale_counts_pixels_of_resampled_mammograms(mammograms):
    """Half as many px a mm, so windows of half as many px, which are enlarged twice as much."""
    records = [replace(record, spacing=(0.1, 0.1)) for record in mammograms]
    coarse = DATA.model_copy(
        update={"preprocess": DATA.preprocess.model_copy(update={"spacing": 0.2})}
    )
    doubled = [2 * value for value in measure_scale(records, DATA)]
    assert measure_scale(records, coarse) == pytest.approx(doubled)


def test_blending_draws_tissue_at_that_scale(mammograms):
    scale = measure_scale(mammograms, DATA)
    found = make_blend_patches(mammograms, DATA, Skipped())
    expected = make_blend_patches(mammograms, with_scale(DATA, scale), Skipped())
    np.testing.assert_array_equal(found.images, expected.images)
    others = make_blend_patches(mammograms, with_scale(DATA, (0.3, 0.8)), Skipped())
    assert not np.array_equal(found.images, others.images)


def test_other_random_patches_need_a_scale(mammograms):
    with pytest.raises(ConfigError, match="data.sampling.scale: null"):
        make_normal_patches(mammograms, DATA, Skipped())
