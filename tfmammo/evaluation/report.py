"""What an evaluation found: facts, the tables and CSV files made of them, the run in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tfmammo.evaluation.comparison import Comparison, EvaluationConfig
from tfmammo.filesystem import atomic_file, write_atomically
from tfmammo.metrics.printed import Published
from tfmammo.metrics.rows import Fact, join_subset, write_facts
from tfmammo.metrics.summary import (
    Measure,
    Scores,
    Table,
    correct_p,
    make_tables,
    write_csv,
)
from tfmammo.tracking import runs

EXPERIMENT = "tfmammo-evaluation"  # the experiment in MLflow
ROWS = "rows.csv"

Attribute = Literal["pathology", "shape", "margin"]
COLUMNS: Mapping[Attribute, str] = {
    "pathology": "pathologies",
    "shape": "shapes",
    "margin": "margins",
}
UNKNOWN = "unknown"
# Model -> the measures of each of its runs: measure -> float64 [n]
Runs = Mapping[str, Sequence[Mapping[str, NDArray[np.float64]]]]


@dataclass(kw_only=True)
class Report:
    """What an evaluation found; `write` writes it all.

    Attributes:
        config: Of the evaluation.
        facts: The numbers, which become rows.csv.
        tables: Views of them, which are printed and become table.md.
        files: Name -> lines of a further CSV file: what single images or cases got.
    """

    config: Any
    facts: list[Fact] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    files: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def write(self, output: Path) -> None:
        """Write rows.csv, table.md if there are tables, and the further files into a folder.

        Where config.tracking_uri is set, everything in the folder is logged to MLflow.
        """
        output.mkdir(parents=True, exist_ok=True)
        write_facts(output / ROWS, self.facts)
        if self.tables:
            write_markdown(output / "table.md", self.tables)
        for name, lines in self.files.items():
            write_csv(output / name, lines)
        if uri := getattr(self.config, "tracking_uri", None):
            content = self.config.model_dump(mode="json")
            runs.log_folder(output, uri, EXPERIMENT, content, self.list_metrics())

    def list_metrics(self) -> dict[str, float]:
        """List the levels as MLflow's metrics, "table/subset/model/measure" -> value."""
        return {
            "/".join(filter(None, (f.table, f.subset, f.model, f.measure))): f.value
            for f in self.facts
            if not f.against
        }


@dataclass(kw_only=True)
class ComparisonReport(Report):
    """The report of models that are compared on the same patches.

    Attributes:
        measures: Measure -> how it is shown, in the order of columns.
        published: Model -> what a paper prints of it, shown below the model's own row.
        models_across: One column a model and one line a measure, instead of the reverse.
        note: Appended to every title.
    """

    config: EvaluationConfig
    measures: Mapping[str, Measure] = field(default_factory=dict)
    published: Mapping[str, Published] = field(default_factory=dict)
    models_across: bool = False
    note: str = ""

    def add(
        self,
        comparison: Comparison,
        scores: Scores,
        facts: Sequence[Fact] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Add a comparison: its means, differences, folds, and the scores of single patches.

        Args:
            comparison: The patches, and which fold evaluated each.
            scores: Model -> measure -> float64 [n]. It may hold models that have no network, such
                as trivial baselines. What is no key of `measures` goes to per_image.csv only.
            facts: Means and differences, and those of other tables, such as "folds", which become
                rows only; None: summaries of all scores.
            notes: Sentences below the table of means, before its own.
        """
        config = self.config
        patches = comparison.patches
        if facts is None:
            facts = config.summarize(scores, patches.patient_ids, self.measures)
        facts = [
            replace(fact, subset=join_subset(comparison.subset, fact.subset))
            for fact in correct_p(facts)
        ]
        self.facts += facts
        shown = [fact for fact in facts if fact.table in ("means", "differences")]
        archive, is_leaky = comparison.data.archive_name, comparison.protocol == "paper"
        printed = {
            model: (published.label(model, archive, is_leaky), published.values)
            for model, published in self.published.items()
            if published.frame in (None, comparison.data.frame)
        }
        title = f"{comparison.title}; {self.note}" if self.note else comparison.title
        means, *others = make_tables(
            shown, self.measures, title, printed, self.models_across, config.samples, config.level
        )
        self.tables += [replace(means, notes=notes + means.notes), *others]
        self._add_folds(comparison, scores)
        lines = self.files.setdefault("per_image.csv", [])
        for model, values in scores.items():
            folds = comparison.folds.get(model)
            for row, patch in enumerate(patches.ids.tolist()):
                line = {
                    "protocol": comparison.protocol,
                    "model": model,
                    "fold": "" if folds is None else int(folds[row]),
                    "id": patch,
                    "patient": str(patches.patient_ids[row]),
                }
                lines.append(line | {name: float(own[row]) for name, own in values.items()})

    def _add_folds(self, comparison: Comparison, scores: Scores) -> None:
        """Add the means in each fold, where a model has several: a difference that is one's alone.

        As for the differences, patches where a model has no finite value are skipped for all
        models. The folds are those of the first model that has several. A model whose networks
        share out the patches in another way has no means.
        """
        folds = next((one for one in comparison.folds.values() if len(np.unique(one)) > 1), None)
        shown = {
            key: measure
            for key, measure in self.measures.items()
            if all(key in values for values in scores.values())
        }
        if folds is None or not shown:
            return
        body = {model: [model] for model in scores}
        for key, measure in shown.items():
            known = np.isfinite([values[key] for values in scores.values()])
            usable = known[known.any(axis=1)].all(axis=0)
            for model, values in scores.items():
                own = comparison.folds.get(model, folds)
                is_alike = (
                    len(np.unique([own, folds], axis=1).T)
                    == len(np.unique(own))
                    == len(np.unique(folds))
                )
                cells = []
                for fold in np.unique(folds):
                    chosen = values[key][(folds == fold) & usable & is_alike]
                    mean = float(chosen.mean()) if len(chosen) else np.nan
                    cells.append(measure.show(mean))
                    subset = join_subset(comparison.subset, f"fold={fold}")
                    counts = {"subset": subset, "images": len(chosen)}
                    if len(chosen):
                        self.facts.append(measure.make_fact("folds", model, key, mean, **counts))
                body[model].append(", ".join(cells))
        header = ["", *(measure.column for measure in shown.values())]
        title = f"Means in each fold, {comparison.title}"
        self.tables.append(Table(title, header, list(body.values())))

    def add_runs(self, comparison: Comparison, scores: Runs, key: str, note: str) -> None:
        """Add the mean of a measure in each run of a model, where one has several.

        Args:
            comparison: What was scored.
            scores: The measures of each run.
            key: Which measure.
            note: What other tables and figures show of several runs.
        """
        measure = self.measures[key]
        body = []
        for model, of_model in scores.items():
            if len(of_model) == 1:
                continue
            means = [float(np.nanmean(values[key])) for values in of_model]
            self.facts += [
                replace(fact, subset=join_subset(comparison.subset, fact.subset))
                for fact in measure.list_runs(model, key, means)
            ]
            deviation = measure.scale * np.std(means, ddof=1)
            listed = ", ".join(map(measure.show, means))
            body.append([model, listed, f"{deviation:.{measure.decimals + 1}f}"])
        if body:
            unit = f", {measure.unit}" if measure.unit else ""
            title = f"{measure.heading} of each run{unit}"
            self.tables.append(Table(title, ["", "mean", "deviation"], body, (note,)))

    def add_groups(
        self, comparison: Comparison, scores: Scores, attributes: Sequence[Attribute]
    ) -> None:
        """Add the comparison again within groups of patches: by pathology, shape or margin.

        Holm's correction is over all groups and models of an attribute. Patches without the
        attribute are the group "unknown", which comes last.
        """
        config = self.config
        patches = comparison.patches
        for attribute in attributes:
            labels: NDArray[np.str_] = getattr(patches, COLUMNS[attribute])
            facts: list[Fact] = []
            counts = []
            for name in sorted(set(labels.tolist()), key=lambda name: (name == "", name)):
                members = np.flatnonzero(labels == name)
                group = name or UNKNOWN
                patients = patches.patient_ids[members]
                of_group = {
                    model: {key: values[key][members] for key in self.measures}
                    for model, values in scores.items()
                }
                found = config.summarize(of_group, patients, self.measures)
                subset = join_subset(comparison.subset, f"{attribute}={group}")
                facts += [replace(fact, table="groups", subset=subset) for fact in found]
                if found:
                    counts.append(f"{group} {found[0].images} of {found[0].patients} patients")
            facts = correct_p(facts)
            self.facts += facts
            title = f"By {attribute} ({', '.join(counts)}); {comparison.title}"
            named = [_name_group(fact) for fact in facts]
            means, *differences = make_tables(
                named, self.measures, title, samples=config.samples, level=config.level
            )
            heading = f"Differences within each {attribute}"
            self.tables += [means, *(replace(table, title=heading) for table in differences)]


def _name_group(fact: Fact) -> Fact:
    """Return the fact with its group as a part of both models' names, for a table."""
    group = fact.subset.rpartition("=")[2]
    against = f"{fact.against}, {group}" if fact.against else ""
    return replace(fact, model=f"{fact.model}, {group}", against=against)


def average_runs(scores: Runs) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Average the measures of each patch over the runs of a model."""
    return {
        name: {key: np.mean([values[key] for values in of_model], axis=0) for key in of_model[0]}
        for name, of_model in scores.items()
    }


def write_markdown(path: Path, content: Sequence[Table]) -> None:
    """Write tables as one Markdown file."""
    write_atomically(path, "\n".join(table.markdown() for table in content))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, without a display."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as part:
        FigureCanvasAgg(figure).print_figure(part, dpi=150, format="png")
