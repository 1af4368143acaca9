"""How near mask-to-image models come to the real image: what evaluate/synthesis.py writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import PositiveInt

from tfmammo.errors import ConfigError
from tfmammo.evaluation import texture
from tfmammo.evaluation.comparison import Comparison, EvaluationConfig, compare
from tfmammo.evaluation.perceptual import (
    MIN_SIZE,
    SET_MEASURES,
    PatchSample,
    PerceptualScorer,
    Scores,
    load_published,
    make_feature_statistics,
)
from tfmammo.evaluation.report import Report
from tfmammo.metrics import synthesis
from tfmammo.metrics.summary import Measure, Row, Table
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

PERCEPTUAL_MEASURES = {
    "lpips": Measure("LPIPS to its real patch", "", 1, 4),
    **{name: SET_MEASURES[name] for name in ("fid", "kid")},
}
NO_NETWORKS = (
    "No LPIPS, FID and KID: the folder in TFMAMMO_WEIGHTS lacks a published network, or patches "
    f"are below {MIN_SIZE} px. evaluate/realism.py measures them by other networks, too."
)


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

    Raises:
        ConfigError: A model is called like the real patches.
    """
    if texture.REAL in config.models:
        raise ConfigError(f"models: {texture.REAL} is the name of a column of its own")
    scorer = load_published() if config.data.size >= MIN_SIZE else None
    columns = MEASURES | (PERCEPTUAL_MEASURES if scorer else {}) | texture.MEASURES
    report = Report(config, columns, models_across=True)
    for comparison in compare(config, "mask", "image"):
        patches = comparison.patches
        scores = {
            name: synthesis.per_image(patches.images, images, patches.masks, config.edge)
            for name, images in comparison.outputs.items()
        }
        textures = {
            name: texture.measure(images, patches) for name, images in comparison.outputs.items()
        }
        rows = config.summarize(scores, patches.patient_ids)
        notes: tuple[str, ...] = (texture.NOTE, NO_NETWORKS)
        if scorer:
            distances = measure_lpips(comparison, scorer)
            scores = {name: scores[name] | distances[name] for name in scores}
            rows += config.summarize(distances, patches.patient_ids)
            rows += compare_sets(comparison, config, scorer)
            scorer.write_sources(output / "networks.json")
            notes = (texture.NOTE, *scorer.describe())
        report.add(
            comparison,
            {name: scores[name] | textures[name] for name in scores},
            rows + texture.summarize(textures, patches, config),
            notes,
        )
        name = "sheet-leaky.png" if comparison.protocol == "paper" else "sheet.png"
        write_sheet(comparison, config, output / name)
    report.write(output)
    return report.tables


def measure_lpips(comparison: Comparison, scorer: PerceptualScorer) -> dict[str, Scores]:
    """Measure LPIPS of each model's images to their real patches: model -> "lpips" -> [n]."""
    return {
        name: {"lpips": scorer.lpips.distance(comparison.patches.images, images)}
        for name, images in comparison.outputs.items()
    }


def compare_sets(
    comparison: Comparison, config: SynthesisConfig, scorer: PerceptualScorer
) -> list[Row]:
    """Compute the table rows of FID and KID, with intervals over patients."""
    patches = comparison.patches
    features = scorer.inception.features(patches.images)
    sets = {
        name: PatchSample(images, scorer.inception.features(images), is_paired=True)
        for name, images in comparison.outputs.items()
    }
    return scorer.make_rows(
        make_feature_statistics(features, sets),
        patches.patient_ids,
        config.level,
        texture.REAL,
        config.compare,
    )


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
