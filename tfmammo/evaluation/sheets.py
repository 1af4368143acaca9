"""Sheets of patches: a random choice, and the best and the worst of each model by a measure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfmammo.evaluation.comparison import Comparison
from tfmammo.training import image_grid


def choose(
    values: NDArray[np.float64], count: int, extremes: int, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Choose rows of values [n]: `count` at random, then `extremes` of the largest and smallest.

    The largest and the smallest values come first; NaN comes last among both.
    """
    random = np.random.default_rng(seed).permutation(len(values))[:count]
    largest, smallest = (np.argsort(keys, kind="stable")[:extremes] for keys in (-values, values))
    return random, largest, smallest


def choose_rows(
    scores: Mapping[str, NDArray[np.float64]], count: int, seed: int, is_higher_better: bool = False
) -> dict[str, NDArray[np.intp]]:
    """Choose the patches of each sheet.

    Args:
        scores: Model -> the measure of each of the same n patches, [n]. Patches without one come
            last among the best and the worst.
        count: How many patches a sheet shows.
        seed: Of the random choice.
        is_higher_better: Whether the best patches have the largest values.

    Returns:
        "" -> a random choice; "-best-MODEL" and "-worst-MODEL" -> rows, the extreme ones first.
    """
    rows: dict[str, NDArray[np.intp]] = {}
    for model, values in scores.items():
        merit = values if is_higher_better else -values
        chosen = choose(merit, count, count, seed)  # at random the same of each model
        rows |= dict(zip(("", f"-best-{model}", f"-worst-{model}"), chosen, strict=True))
    return rows


def write_sheets(
    panels: Mapping[str, NDArray[Any]],
    scores: Mapping[str, NDArray[np.float64]],
    count: int,
    seed: int,
    path: Path,
    is_higher_better: bool = False,
) -> None:
    """Write the panels' patches side by side, a file for each choice of `choose_rows`."""
    for ending, rows in choose_rows(scores, count, seed, is_higher_better).items():
        chosen = {name: images[rows] for name, images in panels.items()}
        image_grid.save_grid(chosen, path.with_stem(path.stem + ending))


def write_comparison(
    comparison: Comparison,
    scores: Mapping[str, NDArray[np.float64]],
    count: int,
    seed: int,
    output: Path,
    is_higher_better: bool = False,
) -> None:
    """Write sheets of the masks, the real images and those of each model."""
    patches = comparison.patches
    panels: dict[str, NDArray[Any]]
    panels = {"mask": patches.masks, "real": patches.images, **comparison.outputs}
    path = output / f"sheet{comparison.ending}"
    write_sheets(panels, scores, count, seed, path, is_higher_better)
