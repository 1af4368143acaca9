"""How near mask-to-image models come to the real image: what evaluate/synthesis.py writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from tfmammo.data.patches import Patches
from tfmammo.errors import ConfigError
from tfmammo.evaluation import sheets, texture
from tfmammo.evaluation.comparison import EvaluationConfig, compare
from tfmammo.evaluation.perceptual import (
    MIN_SIZE,
    SET_MEASURES,
    PatchSample,
    PerceptualScorer,
    Scores,
    Statistic,
    load_published,
    make_feature_statistics,
)
from tfmammo.evaluation.report import Report
from tfmammo.evaluation.trainings import average_trainings, tabulate_trainings
from tfmammo.metrics import synthesis
from tfmammo.metrics.summary import Measure, Row, Table

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
# Model -> the images of each of its trainings, float32 [n, s, s, 1]
Outputs = Mapping[str, Sequence[NDArray[np.float32]]]

EDGE = "ssim_edge"
TRAININGS_NOTE = (
    "Other tables average each patch over the trainings of a model, and its trainings' FID and KID "
    "as well. Sheets are of its first training."
)
BASELINES_NOTE = (
    f"{texture.TWO_GREYS}: in the mask the mean of these real masses, outside that of the tissue. "
    f"{texture.BLURRED}: the same, blurred by {texture.BLUR:.0%} of a patch's side."
)
NO_NETWORKS = (
    "No LPIPS, FID and KID: the folder in TFMAMMO_WEIGHTS lacks a published network, or patches "
    f"are below {MIN_SIZE} px. evaluate/realism.py measures them by other networks, too."
)


class SynthesisConfig(EvaluationConfig):
    """Models that synthesize images from masks, and the patches that they are compared on."""

    rows: PositiveInt = 6
    """Rows of each sheet: patches drawn by `seed`, and each model's best and worst by SSIM along
    the edge.
    """
    edge: PositiveInt = synthesis.EDGE
    """Half the width of the edge region: px on either side of the outline."""


def evaluate(config: SynthesisConfig, output: Path) -> list[Table]:
    """Run every model on the masks of patients it never saw, and write tables, CSVs and sheets.

    Returns:
        The tables.

    Raises:
        ConfigError: A model is called like the real patches or a trivial baseline.
    """
    for name in config.models:
        if name in (texture.REAL, texture.TWO_GREYS, texture.BLURRED):
            raise ConfigError(f"models: {name} is the name of a column of its own")
    scorer = load_published() if config.data.size >= MIN_SIZE else None
    columns = MEASURES | (PERCEPTUAL_MEASURES if scorer else {}) | texture.MEASURES
    report = Report(config, columns, models_across=True)
    for comparison in compare(config, "mask", "image", allow_repeats=True):
        patches = comparison.patches
        outputs = {name: comparison.list_trainings(name) for name in comparison.outputs}
        outputs |= {name: [images] for name, images in texture.make_baselines(patches).items()}
        trainings = {
            name: [
                synthesis.per_image(patches.images, images, patches.masks, config.edge)
                for images in of_trainings
            ]
            for name, of_trainings in outputs.items()
        }
        scores = average_trainings(trainings)
        textures = {
            name: texture.average([texture.measure(images, patches) for images in of_trainings])
            for name, of_trainings in outputs.items()
        }
        rows = config.summarize(scores, patches.patient_ids)
        notes: tuple[str, ...] = (BASELINES_NOTE, texture.NOTE, NO_NETWORKS)
        if scorer:
            distances = measure_lpips(outputs, patches, scorer)
            scores = {name: scores[name] | distances[name] for name in scores}
            rows += config.summarize(distances, patches.patient_ids)
            rows += compare_sets(outputs, patches, config, scorer)
            scorer.write_sources(output / "networks.json")
            notes = (BASELINES_NOTE, texture.NOTE, *scorer.describe())
        report.add(
            comparison,
            {name: scores[name] | textures[name] for name in scores},
            rows + texture.summarize(textures, patches, config),
            notes,
        )
        report.tables += tabulate_trainings(trainings, EDGE, MEASURES[EDGE], TRAININGS_NOTE)
        name = "sheet-leaky.png" if comparison.protocol == "paper" else "sheet.png"
        panels: dict[str, NDArray[Any]]
        panels = {"mask": patches.masks, "real": patches.images, **comparison.outputs}
        edges = {name: trainings[name][0][EDGE] for name in comparison.outputs}
        sheets.write_sheets(panels, edges, config.rows, config.seed, output / name, True)
    report.write(output)
    return report.tables


def measure_lpips(
    outputs: Outputs, patches: Patches, scorer: PerceptualScorer
) -> dict[str, Scores]:
    """Measure LPIPS of each model's images to their real patches: model -> "lpips" -> [n].

    Of several trainings it is the mean.
    """
    return average_trainings(
        {
            name: [
                {"lpips": np.asarray(scorer.lpips.distance(patches.images, images), np.float64)}
                for images in of_trainings
            ]
            for name, of_trainings in outputs.items()
        }
    )


def compare_sets(
    outputs: Outputs, patches: Patches, config: SynthesisConfig, scorer: PerceptualScorer
) -> list[Row]:
    """Compute the table rows of FID and KID, with intervals over patients.

    Of several trainings they are the mean.
    """
    features = scorer.inception.features(patches.images)
    statistics: dict[str, dict[str, Statistic]] = {"fid": {}, "kid": {}}
    for name, of_trainings in outputs.items():
        sets = {
            str(number): PatchSample(images, scorer.inception.features(images), is_paired=True)
            for number, images in enumerate(of_trainings)
        }
        for measure, of_sets in make_feature_statistics(features, sets).items():
            statistics[measure][name] = partial(_average, tuple(of_sets.values()))
    return scorer.make_rows(
        statistics,
        patches.patient_ids,
        config.level,
        texture.REAL,
        config.compare,
    )


def _average(statistics: Sequence[Statistic], rows: NDArray[np.intp]) -> float:
    return float(np.mean([statistic(rows) for statistic in statistics]))
