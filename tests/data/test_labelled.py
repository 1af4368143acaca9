"""Patches of lesions and of normal tissue: the windows of both."""

from dataclasses import replace

import numpy as np
import pytest

from tfmammo.archives import phantom
from tfmammo.config import DataConfig
from tfmammo.data.extraction import make_normal_patches
from tfmammo.data.labelled import make_blend_patches, measure_scale
from tfmammo.data.sampling import draw_length
from tfmammo.errors import ConfigError, DataError
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


def test_tissue_has_the_windows_of_lesions(mammograms):
    """Windows are twice as wide as the masses' boxes, whatever the size of a patch."""
    masses = {
        f"{record.image_id}#{number}": lesion
        for record in mammograms
        for number, lesion in enumerate(record.lesions)
        if lesion.kind == "mass" and lesion.is_outlined
    }
    boxes = np.array([mass.box for mass in masses.values()])
    windows = 2 * np.max(boxes[:, 2:] - boxes[:, :2], axis=1)
    for size in (32, 64, 256):
        data = DATA.model_copy(update={"size": size})
        found = measure_scale(mammograms, data, masses)
        expected = np.percentile(size / windows, [10, 20, 30, 40, 50, 60, 70, 80, 90])
        assert found == pytest.approx(expected.tolist(), rel=0.01)
        random = np.random.default_rng(0)
        drawn = [draw_length(size, with_scale(data, found).sampling, random) for _ in range(2000)]
        for percentile in (25, 50, 75):
            assert np.percentile(drawn, percentile) == pytest.approx(
                np.percentile(windows, percentile), rel=0.1
            )


def test_resampled_mammograms_have_smaller_windows(mammograms):
    """Half as many px a mm, so windows of half as many px, which are enlarged twice as much."""
    records = [replace(record, spacing=(0.1, 0.1)) for record in mammograms]
    ids = [f"{record.image_id}#0" for record in records]
    preprocess = DATA.preprocess.model_copy(update={"spacing": 0.2})
    coarse = DATA.model_copy(update={"preprocess": preprocess})
    doubled = [2 * value for value in measure_scale(records, DATA, ids)]
    assert measure_scale(records, coarse, ids) == pytest.approx(doubled)


def test_windows_of_whole_mammograms_are_no_measure(mammograms):
    with pytest.raises(DataError, match="data.frame=full has none"):
        measure_scale(mammograms, DATA.model_copy(update={"frame": "full"}), ["one#full"])


def test_blending_draws_tissue_at_that_scale(mammograms):
    found = make_blend_patches(mammograms, DATA, Skipped())
    scale = measure_scale(mammograms, DATA, found.ids[found.labels == 1].tolist())
    expected = make_blend_patches(mammograms, with_scale(DATA, scale), Skipped())
    np.testing.assert_array_equal(found.images, expected.images)
    others = make_blend_patches(mammograms, with_scale(DATA, (0.3, 0.8)), Skipped())
    assert not np.array_equal(found.images, others.images)


def test_other_random_patches_need_a_scale(mammograms):
    with pytest.raises(ConfigError, match="data.sampling.scale: null"):
        make_normal_patches(mammograms, DATA, Skipped())
