"""How near mask-to-image models come to the real image: what evaluate/synthesis.py writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import PositiveInt

from tfmammo.evaluation.comparison import Comparison, EvaluationConfig, compare
from tfmammo.evaluation.report import Report
from tfmammo.metrics import synthesis
from tfmammo.metrics.summary import Measure, Table
from tfmammo.training import image_grid

REGIONS = {"": "whole patch", "_mass": "in the mass", "_edge": "along its edge"}
MEASURES = {
    f"{name}{region}": Measure(f"{heading} {where}", unit, 1, decimals)
    for region, where in REGIONS.items()
    for name, heading, unit, decimals in (
        ("l1", "L1", "", 3),
        ("psnr", "PSNR", "dB", 1),
        ("ssim", "SSIM", "", 3),
    )
}


class SynthesisConfig(EvaluationConfig):
    """Models that synthesize images from masks, and the patches that they are compared on."""

    rows: PositiveInt = 6
    """Rows of the sheet, drawn by `seed` from the evaluated patches."""
    edge: PositiveInt = synthesis.EDGE
    """Half the width of the edge region: px on either side of the outline."""


def evaluate(config: SynthesisConfig, output: Path) -> list[Table]:
    """Run every model on the masks of patients it never saw, and write tables, CSVs and sheets.

    Returns:
        The tables.
    """
    report = Report(config, MEASURES, models_across=True)
    for comparison in compare(config, "mask", "image"):
        patches = comparison.patches
        scores = {
            name: synthesis.per_image(patches.images, images, patches.masks, config.edge)
            for name, images in comparison.outputs.items()
        }
        report.add(comparison, scores)
        name = "sheet-leaky.png" if comparison.protocol == "paper" else "sheet.png"
        write_sheet(comparison, config, output / name)
    report.write(output)
    return report.tables


def write_sheet(comparison: Comparison, config: SynthesisConfig, path: Path) -> None:
    """Write mask, real image and every model's image of some patches, side by side."""
    patches = comparison.patches
    rows = np.random.default_rng(config.seed).permutation(len(patches))[: config.rows]
    panels = {
        "mask": patches.masks.astype(np.float32),
        "real": patches.images,
        **comparison.outputs,
    }
    image_grid.save_grid({name: images[rows] for name, images in panels.items()}, path)
