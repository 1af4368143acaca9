"""Scores of several models on the same images -> means, patient intervals, paired tests,
and tables of them.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rich.table
from numpy.typing import NDArray
from rich.text import Text

from tfmammo.metrics.segmentation import Paired, bootstrap_interval, paired_test
from tfmammo.metrics.significance import FEWEST_PATIENTS, Test, describe, describe_few, holm

Scores = Mapping[str, Mapping[str, NDArray[np.float64]]]  # model -> measure -> [n]
Method = Literal["bootstrap", "jackknife"]
Compare = Literal["first", "pairs"]
INTERVALS: Mapping[Method, str] = {
    "bootstrap": "percentile bootstrap that draws whole patients",
    "jackknife": "Student's t on a jackknife that leaves out one patient at a time",
}
P_OF: Mapping[Method, Test] = {"bootstrap": "flips", "jackknife": "jackknife"}


@dataclass(frozen=True)
class Measure:
    """How a measure is shown: heading, unit, factor, decimals."""

    heading: str
    unit: str
    scale: float
    decimals: int

    def show(self, value: float, sign: str = "") -> str:
        """A mean or difference in the measure's unit, a dash where there is none. sign: "+" writes
        it always.
        """
        return f"{value * self.scale:{sign}.{self.decimals}f}" if np.isfinite(value) else "-"


@dataclass(frozen=True)
class Row:
    """One model's mean of one measure, with its interval, and its difference from another model's.

    Attributes:
        n: How many images and patients have the measure for all models.
        patients: How many images and patients have the measure for all models.
        method: Where interval and p come from.
        against: The other model.
        p: Two-sided.
        p_corrected: By Holm, see `correct`. NaN where there is nothing to compare with, or fewer
            than `FEWEST_PATIENTS` patients.
    """

    model: str
    measure: str
    n: int
    patients: int
    mean: float
    low: float
    high: float
    method: Method = "bootstrap"
    against: str = ""
    difference: float = np.nan
    difference_low: float = np.nan
    difference_high: float = np.nan
    p: float = np.nan
    p_corrected: float = np.nan


@dataclass(frozen=True)
class Printed:
    """What a paper prints of a model.

    Attributes:
        values: Measure -> value.
        elsewhere: How its patches were other ones; "" where they were not.
    """

    values: Mapping[str, float]
    elsewhere: str = ""

    def label(self, model: str) -> str:
        """What its line in a table is called."""
        return f"{model}, as printed" + (f" ({self.elsewhere})" if self.elsewhere else "")


@dataclass(frozen=True)
class Table:
    """A table of text for markdown and rich; the first column names the lines.

    Cells of several lines are one in markdown.

    Attributes:
        notes: Sentences under the table.
    """

    title: str
    header: list[str]
    body: list[list[str]]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The table under its title as a heading."""
        lines = [self.header, ["---"] + ["---:"] * (len(self.header) - 1), *self.body]
        table = "\n".join(f"| {' | '.join(line)} |".replace("\n", " ") for line in lines)
        return f"### {self.title}\n\n{table}\n" + "".join(f"\n{note}\n" for note in self.notes)

    def __rich__(self) -> rich.table.Table:
        """What rich's console prints."""
        caption = Text("\n".join(self.notes)) if self.notes else None
        table = rich.table.Table(
            title=self.title,
            title_justify="left",
            caption=caption,
            caption_justify="left",
            show_lines=True,
        )
        for column, heading in enumerate(self.header):
            table.add_column(heading, justify="right" if column else "left")
        for line in self.body:
            table.add_row(*line)
        return table


def opponents(models: Sequence[str], compare: Compare) -> list[tuple[str, str]]:
    """(model, the one that it is compared with), "" for the first model.

    Args:
        models: In the order of the table.
        compare: "first" compares each with the first, "pairs" with all before it.
    """
    first, *others = models
    if compare == "first":
        return [(first, ""), *((model, first) for model in others)]
    return [
        (first, ""),
        *((model, other) for row, model in enumerate(models) for other in models[:row]),
    ]


def summarize(
    scores: Scores,
    patient_ids: NDArray[np.str_],
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    compare: Compare = "first",
) -> list[Row]:
    """Each model's mean of each measure with its interval, and the paired test against other
    models.

    Images where a model has no finite value (a PSNR of equal images, a region that is empty) are
    left out for all models.

    Args:
        scores: Model -> measure -> float64 [n], the same n images for all.
        patient_ids: str [n].
        samples: Of `bootstrap_interval` and `paired_test`.
        seed: Of `bootstrap_interval` and `paired_test`.
        level: Of `bootstrap_interval` and `paired_test`.
        compare: See `opponents`.

    Returns:
        By measure, then by model, then by what it is compared with; a measure without any image is
        left out.
    """
    rows = []
    for measure in next(iter(scores.values())):
        usable = np.all([np.isfinite(values[measure]) for values in scores.values()], axis=0)
        if not usable.any():
            continue
        patients = patient_ids[usable]
        values = {model: measured[measure][usable] for model, measured in scores.items()}
        bounds = {
            model: bootstrap_interval(own, patients, samples, seed, level)
            for model, own in values.items()
        }
        counts = len(patients), len(set(patients.tolist()))
        for model, other in opponents(list(scores), compare):
            row = Row(model, measure, *counts, float(values[model].mean()), *bounds[model])
            if other:
                row = versus(
                    row,
                    other,
                    paired_test(values[model], values[other], patients, samples, seed, level),
                )
            rows.append(row)
    return rows


def versus(row: Row, other: str, found: Paired) -> Row:
    """The row with its difference from another model's."""
    return replace(
        row,
        against=other,
        difference=found.difference,
        difference_low=found.low,
        difference_high=found.high,
        p=found.p,
    )


def correct(rows: Sequence[Row]) -> list[Row]:
    """Rows with Holm's correction over all comparisons of each measure; the number of measures does
    not count.
    """
    corrected: dict[int, np.float64] = {}
    for measure in {row.measure for row in rows}:
        places = [place for place, row in enumerate(rows) if row.measure == measure]
        corrected |= dict(zip(places, holm([rows[place].p for place in places]), strict=True))
    return [replace(row, p_corrected=float(corrected[place])) for place, row in enumerate(rows)]


def tables(
    rows: Sequence[Row],
    measures: Mapping[str, Measure],
    title: str,
    printed: Mapping[str, Printed] | None = None,
    models_across: bool = False,
    samples: int = 10_000,
    level: float = 0.95,
) -> list[Table]:
    """A table of means with intervals; and, of several models, one of differences with p after
    Holm's correction.

    Args:
        rows: Of `summarize`.
        measures: Measure -> how to show it, in order.
        title: Of the means.
        printed: Model -> what a paper prints, put under the model's own.
        models_across: A column for each model and a line for each measure, instead of the reverse.
        samples: As rows were made with.
        level: As rows were made with.
    """
    printed = printed or {}
    rows = correct(rows)
    means = {}
    differences = {}
    models = list(dict.fromkeys(row.model for row in rows))
    lines = [
        line
        for model in models
        for line in ((model, printed[model].label(model)) if model in printed else (model,))
    ]
    others = {row.against for row in rows if row.against}
    for row in rows:
        show = measures[row.measure].show
        means[row.model, row.measure] = show(row.mean) + _between(row.low, row.high, show)
        paper = printed.get(row.model, Printed({}))
        if row.measure in paper.values:
            means[paper.label(row.model), row.measure] = show(paper.values[row.measure])
        if np.isfinite(row.difference):
            signed = partial(show, sign="+")
            text = (
                signed(row.difference)
                + _between(row.difference_low, row.difference_high, signed)
                + _shown_p(row.p_corrected)
            )
            differences[_versus(row, others), row.measure] = text
    found = [
        _table(
            title, lines, measures, means, models_across, notes_of_intervals(rows, measures, level)
        )
    ]
    compared = list(
        dict.fromkeys(
            _versus(row, others) for row in rows if row.against and np.isfinite(row.difference)
        )
    )
    if compared:
        heading = (
            f"Differences from {next(iter(others))}"
            if len(others) == 1
            else "Differences of every pair"
        )
        notes = notes_of_p(rows, measures, samples, level)
        found.append(_table(heading, compared, measures, differences, models_across, notes))
    return found


def notes_of_intervals(
    rows: Sequence[Row], measures: Mapping[str, Measure], level: float
) -> tuple[str, ...]:
    """What the intervals of a table are, or why there are none; measures are named where they
    differ.
    """
    said: dict[str, set[str]] = {}
    for row in rows:
        note = f"In brackets: {100 * level:g} % interval, {INTERVALS[row.method]}."
        said.setdefault(
            describe_few(row.patients) if row.patients < FEWEST_PATIENTS else note, set()
        ).add(row.measure)
    return _named(said, measures)


def notes_of_p(
    rows: Sequence[Row], measures: Mapping[str, Measure], samples: int, level: float
) -> tuple[str, ...]:
    """What the p values of a table are, or why there are none; measures are named where they
    differ.
    """
    said: dict[str, set[str]] = {}
    for row in rows:
        if row.against and row.patients < FEWEST_PATIENTS:
            said.setdefault(describe_few(row.patients), set()).add(row.measure)
        elif np.isfinite(row.p):
            comparisons = sum(
                other.measure == row.measure and bool(np.isfinite(other.p)) for other in rows
            )
            note = describe(P_OF[row.method], row.patients, comparisons, samples, level)
            said.setdefault(note, set()).add(row.measure)
    return _named(said, measures)


def in_units(row: Row, measure: Measure) -> dict[str, Any]:
    """The row's fields with all values in the measure's unit, and the unit."""
    content = asdict(row)
    for key in ("mean", "low", "high", "difference", "difference_low", "difference_high"):
        content[key] *= measure.scale
    return content | {"unit": measure.unit}


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys under a header; NaN becomes an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {
                    key: "" if isinstance(value, float) and np.isnan(value) else value
                    for key, value in row.items()
                }
            )


def _named(said: Mapping[str, set[str]], measures: Mapping[str, Measure]) -> tuple[str, ...]:
    if len(said) == 1:
        return tuple(said)
    return tuple(
        f"{'; '.join(measures[key].heading for key in measures if key in keys)}. {note}"
        for note, keys in said.items()
    )


def _between(low: float, high: float, show: Callable[[float], str]) -> str:
    """An interval on a line of its own; nothing where there is none."""
    return f"\n[{show(low)}, {show(high)}]" if np.isfinite([low, high]).any() else ""


def _shown_p(p: float) -> str:
    if np.isnan(p):
        return ""
    return "\np < 0.001" if p < 0.001 else f"\np = {p:.3f}"


def _versus(row: Row, others: set[str]) -> str:
    """What a line of differences is called: the model, and the other one unless that is always the
    same.
    """
    return row.model if len(others) == 1 else f"{row.model} - {row.against}"


def _table(
    title: str,
    models: Sequence[str],
    measures: Mapping[str, Measure],
    cells: Mapping[tuple[str, str], str],
    across: bool,
    notes: tuple[str, ...],
) -> Table:
    headings = {
        key: f"{measure.heading}, {measure.unit}" if measure.unit else measure.heading
        for key, measure in measures.items()
    }
    if across:
        body = [
            [heading, *(cells.get((model, key), "-") for model in models)]
            for key, heading in headings.items()
        ]
        return Table(title, ["", *models], body, notes)
    body = [[model, *(cells.get((model, key), "-") for key in headings)] for model in models]
    return Table(title, ["", *headings.values()], body, notes)
