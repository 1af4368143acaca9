"""Facts of texture: the ratio by hand, and checkerboards compared with those of real patches."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.facts import find
from tfmammo.evaluation import texture
from tfmammo.evaluation.comparison import EvaluationConfig

SIZE = 32
CONFIG = EvaluationConfig(models={"A": "x"}, samples=200)


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


def test_the_ratio_is_a_geometric_mean_and_its_differences_are_logarithms(patches):
    factors = np.where(np.arange(12) % 2, 2.0, 0.25).reshape(-1, 1, 1, 1)
    factors_of = {"A": factors, "rich": 2 * factors, "grey": 0.0}
    scores = {
        name: texture.measure(scale_texture(patches.images, factor), patches)
        for name, factor in factors_of.items()
    }
    expected = [*np.square(factors[:11].ravel()), np.nan]
    np.testing.assert_allclose(scores["A"]["haar_mass"], expected, rtol=1e-4)
    facts = texture.summarize(scores, patches, CONFIG)
    fact = find(facts, "A", "haar_mass")
    assert (fact.images, fact.patients, fact.unit) == (11, 6, "")
    # Six patches of 1/16 and five of 4.
    assert fact.value == pytest.approx(2 ** ((6 * -4 + 5 * 2) / 11), rel=1e-4)
    assert fact.low < fact.value < fact.high
    # Twice the contrast is four times the energy, which is 2 on a scale to base 2.
    fact = find(facts, "rich", "haar_mass", "differences", "A")
    assert fact.value == pytest.approx(2, abs=1e-3) and fact.p < 0.05 and fact.unit == "log2"
    assert find(facts, "grey", "haar_mass").value == pytest.approx(texture.SMALLEST)
    first, second = (
        find(
            texture.summarize_folds(scores, np.arange(12) // 6),
            "A",
            "haar_mass",
            "folds",
            subset=f"fold={fold}",
        )
        for fold in (0, 1)
    )
    assert (first.images, second.images) == (6, 5)
    assert first.value == pytest.approx(2 ** ((3 * -4 + 3 * 2) / 6), rel=1e-4)
    assert second.value == pytest.approx(2 ** ((3 * -4 + 2 * 2) / 5), rel=1e-4)


def test_checkerboards_are_compared_with_those_of_real_patches(patches):
    lattice = np.zeros((SIZE, SIZE, 1))
    lattice[::4, ::4] = 0.4
    models = {"tiled": patches.images + lattice, "copy": patches.images}
    scores = {name: texture.measure(images, patches) for name, images in models.items()}
    facts = texture.summarize(scores, patches, CONFIG)
    real = find(facts, "real patches", "lattice_4")
    assert find(facts, "copy", "lattice_4").value == real.value
    assert find(facts, "tiled", "lattice_4").value > 15 > real.value + 10
    difference = find(facts, "real patches", "lattice_4", "differences", "tiled")
    assert difference.high < -10 and difference.p < 0.05
    small = SimpleNamespace(
        images=patches.images[:, :20, :20],
        masks=patches.masks[:, :20, :20],
        patient_ids=patches.patient_ids,
    )
    scores = {"A": texture.measure(small.images, small)}
    facts = texture.summarize(scores, small, CONFIG)
    assert [fact.measure for fact in facts] == ["haar_mass"], "a size without spectrum"
