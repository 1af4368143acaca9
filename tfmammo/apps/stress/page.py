"""The page of a stress test: tables, curves, and pictures of the worst pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tfmammo import document, filesystem
from tfmammo.apps.stress.analysis import REMOVAL, Curves
from tfmammo.apps.stress.config import StressConfig
from tfmammo.apps.stress.scoring import Outcome, Trial
from tfmammo.document import Block, Grid, Heading, Picture, Text
from tfmammo.evaluation.report import save_figure
from tfmammo.metrics.plotting import INK, plot_style
from tfmammo.metrics.psychometric import Psychometric
from tfmammo.metrics.summary import Table

TITLE = "Stress test"
WORDS = (
    "Each curve shows the share of inserted lesions that the detector finds, from faint to plain "
    "ones. Where it crosses the dotted line, every second lesion is found. Further left is better.",
    "The same mammogram without the lesion shows how much of that is chance (guess rate).",
    "The curve ranks inserted lesions by how hard they are for this detector. It does not show how "
    "often such lesions occur in patients.",
)


@plot_style
def draw_curves(
    curves: Mapping[tuple[str, str], Curves], trials: Mapping[str, Trial], config: StressConfig
) -> Figure:
    """Draw sensitivity against contrast and against size: points, fits, thresholds."""
    methods = list(dict.fromkeys(method for _, method in curves))
    figure = Figure(figsize=(7, 2.8 * len(methods)), layout="constrained")
    grid = figure.subplots(len(methods), 2, squeeze=False, sharey=True)
    for (detector, method), both in curves.items():
        row = methods.index(method)
        parts: tuple[tuple[str, Sequence[float], Psychometric | None], ...] = (
            ("contrast", config.contrasts, both.contrast),
            ("size", config.sizes, both.size),
        )
        for axes, (name, values, curve) in zip(grid[row], parts, strict=True):
            outcomes = trials[detector].list_of(method)
            hits = {
                value: [
                    outcome.after > trials[detector].limit
                    for outcome in outcomes
                    if outcome.condition and getattr(outcome.condition, name) == value
                ]
                for value in values
            }
            shares = [np.mean(each) if each else np.nan for each in hits.values()]
            (points,) = axes.plot(values, shares, "o", markersize=3, label=detector)
            if curve and 0 < curve.threshold < np.inf:
                line = np.geomspace(min(values), max(values), 100)
                axes.plot(line, curve.predict(line), color=points.get_color())
            axes.axhline(0.5, linestyle=":", color=INK, linewidth=0.8)
            unit = f", {config.unit}" if name == "size" else " (of the grey scale)"
            axes.set(xscale="log", ylim=(-0.02, 1.02), xlabel=f"{name}{unit}", title=method)
        grid[row, 0].set_ylabel("share found")
    grid[0, 0].legend()
    return figure


def choose_worst(trial: Trial, count: int) -> list[Outcome]:
    """Choose missed lesions, the plainest first, then detections where no lesion is."""
    missed = [
        outcome
        for outcome in trial.outcomes
        if outcome.method != REMOVAL and outcome.after <= trial.limit
    ]
    missed.sort(key=lambda outcome: -outcome.contrast * outcome.size)
    ghosts = [
        outcome
        for outcome in trial.outcomes
        if outcome.method == REMOVAL and outcome.after > trial.limit
    ]
    ghosts.sort(key=lambda outcome: -outcome.after)
    return [*missed[:count], *ghosts[:count]]


@plot_style
def draw_worst(outcomes: Sequence[Outcome], unit: str) -> Figure:
    """Draw pairs, before on the left and after on the right, with scores."""
    columns = 3
    rows = -(-len(outcomes) // columns)
    figure = Figure(figsize=(7.5, 1.75 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, outcome in zip(grid, outcomes, strict=False):
        axes.imshow(outcome.picture, cmap="gray", vmin=0, vmax=255)
        what = "lesion removed" if outcome.method == REMOVAL else outcome.method
        size = f"{outcome.size:.3g} {unit}, " if np.isfinite(outcome.size) else ""
        axes.set_title(
            f"{what}: {size}contrast {outcome.contrast:.3f}\n"
            f"score {outcome.before:.2f} before, {outcome.after:.2f} after",
            fontsize=7,
        )
    return figure


def write_page(
    output: Path,
    tables: Sequence[Table],
    curves: Mapping[tuple[str, str], Curves],
    trials: Mapping[str, Trial],
    config: StressConfig,
) -> None:
    """Write index.html, curves.png and worst-DETECTOR.png into a folder."""
    save_figure(draw_curves(curves, trials, config), output / "curves.png")
    titles = {"curves.png": "Sensitivity against contrast and size"}
    for name, trial in trials.items():
        if worst := choose_worst(trial, config.worst):
            file = f"worst-{name}.png"
            save_figure(draw_worst(worst, config.unit), output / file)
            titles[file] = f"{name}: plain lesions that it misses, and false detections"
    blocks: list[Block] = [Heading(1, TITLE), *map(Text, WORDS)]
    for file, title in titles.items():
        blocks += [Heading(2, title), Picture(file, title)]
    for table in tables:
        rows = tuple(map(tuple, table.body))
        blocks += [Heading(2, table.title), Grid(tuple(table.header), rows)]
        blocks += map(Text, table.notes)
    pictures = {file: (output / file).read_bytes() for file in titles}
    page = document.render_html(TITLE, blocks, pictures)
    filesystem.write_atomically(output / "index.html", page, durable=False)
