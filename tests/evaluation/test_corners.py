"""Corners: cut where no lesion is, and distinguished only where they differ."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from tfmammo.evaluation.corners import SIZE, compare_corners, cut_corners
from tfmammo.mammogram import Lesion, Mammogram


def make_mammogram(patient, seed, noise=0.02):
    pixels = np.random.default_rng(seed).normal(0.3, noise, (160, 80, 1)).clip(0, 1)
    lesions = (Lesion("mass", (0, 75, 5, 80)),)
    read = partial(np.asarray, pixels.astype(np.float32))
    return Mammogram("mine", patient, f"{patient}-{seed}", 160, 80, read, lesions=lesions)


def test_a_corner_that_a_lesion_touches_is_left_out():
    mammogram = make_mammogram("a", 0)
    pixels = mammogram.pixels()
    corners = cut_corners(mammogram)
    assert corners.shape == (3, SIZE, SIZE, 1), "the upper right one has a lesion"
    expected = [pixels[:10, :10], pixels[-10:, :10], pixels[-10:, -10:]]
    assert corners.mean(axis=(1, 2, 3)) == pytest.approx([one.mean() for one in expected], abs=0.01)
    assert len(cut_corners(replace(mammogram, lesions=()))) == 4


def test_other_noise_is_recognized_and_equal_noise_is_not():
    patients = [f"p{number}" for number in range(12)]
    real = [make_mammogram(patient, seed) for seed, patient in enumerate(patients)]
    noisy = [make_mammogram(patient, 100 + seed, 0.05) for seed, patient in enumerate(patients)]
    auc = compare_corners(real, noisy, patients)
    assert auc.value > 0.95 and auc.low > 0.7 and auc.high <= 1
    auc = compare_corners(real, real, patients)
    assert auc.value == 0.5 and auc.low <= 0.5 <= auc.high
    for few in (real[:3], []):  # an archive may have normal mammograms alone
        auc = compare_corners(few, noisy, patients)
        assert np.isnan([auc.value, auc.low, auc.high]).all()


@pytest.mark.slow
def test_corners_of_one_set_of_few_patients_are_no_sure_sign():
    real = [make_mammogram(f"real{number}", number) for number in range(24)]
    noisy = [make_mammogram(f"made{number}", 100 + number, 0.3) for number in range(6)]
    auc = compare_corners(real, noisy, [one.patient_id for one in noisy])
    assert (auc.value, auc.high) == (1, 1)
    assert auc.low == pytest.approx(1 + np.log(0.05) / 6), "the rule of three, of six patients"
