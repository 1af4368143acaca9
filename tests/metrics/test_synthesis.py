"""Nearness of synthetic images: hand-computed values and scikit-image as the independent
version.
"""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tfmammo.metrics.synthesis import per_image, sliced_wasserstein


@pytest.fixture
def disc():
    rows, cols = np.mgrid[-32:32, -32:32]
    return (np.hypot(rows + 0.5, cols + 0.5) < 16).astype(np.float32)[None, ..., None]


@pytest.fixture
def images(disc):
    rng = np.random.default_rng(0)
    real = rng.random(disc.shape, dtype=np.float32)
    return real, np.clip(real + rng.normal(0, 0.1, disc.shape), 0, 1).astype(np.float32)


def test_against_scikit_image_and_equal_images(disc, images):
    real, synthetic = images
    scores = per_image(real, synthetic, disc)
    _, similarity = structural_similarity(
        real[0, ..., 0],
        synthetic[0, ..., 0],
        data_range=1,
        gaussian_weights=True,
        use_sample_covariance=False,
        full=True,
    )
    assert scores["ssim"] == pytest.approx([similarity.mean()], abs=1e-5)
    expected = peak_signal_noise_ratio(real, synthetic, data_range=1)
    assert scores["psnr"] == pytest.approx([expected], abs=1e-4)
    assert scores["l1"] == pytest.approx([np.abs(real - synthetic).mean()], abs=1e-6)
    equal = per_image(real, real, disc)
    assert len(equal) == 9
    for name, value in equal.items():
        assert value == pytest.approx([{"l1": 0, "psnr": np.inf, "ssim": 1}[name.split("_")[0]]])


def test_regions_by_hand(disc):
    """An error of 0.5 inside the mass alone: all of the mass, half of the edge's two pixels, none
    of the rest.
    """
    real = np.zeros_like(disc)
    synthetic = disc * 0.5
    scores = per_image(real, synthetic, disc, edge=1)
    assert scores["l1_mass"] == [0.5]
    assert scores["psnr_mass"] == pytest.approx([10 * np.log10(4)])
    assert scores["l1"] == pytest.approx([0.5 * disc.mean()])
    assert scores["l1_edge"] == pytest.approx([0.25], abs=0.02)


def test_the_edge_is_a_band_on_both_sides():
    mask = np.zeros((1, 40, 40, 1), np.uint8)
    mask[:, :, :20] = 1
    for column, expected in ((15, 0.0), (16, 0.125), (23, 0.125), (24, 0.0)):
        synthetic = np.zeros(mask.shape, np.float32)
        synthetic[:, :, column] = 1
        scores = per_image(np.zeros(mask.shape, np.float32), synthetic, mask, edge=4)
        assert scores["l1_edge"] == pytest.approx([expected])


@pytest.mark.parametrize(("value", "missing"), [(0, {"_mass", "_edge"}), (1, {"_edge"})])
def test_a_region_that_the_mask_leaves_empty_has_no_score(images, value, missing):
    scores = per_image(*images, np.full_like(images[0], value))
    for name, values in scores.items():
        assert np.isnan(values).all() == any(name.endswith(region) for region in missing)
    if value == 1:
        assert scores["ssim_mass"] == scores["ssim"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda real, synthetic, disc: (real, synthetic[:, :32], disc), "synthetic and masks"),
        (lambda real, synthetic, disc: (real, synthetic + 0.5, disc), "synthetic"),
        (lambda real, synthetic, disc: (real * np.nan, synthetic, disc), "real"),
        (lambda real, synthetic, disc: (real, synthetic, disc * 0.5), "masks"),
        (lambda *arrays: [array[:, 28:36, 28:36] for array in arrays], "11 px"),
    ],
)
def test_bad_input(disc, images, change, named):
    with pytest.raises(ValueError, match=named):
        per_image(*change(*images, disc))


def test_the_distance_of_one_shift_by_hand():
    """16 px have one level: what is added moves every window by (c, ..., c), its projection on w by
    c * sum(w).
    """
    real = np.random.default_rng(0).uniform(0.2, 0.6, (5, 16, 16, 1)).astype(np.float32)
    axes = np.random.default_rng(0).normal(size=(49, 128))
    axes /= np.linalg.norm(axes, axis=0)
    windows = np.lib.stride_tricks.sliding_window_view(real[..., 0], (7, 7), axis=(1, 2))
    expected = 0.1 * np.abs(axes.sum(axis=0)).mean() / windows.std()
    found = sliced_wasserstein(real, real + np.float32(0.1))
    assert found == pytest.approx(expected, rel=0.05)
