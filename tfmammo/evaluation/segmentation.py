"""Compare segmentation models and trivial baselines: what evaluate/segmentation.py writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from tfmammo.data.patches import Patches
from tfmammo.errors import DataError
from tfmammo.evaluation.comparison import Comparison, EvaluationConfig, Settings, compare
from tfmammo.evaluation.report import (
    Attribute,
    ComparisonReport,
    Runs,
    average_runs,
    save_figure,
)
from tfmammo.metrics import segmentation
from tfmammo.metrics.case_scores import CENTRED_DISC, MEASURES, POSTPROCESSED, WHOLE_PATCH
from tfmammo.metrics.classification import RATES, roc_by_fold
from tfmammo.metrics.plotting import make_roc_axes, plot_style
from tfmammo.metrics.printed import Published, get_values
from tfmammo.metrics.rows import join_subset
from tfmammo.metrics.summary import Measure, Scores, Table, format_spread
from tfmammo.models.cgan import PostprocessConfig, postprocess
from tfmammo.training import image_grid
from tfmammo.training.image_grid import BLUE, ORANGE, draw_agreement, draw_outline

Images = NDArray[np.float32]

PUBLISHED = {
    name: Published(values, "inbreast", leaky=True, frame="square")
    for name, values in get_values("can", "table1", 0.01).items()
}
# One row of Singh et al.'s table is available. Its two means contradict each other: Jaccard = D /
# (2 - D) is convex in Dice, so a mean Dice of 94.07 % needs a mean Jaccard of at least 88.8 %.
_LOOSE = get_values("cgan", "table", 0.01)["cGAN"]
PUBLISHED["cGAN"] = Published(
    {measure: _LOOSE[f"{measure}, INbreast, loose"] for measure in ("dice", "jaccard")},
    "inbreast",
    frame="loose",
)
# A ROC curve over more pixels than this is drawn from a random sample of so many.
MAX_PIXELS = 2_000_000
PIXEL_AUC = Measure("Area under the ROC curve", "", 1, 3)
RUNS_NOTE = (
    "Other tables average each patch over the runs of a model. ROC curves, overlays and cases are "
    "of its first run."
)


class SegmentationSettings(Settings):
    """What the configs of all comparisons of segmentation models share."""

    threshold: float = Field(default=0.5, gt=0, le=1)
    """The probability from which on a pixel is mass."""
    baselines: tuple[Literal["whole patch", "centred disc"], ...] = (WHOLE_PATCH, CENTRED_DISC)
    """The trivial baselines."""


class SegmentationConfig(SegmentationSettings, EvaluationConfig):
    """Segmentation models, and the trivial baselines that they are compared with."""

    postprocess: PostprocessConfig | None = None
    """Sizes of the morphological elements. Where it is given, each model gets a second row "NAME +
    post-processing".
    """
    cases: PositiveInt = 4
    """How many cases of each kind a figure shows."""
    groups: tuple[Attribute, ...] = ()
    """Attributes by which models are compared again, group by group: "pathology", "shape"."""

    @model_validator(mode="after")
    def _check_names(self) -> SegmentationConfig:
        for name in set(self.baselines) & set(self.models):
            raise ValueError(f"models: {name} is the name of a trivial baseline")
        if self.postprocess:
            postprocessed = {f"{model}{POSTPROCESSED}" for model in self.models}
            for model in postprocessed & set(self.models):
                raise ValueError(f"models: {model} is the name of a post-processed model")
        return self


def evaluate(config: SegmentationConfig, output: Path) -> ComparisonReport:
    """Run every model on the patients it never saw, and write tables, CSVs and figures."""
    report = ComparisonReport(config=config, measures=MEASURES, published=PUBLISHED)
    for comparison in compare(config, "image", "mask", allow_repeats=True):
        outputs, runs, notes = score_patches(comparison, config)
        scores = average_runs(runs)
        report.add(comparison, scores, notes=notes)
        report.add_runs(comparison, runs, "dice", RUNS_NOTE)
        report.add_groups(comparison, scores, config.groups)
        dice = {name: of_runs[0]["dice"] for name, of_runs in runs.items()}
        for name in comparison.outputs:
            figure = draw_cases(comparison, config, name, dice[name])
            save_figure(figure, output / f"figure-{name}.png")
        write_overlays(comparison, config, outputs, dice, output / f"overlays{comparison.ending}")
        save_figure(draw_box_plots(scores), output / f"boxes{comparison.ending}")
        figure = add_roc_curves(report, comparison)
        save_figure(figure, output / f"roc{comparison.ending}")
    report.write(output)
    return report


def score_patches(
    comparison: Comparison, config: SegmentationConfig
) -> tuple[dict[str, Images], Runs, tuple[str, ...]]:
    """Score models, their post-processed masks and the trivial baselines on each patch.

    Returns:
        The probabilities by name, of each model's first run; the measures of every run; and notes
        for the table.
    """
    baselines, notes = make_baselines(config.baselines, comparison)
    runs: dict[str, list[Images]] = {}
    for name, of_runs in comparison.runs.items():
        runs[name] = of_runs
        if sizes := config.postprocess:
            runs[f"{name}{POSTPROCESSED}"] = [
                np.stack([postprocess(mask, sizes) for mask in masks]).astype(np.float32)
                for masks in ((run >= config.threshold).astype(np.uint8) for run in of_runs)
            ]
    runs |= {name: [masks] for name, masks in baselines.items()}
    scores = {
        name: [
            segmentation.per_image(comparison.patches.masks, run, config.threshold)
            for run in of_runs
        ]
        for name, of_runs in runs.items()
    }
    return {name: of_runs[0] for name, of_runs in runs.items()}, scores, notes


def make_baselines(
    names: tuple[str, ...], comparison: Comparison
) -> tuple[dict[str, Images], tuple[str, ...]]:
    """Compute the outputs of trivial baselines by name, and notes for the table."""
    masks = comparison.patches.masks
    outputs = {}
    notes = []
    if WHOLE_PATCH in names:
        outputs[WHOLE_PATCH] = np.ones(masks.shape, np.float32)
    if CENTRED_DISC in names:
        radii, fitted_on = fit_discs(comparison)
        outputs[CENTRED_DISC] = np.stack(
            [segmentation.centred_disc(masks.shape[1], radius) for radius in radii]
        )
        sizes = ", ".join(f"{radius:g}" for radius in np.unique(radii))
        notes.append(f"Centred disc: radius of {sizes} px, the best for {fitted_on}.")
    return outputs, tuple(notes)


def fit_discs(comparison: Comparison) -> tuple[NDArray[np.float64], str]:
    """Fit the radius of each patch's disc on the masks that the first model was trained on.

    Where the archive has no patient of that training run, the disc of a patch is fitted on the
    masks of all other patients.

    Returns:
        Radii in px [n], and in words which masks they were fitted on.
    """
    patches = comparison.patches
    pool = comparison.pool
    model = next(iter(comparison.networks))
    dice = segmentation.disc_dice(pool.masks)
    radii = np.zeros(len(patches))
    in_training = [
        comparison.find_training_patches(network) for network in comparison.networks[model]
    ]
    if all(rows.any() for rows in in_training):
        for number, rows in enumerate(in_training):
            radii[comparison.folds[model] == number] = find_best_radius(dice[rows])
        return radii, f"the masks that {model} was trained on"
    for patient in np.unique(patches.patient_ids):
        others = pool.patient_ids != patient
        radii[patches.patient_ids == patient] = find_best_radius(dice[others])
    reason = f"because none of them is known to have trained {model}"
    return radii, f"the masks of all other patients, {reason}"


def find_best_radius(dice: NDArray[np.float64]) -> float:
    """Return the radius, px, of the largest mean Dice, from what `disc_dice` returns."""
    if not dice.any():
        raise DataError(
            "baselines: there is no lesion to fit the centred disc on; leave it out with "
            "baselines=[whole patch]"
        )
    return (dice.mean(axis=0).argmax() + 1) / 2


@plot_style
def draw_cases(
    comparison: Comparison, config: SegmentationConfig, name: str, dice: NDArray[np.float64]
) -> Figure:
    """Draw a model's best, median and worst cases by Dice [n], outlines of truth and output."""
    patches = comparison.patches
    outputs = comparison.outputs[name] >= config.threshold
    count = config.cases
    order = np.argsort(-dice, kind="stable")
    count = min(count, len(order))
    middle = (len(order) - count) // 2
    rows = {
        "best": order[:count],
        "median": order[middle : middle + count],
        "worst": order[len(order) - count :],
    }
    figure = Figure(figsize=(0.5 + 2 * count, 7), layout="constrained")
    axes = figure.subplots(3, count, squeeze=False)
    for row, (title, numbers) in zip(axes, rows.items(), strict=True):
        for axis, number in zip(row, numbers, strict=True):
            image = draw_outline(patches.images[number], patches.masks[number], BLUE)
            image = draw_outline(image, outputs[number], ORANGE)
            axis.imshow(image, interpolation="nearest")
            axis.set_title(f"Dice {100 * dice[number]:.1f} %", fontsize=8)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(title)
    figure.suptitle(f"{name}, {len(order)} patches")
    lines = [
        Line2D([], [], color=(red / 255, green / 255, blue / 255))
        for red, green, blue in (BLUE, ORANGE)
    ]
    figure.legend(lines, ["truth", "output"], loc="outside lower center", ncols=2, fontsize=8)
    return figure


def write_overlays(
    comparison: Comparison,
    config: SegmentationConfig,
    outputs: dict[str, Images],
    dice: dict[str, NDArray[np.float64]],
    path: Path,
) -> None:
    """Write where each model is right and wrong on some patches.

    The patches go from the first model's best by Dice to its worst. True positives are yellow,
    false negatives red, false positives green.
    """
    patches = comparison.patches
    order = np.argsort(-next(iter(dice.values())), kind="stable")
    rows = order[np.linspace(0, len(order) - 1, min(len(order), 2 * config.cases)).astype(int)]
    image_grid.save_grid(draw_panels(patches, rows, outputs, config.threshold), path)


def draw_panels(
    patches: Patches, rows: Any, outputs: Mapping[str, Images], threshold: float
) -> dict[str, Images]:
    """Draw some patches, their masks, and where each model is right and wrong."""
    masks = patches.masks[rows]
    panels = {"image": patches.images[rows], "truth": masks.astype(np.float32)}
    for name, probabilities in outputs.items():
        panels[name] = draw_agreement(masks, probabilities[rows] >= threshold)
    return panels


@plot_style
def draw_box_plots(scores: Scores) -> Figure:
    """Draw box plots of Dice and Jaccard over the patches, one box a model.

    Whiskers reach to 1.5 interquartile ranges.
    """
    figure = Figure(figsize=(2 + 0.7 * len(scores), 7), layout="constrained")
    for axes, measure in zip(figure.subplots(2, 1, sharex=True), ("dice", "jaccard"), strict=True):
        values = [100 * by_measure[measure] for by_measure in scores.values()]
        axes.boxplot(values, medianprops={"color": "#d55e00"}, flierprops={"markersize": 3})
        axes.set_ylabel(f"{MEASURES[measure].heading}, %")
        axes.set_xticks(range(1, len(scores) + 1), list(scores), rotation=30, ha="right")
    return figure


@plot_style
def add_roc_curves(report: ComparisonReport, comparison: Comparison) -> Figure:
    """Add the areas under the ROC curves over the pixels of all patches, and draw the curves.

    Every model is evaluated on the same pixels. Folds are networks without a common scale: each has
    a curve of its own, and the mean of the curves is shown.
    """
    masks = comparison.patches.masks
    pixels = np.arange(masks.size)
    if len(pixels) > MAX_PIXELS:
        random = np.random.default_rng(report.config.seed)
        pixels = np.sort(random.choice(len(pixels), MAX_PIXELS, replace=False))
    truth = masks.ravel()[pixels, np.newaxis] == 1
    patch = pixels // masks[0].size
    figure = Figure(figsize=(4.2, 4), layout="constrained")
    axes = make_roc_axes(figure)
    body = []
    binary = []
    for name, probabilities in comparison.outputs.items():
        fold = comparison.folds.get(name, np.zeros(len(masks), np.intp))[patch]
        scores = probabilities.ravel()[pixels, np.newaxis]
        if np.isin(scores, (0, 1)).all():
            binary.append(name)
            continue
        numbers, curves, of_folds = roc_by_fold(truth, scores, fold)
        areas = of_folds[:, 0]
        area = format_spread(areas)
        mean = float(np.mean(areas)) if len(areas) else np.nan
        by_fold = {f"fold={n}": one for n, one in zip(numbers, areas, strict=True)}
        for part, value in {"": mean, **by_fold}.items():
            counts = {"subset": join_subset(comparison.subset, part)} | comparison.counts
            report.facts.append(PIXEL_AUC.make_fact("roc", name, "auc", value, **counts))
        if len(areas):
            axes.plot(RATES, curves.mean(axis=0), linewidth=1.2, label=f"{name}, area {area}")
        body.append([name, area])
    if len(axes.lines) > 1:
        axes.legend(loc="lower right", fontsize=8)
    axes.set_title(f"{len(pixels):,} pixels, frame {comparison.data.frame}")
    title = f"Area under the ROC curve over {len(pixels):,} pixels"
    notes = ["Pixels are not independent, so no interval and no p-value is given."]
    if any("±" in area for _, area in body):
        notes.insert(0, "Mean ± SD over folds.")
    if binary:
        notes.append(f"Masks without probabilities have no curve: {', '.join(binary)}.")
    report.tables.append(Table(title, ["", "area"], body, (" ".join(notes),)))
    return figure
