"""Means, intervals over patients and paired tests of several models' scores, and tables of them."""

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

from tfmammo.filesystem import atomic_file
from tfmammo.metrics.segmentation import Paired, bootstrap_interval, paired_test
from tfmammo.metrics.significance import FEWEST_PATIENTS, Test, describe, describe_few, holm

Scores = Mapping[str, Mapping[str, NDArray[np.float64]]]  # model -> measure -> [n]
Method = Literal["bootstrap", "jackknife"]
Compare = Literal["first", "pairs"]
INTERVALS: Mapping[Method, str] = {
    "bootstrap": "percentile bootstrap that draws whole patients",
    "jackknife": "Student's t on a jackknife that leaves out one patient at a time, or one of 100 "
    "groups of patients where there are more",
}
P_OF: Mapping[Method, Test] = {"bootstrap": "flips", "jackknife": "jackknife"}


@dataclass(frozen=True)
class Measure:
    """How a measure is shown: heading, unit, factor, decimals."""

    heading: str
    unit: str
    scale: float
    decimals: int

    @property
    def column(self) -> str:
        """The heading with its unit, where there is one."""
        return f"{self.heading}, {self.unit}" if self.unit else self.heading

    def show(self, value: float, sign: str = "") -> str:
        """Format a mean or difference in the measure's unit; a dash where there is none.

        Args:
            value: The number, as computed.
            sign: "+" writes the sign of positive numbers, too.
        """
        return f"{value * self.scale:{sign}.{self.decimals}f}" if np.isfinite(value) else "-"


@dataclass(frozen=True)
class Row:
    """One model's mean of one measure, with its interval, and its difference from another model's.

    Attributes:
        model: The model.
        measure: The measure.
        n: Number of images that have the measure for all models.
        patients: Number of patients of these images.
        mean: The mean over these images.
        low: Lower bound of the interval of the mean.
        high: Upper bound of the interval of the mean.
        method: The method behind intervals and p.
        against: The other model; "": none.
        difference: The difference of the means, model - against.
        difference_low: Lower bound of the interval of the difference.
        difference_high: Upper bound of the interval of the difference.
        p: Two-sided p of the difference.
        p_corrected: p by Holm, see `correct_p`. Both p are NaN where there is nothing to compare
            with, or fewer than `FEWEST_PATIENTS` patients.
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
        elsewhere: How the paper's patches differ from those here; "" where they don't.
    """

    values: Mapping[str, float]
    elsewhere: str = ""

    def label(self, model: str) -> str:
        """Name its line in a table."""
        return f"{model}, as printed" + (f" ({self.elsewhere})" if self.elsewhere else "")


@dataclass(frozen=True)
class Table:
    """A table of text for markdown and rich; the first column names the lines.

    Line breaks in cells become spaces in Markdown.

    Attributes:
        title: The heading.
        header: The headings of the columns.
        body: Lines of cells.
        notes: Sentences below the table.
    """

    title: str
    header: list[str]
    body: list[list[str]]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Format the table as Markdown, with its title as a heading."""
        lines = [self.header, ["---"] + ["---:"] * (len(self.header) - 1), *self.body]
        table = "\n".join(f"| {' | '.join(line)} |".replace("\n", " ") for line in lines)
        return f"### {self.title}\n\n{table}\n" + "".join(f"\n{note}\n" for note in self.notes)

    def latex(self) -> str:
        """Format the table for LaTeX, with the package booktabs; notes stand below it."""
        lines = [" & ".join(map(_escape_latex, line)) + r" \\" for line in self.body]
        header = " & ".join(map(_escape_latex, self.header)) + r" \\"
        notes = [rf"\par\smallskip {{\footnotesize {_escape_latex(note)}}}" for note in self.notes]
        parts = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escape_latex(self.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}",
            r"\toprule",
            header,
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            *notes,
            r"\end{table}",
        ]
        return "\n".join(parts) + "\n"

    def _repr_markdown_(self) -> str:
        return self.markdown()  # what a notebook shows

    def __rich__(self) -> rich.table.Table:
        """Format the table for the console of rich."""
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


_LATEX: dict[str, str | int | None] = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
    "\n": " ",
}


def _escape_latex(text: str) -> str:
    return text.translate(str.maketrans(_LATEX))


def list_comparisons(models: Sequence[str], compare: Compare) -> list[tuple[str, str]]:
    """List the comparisons of a table.

    Args:
        models: In the order of the table.
        compare: "first" compares each model with the first, "pairs" with all before it.

    Returns:
        (model, the other model); the first model has "", no other.
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
    """Compute each model's mean of each measure, its interval, and paired tests against others.

    Images where a model has no finite value (a PSNR of equal images, a region that is empty) are
    left out for all models.

    Args:
        scores: Model -> measure -> float64 [n], the same n images for all.
        patient_ids: str [n].
        samples: As for `bootstrap_interval` and `paired_test`.
        seed: As for `bootstrap_interval` and `paired_test`.
        level: As for `bootstrap_interval` and `paired_test`.
        compare: See `list_comparisons`.

    Returns:
        Rows by measure, then by model, then by the other model. A measure without any image is left
        out.
    """
    rows = []
    for measure in next(iter(scores.values())):
        usable = np.all([np.isfinite(values[measure]) for values in scores.values()], axis=0)
        if not usable.any():
            continue
        patients = patient_ids[usable]
        values = {model: of_model[measure][usable] for model, of_model in scores.items()}
        bounds = {
            model: bootstrap_interval(of_model, patients, samples, seed, level)
            for model, of_model in values.items()
        }
        counts = len(patients), len(set(patients.tolist()))
        for model, other in list_comparisons(list(scores), compare):
            row = Row(model, measure, *counts, float(values[model].mean()), *bounds[model])
            if other:
                test = paired_test(values[model], values[other], patients, samples, seed, level)
                row = add_difference(row, other, test)
            rows.append(row)
    return rows


def add_difference(row: Row, other: str, test: Paired) -> Row:
    """Return the row with its difference from another model."""
    return replace(
        row,
        against=other,
        difference=test.difference,
        difference_low=test.low,
        difference_high=test.high,
        p=test.p,
    )


def correct_p(rows: Sequence[Row]) -> list[Row]:
    """Correct p by Holm over all comparisons of each measure; measures do not count together."""
    corrected: dict[int, np.float64] = {}
    for measure in {row.measure for row in rows}:
        places = [place for place, row in enumerate(rows) if row.measure == measure]
        corrected |= dict(zip(places, holm([rows[place].p for place in places]), strict=True))
    return [replace(row, p_corrected=float(corrected[place])) for place, row in enumerate(rows)]


def make_tables(
    rows: Sequence[Row],
    measures: Mapping[str, Measure],
    title: str,
    printed: Mapping[str, Printed] | None = None,
    models_across: bool = False,
    samples: int = 10_000,
    level: float = 0.95,
) -> list[Table]:
    """Make a table of means with intervals and, for several models, one of differences with p.

    p is corrected by Holm.

    Args:
        rows: Made by `summarize`.
        measures: Measure -> how to show it, in order.
        title: The title of the table of means.
        printed: Model -> what a paper prints, shown below the model's own line.
        models_across: One column a model and one line a measure, instead of the reverse.
        samples: As rows were made with.
        level: As rows were made with.
    """
    printed = printed or {}
    rows = correct_p(rows)
    lines = []
    for model in dict.fromkeys(row.model for row in rows):
        lines.append(model)
        if model in printed:
            lines.append(printed[model].label(model))
    means = _format_means(rows, measures, printed)
    notes = describe_intervals(rows, measures, level)
    tables = [_make_table(title, lines, measures, means, models_across, notes)]
    others = {row.against for row in rows if row.against}
    differences = _format_differences(rows, measures, others)
    if differences:
        heading = (
            f"Differences from {next(iter(others))}"
            if len(others) == 1
            else "Differences of every pair"
        )
        lines = list(dict.fromkeys(line for line, _ in differences))
        notes = describe_p(rows, measures, samples, level)
        tables.append(_make_table(heading, lines, measures, differences, models_across, notes))
    return tables


def _format_means(
    rows: Sequence[Row], measures: Mapping[str, Measure], printed: Mapping[str, Printed]
) -> dict[tuple[str, str], str]:
    """Format each mean with its interval, and a paper's own number; (line, measure) -> cell."""
    cells = {}
    for row in rows:
        show = measures[row.measure].show
        cells[row.model, row.measure] = show(row.mean) + _format_interval(row.low, row.high, show)
        paper = printed.get(row.model, Printed({}))
        if row.measure in paper.values:
            cells[paper.label(row.model), row.measure] = show(paper.values[row.measure])
    return cells


def _format_differences(
    rows: Sequence[Row], measures: Mapping[str, Measure], others: set[str]
) -> dict[tuple[str, str], str]:
    """Format each difference with its interval and p; (line, measure) -> cell."""
    cells = {}
    for row in rows:
        if row.against and np.isfinite(row.difference):
            signed = partial(measures[row.measure].show, sign="+")
            cells[_name_difference(row, others), row.measure] = (
                signed(row.difference)
                + _format_interval(row.difference_low, row.difference_high, signed)
                + format_p_line(row.p_corrected)
            )
    return cells


def describe_intervals(
    rows: Sequence[Row], measures: Mapping[str, Measure], level: float
) -> tuple[str, ...]:
    """Describe the intervals of a table, or say why there are none.

    Measures are named where their notes differ.
    """
    measures_of: dict[str, set[str]] = {}
    for row in rows:
        note = f"In brackets: {100 * level:g} % interval, {INTERVALS[row.method]}."
        if row.patients < FEWEST_PATIENTS:
            note = describe_few(row.patients)
        measures_of.setdefault(note, set()).add(row.measure)
    return _name_measures(measures_of, measures)


def describe_p(
    rows: Sequence[Row], measures: Mapping[str, Measure], samples: int, level: float
) -> tuple[str, ...]:
    """Describe the p values of a table, or say why there are none.

    Measures are named where their notes differ.
    """
    measures_of: dict[str, set[str]] = {}
    for row in rows:
        if row.against and row.patients < FEWEST_PATIENTS:
            measures_of.setdefault(describe_few(row.patients), set()).add(row.measure)
        elif np.isfinite(row.p):
            comparisons = sum(
                other.measure == row.measure and bool(np.isfinite(other.p)) for other in rows
            )
            note = describe(P_OF[row.method], row.patients, comparisons, samples, level)
            measures_of.setdefault(note, set()).add(row.measure)
    return _name_measures(measures_of, measures)


def convert_units(row: Row, measure: Measure) -> dict[str, Any]:
    """Return the row's fields, with all values in the measure's unit, and the unit."""
    content = asdict(row)
    for key in ("mean", "low", "high", "difference", "difference_low", "difference_high"):
        content[key] *= measure.scale
    return content | {"unit": measure.unit}


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys under a header; NaN becomes an empty cell."""
    with atomic_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {
                    key: "" if isinstance(value, float) and np.isnan(value) else value
                    for key, value in row.items()
                }
            )


def format_p(p: float) -> str:
    """Format a p value in a few characters; "-" where there is none."""
    if np.isnan(p):
        return "-"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def format_spread(values: NDArray[np.floating]) -> str:
    """Format the mean of folds or seeds, and a sample's standard deviation where several have one.

    Args:
        values: Of each fold or seed [n]; NaN where one has none.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return "-"
    spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread}"


def _name_measures(
    measures_of: Mapping[str, set[str]], measures: Mapping[str, Measure]
) -> tuple[str, ...]:
    """Put the headings of its measures before each note, unless there is only one note."""
    if len(measures_of) == 1:
        return tuple(measures_of)
    return tuple(
        f"{'; '.join(measures[key].heading for key in measures if key in keys)}. {note}"
        for note, keys in measures_of.items()
    )


def _format_interval(low: float, high: float, show: Callable[[float], str]) -> str:
    """Format an interval on a line of its own; nothing where there is none."""
    return f"\n[{show(low)}, {show(high)}]" if np.isfinite([low, high]).any() else ""


def format_p_line(p: float) -> str:
    """Format p on a line of its own, below a difference and its interval; nothing for NaN."""
    if np.isnan(p):
        return ""
    return "\np < 0.001" if p < 0.001 else f"\np = {p:.3f}"


def _name_difference(row: Row, others: set[str]) -> str:
    """Name a line of differences: the model, and the other model unless that is always the same."""
    return row.model if len(others) == 1 else f"{row.model} - {row.against}"


def _make_table(
    title: str,
    models: Sequence[str],
    measures: Mapping[str, Measure],
    cells: Mapping[tuple[str, str], str],
    across: bool,
    notes: tuple[str, ...],
) -> Table:
    headings = {key: measure.column for key, measure in measures.items()}
    if across:
        body = [
            [heading, *(cells.get((model, key), "-") for model in models)]
            for key, heading in headings.items()
        ]
        return Table(title, ["", *models], body, notes)
    body = [[model, *(cells.get((model, key), "-") for key in headings)] for model in models]
    return Table(title, ["", *headings.values()], body, notes)
