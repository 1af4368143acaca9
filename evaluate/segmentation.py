"""Judge segmentation models on patients they never saw: tables with intervals and paired
tests, CSVs, figures.

python evaluate/segmentation.py --config configs/segmentation.yaml --set data.name=inbreast
data.root=DIR models.CAN=[RUN,RUN,RUN]

Two baselines that do not look at the image show what the numbers are worth: "whole patch" calls
everything mass, "centred disc" knows only how the patches are cut: its radius is the best one for
the masks that the first model was trained on. Figures: the best, median and worst cases of each
model; where all models are right and wrong, side by side; box plots; ROC curves over pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from tfmammo import cli
from tfmammo import config as configuration
from tfmammo.config import TrainingConfig
from tfmammo.data.patches import Patches
from tfmammo.errors import DataError
from tfmammo.evaluation import comparison as evaluation
from tfmammo.metrics import classification, segmentation
from tfmammo.metrics.plotting import INK, quiet
from tfmammo.metrics.summary import Measure, Scores, Table
from tfmammo.models.cgan import PostprocessConfig, postprocess
from tfmammo.training import image_grid, script
from tfmammo.training.image_grid import BLUE, ORANGE, agreement, outline

MEASURES = {
    "accuracy": Measure("Accuracy", "%", 100, 1),
    "dice": Measure("Dice", "%", 100, 1),
    "jaccard": Measure("Jaccard", "%", 100, 1),
    "mcc": Measure("MCC", "%", 100, 1),
}
TABLE_1 = {  # of CAN's paper
    "FCN-8s": {"accuracy": 0.934, "dice": 0.910, "jaccard": 0.838, "mcc": 0.858},
    "SegNet": {"accuracy": 0.932, "dice": 0.904, "jaccard": 0.829, "mcc": 0.851},
    "U-Net": {"accuracy": 0.931, "dice": 0.905, "jaccard": 0.830, "mcc": 0.852},
    "CAN": {"accuracy": 0.941, "dice": 0.917, "jaccard": 0.851, "mcc": 0.872},
}
PUBLISHED = {
    name: evaluation.Published(values, "inbreast", leaky=True, frame="square")
    for name, values in TABLE_1.items()
}
# Of Singh et al.'s table one row is at hand, whose two means contradict each other: Jaccard = D /
# (2 - D) is convex in Dice, so a mean Dice of 94.07 % needs a mean Jaccard of 88.8 % at least.
PUBLISHED["cGAN"] = evaluation.Published(
    {"dice": 0.9407, "jaccard": 0.8703}, "inbreast", frame="loose"
)
# of all patches together, beyond which a ROC curve is drawn from so many of them
PIXELS = 2_000_000
RATES = np.linspace(0, 1, 1001)
CLEANED = " + post-processing"


class SegmentationConfig(evaluation.EvaluationConfig):
    """What this script has of its own."""

    threshold: float = Field(default=0.5, gt=0, le=1)
    """A pixel is mass from this probability on."""
    postprocess: PostprocessConfig | None = None
    """Sides of the morphological elements; where it is given, each model gets a second row "NAME +
    post-processing".
    """
    floors: tuple[Literal["whole patch", "centred disc"], ...] = ("whole patch", "centred disc")
    """Baselines without weights."""
    cases: PositiveInt = 4
    """Of each kind in a figure."""

    @model_validator(mode="after")
    def _names_differ(self) -> SegmentationConfig:
        for name in set(self.floors) & set(self.models):
            raise ValueError(f"models: {name} is the name of a floor")
        for name in {f"{name}{CLEANED}" for name in self.models if self.postprocess} & set(
            self.models
        ):
            raise ValueError(f"models: {name} is the name of a post-processed model")
        return self


def main() -> None:
    """Read the config, run every model on the patients it never saw, compare, write and print."""
    chosen = cli.arguments(__doc__).parse_args()
    config = configuration.parse(SegmentationConfig, chosen.config, chosen.set)
    script.prepare(TrainingConfig(precision="float32"))
    output = chosen.output or Path("runs/segmentation")
    report = evaluation.Report(config, MEASURES, PUBLISHED)
    for comparison in evaluation.compare(config, "image", "mask"):
        masks = comparison.patches.masks
        baselines, notes = floors(config.floors, comparison)
        outputs = cleaned(comparison.outputs, config) | baselines
        scores = {
            name: segmentation.per_image(masks, output, config.threshold)
            for name, output in outputs.items()
        }
        report.add(comparison, scores, notes=notes)
        for name, probabilities in comparison.outputs.items():
            figure = cases(
                name,
                comparison.patches,
                probabilities >= config.threshold,
                scores[name]["dice"],
                config.cases,
            )
            evaluation.save(figure, output / f"figure-{name}.png")
        end = "-leaky.png" if comparison.protocol == "paper" else ".png"
        overlays(comparison.patches, outputs, scores, config, output / f"overlays{end}")
        evaluation.save(boxes(scores), output / f"boxes{end}")
        table, figure = curves(comparison, config.seed)
        report.tables.append(table)
        evaluation.save(figure, output / f"roc{end}")
    report.write(output)
    for table in report.tables:
        cli.console.print(table)
    cli.console.print(f"tables, CSVs and figures: {output}")


def cleaned(
    outputs: dict[str, NDArray[np.float32]], config: SegmentationConfig
) -> dict[str, NDArray[np.float32]]:
    """The outputs and, where asked for, behind each its masks after morphology, "NAME +
    post-processing": float32, 0 or 1.
    """
    found = {}
    for name, probabilities in outputs.items():
        found[name] = probabilities
        if config.postprocess:
            masks = (probabilities >= config.threshold).astype(np.uint8)
            cleaner = np.stack([postprocess(mask, config.postprocess) for mask in masks])
            found[f"{name}{CLEANED}"] = cleaner.astype(np.float32)
    return found


def floors(
    names: tuple[str, ...], comparison: evaluation.Comparison
) -> tuple[dict[str, NDArray[np.float32]], tuple[str, ...]]:
    """The outputs of baselines that do not look at the image, float32 [n, s, s, 1], and what a
    table says of them.

    Raises:
        DataError: The disc has no mask to be fitted on.
    """
    masks = comparison.patches.masks
    found = {}
    notes = []
    if "whole patch" in names:
        found["whole patch"] = np.ones(masks.shape, np.float32)
    if "centred disc" in names:
        radii, whose = fit_discs(comparison)
        found["centred disc"] = np.stack(
            [segmentation.centred_disc(masks.shape[1], radius) for radius in radii]
        )
        sizes = ", ".join(f"{radius:g}" for radius in np.unique(radii))
        notes.append(f"Centred disc: radius of {sizes} px, the best for {whose}.")
    return found, tuple(notes)


def fit_discs(comparison: evaluation.Comparison) -> tuple[NDArray[np.float64], str]:
    """The radius of each patch's disc, px [n], and in words which masks it was fitted on: those of
    its first model's training.

    Where the archive holds no patient of that training, it is fitted on the masks of all other
    patients.
    """
    patches = comparison.patches
    pool = comparison.pool
    model = next(iter(comparison.networks))
    assert pool is not None
    dice = segmentation.disc_dice(pool.masks)
    radii = np.zeros(len(patches))
    trained = [comparison.trained_on(network) for network in comparison.networks[model]]
    if all(known.any() for known in trained):
        for number, known in enumerate(trained):
            radii[comparison.folds[model] == number] = best_radius(dice[known])
        return radii, f"the masks that {model} was trained on"
    for patient in np.unique(patches.patient_ids):
        radii[patches.patient_ids == patient] = best_radius(dice[pool.patient_ids != patient])
    return (
        radii,
        f"the masks of all other patients, for none here is known to be of {model}'s training",
    )


def best_radius(dice: NDArray[np.float64]) -> float:
    """The radius, px, of the largest mean Dice; dice: of `segmentation.disc_dice`."""
    if not dice.any():
        raise DataError(
            "floors: the centred disc has no lesion to be fitted on; leave it out with "
            "floors=[whole patch]"
        )
    return (dice.mean(axis=0).argmax() + 1) / 2


@quiet
def cases(
    name: str, patches: Patches, outputs: NDArray[np.bool_], dice: NDArray[np.float64], count: int
) -> Figure:
    """The best, the median and the worst cases by Dice, a row each, with the outlines of truth and
    output.
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
    for row, (title, chosen) in zip(axes, rows.items(), strict=True):
        for axis, number in zip(row, chosen, strict=True):
            image = outline(
                outline(patches.images[number], patches.masks[number], BLUE),
                outputs[number],
                ORANGE,
            )
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


def overlays(
    patches: Patches,
    outputs: dict[str, NDArray[np.float32]],
    scores: Scores,
    config: SegmentationConfig,
    path: Path,
) -> None:
    """Write some patches, from the first model's best by Dice to its worst, and where each model is
    right and wrong on them.

    True positives are yellow, false negatives red, false positives green.
    """
    order = np.argsort(-next(iter(scores.values()))["dice"], kind="stable")
    rows = order[np.linspace(0, len(order) - 1, min(len(order), 2 * config.cases)).astype(int)]
    panels = {"image": patches.images[rows], "truth": patches.masks[rows].astype(np.float32)}
    panels |= {
        name: agreement(patches.masks[rows], output[rows] >= config.threshold)
        for name, output in outputs.items()
    }
    image_grid.save(panels, path)


@quiet
def boxes(scores: Scores) -> Figure:
    """Box plots of Dice and Jaccard over the patches, a box a model; whiskers reach to 1.5
    interquartile ranges.
    """
    figure = Figure(figsize=(2 + 0.7 * len(scores), 7), layout="constrained")
    for axes, measure in zip(figure.subplots(2, 1, sharex=True), ("dice", "jaccard"), strict=True):
        values = [100 * measured[measure] for measured in scores.values()]
        axes.boxplot(values, medianprops={"color": "#d55e00"}, flierprops={"markersize": 3})
        axes.set_ylabel(f"{MEASURES[measure].heading}, %")
        axes.set_xticks(range(1, len(scores) + 1), list(scores), rotation=30, ha="right")
    return figure


@quiet
def curves(comparison: evaluation.Comparison, seed: int) -> tuple[Table, Figure]:
    """The ROC curve of each model over the pixels of all patches, and the areas under them; the
    same pixels for every model.

    Several folds are several networks without a common scale: each has a curve of its own, and
    their mean is shown.
    """
    masks = comparison.patches.masks
    pixels = np.arange(masks.size)
    if len(pixels) > PIXELS:
        pixels = np.sort(np.random.default_rng(seed).choice(len(pixels), PIXELS, replace=False))
    truth = masks.ravel()[pixels]
    patch = pixels // masks[0].size
    figure = Figure(figsize=(4.2, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], ":", color=INK, linewidth=0.8)
    body = []
    for name, output in comparison.outputs.items():
        fold = comparison.folds.get(name, np.zeros(len(masks), np.intp))[patch]
        curve, areas = mean_roc(truth, output.ravel()[pixels], fold)
        area = f"{areas.mean():.3f}" if len(areas) else "-"
        area += f" ± {areas.std(ddof=1):.3f}" if len(areas) > 1 else ""
        if len(areas):
            axes.plot(RATES, curve, linewidth=1.2, label=f"{name}, area {area}")
        body.append([name, area])
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1.01),
        xlabel="false positive rate",
        ylabel="true positive rate",
        aspect="equal",
    )
    if len(axes.lines) > 1:
        axes.legend(loc="lower right", fontsize=8)
    axes.set_title(f"{len(pixels):,} pixels, frame {comparison.data.frame}")
    note = (
        "Of several folds the mean ± standard deviation; pixels are no independent cases, so "
        "there is no interval and no p."
    )
    return Table(
        f"Area under the ROC curve over {len(pixels):,} pixels", ["", "area"], body, (note,)
    ), figure


def mean_roc(
    truth: NDArray[np.integer], probabilities: NDArray[np.floating], fold: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean over folds of ROC curves at RATES, and each fold's area; folds of one class are left
    out.
    """
    parts = [
        part for number in np.unique(fold) if len(np.unique(truth[part := fold == number])) == 2
    ]
    found = []
    for part in parts:
        false, true, _ = classification.roc_curve(truth[part], probabilities[part])
        found.append(np.where(RATES > 0, np.interp(RATES, false, true), 0.0))
    areas = [classification.roc_auc(truth[part], probabilities[part]) for part in parts]
    return np.mean(found or [np.full(len(RATES), np.nan)], axis=0), np.array(areas)


if __name__ == "__main__":
    cli.run(main)
