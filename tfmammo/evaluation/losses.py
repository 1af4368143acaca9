"""Draw the cGAN's content losses over training: what evaluate/losses.py writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pydantic import Field, PositiveInt

from tfmammo import config as configuration
from tfmammo.config import Frozen
from tfmammo.evaluation.comparison import Name
from tfmammo.evaluation.report import Report, save_figure
from tfmammo.metrics.plotting import plot_style
from tfmammo.metrics.summary import Measure
from tfmammo.models.cgan import CGANConfig
from tfmammo.tracking import history

LOSS = "loss"
DICE = "dice"
TITLES = {LOSS: "loss of each run", DICE: "held-out Dice"}

# run -> LOSS and DICE -> step -> value
Curves = dict[str, dict[str, dict[int, float]]]


class LossesConfig(Frozen):
    """Runs whose loss curves are drawn together."""

    runs: dict[Name, Path] = Field(min_length=1)
    """Name -> folder of a training run of the cGAN."""
    tracking_uri: str | None = None
    """The MLflow server that they were logged to; None means the environment's."""
    smooth: PositiveInt = 10
    """How many logged steps a point of a loss curve averages over."""


def evaluate(config: LossesConfig, output: Path) -> Report:
    """Read the history of each run from MLflow, and write the curves; the facts are their ends."""
    curves: Curves = {}
    for name, folder in config.runs.items():
        content = configuration.load(folder / "config.yaml", model=CGANConfig).model.content
        metrics = {LOSS: content, DICE: "validation_dice"}
        curves[name] = {
            curve: history.read_history(folder, metric, config.tracking_uri)
            for curve, metric in metrics.items()
        }
    save_figure(draw_curves(curves, config.smooth), output / "losses.png")
    lines: list[dict[str, Any]] = [
        {"run": name, "measure": curve, "step": step, "value": value}
        for name, of_run in curves.items()
        for curve, values in of_run.items()
        for step, value in values.items()
    ]
    last = {(line["run"], line["measure"]): line["value"] for line in lines}
    facts = [
        Measure(curve, "", 1, 3).make_fact("last_step", name, curve, value)
        for (name, curve), value in last.items()
    ]
    report = Report(config=None, facts=facts, files={"losses.csv": lines})
    report.write(output)
    return report


@plot_style
def draw_curves(curves: Curves, smooth: int) -> Figure:
    """Draw each run's own loss on the left, and the Dice of all on held-out patients on the right.

    Args:
        curves: See `Curves`.
        smooth: How many logged steps a point of a loss curve averages over.
    """
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, curve, smoothing in ((left, LOSS, smooth), (right, DICE, 1)):
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
        axes.set_title(TITLES[curve])
    return figure
