"""Judge segmentation models on patients they never saw: tables with intervals and paired tests, CSVs, figures of cases.

python evaluate/segmentation.py --config configs/segmentation.yaml --set data.name=inbreast data.root=DIR models.CAN=[RUN,RUN,RUN]

Two models without weights show what the numbers are worth: "whole patch" calls everything mass, "centred disc" knows
only how the patches are cut: its diameter is the longer side of each lesion's box.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from tfmammo import config as configuration
from tfmammo import evaluation
from tfmammo.config import DataConfig, TrainingConfig
from tfmammo.data.patches import Patches
from tfmammo.metrics import segmentation
from tfmammo.metrics.summary import Measure
from tfmammo.training import cli
from tfmammo.training.image_grid import BLUE, ORANGE, outline

MEASURES = {
    "accuracy": Measure("Accuracy", "%", 100, 1),
    "dice": Measure("Dice", "%", 100, 1),
    "jaccard": Measure("Jaccard", "%", 100, 1),
    "mcc": Measure("MCC", "%", 100, 1),
}
TABLE_1 = {  # of CAN's paper, on INbreast with the leaky protocol
    "FCN-8s": {"accuracy": 0.934, "dice": 0.910, "jaccard": 0.838, "mcc": 0.858},
    "SegNet": {"accuracy": 0.932, "dice": 0.904, "jaccard": 0.829, "mcc": 0.851},
    "U-Net": {"accuracy": 0.931, "dice": 0.905, "jaccard": 0.830, "mcc": 0.852},
    "CAN": {"accuracy": 0.941, "dice": 0.917, "jaccard": 0.851, "mcc": 0.872},
}
INK = "#444444"


class SegmentationConfig(evaluation.EvaluationConfig):
    """threshold: a pixel is mass from this probability on. floors: models without weights. cases: of each kind in a figure."""

    threshold: float = Field(default=0.5, gt=0, le=1)
    floors: tuple[Literal["whole patch", "centred disc"], ...] = ("whole patch", "centred disc")
    cases: PositiveInt = 4

    @model_validator(mode="after")
    def _names_differ(self) -> SegmentationConfig:
        for name in set(self.floors) & set(self.models):
            raise ValueError(f"models: {name} is the name of a floor")
        return self


def main() -> None:
    """Read the config, run every model on the patients it never saw, compare, write and print."""
    chosen = cli.arguments(__doc__).parse_args()
    config = configuration.parse(SegmentationConfig, chosen.config, chosen.set)
    cli.prepare(TrainingConfig(precision="float32"))
    output = chosen.output or Path("runs/segmentation")
    report = evaluation.Report(config, MEASURES, TABLE_1)
    for comparison in evaluation.compare(config, "image", "mask"):
        masks = comparison.patches.masks
        outputs = comparison.outputs | floors(config.floors, masks.shape, comparison.data)
        scores = {name: segmentation.per_image(masks, output, config.threshold) for name, output in outputs.items()}
        report.add(comparison, scores)
        for name, probabilities in comparison.outputs.items():
            figure = cases(name, comparison.patches, probabilities >= config.threshold, scores[name]["dice"], config.cases)
            save(figure, output / f"figure-{name}.png")
    report.write(output)
    for table in report.tables:
        cli.console.print(table)
    cli.console.print(f"tables, CSVs and figures: {output}")


def floors(names: tuple[str, ...], shape: tuple[int, ...], data: DataConfig) -> dict[str, NDArray[np.float32]]:
    """The outputs of models that do not look at the image, float32 [n, s, s, 1]; no disc where patches are not around lesions."""
    context = {"square": data.context, "tight": 1.0, "loose": 2.0}.get(data.frame)  # patch over box
    rows, cols = np.mgrid[: shape[1], : shape[2]] + 0.5
    found = {}
    if "whole patch" in names:
        found["whole patch"] = np.ones(shape, np.float32)
    if "centred disc" in names and context and data.patches == "lesion":
        disc = np.hypot(rows - shape[1] / 2, cols - shape[2] / 2) <= shape[1] / context / 2
        found["centred disc"] = np.broadcast_to(disc[..., np.newaxis], shape).astype(np.float32)
    return found


def cases(name: str, patches: Patches, outputs: NDArray[np.bool_], dice: NDArray[np.float64], count: int) -> Figure:
    """The best, the median and the worst cases by Dice, a row each, with the outlines of truth and output."""
    order = np.argsort(-dice, kind="stable")
    count = min(count, len(order))
    middle = (len(order) - count) // 2
    rows = {"best": order[:count], "median": order[middle : middle + count], "worst": order[len(order) - count :]}
    figure = Figure(figsize=(0.5 + 2 * count, 7), layout="constrained")
    axes = figure.subplots(3, count, squeeze=False)
    for row, (title, chosen) in zip(axes, rows.items(), strict=True):
        for axis, number in zip(row, chosen, strict=True):
            image = outline(outline(patches.images[number], patches.masks[number], BLUE), outputs[number], ORANGE)
            axis.imshow(image, interpolation="nearest")
            axis.set_title(f"Dice {100 * dice[number]:.1f} %", fontsize=8, color=INK)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(title, fontsize=9, color=INK)
    figure.suptitle(f"{name}, {len(order)} patches", fontsize=10, color=INK)
    lines = [Line2D([], [], color=(red / 255, green / 255, blue / 255)) for red, green, blue in (BLUE, ORANGE)]
    figure.legend(lines, ["truth", "output"], loc="outside lower center", ncols=2, frameon=False, fontsize=8, labelcolor=INK)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, without a display."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(path, dpi=150)


if __name__ == "__main__":
    cli.run(main)
