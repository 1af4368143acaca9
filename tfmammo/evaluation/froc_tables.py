"""FROC measures over trainings, for the tables of detector evaluations and detection studies."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfmammo.evaluation.report import write_markdown
from tfmammo.metrics.detection import (
    ALL_DETECTIONS,
    Matches,
    Measured,
    Training,
    count_diseased,
    froc_by_training,
    froc_interval,
    over_folds,
    parts_with_lesions,
)
from tfmammo.metrics.jafroc import choose_common_merit, jafroc, jafroc_test
from tfmammo.metrics.significance import FEWEST_PATIENTS, describe, describe_few, holm
from tfmammo.metrics.summary import Measure, Table, format_p

PERCENT = Measure("recall", "%", 100, 1).show
MERIT = Measure("figure of merit", "", 1, 3).show
FALSE_POSITIVES = Measure("false positives", "", 1, 2).show
Floats = NDArray[np.float64]


def measure(
    images: Sequence[Matches],
    patients: Sequence[str],
    trainings: Sequence[Training],
    fppi: Sequence[float],
    bootstrap: tuple[int, int, float],
    of: Measured = "tpr",
) -> tuple[Floats, Floats, Floats, Floats]:
    """Average a FROC curve over trainings, with its deviation over folds and its interval.

    Args:
        images: As for `froc_interval`.
        patients: As for `froc_interval`.
        trainings: As for `froc_interval`.
        fppi: False positives per image [k].
        bootstrap: Draws, seed and confidence level.
        of: As for `froc_interval`.

    Returns:
        (mean, deviation, low, high), float64 [k] each; NaN where there is none.
    """
    curves = froc_by_training(images, trainings, fppi)
    mean, deviation = over_folds(
        {training: getattr(curve, of) for training, curve in curves.items()}
    )
    low, high = froc_interval(images, patients, fppi, *bootstrap, of, trainings=trainings)
    return mean, deviation, low, high


def compute_mean_recall(
    images: Sequence[Matches], trainings: Sequence[Training], fppi: Sequence[float]
) -> Floats:
    """Average sensitivity over trainings, at numbers of false positives per image."""
    curves = froc_by_training(images, trainings, fppi)
    mean, _ = over_folds({training: curve.tpr for training, curve in curves.items()})
    return mean


def format_patients(patients: Sequence[str]) -> str:
    """Say how many different patients there are."""
    count = len(set(patients))
    return f"{count} patient{'s' * (count > 1)}"


def make_notes(
    images: Sequence[Matches], patients: Sequence[str], comparisons: int = 0
) -> tuple[str, ...]:
    """Describe the test below a table, or say that there are too few patients for one.

    Args:
        images: The matches in each mammogram.
        patients: The patient of each mammogram.
        comparisons: How many tests the table holds; 0: none.
    """
    diseased = count_diseased(images, patients)
    if diseased < FEWEST_PATIENTS:
        return (describe_few(diseased, "with lesions"),)
    return (describe("jackknife", len(set(patients)), comparisons),) if comparisons else ()


def compute_recall_metrics(
    images: Sequence[Matches], trainings: Sequence[Training], fppi: Sequence[float]
) -> dict[str, float]:
    """Compute what the tracking store keeps of a FROC curve, averaged over trainings.

    Returns:
        Recall, and its mean from 0 to there, at numbers of false positives per image; recall of all
        detections.
    """
    curves = froc_by_training(images, trainings, (*fppi, ALL_DETECTIONS))
    recall, areas = (
        over_folds({training: getattr(curve, of) for training, curve in curves.items()})[0]
        for of in ("tpr", "areas")
    )
    metrics = {
        f"recall at {rate:g}": float(value) for rate, value in zip(fppi, recall[:-1], strict=True)
    }
    metrics |= {
        f"mean recall to {rate:g}": float(value)
        for rate, value in zip(fppi, areas[:-1], strict=True)
    }
    return metrics | {"recall of all detections": float(recall[-1])}


def make_recall_cells(
    images: Sequence[Matches],
    patients: Sequence[str],
    trainings: Sequence[Training],
    fppi: Sequence[float],
    bootstrap: tuple[int, int, float],
) -> list[str]:
    """Make a line of recall, with the deviation over folds and intervals.

    Returns:
        A cell for each number of false positives per image, one for all detections, and one for the
        mean from 0 to the largest number.
    """
    rates = (*fppi, ALL_DETECTIONS)
    recall = measure(images, patients, trainings, rates, bootstrap)
    area = measure(images, patients, trainings, [max(fppi)], bootstrap, "areas")
    columns = [*zip(*recall, strict=True), *zip(*area, strict=True)]
    return [format_value(PERCENT, *column) for column in columns]


def format_value(
    show: Callable[..., str], mean: float, deviation: float, low: float, high: float
) -> str:
    """Format a mean with its deviation and interval, where they exist."""
    text = show(mean)
    if np.isfinite(deviation):
        text += f" ± {show(deviation)}"
    if np.isfinite(low):
        text += f"\n[{show(low)}, {show(high)}]"
    return text


def format_difference(show: Callable[..., str], value: float, low: float, high: float) -> str:
    """Format a difference with its interval, where that exists."""
    text = show(value, "+")
    if np.isfinite(low):
        text += f"\n[{show(low, '+')}, {show(high, '+')}]"
    return text


def tabulate_differences(
    matches: Mapping[str, tuple[Sequence[Matches], Sequence[Training]]],
    reference: str,
    patients: Sequence[str],
    fppi: Sequence[float],
    bootstrap: tuple[int, int, float],
    headings: tuple[str, str],
) -> Table:
    """Tabulate how far detectors are from a reference, on the same mammograms.

    Recall has intervals for which the same patients are drawn for both. JAFROC's figure of merit
    has p, too, corrected by Holm.

    Args:
        matches: Name -> the matches in each mammogram, and the training behind each.
        reference: One of the names.
        patients: The patient of each mammogram.
        fppi: False positives per image.
        bootstrap: Draws, seed and confidence level.
        headings: The title, and the heading of the names.
    """
    others, reference_trainings = matches[reference]
    rates = (*fppi, ALL_DETECTIONS)
    reference_recall = compute_mean_recall(others, reference_trainings, rates)
    merit = choose_common_merit(patients, *matches.values())
    body = []
    p_values = []
    for name, (images, trainings) in matches.items():
        if name == reference:
            continue
        difference = compute_mean_recall(images, trainings, rates) - reference_recall
        low, high = froc_interval(
            images,
            patients,
            rates,
            *bootstrap,
            against=others,
            trainings=trainings,
            others_trainings=reference_trainings,
        )
        cells = [
            format_difference(PERCENT, *column)
            for column in zip(difference, low, high, strict=True)
        ]
        test = jafroc_test(
            images, others, patients, merit, bootstrap[2], trainings, reference_trainings
        )
        cells.append(format_difference(MERIT, test.difference, test.low, test.high))
        body.append([name, *cells])
        p_values.append(test.p)
    rows = [
        [*row, format_p(p), format_p(corrected)]
        for row, p, corrected in zip(body, p_values, holm(p_values), strict=True)
    ]
    title, heading = headings
    header = [
        heading,
        *(f"{rate:g}, %" for rate in fppi),
        "all detections, %",
        f"{merit.upper()} figure of merit",
        "p, uncorrected",
        "p, Holm",
    ]
    comparisons = int(np.isfinite(p_values).sum())
    return Table(title, header, rows, make_notes(others, patients, comparisons))


def tabulate_trainings(
    matches: Mapping[str, tuple[Sequence[Matches], Sequence[Training]]],
    patients: Sequence[str],
    heading: str,
) -> Table:
    """Tabulate the figure of merit of each training, one column a fold, its seeds in order.

    Intervals and p count patients. This table shows how much trainings differ besides. What no
    training made, such as random boxes, is left out where there are folds: it is of all of them.

    Args:
        matches: As for `tabulate_differences`.
        patients: As for `tabulate_differences`.
        heading: Of the names.
    """
    merit = choose_common_merit(patients, *matches.values())
    merits: dict[str, dict[Training, float]] = {
        name: {
            training: jafroc(part, merit)
            for training, part in parts_with_lesions(images, trainings).items()
        }
        for name, (images, trainings) in matches.items()
    }
    folds = sorted({fold for of_name in merits.values() for fold, _ in of_name})
    body = [
        [
            name,
            *(
                ", ".join(MERIT(of_name[one]) for one in sorted(of_name) if one[0] == fold)
                for fold in folds
            ),
        ]
        for name, of_name in merits.items()
        if {fold for fold, _ in of_name} == set(folds)
    ]
    title = f"{merit.upper()} figure of merit of each training"
    return Table(title, [heading, *(f"fold {fold}" for fold in folds)], body)


def write_tables(output: Path, tables: Mapping[str, Table]) -> None:
    """Write table.md, and a CSV file of each table."""
    write_markdown(output / "table.md", list(tables.values()))
    for name, table in tables.items():
        write_table(output / f"{name}.csv", table)


def write_table(path: Path, table: Table) -> None:
    """Write one table as CSV, its cells as they are shown."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([table.header, *table.body])
