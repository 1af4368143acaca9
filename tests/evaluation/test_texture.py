"""Rows of texture: the ratio by hand, and lattices beside those of real patches."""

from types import SimpleNamespace

import numpy as np
import pytest

from tfmammo.evaluation import texture
from tfmammo.evaluation.comparison import EvaluationConfig

SIZE = 32


@pytest.fixture(autouse=True)
def float32_policy():
    """In place of the fixture for all tests: nothing here touches Keras, so nothing
    waits for it.
    """


@pytest.fixture
def patches():
    """Twelve patches of six patients, of noise, with a mask that the last one lacks."""
    images = np.random.default_rng(0).normal(0, 0.05, (12, SIZE, SIZE, 1)) + 0.5
    masks = np.zeros(images.shape, np.uint8)
    masks[:11, 8:24, 8:24] = 1
    patient_ids = np.repeat([f"p{i}" for i in range(6)], 2)
    return SimpleNamespace(images=images.astype(np.float32), masks=masks, patient_ids=patient_ids)


def scale_texture(images, factor):
    """Scale what differs from grey: Haar energy grows by the square."""
    return 0.5 + factor * (images - 0.5)


def test_the_ratio_is_a_geometric_mean(patches):
    factors = np.where(np.arange(12) % 2, 2.0, 0.25).reshape(-1, 1, 1, 1)
    images = scale_texture(patches.images, factors)
    scores = texture.measure(images, patches)
    expected = [*np.square(factors[:11].ravel()), np.nan]
    np.testing.assert_allclose(scores["haar_mass"], expected, rtol=1e-4)
    config = EvaluationConfig(models={"A": "x"}, samples=200)
    rows = texture.summarize({"A": scores}, patches, config)
    row = next(row for row in rows if row.measure == "haar_mass")
    assert (row.model, row.n, row.patients) == ("A", 11, 6)
    # Six patches of 1/16 and five of 4.
    assert row.mean == pytest.approx(2 ** ((6 * -4 + 5 * 2) / 11), rel=1e-4)
    assert row.low < row.mean < row.high


def test_differences_of_the_band_are_tested_as_logarithms(patches):
    """Twice the contrast is four times the energy, which is 2 on a scale to base 2."""
    scores = {
        name: texture.measure(scale_texture(patches.images, factor), patches)
        for name, factor in (("plain", 1.0), ("rich", 2.0))
    }
    config = EvaluationConfig(models={"plain": "x", "rich": "y"}, samples=200)
    rows = texture.summarize(scores, patches, config)
    row = next(row for row in rows if (row.model, row.measure) == ("rich", "haar_mass"))
    assert row.against == "plain" and row.mean == pytest.approx(4, rel=1e-3)
    assert row.difference == pytest.approx(2, abs=1e-3) and row.p < 0.05


def test_an_image_without_texture_keeps_its_row(patches):
    grey = np.full_like(patches.images, 0.5)
    scores = texture.measure(grey, patches)
    config = EvaluationConfig(models={"A": "x"}, samples=200)
    row = texture.summarize({"A": scores}, patches, config)[0]
    assert row.mean == pytest.approx(texture.SMALLEST) and row.n == 11


def test_lattices_stand_beside_those_of_real_patches(patches):
    lattice = np.zeros((SIZE, SIZE, 1))
    lattice[::4, ::4] = 0.4
    models = {"tiled": patches.images + lattice, "copy": patches.images}
    scores = {name: texture.measure(images, patches) for name, images in models.items()}
    config = EvaluationConfig(models={"tiled": "x", "copy": "y"}, samples=200)
    rows = texture.summarize(scores, patches, config)
    found = {(row.model, row.measure): row for row in rows}
    assert found.keys() == {
        (model, measure)
        for model in ("tiled", "copy", "real patches")
        for measure in ("lattice_2", "lattice_4", "lattice_8")
    } | {("tiled", "haar_mass"), ("copy", "haar_mass")}
    real = found["real patches", "lattice_4"]
    assert found["copy", "lattice_4"].mean == real.mean
    assert found["tiled", "lattice_4"].mean > 15 > real.mean + 10
    assert real.against == "tiled" and real.difference_high < -10 and real.p < 0.05


@pytest.mark.slow
def test_patches_without_spectrum_have_no_lattice_rows(patches):
    small = SimpleNamespace(
        images=patches.images[:, :20, :20],
        masks=patches.masks[:, :20, :20],
        patient_ids=patches.patient_ids,
    )
    scores = texture.measure(small.images, small)
    assert all(np.isnan(scores[name]).all() for name in texture.LATTICES)
    config = EvaluationConfig(models={"A": "x"}, samples=200)
    rows = texture.summarize({"A": scores}, small, config)
    assert [row.measure for row in rows] == ["haar_mass"]
