"""Compare shape classifiers and a trivial baseline: what evaluate/shape.py writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import (
    ConfusionMatrixDisplay,
    confusion_matrix,
    precision_recall_fscore_support,
)

from tfmammo.data.extraction import make_shape_patches
from tfmammo.evaluation.comparison import Comparison, EvaluationConfig, compare
from tfmammo.evaluation.report import (
    ComparisonReport,
    save_figure,
)
from tfmammo.mammogram import SHAPES
from tfmammo.metrics.classification import RATES, roc_by_fold
from tfmammo.metrics.plotting import COLOURS, make_roc_axes, plot_style
from tfmammo.metrics.printed import Published, get_values
from tfmammo.metrics.rows import join_subset
from tfmammo.metrics.summary import Measure, Table, format_spread

Floats = NDArray[np.floating]

MEASURES = {"accuracy": Measure("Accuracy", "%", 100, 1, is_share=True)}
SHARE = MEASURES["accuracy"]
COUNT = Measure("count", "", 1, 0)
AREA = Measure("area", "", 1, 3)
# Five folds; the paper does not say whether of patients or of masses.
PUBLISHED = {
    name: Published(values, "ddsm") for name, values in get_values("cgan", "shape", 0.01).items()
}
MOST_FREQUENT = "most frequent"
BLUE = COLOURS[-1]


def evaluate(config: EvaluationConfig, output: Path) -> ComparisonReport:
    """Run every model on the masks of patients it never saw, and write tables, CSVs and figures."""
    config.refuse_names(MOST_FREQUENT)
    report = ComparisonReport(config=config, measures=MEASURES, published=PUBLISHED)
    for comparison in compare(config, "mask", "shapes", make_shape_patches, (len(SHAPES),)):
        labels = comparison.patches.labels
        classes = labels[:, np.newaxis] == np.arange(len(SHAPES))
        outputs = comparison.outputs | {MOST_FREQUENT: predict_most_frequent(comparison)}
        scores = {
            name: score_masks(labels, probabilities) for name, probabilities in outputs.items()
        }
        report.add(comparison, scores)
        for name, probabilities in comparison.outputs.items():
            predictions = probabilities.argmax(axis=1)
            confusion = add_confusion(report, comparison, name, labels, predictions)
            figure = draw_confusion(name, confusion)
            save_figure(figure, output / f"figure-confusion-{name}.png")
            folds, curves, areas = roc_by_fold(classes, probabilities, comparison.folds[name])
            if len(folds):
                add_areas(report, comparison, name, folds, areas)
                figure = draw_roc_curves(name, curves, areas)
                save_figure(figure, output / f"figure-roc-{name}.png")
    report.write(output)
    return report


def predict_most_frequent(comparison: Comparison) -> NDArray[np.float32]:
    """Predict the commonest shape of each fold's training masks with certainty, [n, shapes].

    Where the training masks are not known, all masks count.
    """
    pool = comparison.pool
    model = next(iter(comparison.networks))
    probabilities = np.zeros((len(comparison.patches), len(SHAPES)), np.float32)
    for number, network in enumerate(comparison.networks[model]):
        rows = comparison.find_training_patches(network)
        labels = pool.labels[rows] if rows.any() else pool.labels
        probabilities[comparison.folds[model] == number, np.bincount(labels).argmax()] = 1
    return probabilities


def score_masks(
    labels: NDArray[np.integer], probabilities: Floats
) -> dict[str, NDArray[np.float64]]:
    """Score each mask [n]: accuracy, label and prediction as indices of SHAPES, probabilities."""
    predictions = probabilities.argmax(axis=1)
    scores = {"accuracy": predictions == labels, "label": labels, "predicted": predictions}
    scores |= {f"p_{shape}": probabilities[:, number] for number, shape in enumerate(SHAPES)}
    return {name: values.astype(np.float64) for name, values in scores.items()}


def add_confusion(
    report: ComparisonReport,
    comparison: Comparison,
    name: str,
    labels: NDArray[np.integer],
    predictions: NDArray[np.integer],
) -> NDArray[np.integer]:
    """Add counts, a line for each true shape, with recall and precision; return the counts."""
    shapes = range(len(SHAPES))
    confusion = confusion_matrix(labels, predictions, labels=shapes)
    precision, recall, *_ = precision_recall_fscore_support(
        labels, predictions, labels=shapes, zero_division=np.nan
    )
    for row, shape in enumerate(SHAPES):
        subset = join_subset(comparison.subset, f"shape={shape}")
        report.facts += [
            COUNT.make_fact("confusion", name, f"predicted_{predicted}", count, subset=subset)
            for predicted, count in zip(SHAPES, confusion[row], strict=True)
        ]
        for key, values in (("recall", recall), ("precision", precision)):
            fact = SHARE.make_fact("confusion", name, key, values[row], subset=subset)
            report.facts.append(fact)
    body = [
        [shape, *map(str, counts.tolist()), SHARE.show(recall[row])]
        for row, (shape, counts) in enumerate(zip(SHAPES, confusion, strict=True))
    ]
    body.append(["precision, %", *map(SHARE.show, precision), ""])
    title = f"{name}: true shapes in lines, predicted shapes in columns"
    report.tables.append(Table(title, ["", *SHAPES, "recall, %"], body))
    return confusion


def add_areas(
    report: ComparisonReport,
    comparison: Comparison,
    name: str,
    folds: NDArray[np.integer],
    areas: Floats,
) -> None:
    """Add the area under the ROC curve of each shape, and of their mean, over the folds."""
    cells = []
    for shape, column in zip((*SHAPES, ""), (*areas.T, np.nanmean(areas, axis=1)), strict=True):
        known = column[np.isfinite(column)]
        cells.append(format_spread(column))
        subset = join_subset(comparison.subset, f"shape={shape}" if shape else "")
        mean = float(known.mean()) if len(known) else np.nan
        counts = {"subset": subset} | comparison.counts
        report.facts.append(AREA.make_fact("roc", name, "auc", mean, **counts))
        for fold, area in zip(folds, column, strict=True):
            part = {"subset": join_subset(subset, f"fold={fold}")}
            report.facts.append(AREA.make_fact("roc", name, "auc", area, **part))
    title = f"{name}: area under the ROC curve of each shape against the others"
    if len(areas) > 1:
        title += f", mean ± standard deviation of {len(areas)} folds"
    report.tables.append(Table(title, ["", *SHAPES, "mean"], [[name, *cells]]))


@plot_style
def draw_confusion(name: str, confusion: NDArray[np.integer]) -> Figure:
    """Draw the confusion matrix: each line in percent of its true shape, with counts."""
    shares = 100 * confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    figure = Figure(figsize=(4.2, 4), layout="constrained")
    axes = figure.subplots()
    display = ConfusionMatrixDisplay(shares, display_labels=SHAPES)
    scale = {"vmin": 0, "vmax": 100}
    display.plot(ax=axes, cmap="Blues", colorbar=False, im_kw=scale, text_kw={"fontsize": 8})
    for place, text in np.ndenumerate(display.text_):
        text.set_text(f"{shares[place]:.0f} %\n{confusion[place]}")
    axes.set(xlabel="predicted", ylabel="true", title=f"{name}, {confusion.sum()} masses")
    return figure


@plot_style
def draw_roc_curves(name: str, curves: Floats, areas: Floats) -> Figure:
    """Draw the folds' ROC curves and their mean, with its standard deviation as a band."""
    figure = Figure(figsize=(4.2, 4), layout="constrained")
    axes = make_roc_axes(figure)
    for curve in curves:
        axes.plot(RATES, curve, color=BLUE, linewidth=0.5, alpha=0.5)
    mean = curves.mean(axis=0)
    label = f"area {format_spread(np.nanmean(areas, axis=1))}"
    if len(curves) > 1:
        label = f"mean of {len(curves)} folds, {label}"
        deviation = curves.std(axis=0, ddof=1)
        axes.fill_between(
            RATES,
            np.maximum(0, mean - deviation),
            np.minimum(1, mean + deviation),
            color=BLUE,
            alpha=0.2,
            linewidth=0,
        )
    axes.plot(RATES, mean, color=BLUE, linewidth=1.5, label=label)
    axes.legend(loc="lower right", fontsize=8)
    axes.set_title(f"{name}, each shape against the others")
    return figure
