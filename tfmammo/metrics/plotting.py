"""The style of every plot (dark grey on opaque white), and axes of ROC curves.

Colour-blind readers can distinguish the colours, and readers of a grey print can by their lightness
(Okabe and Ito 2008).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

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
