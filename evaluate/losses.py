"""Compare the cGAN's content losses over a training, Dice against L1: each run's own loss,
and the held-out Dice of both.

python evaluate/losses.py --config configs/losses.yaml --set runs.Dice=runs/cgan/fold0
runs.L1=runs/cgan/l1

The two losses are different quantities, so that the lower curve is not thereby the better one;
held-out Dice is one quantity.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from pydantic import Field, PositiveInt

from tfmammo import cli
from tfmammo import config as configuration
from tfmammo.config import Frozen
from tfmammo.evaluation import comparison
from tfmammo.metrics.plotting import quiet
from tfmammo.metrics.summary import write_csv
from tfmammo.models.cgan import CGANConfig
from tfmammo.tracking import runs as tracking

HELD_OUT = "validation_dice"

# name -> "loss" and "held-out Dice" -> step -> value
Curves = dict[str, dict[str, dict[int, float]]]


class LossesConfig(Frozen):
    """Trainings whose loss curves are drawn together."""

    runs: dict[comparison.Name, Path] = Field(min_length=1)
    """Name -> folder of a training of the cGAN."""
    tracking_uri: str | None = None
    """Where they were logged; None means the environment's."""
    smooth: PositiveInt = 10
    """Steps logged that a point of a loss curve is the mean of."""


def main() -> None:
    """Read both runs' histories from MLflow, write losses.png and losses.csv."""
    chosen = cli.arguments(__doc__).parse_args()
    config = configuration.parse(LossesConfig, chosen.config, chosen.set)
    output = chosen.output or Path("runs/losses")
    found: Curves = {}
    for name, folder in config.runs.items():
        # the loss's name in MLflow
        content = configuration.load(folder / "config.yaml", model=CGANConfig).model.content
        measures = {"loss": content, "held-out Dice": HELD_OUT}
        found[name] = {
            what: tracking.history(folder, metric, config.tracking_uri)
            for what, metric in measures.items()
        }
    comparison.save(figure(found, config.smooth), output / "losses.png")
    rows = [
        {"run": name, "curve": what, "step": step, "value": value}
        for name, measures in found.items()
        for what, values in measures.items()
        for step, value in values.items()
    ]
    write_csv(output / "losses.csv", rows)
    cli.console.print(f"figure and values: {output}")


@quiet
def figure(found: Curves, smooth: int) -> Figure:
    """Left each run's own loss, right the Dice of all on held-out patients, over steps."""
    drawn = Figure(figsize=(8, 3.5), layout="constrained")
    for axes, what in zip(drawn.subplots(1, 2), ("loss", "held-out Dice"), strict=True):
        for name, measures in found.items():
            steps, values = (
                np.array(part, np.float64)
                for part in (list(measures[what]), list(measures[what].values()))
            )
            window = np.ones(min(smooth, len(values))) if what == "loss" else np.ones(1)
            means = (np.convolve(part, window / len(window), "valid") for part in (steps, values))
            axes.plot(*means, linewidth=1.2, label=name)
        axes.set(
            xlabel="step", title=f"{what} of each run" if what == "loss" else what, ylim=(0, None)
        )
        axes.legend(fontsize=8)
    return drawn


if __name__ == "__main__":
    cli.run(main)
