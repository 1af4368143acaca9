"""Segmentation models and trivial baselines, compared: what evaluate/segmentation.py writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from tfmammo.data.patches import Patches
from tfmammo.errors import DataError
from tfmammo.evaluation.comparison import Comparison, EvaluationConfig, compare
from tfmammo.evaluation.groups import Attribute, tabulate_groups
from tfmammo.evaluation.printed import get_values
from tfmammo.evaluation.report import Published, Report, save_figure
from tfmammo.evaluation.trainings import Trainings, average_trainings, tabulate_trainings
from tfmammo.metrics import classification, segmentation
from tfmammo.metrics.plotting import make_roc_axes, plot_style
from tfmammo.metrics.summary import Measure, Scores, Table, format_spread, write_csv
from tfmammo.models.cgan import PostprocessConfig, postprocess
from tfmammo.training import image_grid
from tfmammo.training.image_grid import BLUE, ORANGE, draw_agreement, draw_outline

Images = NDArray[np.float32]

MEASURES = {
    "accuracy": Measure("Accuracy", "%", 100, 1),
    "dice": Measure("Dice", "%", 100, 1),
    "jaccard": Measure("Jaccard", "%", 100, 1),
    "mcc": Measure("MCC", "%", 100, 1),
}
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
WHOLE_PATCH: Final = "whole patch"
CENTRED_DISC: Final = "centred disc"
POSTPROCESSED = " + post-processing"
# A ROC curve over more pixels than this is drawn from a random sample of so many.
MAX_PIXELS = 2_000_000
RATES = np.linspace(0, 1, 1001)
TRAININGS_NOTE = (
    "Other tables average each patch over the trainings of a model. ROC curves, overlays and "
    "cases are of its first training."
)


class SegmentationConfig(EvaluationConfig):
    """Segmentation models, and the trivial baselines that they are compared with."""

    threshold: float = Field(default=0.5, gt=0, le=1)
    """The probability from which on a pixel is mass."""
    postprocess: PostprocessConfig | None = None
    """Sizes of the morphological elements. Where it is given, each model gets a second row "NAME +
    post-processing".
    """
    floors: tuple[Literal["whole patch", "centred disc"], ...] = (WHOLE_PATCH, CENTRED_DISC)
    """The trivial baselines."""
    cases: PositiveInt = 4
    """How many cases of each kind a figure shows."""
    groups: tuple[Attribute, ...] = ()
    """Attributes by which models are compared again, group by group: "pathology", "shape"."""

    @model_validator(mode="after")
    def _check_names(self) -> SegmentationConfig:
        for name in set(self.floors) & set(self.models):
            raise ValueError(f"models: {name} is the name of a trivial baseline")
        if self.postprocess:
            postprocessed = {f"{model}{POSTPROCESSED}" for model in self.models}
            for model in postprocessed & set(self.models):
                raise ValueError(f"models: {model} is the name of a post-processed model")
        return self


def evaluate(config: SegmentationConfig, output: Path) -> list[Table]:
    """Run every model on the patients it never saw, and write tables, CSVs and figures.

    Returns:
        The tables.
    """
    report = Report(config, MEASURES, PUBLISHED)
    group_tables: list[Table] = []
    group_lines: list[dict[str, Any]] = []
    for comparison in compare(config, "image", "mask", allow_repeats=True):
        patches = comparison.patches
        outputs, trainings, notes = score_patches(comparison, config)
        scores = average_trainings(trainings)
        report.add(comparison, scores, notes=notes)
        report.tables += tabulate_trainings(trainings, "dice", MEASURES["dice"], TRAININGS_NOTE)
        first = {name: of_trainings[0] for name, of_trainings in trainings.items()}
        for name, probabilities in comparison.outputs.items():
            masks = probabilities >= config.threshold
            figure = draw_cases(name, patches, masks, first[name]["dice"], config.cases)
            save_figure(figure, output / f"figure-{name}.png")
        ending = "-leaky.png" if comparison.protocol == "paper" else ".png"
        write_overlays(patches, outputs, first, config, output / f"overlays{ending}")
        save_figure(draw_box_plots(scores), output / f"boxes{ending}")
        table, figure = draw_roc_curves(comparison, config.seed)
        report.tables.append(table)
        save_figure(figure, output / f"roc{ending}")
        tables, lines = tabulate_groups(config, comparison, scores, MEASURES, config.groups)
        group_tables += tables
        group_lines += lines
    report.tables += group_tables
    if group_lines:
        write_csv(output / "groups.csv", group_lines)
    report.write(output)
    return report.tables


def score_patches(
    comparison: Comparison, config: SegmentationConfig
) -> tuple[dict[str, Images], Trainings, tuple[str, ...]]:
    """Score models, their post-processed masks and the trivial baselines on each patch.

    Returns:
        The probabilities by name, of each model's first training; the measures of every training;
        and notes for the table.
    """
    baselines, notes = make_baselines(config.floors, comparison)
    outputs = add_postprocessed(comparison.outputs, config) | baselines
    trainings: dict[str, list[dict[str, NDArray[np.float64]]]] = {name: [] for name in outputs}
    for name in comparison.outputs:
        for probabilities in comparison.list_trainings(name):
            for key, masks in add_postprocessed({name: probabilities}, config).items():
                trainings[key].append(score(masks, comparison, config))
    for name, masks in baselines.items():
        trainings[name].append(score(masks, comparison, config))
    return outputs, trainings, notes


def score(
    probabilities: Images, comparison: Comparison, config: SegmentationConfig
) -> dict[str, NDArray[np.float64]]:
    """Compute the measures of each patch: measure -> float64 [n]."""
    return segmentation.per_image(comparison.patches.masks, probabilities, config.threshold)


def add_postprocessed(outputs: dict[str, Images], config: SegmentationConfig) -> dict[str, Images]:
    """Return the outputs and, where the config asks for it, their masks after morphology.

    Each "NAME + post-processing" follows its NAME and is float32, 0 or 1.
    """
    if config.postprocess is None:
        return dict(outputs)
    extended = {}
    for name, probabilities in outputs.items():
        extended[name] = probabilities
        masks = (probabilities >= config.threshold).astype(np.uint8)
        smooth = np.stack([postprocess(mask, config.postprocess) for mask in masks])
        extended[f"{name}{POSTPROCESSED}"] = smooth.astype(np.float32)
    return extended


def make_baselines(
    names: tuple[str, ...], comparison: Comparison
) -> tuple[dict[str, Images], tuple[str, ...]]:
    """Compute the outputs of trivial baselines, which do not look at the image.

    Returns:
        Name -> float32 [n, s, s, 1], and notes for the table.

    Raises:
        DataError: There is no mask to fit the disc on.
    """
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

    Where the archive holds no patient of that training, the disc of a patch is fitted on the masks
    of all other patients.

    Returns:
        Radii in px [n], and in words which masks they were fitted on.
    """
    patches = comparison.patches
    pool = comparison.pool
    model = next(iter(comparison.networks))
    assert pool is not None
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
    reason = f"for none here is known to be of {model}'s training"
    return radii, f"the masks of all other patients, {reason}"


def find_best_radius(dice: NDArray[np.float64]) -> float:
    """Return the radius, px, of the largest mean Dice.

    Args:
        dice: As `segmentation.disc_dice` returns it.

    Raises:
        DataError: There is no lesion to fit the disc on.
    """
    if not dice.any():
        raise DataError(
            "floors: there is no lesion to fit the centred disc on; leave it out with "
            "floors=[whole patch]"
        )
    return (dice.mean(axis=0).argmax() + 1) / 2


@plot_style
def draw_cases(
    name: str, patches: Patches, outputs: NDArray[np.bool_], dice: NDArray[np.float64], count: int
) -> Figure:
    """Draw the best, the median and the worst cases by Dice, with outlines of truth and output.

    Args:
        name: The model's.
        patches: Images and true masks.
        outputs: The model's masks, bool [n, s, s, 1].
        dice: float64 [n].
        count: How many cases a row shows.
    """
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
    patches: Patches,
    outputs: dict[str, Images],
    scores: Scores,
    config: SegmentationConfig,
    path: Path,
) -> None:
    """Write where each model is right and wrong on some patches.

    The patches go from the first model's best by Dice to its worst. True positives are yellow,
    false negatives red, false positives green.
    """
    order = np.argsort(-next(iter(scores.values()))["dice"], kind="stable")
    rows = order[np.linspace(0, len(order) - 1, min(len(order), 2 * config.cases)).astype(int)]
    panels = {"image": patches.images[rows], "truth": patches.masks[rows].astype(np.float32)}
    panels |= {
        name: draw_agreement(patches.masks[rows], probabilities[rows] >= config.threshold)
        for name, probabilities in outputs.items()
    }
    image_grid.save_grid(panels, path)


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
def draw_roc_curves(comparison: Comparison, seed: int) -> tuple[Table, Figure]:
    """Draw the ROC curve of each model over the pixels of all patches.

    Every model is evaluated on the same pixels. Folds are networks without a common scale: each has
    a curve of its own, and the mean of the curves is shown.

    Returns:
        A table of the areas, and the figure.
    """
    masks = comparison.patches.masks
    pixels = np.arange(masks.size)
    if len(pixels) > MAX_PIXELS:
        pixels = np.sort(np.random.default_rng(seed).choice(len(pixels), MAX_PIXELS, replace=False))
    truth = masks.ravel()[pixels]
    patch = pixels // masks[0].size
    figure = Figure(figsize=(4.2, 4), layout="constrained")
    axes = make_roc_axes(figure)
    body = []
    for name, probabilities in comparison.outputs.items():
        fold = comparison.folds.get(name, np.zeros(len(masks), np.intp))[patch]
        curve, areas = compute_mean_roc(truth, probabilities.ravel()[pixels], fold)
        area = format_spread(areas)
        if len(areas):
            axes.plot(RATES, curve, linewidth=1.2, label=f"{name}, area {area}")
        body.append([name, area])
    if len(axes.lines) > 1:
        axes.legend(loc="lower right", fontsize=8)
    axes.set_title(f"{len(pixels):,} pixels, frame {comparison.data.frame}")
    title = f"Area under the ROC curve over {len(pixels):,} pixels"
    note = (
        "Of several folds the mean ± standard deviation; pixels are no independent cases, so "
        "there is no interval and no p."
    )
    return Table(title, ["", "area"], body, (note,)), figure


def compute_mean_roc(
    truth: NDArray[np.integer], probabilities: NDArray[np.floating], fold: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average the ROC curves of folds; folds with one class only are left out.

    Args:
        truth: 0 or 1 [n].
        probabilities: [n].
        fold: The fold of each [n].

    Returns:
        The mean curve at RATES, and the area of each fold.
    """
    curves = []
    areas = []
    for number in np.unique(fold):
        rows = fold == number
        if len(np.unique(truth[rows])) < 2:
            continue
        false, true, _ = classification.roc_curve(truth[rows], probabilities[rows])
        curves.append(np.where(RATES > 0, np.interp(RATES, false, true), 0.0))
        areas.append(classification.roc_auc(truth[rows], probabilities[rows]))
    if not curves:
        return np.full(len(RATES), np.nan), np.array([])
    return np.mean(curves, axis=0), np.array(areas)
