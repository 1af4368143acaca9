"""Figures of FROC curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tfmammo.metrics.detection import Matches, Training, froc_by_training, froc_interval, over_folds
from tfmammo.metrics.plotting import plot_style


@plot_style
def draw_froc(
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
    """Draw the FROC curves of detectors on the same images, each with the band of its interval.

    Args:
        detectors: Name -> the matches in each image.
        patient_ids: The patient of each image. Too few have no band.
        width: Largest number of false positives per image.
        samples: As for `froc_interval`.
        seed: As for `froc_interval`.
        level: As for `froc_interval`.
        title: The title of the figure.
        recall: The label of the ordinate.
        trainings: Name -> the training behind the matches in each image. A curve is then the mean
            of its trainings' curves.

    Raises:
        ValueError: As `froc_interval`.
    """
    rates: NDArray[np.float64] = np.linspace(0, width, 81)
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for name, images in detectors.items():
        of_images = trainings[name] if trainings else [(0, 0)] * len(images)
        low, high = froc_interval(
            images, patient_ids, rates, samples, seed, level, trainings=of_images
        )
        axes.fill_between(rates, low, high, alpha=0.2, linewidth=0)
        curves = froc_by_training(images, of_images, rates)
        mean, _ = over_folds({training: curve.tpr for training, curve in curves.items()})
        axes.plot(rates, mean, label=name)
    axes.set(xlabel="false positives per image", ylabel=recall, ylim=(0, 1), xlim=(0, width))
    axes.set_title(title, fontsize=8)
    if len(detectors) > 1:
        axes.legend()
    return figure
