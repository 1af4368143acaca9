"""Judge shape classifiers on patients they never saw: accuracy with intervals, confusion
matrices, ROC curves of the folds.

python evaluate/shape.py --config configs/shape_evaluation.yaml --set data.name=ddsm data.root=DIR

A baseline without weights shows what the accuracy is worth: "most frequent" calls every mass what
most masks are that the first model was trained on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tfmammo import cli
from tfmammo import config as configuration
from tfmammo.config import TrainingConfig
from tfmammo.data.patches import shape_patches
from tfmammo.errors import ConfigError
from tfmammo.evaluation import comparison as evaluation
from tfmammo.metrics import classification
from tfmammo.metrics.plotting import COLOURS, INK, quiet
from tfmammo.metrics.summary import Measure, Table
from tfmammo.models.shape import SHAPES
from tfmammo.training import script

MEASURES = {"accuracy": Measure("Accuracy", "%", 100, 1)}
# 5 folds; of patients or of masses it does not say
PRINTED = {"Shape CNN": evaluation.Published({"accuracy": 0.80}, "ddsm")}
FLOOR = "most frequent"
RATES = np.linspace(0, 1, 201)
BLUE = COLOURS[-1]


def main() -> None:
    """Read the config, run every model on the masks of patients it never saw, compare, write and
    print.
    """
    chosen = cli.arguments(__doc__).parse_args()
    config = configuration.parse(evaluation.EvaluationConfig, chosen.config, chosen.set)
    if FLOOR in config.models:
        raise ConfigError(f"models: {FLOOR} is the name of a floor")
    script.prepare(TrainingConfig(precision="float32"))
    output = chosen.output or Path("runs/shape_evaluation")
    report = evaluation.Report(config, MEASURES, PRINTED)
    for comparison in evaluation.compare(config, "mask", "shapes", shape_patches, (len(SHAPES),)):
        labels = comparison.patches.labels
        floor = {FLOOR: most_frequent(comparison)}
        report.add(
            comparison,
            {name: scores(labels, found) for name, found in (comparison.outputs | floor).items()},
        )
        for name, probabilities in comparison.outputs.items():
            confusion = classification.confusion_matrix(
                labels, probabilities.argmax(axis=1), len(SHAPES)
            )
            report.tables.append(confusion_table(name, confusion))
            evaluation.save(
                confusion_figure(name, confusion), output / f"figure-confusion-{name}.png"
            )
            curves, areas = folds(labels, probabilities, comparison.folds[name])
            if len(curves):
                report.tables.append(area_table(name, areas))
                evaluation.save(roc_figure(name, curves, areas), output / f"figure-roc-{name}.png")
    report.write(output)
    for table in report.tables:
        cli.console.print(table)
    cli.console.print(f"tables, CSVs and figures: {output}")


def most_frequent(comparison: evaluation.Comparison) -> NDArray[np.float32]:
    """The commonest shape of each fold's training masks as a certain answer, float32 [n, shapes];
    without them, of all masks.
    """
    pool = comparison.pool
    model = next(iter(comparison.networks))
    assert pool is not None
    found = np.zeros((len(comparison.patches), len(SHAPES)), np.float32)
    for number, network in enumerate(comparison.networks[model]):
        known = comparison.trained_on(network)
        commonest = np.bincount(pool.labels[known] if known.any() else pool.labels).argmax()
        found[comparison.folds[model] == number, commonest] = 1
    return found


def scores(
    labels: NDArray[np.integer], probabilities: NDArray[np.floating]
) -> dict[str, NDArray[np.float64]]:
    """Per mask: whether it was called what it is, both as numbers of SHAPES, and the probability of
    each shape.
    """
    called = probabilities.argmax(axis=1)
    found = {"accuracy": called == labels, "label": labels, "called": called}
    found |= {f"p_{shape}": probabilities[:, number] for number, shape in enumerate(SHAPES)}
    return {name: values.astype(np.float64) for name, values in found.items()}


def folds(
    labels: NDArray[np.integer], probabilities: NDArray[np.floating], fold: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean ROC curve of each fold at RATES, [folds, rates], and the areas of each shape against
    the others, [folds, shapes].

    Folds of a single shape, which nothing can be told from, are left out.
    """
    parts = [part for number in np.unique(fold) if len(set(labels[part := fold == number])) > 1]
    curves = [classification.mean_roc(labels[part], probabilities[part], RATES) for part in parts]
    areas = [classification.one_versus_rest(labels[part], probabilities[part]) for part in parts]
    return np.reshape(curves, (-1, len(RATES))), np.reshape(areas, (-1, len(SHAPES)))


def confusion_table(name: str, confusion: NDArray[np.integer]) -> Table:
    """Counts, true shapes in lines, with each shape's recall, and each column's precision in the
    last line.
    """
    precision, recall = (
        [MEASURES["accuracy"].show(part) for part in parts]
        for parts in classification.precision_recall(confusion)
    )
    body = [
        [shape, *map(str, line.tolist()), recall[row]]
        for row, (shape, line) in enumerate(zip(SHAPES, confusion, strict=True))
    ]
    title = f"{name}: true shapes in lines, what they were called in columns"
    return Table(title, ["", *SHAPES, "recall, %"], [*body, ["precision, %", *precision, ""]])


def area_table(name: str, areas: NDArray[np.floating]) -> Table:
    """Mean and standard deviation over the folds of each shape's area under the ROC curve, and of
    their mean over shapes.
    """
    columns = [column[np.isfinite(column)] for column in (*areas.T, np.nanmean(areas, axis=1))]
    body = [
        f"{column.mean():.3f} ± {_spread(column):.3f}" if len(column) else "-" for column in columns
    ]
    title = (
        f"{name}: area under the ROC curve of each shape against the others, mean ± standard "
        f"deviation of {len(areas)} folds"
    )
    return Table(title, ["", *SHAPES, "mean"], [[name, *body]])


@quiet
def confusion_figure(name: str, confusion: NDArray[np.integer]) -> Figure:
    """The confusion matrix, each line in percent of its true shape, with counts."""
    shares = 100 * confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    figure = Figure(figsize=(4.2, 4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for (row, column), share in np.ndenumerate(shares):
        text = f"{share:.0f} %\n{confusion[row, column]}"
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share > 55 else INK,
        )
    places = range(len(SHAPES))
    axes.set(
        xticks=places,
        xticklabels=SHAPES,
        yticks=places,
        yticklabels=SHAPES,
        xlabel="called",
        ylabel="true",
    )
    axes.set_title(f"{name}, {confusion.sum()} masses")
    return figure


@quiet
def roc_figure(name: str, curves: NDArray[np.floating], areas: NDArray[np.floating]) -> Figure:
    """The folds' mean ROC curve with its standard deviation as a band, and the folds'
    own curves.
    """
    figure = Figure(figsize=(4.2, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], ":", color=INK, linewidth=0.8)
    for curve in curves:
        axes.plot(RATES, curve, color=BLUE, linewidth=0.5, alpha=0.5)
    mean = curves.mean(axis=0)
    spread = _spread(curves)
    area = np.nanmean(areas, axis=1)
    label = f"mean of {len(curves)} folds, area {area.mean():.3f} ± {_spread(area):.3f}"
    axes.plot(RATES, mean, color=BLUE, linewidth=1.5, label=label)
    axes.fill_between(
        RATES,
        np.maximum(0, mean - spread),
        np.minimum(1, mean + spread),
        color=BLUE,
        alpha=0.2,
        linewidth=0,
    )
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1.01),
        xlabel="false positive rate",
        ylabel="true positive rate",
        aspect="equal",
    )
    axes.legend(loc="lower right", fontsize=8)
    axes.set_title(f"{name}, each shape against the others")
    return figure


def _spread(values: NDArray[np.floating], axis: int = 0) -> NDArray[np.float64]:
    """The standard deviation of a sample; 0 of a single value."""
    return np.std(values, axis=axis, ddof=min(1, values.shape[axis] - 1))


if __name__ == "__main__":
    cli.run(main)
