"""Judge mask-to-image models on patients they never saw: sheets like CAN's Fig.

2 and 3, and how near they come to the real image.

python evaluate/synthesis.py --config configs/synthesis.yaml --set data.name=inbreast data.root=DIR
models.CAN=[RUN,RUN,RUN]

The sheet has one row a patch: mask, real image, and one column a model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import PositiveInt

from tfmammo import cli
from tfmammo import config as configuration
from tfmammo.config import TrainingConfig
from tfmammo.evaluation import comparison as evaluation
from tfmammo.metrics import synthesis
from tfmammo.metrics.summary import Measure
from tfmammo.training import image_grid, script

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


class SynthesisConfig(evaluation.EvaluationConfig):
    """Models that paint images from masks, and the patches that they are compared on."""

    rows: PositiveInt = 6
    """Of the sheet, drawn by `seed` from the patches judged."""
    edge: PositiveInt = synthesis.EDGE
    """px on either side of the outline."""


def main() -> None:
    """Read the config, run every model on the masks of patients it never saw, compare, write and
    print.
    """
    chosen = cli.arguments(__doc__).parse_args()
    config = configuration.parse(SynthesisConfig, chosen.config, chosen.set)
    script.prepare(TrainingConfig(precision="float32"))
    output = chosen.output or Path("runs/synthesis")
    report = evaluation.Report(config, MEASURES, models_across=True)
    for comparison in evaluation.compare(config, "mask", "image"):
        patches = comparison.patches
        scores = {
            name: synthesis.per_image(patches.images, images, patches.masks, config.edge)
            for name, images in comparison.outputs.items()
        }
        report.add(comparison, scores)
        sheet(
            comparison,
            config,
            output / ("sheet-leaky.png" if comparison.protocol == "paper" else "sheet.png"),
        )
    report.write(output)
    for table in report.tables:
        cli.console.print(table)
    cli.console.print(f"tables, CSVs and sheets: {output}")


def sheet(comparison: evaluation.Comparison, config: SynthesisConfig, path: Path) -> None:
    """Write mask, real image and every model's image of some patches, side by side."""
    patches = comparison.patches
    rows = np.random.default_rng(config.seed).permutation(len(patches))[: config.rows]
    panels = {
        "mask": patches.masks.astype(np.float32),
        "real": patches.images,
        **comparison.outputs,
    }
    image_grid.save({name: images[rows] for name, images in panels.items()}, path)


if __name__ == "__main__":
    cli.run(main)
