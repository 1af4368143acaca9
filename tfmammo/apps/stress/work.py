"""A whole stress test: pairs, detectors, tables, run, and the page with curves and worst pairs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tfmammo import document, filesystem
from tfmammo.apps.stress import analysis, prediction
from tfmammo.apps.stress.analysis import Curves
from tfmammo.apps.stress.config import REMOVAL, StressConfig
from tfmammo.apps.stress.detectors import KNOWN, open_detector
from tfmammo.apps.stress.pairs import make_pairs, make_removals
from tfmammo.apps.stress.scoring import Outcome, Trial, run
from tfmammo.data import datasets
from tfmammo.errors import DataError
from tfmammo.evaluation.report import Report, save_figure
from tfmammo.mammogram import Skipped
from tfmammo.metrics.plotting import INK, plot_style
from tfmammo.metrics.summary import Table

TITLE = "Stress test"
WORDS = (
    "Each curve shows the share of inserted lesions that the detector finds, from faint to plain "
    "ones. Where it crosses the dotted line, every second lesion is found. Further left is better.",
    "The same mammogram without the lesion shows how much of that is chance (guess rate).",
    "The curve ranks inserted lesions by how hard they are for this detector. It does not show how "
    "often such lesions occur in patients.",
)


def stress(config: StressConfig, output: Path) -> list[Table]:
    """Run a stress test; write rows, tables, pairs, summary.json, index.html and pictures."""
    detectors = {name: open_detector(uri, config) for name, uri in config.detectors.items()}
    unseen = prediction.list_unseen(detectors, config)
    # errors, as of a file that can't be read, come before hours of work
    recall = prediction.measure_recall(detectors, unseen, config) if config.unseen else None
    skipped = Skipped()
    opened = detectors.values()
    pairs = chain(make_pairs(config, opened, skipped), make_removals(config, opened, skipped))
    trials = run(detectors, pairs, config)
    datasets.log_skipped(skipped)
    if not any(trial.list_of(name) for trial in trials.values() for name in config.methods):
        reasons = [reason for reason in skipped.reasons.values() if reason != KNOWN]
        first = next(iter(reasons), "no mammogram was found")
        raise DataError(f"no pair could be made; first reason: {first}")
    curves = {
        (detector, method): analysis.fit_curves(outcomes, trial.limit, config)
        for detector, trial in trials.items()
        for method in config.methods
        if (outcomes := trial.list_of(method))
    }
    tables = [
        analysis.tabulate_thresholds(curves, trials, config),
        analysis.tabulate_controls(trials, config),
        analysis.tabulate_sensitivity(trials, config),
        analysis.tabulate_strata(trials, config),
    ]
    facts = analysis.list_facts(curves, trials, config)
    predictions: list[prediction.Prediction] = []
    if recall:
        predictions = prediction.predict(trials, *recall, config)
        tables += prediction.tabulate(predictions, config)
        facts += prediction.list_facts(predictions, config)
    output.mkdir(parents=True, exist_ok=True)
    summary = {
        "curves": [
            {"detector": detector, "method": method, **dataclasses.asdict(both)}
            for (detector, method), both in curves.items()
        ],
        "operating_points": {
            name: {"limit": trial.limit, "fppi": trial.fppi} for name, trial in trials.items()
        },
        "predictions": [dataclasses.asdict(each) for each in predictions],
        "skipped": len(skipped),
    }
    text = json.dumps(_replace_infinite(summary), indent=1)
    (output / "summary.json").write_text(text, encoding="utf-8")
    write_page(output, tables, curves, trials, config)
    files = {"pairs.csv": analysis.list_rows(trials)}
    # last, because it logs the whole folder
    Report(config=config, facts=facts, tables=tables, files=files).write(output)
    return tables


def _replace_infinite(value: Any) -> Any:
    """Replace infinity, which JSON lacks, by "inf" and "-inf", and NaN by null."""
    if isinstance(value, dict):
        return {key: _replace_infinite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_infinite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


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
        for axes, name in zip(grid[row], ("contrast", "size"), strict=True):
            values, curve = getattr(config, f"{name}s"), getattr(both, name)
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
    for path in output.glob("worst-*.png"):  # of an earlier test
        path.unlink()
    titles = {"curves.png": "Sensitivity against contrast and size"}
    for name, trial in trials.items():
        if worst := choose_worst(trial, config.worst):
            file = f"worst-{name}.png"
            save_figure(draw_worst(worst, config.unit), output / file)
            titles[file] = f"{name}: plain lesions that it misses, and false detections"
    blocks = [f"# {TITLE}", *WORDS]
    for file, title in titles.items():
        blocks += [f"## {document.escape(title)}", document.show_picture(file, title)]
    for table in tables:  # with names that users gave
        cells = [[*map(document.escape, line)] for line in (table.header, *table.body)]
        blocks += [f"## {document.escape(table.title)}", document.tabulate(cells[0], cells[1:])]
        blocks += map(document.escape, table.notes)
    pictures = {file: (output / file).read_bytes() for file in titles}
    page = document.render_html(TITLE, blocks, pictures)
    filesystem.write_atomically(output / "index.html", page, durable=False)
