"""What the tables of evaluate/detection.py and of the detection studies share: a
detector's measures over its trainings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tfmammo.metrics.detection import (
    ALL_DETECTIONS,
    Matches,
    Measured,
    Training,
    froc_by_training,
    froc_interval,
    over_folds,
)
from tfmammo.metrics.significance import FEWEST_PATIENTS, describe, describe_few
from tfmammo.metrics.summary import Measure

FALSE = Measure("false positives", "", 1, 2).show
Floats = NDArray[np.float64]


def measure(
    images: Sequence[Matches],
    patients: Sequence[str],
    trainings: Sequence[Training],
    fppi: Sequence[float],
    drawing: tuple[int, int, float],
    of: Measured = "tpr",
) -> tuple[Floats, Floats, Floats, Floats]:
    """A FROC curve's mean over trainings, its standard deviation over folds, and its interval.

    Args:
        images: As for `froc_interval`.
        patients: As for `froc_interval`.
        trainings: As for `froc_interval`.
        fppi: [k].
        drawing: Samples, seed and level.
        of: See there too.

    Returns:
        (mean, deviation, low, high), float64 [k] each; NaN where there is none.
    """
    curves = froc_by_training(images, trainings, fppi)
    mean, deviation = over_folds(
        {training: getattr(curve, of) for training, curve in curves.items()}
    )
    return (
        mean,
        deviation,
        *froc_interval(images, patients, fppi, *drawing, of, trainings=trainings),
    )


def mean_recall(
    images: Sequence[Matches], trainings: Sequence[Training], fppi: Sequence[float]
) -> Floats:
    """Sensitivity at numbers of false positives per image, the mean over trainings."""
    return over_folds(
        {
            training: curve.tpr
            for training, curve in froc_by_training(images, trainings, fppi).items()
        }
    )[0]


def count_of(patients: Sequence[str]) -> str:
    """How many patients there are, in words."""
    count = len(set(patients))
    return f"{count} patient{'s' * (count > 1)}"


def notes(patients: Sequence[str], comparisons: int = 0) -> tuple[str, ...]:
    """What stands under a table: how it was tested, where it was; or that there are too few
    patients for intervals and tests.
    """
    count = len(set(patients))
    if count < FEWEST_PATIENTS:
        return (describe_few(count),)
    return (describe("jackknife", count, comparisons),) if comparisons else ()


def recall_metrics(
    images: Sequence[Matches], trainings: Sequence[Training], fppi: Sequence[float]
) -> dict[str, float]:
    """Recall, and its mean from 0 to there, at numbers of false positives per image, means over
    trainings; and of all detections.
    """
    curves = froc_by_training(images, trainings, (*fppi, ALL_DETECTIONS))
    recall, areas = (
        over_folds({training: getattr(curve, of) for training, curve in curves.items()})[0]
        for of in ("tpr", "areas")
    )
    found = {f"recall at {at:g}": float(value) for at, value in zip(fppi, recall[:-1], strict=True)}
    found |= {
        f"mean recall to {at:g}": float(value) for at, value in zip(fppi, areas[:-1], strict=True)
    }
    return found | {"recall of all detections": float(recall[-1])}
