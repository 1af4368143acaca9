"""Tables, CSV files and figures of one evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tfmammo.evaluation.comparison import Comparison, EvaluationConfig
from tfmammo.filesystem import atomic_file, write_atomically
from tfmammo.metrics.summary import (
    Measure,
    Printed,
    Row,
    Scores,
    Table,
    convert_units,
    correct_p,
    make_tables,
    write_csv,
)
from tfmammo.tracking import runs

EXPERIMENT = "tfmammo-evaluation"  # the experiment in MLflow


@dataclass(frozen=True)
class Published:
    """What a paper prints of a model, and on which patches.

    Attributes:
        values: Measure -> value.
        archive: A name of tfmammo.archives.
        leaky: Whether copies of one lesion stood on both sides of the paper's split; None where
            the paper does not say how it split.
        frame: The crop mode of the paper's patches. The values are shown for this crop mode only;
            None: for any.
    """

    values: Mapping[str, float]
    archive: str
    leaky: bool | None = None
    frame: str | None = None

    def annotate(self, comparison: Comparison) -> Printed:
        """Return the values together with what sets them apart from a comparison."""
        differences = []
        if comparison.data.archive_name != self.archive:
            differences.append(f"on {self.archive}")
        if self.leaky is None:
            differences.append("a split of its own")
        elif self.leaky != (comparison.protocol == "paper"):
            differences.append("a split that leaks" if self.leaky else "unseen patients")
        return Printed(self.values, ", ".join(differences))


@dataclass
class Report:
    """All comparisons of one evaluation: tables to print, table.md, table.csv, per_image.csv.

    Attributes:
        config: The evaluation's config.
        measures: Measure -> how it is shown, in the order of columns.
        published: Model -> what a paper prints of it, shown below the model's own row.
        models_across: One column a model and one line a measure, instead of the reverse.
        tables: All tables so far.
        rows: All lines of table.csv so far.
        images: All lines of per_image.csv so far.
        note: Appended to every title.
    """

    config: EvaluationConfig
    measures: Mapping[str, Measure]
    published: Mapping[str, Published] = field(default_factory=dict)
    models_across: bool = False
    tables: list[Table] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""

    def add(
        self,
        comparison: Comparison,
        scores: Scores,
        rows: Sequence[Row] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Add a comparison.

        Args:
            comparison: The patches, and which fold evaluated each.
            scores: Model -> measure -> float64 [n]. It may hold models that have no network, such
                as trivial baselines. What is no key of `measures` goes to per_image.csv only.
            rows: The content of the tables; None: summaries of all scores.
            notes: Sentences below the table of means, before its own.
        """
        config = self.config
        if rows is None:
            tabulated = {
                model: {key: values[key] for key in self.measures}
                for model, values in scores.items()
            }
            rows = config.summarize(tabulated, comparison.patches.patient_ids)
        title = f"{comparison.title}; {self.note}" if self.note else comparison.title
        printed = {
            model: published.annotate(comparison)
            for model, published in self.published.items()
            if published.frame in (None, comparison.data.frame)
        }
        means, *others = make_tables(
            rows, self.measures, title, printed, self.models_across, config.samples, config.level
        )
        self.tables += [replace(means, notes=notes + means.notes), *others]
        self.tables += tabulate_folds(comparison, scores, self.measures)
        self.rows += [
            {"protocol": comparison.protocol, **convert_units(row, self.measures[row.measure])}
            for row in correct_p(rows)
        ]
        for model, values in scores.items():
            self._add_images(comparison, model, values)

    def _add_images(self, comparison: Comparison, model: str, scores: Mapping[str, Any]) -> None:
        """Add one line of per_image.csv for each patch."""
        patches = comparison.patches
        folds = comparison.folds.get(model)
        for row, patch_id in enumerate(patches.ids.tolist()):
            self.images.append(
                {
                    "protocol": comparison.protocol,
                    "model": model,
                    "fold": "" if folds is None else int(folds[row]),
                    "id": patch_id,
                    "patient": str(patches.patient_ids[row]),
                    **{name: float(values[row]) for name, values in scores.items()},
                }
            )

    def write(self, output: Path) -> None:
        """Write table.md, table.csv and per_image.csv into a folder, and log the folder.

        table.csv is in the units of the measures, per_image.csv as computed. Everything in the
        folder is logged to MLflow if config.tracking_uri is set.

        Raises:
            TrackingError: config.tracking_uri is set and can't be reached.
        """
        output.mkdir(parents=True, exist_ok=True)
        write_markdown(output / "table.md", self.tables)
        write_csv(output / "table.csv", self.rows)
        write_csv(output / "per_image.csv", self.images)
        if self.config.tracking_uri:
            means = {
                f"{row['protocol']}/{row['model']}/{row['measure']}": row["mean"]
                for row in self.rows
            }
            content = self.config.model_dump(mode="json")
            runs.log_folder(output, self.config.tracking_uri, EXPERIMENT, content, means)


def tabulate_folds(
    comparison: Comparison, scores: Scores, measures: Mapping[str, Measure]
) -> list[Table]:
    """Tabulate the measures' means in each fold; nothing where no model has several folds.

    A difference of two models that is one training's alone shows here. As for the differences,
    patches where a model has no finite value are left out for all models.

    Args:
        comparison: Which fold evaluated each patch. The folds are those of the first model that has
            several, in its order. A model whose networks share out the patches in another way has
            no means.
        scores: Model -> measure -> float64 [n].
        measures: Measure -> how it is shown.
    """
    several = (folds for folds in comparison.folds.values() if len(np.unique(folds)) > 1)
    folds = next(several, None)
    shown = {
        key: measure
        for key, measure in measures.items()
        if all(key in values for values in scores.values())
    }
    if folds is None or not shown:
        return []
    groups = [folds == fold for fold in np.unique(folds)]
    usable = {key: _find_usable([values[key] for values in scores.values()]) for key in shown}
    body = []
    for model, values in scores.items():
        is_alike = _are_same_groups(comparison.folds.get(model, folds), folds)
        cells = [
            ", ".join(
                measure.show(_average(values[key][group & usable[key] & is_alike]))
                for group in groups
            )
            for key, measure in shown.items()
        ]
        body.append([model, *cells])
    header = ["", *(measure.column for measure in shown.values())]
    return [Table(f"Means in each fold, {comparison.title}", header, body)]


def _find_usable(values: Sequence[NDArray[np.float64]]) -> NDArray[np.bool_]:
    """Mark the patches where all models have a value, but those that have none anywhere."""
    known = np.isfinite(values)
    return np.asarray(known[known.any(axis=1)].all(axis=0), np.bool_)


def _are_same_groups(first: NDArray[np.intp], second: NDArray[np.intp]) -> bool:
    """Whether two ways to share out the patches differ by the groups' numbers alone."""
    pairs = np.unique(np.stack([first, second]), axis=1).shape[1]
    return pairs == len(np.unique(first)) == len(np.unique(second))


def _average(values: NDArray[np.float64]) -> float:
    """Average values; NaN where there are none."""
    return float(values.mean()) if len(values) else np.nan


def write_markdown(path: Path, content: Sequence[Table]) -> None:
    """Write tables as one Markdown file."""
    write_atomically(path, "\n".join(table.markdown() for table in content))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, without a display."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as part:
        FigureCanvasAgg(figure).print_figure(part, dpi=150, format="png")
