"""The comparison of models again within groups of patches: by pathology, shape or margin.

CAN's paper says that it equals other models on benign masses and is better on malignant ones,
lobulated (a shape) and spiculated ones (a margin) above all. It prints no number for either. These
tables do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tfmammo.data.patches import Patches
from tfmammo.evaluation.comparison import Comparison, EvaluationConfig
from tfmammo.metrics.summary import Measure, Row, Scores, Table, convert_units, correct_p
from tfmammo.metrics.summary import make_tables as make_summary_tables

Attribute = Literal["pathology", "shape", "margin"]
COLUMNS: Mapping[Attribute, str] = {
    "pathology": "pathologies",
    "shape": "shapes",
    "margin": "margins",
}
UNKNOWN = "unknown"


def summarize_groups(
    config: EvaluationConfig, patches: Patches, scores: Scores, attribute: Attribute
) -> dict[str, list[Row]]:
    """Summarize each group of patches as the whole is summarized.

    Args:
        config: Settings of intervals and tests.
        patches: The patches that were scored [n].
        scores: Model -> measure -> float64 [n].
        attribute: What the groups are of.

    Returns:
        Group -> rows, groups in alphabetical order. Patches without the attribute are the group
        "unknown", which comes last.
    """
    labels: NDArray[np.str_] = getattr(patches, COLUMNS[attribute])
    names = sorted(set(labels.tolist()), key=lambda name: (name == "", name))
    rows_of = {}
    for name in names:
        members = np.flatnonzero(labels == name)
        of_group = {
            model: {measure: values[members] for measure, values in of_model.items()}
            for model, of_model in scores.items()
        }
        rows_of[name or UNKNOWN] = config.summarize(of_group, patches.patient_ids[members])
    return rows_of


def tabulate_groups(
    config: EvaluationConfig,
    comparison: Comparison,
    scores: Scores,
    measures: Mapping[str, Measure],
    attributes: Sequence[Attribute],
) -> tuple[list[Table], list[dict[str, Any]]]:
    """Tabulate means of each group, and differences between models within each group.

    Holm's correction is over all groups and models of an attribute.

    Args:
        config: Settings of intervals and tests.
        comparison: The patches.
        scores: Model -> measure -> float64 [n]. It may hold trivial baselines.
        measures: Measure -> how it is shown.
        attributes: What the groups are of.

    Returns:
        The tables, and the lines of groups.csv in the units of the measures.
    """
    shown = {model: {key: values[key] for key in measures} for model, values in scores.items()}
    tables: list[Table] = []
    lines: list[dict[str, Any]] = []
    for attribute in attributes:
        rows_of = summarize_groups(config, comparison.patches, shown, attribute)
        groups = [group for group, rows in rows_of.items() for _ in rows]
        rows = correct_p([row for rows in rows_of.values() for row in rows])
        counts = ", ".join(
            f"{group} {rows[0].n} of {rows[0].patients} patients"
            for group, rows in rows_of.items()
            if rows
        )
        named = [_name_group(row, group) for row, group in zip(rows, groups, strict=True)]
        title = f"By {attribute} ({counts}); {comparison.title}"
        means, *differences = make_summary_tables(
            named, measures, title, samples=config.samples, level=config.level
        )
        heading = f"Differences within each {attribute}"
        tables += [means, *(replace(table, title=heading) for table in differences)]
        lines += [
            {
                "protocol": comparison.protocol,
                "attribute": attribute,
                "group": group,
                **convert_units(row, measures[row.measure]),
            }
            for row, group in zip(rows, groups, strict=True)
        ]
    return tables, lines


def _name_group(row: Row, group: str) -> Row:
    """Return the row with its group as a part of both models' names."""
    against = f"{row.against}, {group}" if row.against else ""
    return replace(row, model=f"{row.model}, {group}", against=against)
