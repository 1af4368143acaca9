"""Labelled patches of lesions and of normal tissue: their classes, and the windows of both."""

from dataclasses import replace

import numpy as np
import pytest

from tests.small_mammograms import make_noisy, make_normal, make_rectangle
from tfmammo.archives import phantom
from tfmammo.config import DataConfig, PreprocessConfig, SamplingConfig
from tfmammo.data.extraction import make_patches_of
from tfmammo.data.labelled import make_blend_patches, make_pathology_patches, measure_scale
from tfmammo.data.sampling import draw_length
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Skipped

DATA = DataConfig(
    size=32,
    frame="square",
    context=2,
    window=(0, 1),
    sampling=SamplingConfig(count=40, scale=None),
)


@pytest.fixture(scope="module")
def mammograms():
    return phantom.read(count=24)


def with_scale(data, scale):
    return data.model_copy(update={"sampling": data.sampling.model_copy(update={"scale": scale})})


def make_records(*names):
    """A mammogram of one mass for each pathology, "" being unknown, and a normal one."""
    lesions = [make_rectangle(40, 40, 60, 60, pathology=name or None) for name in names]
    records = [
        make_noisy(lesion, name=f"m{i}", patient_id=f"p{i}") for i, lesion in enumerate(lesions)
    ]
    return [*records, make_normal(patient_id="q")]


def label(records, skipped=None, malignant=True, window=(0, 1), **values):
    values = {"count": 30, "offset": 10, "scale": (1, 1), **values}
    config = DataConfig(size=32, window=window, sampling=SamplingConfig(**values))
    skipped = Skipped() if skipped is None else skipped
    return make_pathology_patches(records, config, skipped, malignant)


def test_pathologies_are_labels_that_share_every_batch():
    skipped = Skipped()
    patches = label(make_records("malignant", "benign", ""), skipped)
    assert patches.balanced and patches.balanced_classes == 3 and set(patches.labels) == {0, 1, 2}
    for number, name in enumerate(("malignant", "benign", "normal")):
        assert (patches.labels[patches.pathologies == name] == number).all()
    unknown = [name for name, reason in skipped.reasons.items() if "pathology" in reason]
    assert unknown and all(name.startswith("m2#0@") for name in unknown)
    assert len(patches) + len(unknown) == 2 * 30


def test_normal_patches_can_be_more_than_those_near_lesions():
    records = make_records("malignant", "benign")
    many = label(records, count=6, normals=15)
    assert np.bincount(many.labels)[2] == 15 and np.sum(many.labels < 2) == 6
    assert np.bincount(label(records, count=6).labels)[2] == 6


def test_patches_that_are_stretched_one_by_one_are_pointed_out(caplog):
    caplog.set_level("WARNING")  # another test may have set it lower
    records = make_records("malignant", "benign")
    label(records)
    assert not caplog.records
    label(records, window=None)
    assert "data.window is not set" in caplog.text


@pytest.mark.parametrize(
    ("pathologies", "named"),
    [(["malignant"], "no benign patch"), ([""], "no malignant and no benign patch")],
)
def test_a_missing_class_is_one_sentence(pathologies, named):
    with pytest.raises(DataError, match=named):
        label(make_records(*pathologies))


# Windows


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
        expected = np.percentile(size / windows, np.arange(10, 100, 10))
        np.testing.assert_allclose(found, expected, rtol=0.01)
        random = np.random.default_rng(0)
        drawn = [draw_length(size, with_scale(data, found).sampling, random) for _ in range(2000)]
        quartiles = (25, 50, 75)
        np.testing.assert_allclose(
            np.percentile(drawn, quartiles), np.percentile(windows, quartiles), rtol=0.1
        )


def test_resampled_mammograms_have_smaller_windows(mammograms):
    """Half as many px a mm, so windows of half as many px, which are enlarged twice as much."""
    records = [replace(record, spacing=(0.1, 0.1)) for record in mammograms]
    ids = [f"{record.image_id}#0" for record in records]
    preprocess = DATA.preprocess.model_copy(update={"spacing": 0.2})
    coarse = DATA.model_copy(update={"preprocess": preprocess})
    doubled = [2 * value for value in measure_scale(records, DATA, ids)]
    # but for boxes of whole pixels
    assert measure_scale(records, coarse, ids) == pytest.approx(doubled, rel=0.05)


def test_padding_is_of_resampled_pixels():
    """20 px of 0.1 mm become 10 px, and 5 px are added on both sides."""
    record = make_noisy(make_rectangle(40, 40, 60, 60), spacing=(0.1, 0.1))
    padded = DATA.model_copy(
        update={"frame": "padded", "padding": 5, "preprocess": PreprocessConfig(spacing=0.2)}
    )
    assert measure_scale([record], padded, ["a#0"]) == pytest.approx([32 / 20] * 9)


def test_blending_draws_tissue_at_that_scale(mammograms):
    found = make_blend_patches(mammograms, DATA, Skipped())
    scale = measure_scale(mammograms, DATA, found.ids[found.labels == 1].tolist())
    expected = make_blend_patches(mammograms, with_scale(DATA, scale), Skipped())
    np.testing.assert_array_equal(found.images, expected.images)
    others = make_blend_patches(mammograms, with_scale(DATA, (0.3, 0.8)), Skipped())
    assert not np.array_equal(found.images, others.images)


def test_without_a_scale(mammograms):
    with pytest.raises(DataError, match="data.frame=full has none"):
        measure_scale(mammograms, DATA.model_copy(update={"frame": "full"}), ["one#full"])
    with pytest.raises(ConfigError, match="data.sampling.scale: null"):
        make_patches_of("normal", mammograms, DATA, Skipped())
