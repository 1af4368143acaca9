"""Compare mask-to-image models with the real image: what evaluate/synthesis.py writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from tfmammo.data.patches import Patches
from tfmammo.evaluation import sheets, texture
from tfmammo.evaluation.comparison import EvaluationConfig, compare
from tfmammo.evaluation.perceptual import (
    MIN_SIZE,
    SET_MEASURES,
    PatchSample,
    PerceptualScorer,
    Scores,
    Statistic,
    average_statistics,
    load_published,
    make_feature_statistics,
)
from tfmammo.evaluation.report import ComparisonReport, average_runs
from tfmammo.metrics import synthesis
from tfmammo.metrics.rows import Fact
from tfmammo.metrics.summary import Measure

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
# Model -> the images of each of its runs, float32 [n, s, s, 1]
Outputs = Mapping[str, Sequence[NDArray[np.float32]]]

EDGE = "ssim_edge"
RUNS_NOTE = (
    "Other tables average each patch over the runs of a model, and its runs' FID and KID as well. "
    "Sheets are of its first run."
)
BASELINES_NOTE = (
    f"{texture.TWO_GREYS}: in the mask the mean of these real masses, outside that of the tissue. "
    f"{texture.BLURRED}: the same, blurred by {texture.BLUR:.0%} of a patch's side."
)
NO_NETWORKS = (
    "No LPIPS, FID and KID: the folder in TFMAMMO_WEIGHTS lacks a published network, or patches "
    f"are below {MIN_SIZE} px. evaluate/realism.py measures them by other networks."
)


class SynthesisConfig(EvaluationConfig):
    """Models that synthesize images from masks, and the patches that they are compared on."""

    rows: PositiveInt = 6
    """Rows of each sheet: patches drawn by `seed`, and each model's best and worst by SSIM along
    the edge.
    """
    edge: PositiveInt = synthesis.EDGE
    """Half the width of the edge region: px on either side of the outline."""


def evaluate(config: SynthesisConfig, output: Path) -> ComparisonReport:
    """Run every model on the masks of patients it never saw, and write tables, CSVs and sheets."""
    config.refuse_names(texture.REAL, texture.TWO_GREYS, texture.BLURRED)
    scorer = load_published() if config.data.size >= MIN_SIZE else None
    columns = MEASURES | (PERCEPTUAL_MEASURES if scorer else {}) | texture.MEASURES
    report = ComparisonReport(config=config, measures=columns, models_across=True)
    for comparison in compare(config, "mask", "image", allow_repeats=True):
        patches = comparison.patches
        baselines = texture.make_baselines(patches)
        outputs = comparison.runs | {name: [images] for name, images in baselines.items()}
        runs = {
            name: [score(images, patches, config, scorer) for images in of_runs]
            for name, of_runs in outputs.items()
        }
        textures = {
            name: texture.average([texture.measure(images, patches) for images in of_runs])
            for name, of_runs in outputs.items()
        }
        scores = average_runs(runs)
        facts = config.summarize(scores, patches.patient_ids, columns)
        networks: tuple[str, ...] = (NO_NETWORKS,)
        if scorer:
            facts += compare_sets(outputs, patches, config, scorer)
            scorer.write_sources(output / "networks.json")
            networks = scorer.describe()
        facts += texture.summarize(textures, patches, config)
        both = {name: scores[name] | textures[name] for name in scores}
        report.add(comparison, both, facts, (BASELINES_NOTE, texture.NOTE, *networks))
        report.add_runs(comparison, runs, EDGE, RUNS_NOTE)
        edges = {name: runs[name][0][EDGE] for name in comparison.outputs}
        sheets.write_comparison(comparison, edges, config.rows, config.seed, output, True)
    report.write(output)
    return report


def score(
    images: NDArray[np.float32],
    patches: Patches,
    config: SynthesisConfig,
    scorer: PerceptualScorer | None,
) -> Scores:
    """Compare the images of one run with their real patches: measure -> float64 [n]."""
    scores = synthesis.per_image(patches.images, images, patches.masks, config.edge)
    if scorer:
        scores["lpips"] = np.asarray(scorer.lpips.distance(patches.images, images), np.float64)
    return scores


def compare_sets(
    outputs: Outputs, patches: Patches, config: SynthesisConfig, scorer: PerceptualScorer
) -> list[Fact]:
    """Compute FID and KID, means over the runs of a model, with intervals over patients."""
    patients = patches.patient_ids
    real = PatchSample(patches.images, scorer.inception.features(patches.images), patients)
    statistics: dict[str, dict[str, Statistic]] = {"fid": {}, "kid": {}}
    for name, of_runs in outputs.items():
        sets = {
            str(number): PatchSample(images, scorer.inception.features(images), patients)
            for number, images in enumerate(of_runs)
        }
        for measure, of_sets in make_feature_statistics(real, sets).items():
            statistics[measure][name] = average_statistics([*of_sets.values()])
    return scorer.compare(statistics, patients, PERCEPTUAL_MEASURES, config, texture.REAL)
