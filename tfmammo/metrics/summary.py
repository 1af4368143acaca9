"""Means, intervals over patients and paired tests of several models' scores, and tables of them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rich.table
from numpy.typing import NDArray
from rich.text import Text

from tfmammo.document import tabulate
from tfmammo.filesystem import atomic_file
from tfmammo.metrics.resampling import bootstrap_interval, paired_test
from tfmammo.metrics.rows import Fact
from tfmammo.metrics.significance import (
    FEWEST_PATIENTS,
    Estimate,
    Test,
    bound_alike,
    describe,
    describe_few,
    holm,
    is_point,
)

Scores = Mapping[str, Mapping[str, NDArray[np.float64]]]  # model -> measure -> [n]
Compare = Literal["first", "pairs"]
# Of `Fact.test`
BOOTSTRAP = "bootstrap by patient"
PERMUTATION = "permutation by patient"
JACKKNIFE = "jackknife by patient"
RULE_OF_THREE = "rule of three"
INTERVALS = {
    BOOTSTRAP: "percentile bootstrap that draws whole patients",
    RULE_OF_THREE: "rule of three where all patients are alike",
    JACKKNIFE: "Student's t on a jackknife that leaves out one patient at a time, or one of 100 "
    "groups of patients where there are more",
}
TESTS: Mapping[str, Test] = {PERMUTATION: "flips", JACKKNIFE: "jackknife"}


@dataclass(frozen=True)
class Measure:
    """How a measure is shown.

    Attributes:
        heading: Its name in tables.
        unit: "%", "dB"; "" for none.
        scale: The unit's factor: 100 for "%".
        decimals: Digits behind the point.
        is_share: Whether an image's value is a share, in [0, 1]: right or wrong, a part of pixels.
    """

    heading: str
    unit: str
    scale: float
    decimals: int
    is_share: bool = False

    @property
    def column(self) -> str:
        """The heading with its unit, where there is one."""
        return f"{self.heading}, {self.unit}" if self.unit else self.heading

    def show(self, value: float, sign: str = "") -> str:
        """Format a number as computed in the measure's unit; `sign` "+" marks positive ones."""
        return self.format(value * self.scale, sign)

    def format(self, value: float, sign: str = "") -> str:
        """Format a number that is in the measure's unit already; a dash for NaN and infinity."""
        return f"{value:{sign}.{self.decimals}f}" if np.isfinite(value) else "-"

    def format_fact(self, fact: Fact) -> str:
        """Format a fact with its interval and p, a line each; a difference with its sign."""
        sign = "+" if fact.against else ""
        lines = [self.format(fact.value, sign)]
        if np.isfinite([fact.low, fact.high]).any():
            lines.append(f"[{self.format(fact.low, sign)}, {self.format(fact.high, sign)}]")
        if fact.against and np.isfinite(fact.p_corrected):
            p = fact.p_corrected
            lines.append("p < 0.001" if p < 0.001 else f"p = {p:.3f}")
        return "\n".join(lines)

    def make_fact(
        self,
        table: str,
        model: str,
        key: str,
        value: float | Estimate,
        /,
        **fields: Any,
    ) -> Fact:
        """Make a fact of numbers as computed, which are put into the measure's unit.

        Args:
            table: As of `Fact`, like `model` and the further `fields`.
            model: The name that the config gave it.
            key: The measure's key.
            value: The number, or with its interval.
            **fields: Of `Fact`.
        """
        estimate = value if isinstance(value, Estimate) else Estimate(value)
        numbers = estimate.value, estimate.low, estimate.high
        value, low, high = (float(number) * self.scale for number in numbers)
        unit = self.unit or ("" if self.scale == 1 else f"{1 / self.scale:g}")
        fields = {"subset": "", "against": "", **fields}
        return Fact(
            table, model=model, measure=key, unit=unit, value=value, low=low, high=high, **fields
        )

    def list_runs(self, model: str, key: str, values: Sequence[float]) -> list[Fact]:
        """Make a fact of the mean in each of several runs; a single run has none."""
        return [
            self.make_fact("runs", model, key, value, subset=f"run={run}")
            for run, value in enumerate(values)
            if len(values) > 1
        ]

    def make_difference(
        self,
        table: str,
        model: str,
        key: str,
        ours: NDArray[np.float64],
        others: NDArray[np.float64],
        patients: NDArray[np.str_],
        samples: int = 10_000,
        seed: int = 0,
        level: float = 0.95,
        /,
        **fields: Any,
    ) -> Fact:
        """Make a fact of the mean of `ours` less that of `others`, tested by `paired_test`.

        Where shares differ alike for all patients, but not by 0, the interval is by the rule of
        three.

        Args:
            table: As of `make_fact`, like `model`, `key` and `fields`.
            ours: As for `paired_test`, like `samples`, `seed` and `level`; float64 [n].
            others: Of the same n images.
            patients: The patient of each image, str [n].
        """
        paired = paired_test(ours, others, patients, samples, seed, level)
        sizes = count_sizes(patients)
        fields |= {"test": PERMUTATION, "p": paired.p, **sizes}
        is_equal = is_point(0, abs(paired.value))
        if self.is_share and is_point(paired.low, paired.high) and not is_equal:
            low, high = bound_alike(paired.value, sizes["patients"], level, lowest=-1.0)
            paired = replace(paired, low=low, high=high)
        return self.make_fact(table, model, key, paired, **fields)


@dataclass(frozen=True)
class Table:
    """A table of text: lines of cells, the first of which names the line; sentences below it."""

    title: str
    header: list[str]
    body: list[list[str]]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Format it as Markdown with its title as a heading; line breaks in cells become spaces."""
        table = tabulate(self.header, self.body)
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


def count_sizes(patient_ids: NDArray[np.str_]) -> dict[str, int]:
    """Count patients and images, as fields of a `Fact`; `patient_ids` has one for each image."""
    return {"patients": len(set(patient_ids.tolist())), "images": len(patient_ids)}


def list_comparisons(models: Sequence[str], compare: Compare) -> list[tuple[str, str]]:
    """List which model is compared with which other one: each with the first, or every pair."""
    if compare == "first":
        return [(model, models[0]) for model in models[1:]]
    return [(model, other) for place, model in enumerate(models) for other in models[:place]]


def summarize(
    scores: Scores,
    patient_ids: NDArray[np.str_],
    measures: Mapping[str, Measure],
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    compare: Compare = "first",
) -> list[Fact]:
    """Compute each model's mean of each measure, its interval, and paired tests against others.

    Images where a model has no finite value (a PSNR of equal images, a region that is empty) are
    skipped for all models. Where all patients are alike, the interval of a share is by the rule of
    three.

    Args:
        scores: Model -> measure -> float64 [n], the same n images for all.
        patient_ids: str [n].
        measures: The measures that count; those that a model lacks are skipped.
        samples: As for `paired_test`, like `seed` and `level`.
        seed: Seed of the draws.
        level: Confidence level, in (0, 1).
        compare: With the first model, or every pair.

    Returns:
        By measure, levels of the table "means" and differences of the table "differences"; nothing
        of a measure without any image.
    """
    facts = []
    for key, measure in measures.items():
        if not all(key in values for values in scores.values()):
            continue
        usable = np.all([np.isfinite(values[key]) for values in scores.values()], axis=0)
        if not usable.any():
            continue
        patients = patient_ids[usable]
        counts = count_sizes(patients)
        values = {model: of_model[key][usable] for model, of_model in scores.items()}
        for model, own in values.items():
            mean, test = float(own.mean()), BOOTSTRAP
            bounds = bootstrap_interval(own, patients, samples, seed, level)
            if measure.is_share and is_point(*bounds):
                bounds, test = bound_alike(mean, counts["patients"], level), RULE_OF_THREE
            estimate = Estimate(mean, *bounds)
            facts.append(measure.make_fact("means", model, key, estimate, test=test, **counts))
        for model, other in list_comparisons(list(scores), compare):
            pair = values[model], values[other], patients, samples, seed, level
            fact = measure.make_difference("differences", model, key, *pair, against=other)
            facts.append(fact)
    return facts


def correct_p(facts: Sequence[Fact]) -> list[Fact]:
    """Correct p by Holm over all comparisons of each measure; measures do not count together."""
    corrected: dict[int, np.float64] = {}
    for measure in {fact.measure for fact in facts}:
        places = [place for place, fact in enumerate(facts) if fact.measure == measure]
        corrected |= dict(zip(places, holm([facts[place].p for place in places]), strict=True))
    return [replace(fact, p_corrected=float(corrected[n])) for n, fact in enumerate(facts)]


def make_tables(
    facts: Sequence[Fact],
    measures: Mapping[str, Measure],
    title: str,
    printed: Mapping[str, tuple[str, Mapping[str, float]]] | None = None,
    models_across: bool = False,
    samples: int = 10_000,
    level: float = 0.95,
) -> list[Table]:
    """Make a table of means with intervals and, for several models, one of differences with p.

    Args:
        facts: Made by `summarize`, their p corrected.
        measures: Measure -> how to show it, in order.
        title: The title of the table of means.
        printed: Model -> the line below its own, by name, and the numbers there; see
            `printed.Published`.
        models_across: One column a model and one line a measure, instead of the reverse.
        samples: As facts were made with, like `level`.
        level: Confidence level, in (0, 1).
    """
    printed = printed or {}
    cells = {}
    for fact in facts:
        if not fact.against:
            measure = measures[fact.measure]
            cells[fact.model, fact.measure] = measure.format_fact(fact)
            label, values = printed.get(fact.model, ("", {}))
            if fact.measure in values:
                cells[label, fact.measure] = measure.show(values[fact.measure])
    lines = []
    for model in dict.fromkeys(fact.model for fact in facts):
        lines.append(model)
        if model in printed:
            lines.append(printed[model][0])
    notes = _describe_intervals(facts, measures, level)
    tables = [_make_table(title, lines, measures, cells, models_across, notes)]
    others = {fact.against for fact in facts if fact.against}
    cells = {
        (fact.model if len(others) == 1 else f"{fact.model} - {fact.against}", fact.measure): (
            measures[fact.measure].format_fact(fact)
        )
        for fact in facts
        if fact.against and np.isfinite(fact.value)
    }
    if cells:
        heading = f"from {next(iter(others))}" if len(others) == 1 else "of every pair"
        lines = list(dict.fromkeys(line for line, _ in cells))
        notes = describe_p(facts, measures, samples, level)
        tables.append(
            _make_table(f"Differences {heading}", lines, measures, cells, models_across, notes)
        )
    return tables


def _describe_intervals(
    facts: Sequence[Fact], measures: Mapping[str, Measure], level: float
) -> tuple[str, ...]:
    measures_of: dict[str, set[str]] = {}
    for fact in facts:
        if fact.against or fact.test not in INTERVALS:
            continue
        note = f"In brackets: {100 * level:g} % interval, {INTERVALS[fact.test]}."
        if (fact.patients or 0) < FEWEST_PATIENTS:
            note = describe_few(fact.patients or 0)
        measures_of.setdefault(note, set()).add(fact.measure)
    return _name_measures(measures_of, measures)


def describe_p(
    facts: Sequence[Fact],
    measures: Mapping[str, Measure],
    samples: int,
    level: float,
    corrected_over: Sequence[Fact] = (),
) -> tuple[str, ...]:
    """Describe below a table of differences how their p were made.

    Args:
        facts: The differences.
        measures: Measure -> how it is shown.
        samples: As facts were made with, like `level`.
        corrected_over: All facts whose p were corrected together, where the table has some of them.
    """
    measures_of: dict[str, set[str]] = {}
    for fact in facts:
        patients = fact.patients or 0
        if fact.against and patients < FEWEST_PATIENTS:
            measures_of.setdefault(describe_few(patients), set()).add(fact.measure)
        elif np.isfinite(fact.p):
            comparisons = sum(
                other.measure == fact.measure and bool(np.isfinite(other.p))
                for other in corrected_over or facts
            )
            note = describe(TESTS[fact.test], patients, comparisons, samples, level)
            measures_of.setdefault(note, set()).add(fact.measure)
    return _name_measures(measures_of, measures)


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


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write rows under a header; NaN and what a row lacks become empty cells.

    Args:
        columns: The header; by default the keys of the first row.
    """
    with atomic_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {
                    key: "" if isinstance(value, float) and np.isnan(value) else value
                    for key, value in row.items()
                }
            )


def format_p(p: float) -> str:
    """Format a p-value in a few characters; "-" where there is none."""
    if np.isnan(p):
        return "-"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def format_spread(values: NDArray[np.floating]) -> str:
    """Format the mean of folds or seeds (NaN where one has none), and their deviation."""
    values = values[np.isfinite(values)]
    if not len(values):
        return "-"
    spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread}"
