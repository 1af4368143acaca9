"""The cGAN's content losses over a training, compared: what evaluate/losses.py writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from pydantic import Field, PositiveInt

from tfmammo import config as configuration
from tfmammo.config import Frozen
from tfmammo.evaluation.comparison import Name
from tfmammo.evaluation.report import save_figure
from tfmammo.metrics.plotting import plot_style
from tfmammo.metrics.summary import write_csv
from tfmammo.models.cgan import CGANConfig
from tfmammo.tracking import runs

LOSS = "loss"
HELD_OUT_DICE = "held-out Dice"

# run -> LOSS and HELD_OUT_DICE -> step -> value
Curves = dict[str, dict[str, dict[int, float]]]


class LossesConfig(Frozen):
    """Trainings whose loss curves are drawn together."""

    runs: dict[Name, Path] = Field(min_length=1)
    """Name -> folder of a training of the cGAN."""
    tracking_uri: str | None = None
    """The MLflow server that they were logged to; None means the environment's."""
    smooth: PositiveInt = 10
    """How many logged steps a point of a loss curve averages over."""


def evaluate(config: LossesConfig, output: Path) -> None:
    """Read the history of each run from MLflow, and write losses.png and losses.csv."""
    curves = {name: read_curves(folder, config) for name, folder in config.runs.items()}
    save_figure(draw_curves(curves, config.smooth), output / "losses.png")
    rows = [
        {"run": name, "curve": curve, "step": step, "value": value}
        for name, of_run in curves.items()
        for curve, values in of_run.items()
        for step, value in values.items()
    ]
    write_csv(output / "losses.csv", rows)


def read_curves(folder: Path, config: LossesConfig) -> dict[str, dict[int, float]]:
    """Read the curves of one run: curve -> step -> value."""
    content_loss = configuration.load(folder / "config.yaml", model=CGANConfig).model.content
    return {
        LOSS: runs.read_history(folder, content_loss, config.tracking_uri),
        HELD_OUT_DICE: runs.read_history(folder, "validation_dice", config.tracking_uri),
    }


@plot_style
def draw_curves(curves: Curves, smooth: int) -> Figure:
    """Draw each run's own loss on the left, and the Dice of all on held-out patients on the right.

    Args:
        curves: See `Curves`.
        smooth: How many logged steps a point of a loss curve averages over.
    """
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, curve, smoothing in ((left, LOSS, smooth), (right, HELD_OUT_DICE, 1)):
        for name, of_run in curves.items():
            steps = np.array(list(of_run[curve]), np.float64)
            values = np.array(list(of_run[curve].values()), np.float64)
            length = min(smoothing, len(values))
            kernel = np.ones(length) / length
            smooth_steps = np.convolve(steps, kernel, "valid")
            smooth_values = np.convolve(values, kernel, "valid")
            axes.plot(smooth_steps, smooth_values, linewidth=1.2, label=name)
        axes.set(xlabel="step", ylim=(0, None))
        axes.legend(fontsize=8)
    left.set_title(f"{LOSS} of each run")
    right.set_title(HELD_OUT_DICE)
    return figure
