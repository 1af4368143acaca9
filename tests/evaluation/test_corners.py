"""Corners: cut where no lesion is, and distinguished only where they differ."""

from dataclasses import replace

import numpy as np
import pytest

from tests.small_mammograms import make_mammogram
from tfmammo.evaluation.corners import SIZE, compare_corners, cut_corners
from tfmammo.mammogram import Lesion


def draw(patient, seed, noise=0.02):
    """A mammogram of noise with a lesion in its upper right corner."""
    pixels = np.random.default_rng(seed).normal(0.3, noise, (160, 80, 1)).clip(0, 1)
    lesions = [Lesion("mass", (0, 75, 5, 80))]
    return make_mammogram(seed, pixels.astype(np.float32), lesions, patient_id=patient)


def test_a_corner_that_a_lesion_touches_is_left_out():
    mammogram = draw("a", 0)
    pixels = mammogram.pixels()
    corners = cut_corners(mammogram)
    assert corners.shape == (3, SIZE, SIZE, 1), "the upper right one has a lesion"
    expected = [pixels[:10, :10], pixels[-10:, :10], pixels[-10:, -10:]]
    assert corners.mean(axis=(1, 2, 3)) == pytest.approx([one.mean() for one in expected], abs=0.01)
    assert len(cut_corners(replace(mammogram, lesions=()))) == 4


def test_other_noise_is_recognized_and_equal_noise_is_not():
    patients = [f"p{number}" for number in range(12)]
    real = [draw(patient, seed) for seed, patient in enumerate(patients)]
    noisy = [draw(patient, 100 + seed, 0.3) for seed, patient in enumerate(patients)]
    auc = compare_corners(real, noisy, patients)
    assert (auc.value, auc.high) == (1, 1)
    assert auc.low == pytest.approx(1 + np.log(0.05) / 12), "the rule of three, of twelve patients"
    auc = compare_corners(real, real, patients)
    assert auc.value == 0.5 and auc.low <= 0.5 <= auc.high
    for few in (real[:3], []):  # an archive may have normal mammograms alone
        auc = compare_corners(few, noisy, patients)
        assert np.isnan([auc.value, auc.low, auc.high]).all()
