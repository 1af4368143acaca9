"""Validation curves of trainings: what facts keep of them, whether they are flat, a picture."""

from __future__ import annotations

import csv
import io
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tfmammo.config import Frozen
from tfmammo.errors import ConfigError, TrackingError
from tfmammo.metrics.plotting import COLOURS, plot_style
from tfmammo.studies.workflow import OLD, Step
from tfmammo.tracking import runs
from tfmammo.tracking.export.card import CARD

log = logging.getLogger(__name__)

EXPORTED = "curve.csv"  # beside the export of a training that was made elsewhere: step, measure
SHORTEST = 8  # validations, below which nothing is said about the end
FLAT = "flat"
UNKNOWN = "too short to say"
ENDS = (FLAT, "rising", "falling", UNKNOWN)
LINES = ("-", "--", ":")  # of models beyond as many as there are colours
_OUTPUT = re.compile(r"--output runs/report-[a-z]+/(\S+)")
_STUDY = re.compile(r"python evaluate/(detection\.py --study|classification\.py)\b")
_REPETITION = re.compile(r"(/fold\d+)?(/seed\d+|/fold\d+-seed\d+)?$")


class Curve(Frozen):
    """The held-out measure that chose a training's best weights, over its steps."""

    training: str
    """The training's folder in the report: "can/seed0", or that of a study's training:
    "blending_study/detectors/real/fold0-seed0".
    """
    measure: str
    """The measure: "dice"."""
    steps: tuple[int, ...]
    """The steps after which it was measured."""
    values: tuple[float, ...]
    """Its values, to four significant digits."""

    @property
    def end(self) -> float:
        """The mean of the last quarter of the values."""
        return float(np.mean(self._get_quarter(1)))

    @property
    def change(self) -> float:
        """The mean of the last quarter less that of the quarter before."""
        return self.end - float(np.mean(self._get_quarter(2)))

    @property
    def course(self) -> str:
        """Say how it ends: "flat", "rising" or "falling", or that it is too short to say.

        A curve is flat where its last two quarters differ by no more than two standard errors of
        that difference, or than a hundredth of the last one's mean.
        """
        if len(self.values) < SHORTEST:
            return UNKNOWN
        quarters = [self._get_quarter(1), self._get_quarter(2)]
        error = np.sqrt(sum(np.var(quarter, ddof=1) / len(quarter) for quarter in quarters))
        if abs(self.change) <= max(2 * error, 0.01 * abs(self.end)):
            return FLAT
        return "rising" if self.change > 0 else "falling"

    def _get_quarter(self, from_end: int) -> tuple[float, ...]:
        """Return a quarter of the values, at least one: 1 is the last, 2 the one before."""
        length = max(len(self.values) // 4, 1)
        stop = max(len(self.values) - (from_end - 1) * length, length)
        return self.values[stop - length : stop]


def read_curves(steps: Iterable[Step], output: Path, tracking_uri: str) -> tuple[Curve, ...]:
    """Read the curves of those steps that are trainings, and of a study's own trainings.

    Args:
        steps: Finished steps.
        output: The folder of the report.
        tracking_uri: Its MLflow store. A training that it does not know has an empty curve.
    """
    curves = []
    for folder in (folder for step in steps for folder in _find_trainings(step, output)):
        name = folder.relative_to(output).as_posix()
        try:
            measure, history = runs.read_monitor(folder, tracking_uri)
        except TrackingError as error:
            log.warning("%s: no validation curve, %s", name, error)
            measure, history = "", {}
        curves.append(_make_curve(name, measure, history))
    return tuple(curves)


def read_exported_curves(exports: Mapping[str, Path]) -> tuple[Curve, ...]:
    """Read the curves of trainings that were made elsewhere, where they came with their exports.

    Args:
        exports: Training -> its export. One without `EXPORTED` has no curve.

    Raises:
        ConfigError: A file is no such table.
    """
    curves = []
    for training, export in exports.items():
        path = export / EXPORTED
        if not path.exists():
            continue
        try:
            with path.open(newline="", encoding="utf-8") as file:
                (_, measure), *rows = csv.reader(file)
            history = {int(number): float(value) for number, value in rows}
        except (ValueError, csv.Error):
            raise ConfigError(f"{path}: is no table of steps and a measure") from None
        curves.append(_make_curve(training, measure, history))
    return tuple(curves)


def _make_curve(training: str, measure: str, history: Mapping[int, float]) -> Curve:
    # a measure may be none at times: while a network is still fading in, or where nothing is kept
    known = {step: value for step, value in history.items() if math.isfinite(value)}
    values = tuple(float(f"{value:.4g}") for value in known.values())
    return Curve(training=training, measure=measure, steps=tuple(known), values=values)


def _find_trainings(step: Step, output: Path) -> list[Path]:
    folder = output / step.name
    if Path(step.command[0]).parent.name == "train":
        return [folder]
    exports = (path.parent for path in folder.rglob(f"export/{CARD}"))
    return sorted(path.parent for path in exports if path.parent.suffix != OLD)


def are_complete(curves: Iterable[Curve], commands: Iterable[str]) -> bool:
    """Return whether each training of an item has a curve, and each study has some.

    A training that was made elsewhere has one if it came with its export.

    Args:
        curves: The item's curves.
        commands: The item's commands, as its facts have them.
    """
    known = [curve.training for curve in curves]
    for command in commands:
        output = _OUTPUT.search(command)
        folder = output[1] if output else ""
        if "python train/" in command and folder not in known:
            return False
        of_study = (training.startswith(f"{folder}/") for training in known)
        if _STUDY.search(command) and not any(of_study):
            return False
    return bool(known)


def tabulate(curves: Iterable[Curve]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Tabulate how curves end: header and body."""
    header = ("training", "held-out measure", "last quarter", "change from the third", "end")
    body = tuple(
        (
            curve.training,
            curve.measure,
            f"{curve.end:.4g}",
            f"{curve.change:+.2g}" if len(curve.values) >= SHORTEST else "-",
            curve.course,
        )
        for curve in curves
    )
    return header, body


def draw(curves: Sequence[Curve]) -> bytes:
    """Draw the curves of an item, a panel for each measure and a colour for each model.

    Returns:
        PNG.
    """
    buffer = io.BytesIO()
    FigureCanvasAgg(_draw_figure(curves)).print_figure(buffer, dpi=90, format="png")
    return buffer.getvalue()


@plot_style
def _draw_figure(curves: Sequence[Curve]) -> Figure:
    measures = list(dict.fromkeys(curve.measure for curve in curves))
    figure = Figure(figsize=(4.5 * len(measures) + 1.5, 3), layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        of_panel = [curve for curve in curves if curve.measure == measure]
        models = list(dict.fromkeys(map(_get_model, of_panel)))
        for curve in of_panel:
            number = models.index(_get_model(curve))
            axes.plot(
                curve.steps,
                curve.values,
                color=COLOURS[number % len(COLOURS)],
                linestyle=LINES[number // len(COLOURS) % len(LINES)],
                label=models[number],
            )
        axes.set(xlabel="step", ylabel=f"{measure}, held out")
        lines = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # one a model
        axes.legend(lines.values(), lines.keys(), loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _get_model(curve: Curve) -> str:
    return _REPETITION.sub("", curve.training)
