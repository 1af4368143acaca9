"""Can mammograms of a set be recognized by anything but their masses?

A detector that learns from synthetic mammograms must not recognize them by the archive that they
come from, or by what a synthesis does to the whole image: it would find masses that it does not
see. So a classifier compares the corners of a set's mammograms, which no lesion touches, with those
of real mammograms with masses. Its AUC should be 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tfmammo.data.preprocess import resize_image
from tfmammo.evaluation.two_sample import Images, estimate_area
from tfmammo.mammogram import Mammogram
from tfmammo.metrics.boxes import intersection
from tfmammo.metrics.significance import Estimate

SIZE = 64  # px that a corner is resampled to
SHARE = 8  # a corner is a square with a side of this part of the shorter side


def compare_corners(
    real: Sequence[Mammogram],
    made: Sequence[Mammogram],
    made_patients: Sequence[str],
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Compute the AUC by which a classifier distinguishes corners, and its interval.

    It is cross-validated by patient. With fewer than FEWEST_PATIENTS on a side all are NaN.

    Args:
        real: Real mammograms with masses.
        made: Synthetic ones.
        made_patients: The patient of each mammogram that a synthetic one was made from.
        level: Confidence level, in (0, 1).
        seed: Of the classifier.
    """
    real_corners, real_groups = _cut_all(real, [one.patient_id for one in real])
    made_corners, made_groups = _cut_all(made, made_patients)
    return estimate_area(
        real_corners, made_corners, real_groups, made_groups, size=SIZE, level=level, seed=seed
    )


def cut_corners(mammogram: Mammogram) -> Images:
    """Cut the corners that no lesion touches: float32 [0 to 4, SIZE, SIZE, 1]."""
    rows, cols = mammogram.rows, mammogram.cols
    side = max(1, min(rows, cols) // SHARE)
    boxes = np.array([lesion.box for lesion in mammogram.lesions], float).reshape(-1, 4)
    pixels = mammogram.pixels()
    corners = [
        resize_image(pixels[top : top + side, left : left + side], SIZE, SIZE)
        for top in (0, rows - side)
        for left in (0, cols - side)
        if not intersection(np.array([[top, left, top + side, left + side]], float), boxes).any()
    ]
    return np.array(corners, np.float32).reshape(-1, SIZE, SIZE, 1)


def _cut_all(
    mammograms: Sequence[Mammogram], patients: Sequence[str]
) -> tuple[Images, NDArray[np.str_]]:
    corners = [cut_corners(mammogram) for mammogram in mammograms]
    counts = np.array([len(one) for one in corners], int)
    none = np.empty((0, SIZE, SIZE, 1), np.float32)
    return np.concatenate([none, *corners]), np.repeat(np.array(patients, str), counts)
