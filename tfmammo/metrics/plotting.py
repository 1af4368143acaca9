"""The style of every plot (dark grey on opaque white), and plots of ROC and FROC curves.

Colour-blind readers can distinguish the colours, and readers of a grey print can by their lightness
(Okabe and Ito 2008).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from numpy.typing import NDArray

from tfmammo.metrics.boxes import Matches
from tfmammo.metrics.detection import Run, froc_by_run, froc_interval, over_folds

INK = "#444444"
COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#0072b2")
STYLE: dict[str, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "figure.facecolor": "white",
    "figure.titlesize": 10,
    "font.size": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.2,
    "savefig.facecolor": "white",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}

Draw = TypeVar("Draw", bound=Callable[..., Any])


def plot_style(draw: Draw) -> Draw:
    """Decorate a function that draws a figure; Matplotlib's own settings stay as they are."""
    return matplotlib.rc_context(STYLE)(draw)  # type: ignore[arg-type, return-value]


def make_roc_axes(
    figure: Figure,
    false_positives: str = "false positive rate",
    true_positives: str = "true positive rate",
) -> Axes:
    """Add axes for ROC curves, with these labels and the diagonal that guessing gives."""
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], ":", color=INK, linewidth=0.8)
    axes.set(xlabel=false_positives, ylabel=true_positives)
    axes.set(xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
    return axes


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
    runs: Mapping[str, Sequence[Run]] | None = None,
) -> Figure:
    """Draw the FROC curves of detectors on the same images, each with the band of its interval.

    Args:
        detectors: Name -> the matches in each image.
        patient_ids: The patient of each image. With too few there is no band.
        width: Largest number of false positives per image.
        recall: The label of the ordinate.
        runs: Name -> the run behind the matches in each image. A curve is then the mean of its
            runs' curves.
    """
    rates: NDArray[np.float64] = np.linspace(0, width, 81)
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for name, images in detectors.items():
        of_images = runs[name] if runs else [(0, 0)] * len(images)
        low, high = froc_interval(images, patient_ids, rates, samples, seed, level, runs=of_images)
        axes.fill_between(rates, low, high, alpha=0.2, linewidth=0)
        curves = froc_by_run(images, of_images, rates)
        mean, _ = over_folds({run: curve.tpr for run, curve in curves.items()})
        axes.plot(rates, mean, label=name)
    axes.set(xlabel="false positives per image", ylabel=recall, ylim=(0, 1), xlim=(0, width))
    axes.set_title(title, fontsize=8)
    if len(detectors) > 1:
        axes.legend()
    return figure
