"""Trainings of a model that differ by their seed: their average, and what each reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tfmammo.metrics.summary import Measure, Table

# Model -> the measures of each of its trainings: measure -> float64 [n]
Trainings = Mapping[str, Sequence[Mapping[str, NDArray[np.float64]]]]


def average_trainings(trainings: Trainings) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Average the measures of each patch over the trainings of a model."""
    return {
        name: {key: np.mean([values[key] for values in scores], axis=0) for key in scores[0]}
        for name, scores in trainings.items()
    }


def tabulate_trainings(trainings: Trainings, key: str, measure: Measure, note: str) -> list[Table]:
    """Tabulate the mean of a measure in each training; nothing where every model is one training.

    Args:
        trainings: The measures.
        key: Which one.
        measure: How it is shown.
        note: What other tables and figures show of several trainings.
    """
    body = []
    for name, scores in trainings.items():
        if len(scores) > 1:
            means = np.array([measure.scale * np.nanmean(values[key]) for values in scores])
            listed = ", ".join(f"{mean:.{measure.decimals}f}" for mean in means)
            body.append([name, listed, f"{means.std(ddof=1):.{measure.decimals + 1}f}"])
    unit = f", {measure.unit}" if measure.unit else ""
    title = f"{measure.heading} of each training{unit}"
    return [Table(title, ["", "mean", "deviation"], body, (note,))] if body else []
