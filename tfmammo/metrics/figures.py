"""FROC curves, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tfmammo.metrics.detection import Matches, Training, froc_by_training, froc_interval, over_folds
from tfmammo.metrics.plotting import quiet


@quiet
def froc_figure(
    detectors: Mapping[str, Sequence[Matches]],
    patient_ids: Sequence[str],
    width: float = 8.0,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    title: str = "",
    recall: str = "recall",
    trainings: Mapping[str, Sequence[Training]] | None = None,
) -> Figure:
    """FROC curves of detectors on the same images, each with the band of its interval, where there
    are patients enough for one.

    Args:
        detectors: Name -> of each image its matches.
        patient_ids: Of each image.
        width: Largest number of false positives per image.
        samples: As for `froc_interval`.
        seed: As for `froc_interval`.
        level: As for `froc_interval`.
        recall: What the ordinate is called.
        trainings: Name -> of each image the training that answered; a curve is then the mean of its
            trainings' curves.

    Raises:
        ValueError: As `froc_interval`.
    """
    at: NDArray[np.float64] = np.linspace(0, width, 81)
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for name, images in detectors.items():
        of = trainings[name] if trainings else [(0, 0)] * len(images)
        axes.fill_between(
            at,
            *froc_interval(images, patient_ids, at, samples, seed, level, trainings=of),
            alpha=0.2,
            linewidth=0,
        )
        curves = froc_by_training(images, of, at)
        axes.plot(
            at,
            over_folds({training: curve.tpr for training, curve in curves.items()})[0],
            label=name,
        )
    axes.set(xlabel="false positives per image", ylabel=recall, ylim=(0, 1), xlim=(0, width))
    axes.set_title(title, fontsize=8)
    if len(detectors) > 1:
        axes.legend()
    return figure
