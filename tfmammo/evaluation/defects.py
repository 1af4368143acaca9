"""Measure defects in the texture of synthetic images: what evaluate/defects.py writes.

CAN's Fig. 3 shows masks from which Pix2Pix makes tissue with defects and CAN fewer, and prints no
number. A figure of masks that were chosen by one model's failures flatters the other one. Sheets
therefore show a random choice, and each model's own best and worst.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from tfmammo.data.patches import Patches
from tfmammo.errors import DataError
from tfmammo.evaluation import sheets
from tfmammo.evaluation.comparison import Comparison, EvaluationConfig, compare
from tfmammo.evaluation.report import ComparisonReport, Runs, average_runs
from tfmammo.evaluation.texture import LATTICES, TWO_GREYS, make_two_greys, measure_lattices
from tfmammo.evaluation.texture import MEASURES as TEXTURE_MEASURES
from tfmammo.metrics import texture
from tfmammo.metrics.summary import Measure
from tfmammo.metrics.texture import TextureRange
from tfmammo.training import image_grid
from tfmammo.training.image_grid import BLUE, ORANGE

Images = NDArray[np.float32]

MEASURES = {
    "defects": Measure("Tissue with defects", "%", 100, 1, is_share=True),
    "flat": Measure("of it too flat", "%", 100, 1, is_share=True),
    "harsh": Measure("of it too harsh", "%", 100, 1, is_share=True),
    "haar": Measure("Finest Haar band of tissue, real = 1", "", 1, 2),
    **{name: TEXTURE_MEASURES[name] for name in LATTICES},
}
RUNS_NOTE = "Other tables average each patch over the runs of a model. Sheets are of its first run."
REAL = "real"


class DefectsConfig(EvaluationConfig):
    """Models that synthesize images from masks, and what counts as a defect."""

    rows: PositiveInt = 4
    """Rows of each sheet."""
    window: PositiveInt = texture.WINDOW
    """Side of the square of a local standard deviation, px."""
    tail: float = Field(default=texture.TAIL, gt=0, lt=0.5)
    """The share of real tissue that counts as too flat, and that counts as too harsh."""


def evaluate(config: DefectsConfig, output: Path) -> ComparisonReport:
    """Measure the defects of every model's images, and write tables, CSVs and sheets."""
    config.refuse_names(REAL, TWO_GREYS)
    report = ComparisonReport(config=config, measures=MEASURES, models_across=True)
    for comparison in compare(config, "mask", "image", allow_repeats=True):
        patches = comparison.patches
        baselines = make_baselines(patches)
        outputs = comparison.runs | {name: [images] for name, images in baselines.items()}
        try:
            limits = texture.measure_range(
                patches.images, patches.masks, config.window, config.tail
            )
            runs = measure_defects(outputs, patches, config, limits)
        except ValueError as error:
            raise DataError(f"data: {error}") from None
        note = (
            f"Defects: tissue outside the mass whose standard deviation within {config.window} x "
            f"{config.window} px is below {limits.low:.4f} (flat) or above {limits.high:.4f} "
            f"(harsh), which {100 * config.tail:g} % each of the textured real tissue is. "
            f"{TWO_GREYS}: the mean intensity of real masses in the mask, of real tissue outside."
        )
        report.add(comparison, average_runs(runs), notes=(note,))
        report.add_runs(comparison, runs, "defects", RUNS_NOTE)
        write_sheets(comparison, runs, limits, config, output)
    report.write(output)
    return report


def make_baselines(patches: Patches) -> dict[str, Images]:
    """Make the images of the trivial baseline, and the real ones, the best that a model can do."""
    return {TWO_GREYS: make_two_greys(patches), REAL: patches.images}


def measure_defects(
    outputs: Mapping[str, Sequence[Images]],
    patches: Patches,
    config: DefectsConfig,
    limits: TextureRange,
) -> dict[str, list[dict[str, NDArray[np.float64]]]]:
    """Measure the defects of each model's images: model -> run -> measure -> float64 [n].

    "defects", "flat" and "harsh" are parts of the tissue, NaN where a mask leaves no tissue.
    """
    masks = patches.masks
    tissue = 1 - masks
    haar_real = np.nanmean(texture.compute_fine_energy(patches.images, tissue))
    area = tissue.sum(axis=(1, 2, 3)).astype(np.float64)
    area[area == 0] = np.nan

    def measure(images: Images) -> dict[str, NDArray[np.float64]]:
        flat, harsh = (
            pixels.sum(axis=(1, 2, 3)) / area
            for pixels in texture.find_defects(images, masks, limits, config.window)
        )
        return {
            "defects": flat + harsh,
            "flat": flat,
            "harsh": harsh,
            "haar": texture.compute_fine_energy(images, tissue) / haar_real,
            **measure_lattices(images),
        }

    return {name: [measure(images) for images in of_runs] for name, of_runs in outputs.items()}


def write_sheets(
    comparison: Comparison, runs: Runs, limits: TextureRange, config: DefectsConfig, output: Path
) -> None:
    """Write masks, real images, and each model's images without and with its defects coloured."""
    patches = comparison.patches
    stem = "sheet-leaky" if comparison.protocol == "paper" else "sheet"
    areas = {name: np.nan_to_num(runs[name][0]["defects"]) for name in comparison.outputs}
    for ending, rows in sheets.choose_rows(areas, config.rows, config.seed).items():
        masks = patches.masks[rows]
        panels = {"mask": masks.astype(np.float32), REAL: patches.images[rows]}
        for name, images in comparison.outputs.items():
            panels[name] = images[rows]
            panels[f"{name}: defects"] = colour_defects(images[rows], masks, limits, config.window)
        image_grid.save_grid(panels, output / f"{stem}{ending or '-random'}.png")


def colour_defects(
    images: Images, masks: NDArray[np.uint8], limits: TextureRange, window: int
) -> Images:
    """Colour flat tissue blue and harsh tissue orange: float32 [n, s, s, 3] in [0, 1]."""
    coloured = np.repeat(images, 3, axis=-1)
    found = texture.find_defects(images, masks, limits, window)
    for pixels, colour in zip(found, (BLUE, ORANGE), strict=True):
        coloured = np.where(pixels, np.array(colour, np.float32) / 255, coloured)
    return coloured.astype(np.float32)
