"""Scores of several models on the same images -> means, patient intervals, paired tests, and tables of them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rich.table
from numpy.typing import NDArray

from tfmammo.metrics.segmentation import bootstrap_interval, paired_test

Scores = Mapping[str, Mapping[str, NDArray[np.float64]]]  # model -> measure -> [n]


@dataclass(frozen=True)
class Measure:
    """How a measure is shown: heading, unit, factor, decimals."""

    heading: str
    unit: str
    scale: float
    decimals: int

    def show(self, value: float, sign: str = "") -> str:
        """A mean or difference in the measure's unit, a dash where there is none. sign: "+" writes it always."""
        return f"{value * self.scale:{sign}.{self.decimals}f}" if np.isfinite(value) else "-"


@dataclass(frozen=True)
class Row:
    """One model's mean of one measure, with its interval, and its difference from the first model's.

    n, patients: how many images and patients have the measure for all models. p: two-sided, not corrected for the number
    of comparisons. NaN where there is nothing to compare with, or no interval because there is one patient only.
    """

    model: str
    measure: str
    n: int
    patients: int
    mean: float
    low: float
    high: float
    difference: float = np.nan
    difference_low: float = np.nan
    difference_high: float = np.nan
    p: float = np.nan


@dataclass(frozen=True)
class Table:
    """A table of text for markdown and rich; the first column names the lines. Cells of several lines are one in markdown.

    notes: sentences under the table.
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
        caption = "\n".join(self.notes) or None
        table = rich.table.Table(title=self.title, title_justify="left", caption=caption, caption_justify="left", show_lines=True)
        for column, heading in enumerate(self.header):
            table.add_column(heading, justify="right" if column else "left")
        for line in self.body:
            table.add_row(*line)
        return table


def summarize(scores: Scores, patient_ids: NDArray[np.str_], samples: int = 10_000, seed: int = 0, level: float = 0.95) -> list[Row]:
    """Each model's mean of each measure with its interval, and the paired test against the first model.

    Images where a model has no finite value (a PSNR of equal images, a region that is empty) are left out for all models.

    Args:     scores: model -> measure -> float64 [n], the same n images for all. patient_ids: str [n].
              samples, seed, level: of `bootstrap_interval` and `paired_test`.
    Returns:  by measure, then by model; a measure without any image is left out.
    """
    rows, first = [], next(iter(scores))
    for measure in scores[first]:
        usable = np.all([np.isfinite(values[measure]) for values in scores.values()], axis=0)
        if not usable.any():
            continue
        patients, reference = patient_ids[usable], scores[first][measure][usable]
        for model, measured in scores.items():
            values = measured[measure][usable]
            interval = bootstrap_interval(values, patients, samples, seed, level)
            against = () if model == first else astuple(paired_test(values, reference, patients, samples, seed, level))
            rows.append(Row(model, measure, len(values), len(set(patients)), float(values.mean()), *interval, *against))
    return rows


def tables(
    rows: Sequence[Row],
    measures: Mapping[str, Measure],
    title: str,
    printed: Mapping[str, Mapping[str, float]] | None = None,
    models_across: bool = False,
) -> list[Table]:
    """A table of means with intervals; and, of several models, one of differences from the first with p.

    Args:     rows: of `summarize`. measures: measure -> how to show it, in order. title: of the means.
              printed: model -> measure -> a paper's value, put under the model's own. models_across: a column for each
              model and a line for each measure, instead of the reverse.
    """
    printed = printed or {}
    means, differences = {}, {}
    models = list(dict.fromkeys(row.model for row in rows))
    lines = [line for model in models for line in ((model, f"{model}, as printed") if model in printed else (model,))]
    for row in rows:
        show = measures[row.measure].show
        means[row.model, row.measure] = f"{show(row.mean)}\n[{show(row.low)}, {show(row.high)}]"
        if row.measure in printed.get(row.model, {}):
            means[f"{row.model}, as printed", row.measure] = show(printed[row.model][row.measure])
        if row.model != models[0] and np.isfinite(row.difference):
            interval = f"[{show(row.difference_low, '+')}, {show(row.difference_high, '+')}]"
            p = "p < 0.001" if row.p < 0.001 else f"p = {row.p:.3f}"
            differences[row.model, row.measure] = f"{show(row.difference, '+')}\n{interval}\n{p}"
    found = [_table(title, lines, measures, means, models_across)]
    compared = [model for model in models[1:] if any((model, key) in differences for key in measures)]
    if compared:
        found.append(_table(f"Differences from {models[0]}", compared, measures, differences, models_across))
    return found


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
            writer.writerow({key: "" if isinstance(value, float) and np.isnan(value) else value for key, value in row.items()})


def _table(title: str, models: Sequence[str], measures: Mapping[str, Measure], cells: Mapping[tuple[str, str], str], across: bool) -> Table:
    headings = {key: f"{measure.heading}, {measure.unit}" if measure.unit else measure.heading for key, measure in measures.items()}
    if across:
        body = [[heading, *(cells.get((model, key), "-") for model in models)] for key, heading in headings.items()]
        return Table(title, ["", *models], body)
    return Table(title, ["", *headings.values()], [[model, *(cells.get((model, key), "-") for key in headings)] for model in models])
