"""Measure how real and how varied synthetic patches are, and whether they are copies: what
evaluate/realism.py writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from tfmammo.data.patches import Patches
from tfmammo.evaluation import sheets, texture
from tfmammo.evaluation.comparison import INPUTS, Comparison, compare
from tfmammo.evaluation.perceptual import (
    SET_MEASURES,
    PatchSample,
    PerceptualConfig,
    PerceptualScorer,
    Scores,
    Statistic,
)
from tfmammo.evaluation.report import ComparisonReport
from tfmammo.metrics import perceptual, synthesis
from tfmammo.metrics.printed import Published, get_values
from tfmammo.metrics.rows import Fact
from tfmammo.metrics.summary import Measure
from tfmammo.nn.layers import Margin, label_patches, parse_margin
from tfmammo.training import image_grid

Images = NDArray[np.float32]
Features = NDArray[np.float32]

REAL = "real patches"
ONE_GREY = "one intensity"
ONE_GREY_NOTE = f"{ONE_GREY}: the mean of real masses in the mask, the real patch around it."
# Mean LPIPS on DDSM; "-": without margin.
PUBLISHED = {
    name: values["LPIPS, DDSM"] for name, values in get_values("infilling", "table1").items()
}
MEASURES = {
    "l1_mass": Measure("L1 to its real patch, inside the mass", "", 1, 3),
    "ssim_mass": Measure("SSIM to its real patch, inside the mass", "", 1, 3),
    "lpips": Measure("LPIPS to its real patch", "", 1, 4),
    **SET_MEASURES,
    "ms_ssim": Measure("MS-SSIM among themselves", "", 1, 3),
    "nearest_pixels": Measure("nearest training patch in pixels", "", 1, 2),
    "nearest_mass": Measure("nearest training patch in the mass's pixels", "", 1, 2),
    "nearest_features": Measure("nearest training patch in features", "", 1, 2),
}
TO_REAL = ("l1_mass", "ssim_mass", "lpips")


class RealismConfig(PerceptualConfig):
    """What is compared and with which networks."""

    sample: int = Field(default=100, ge=2)
    """How many patches are evaluated, drawn by `seed`."""
    pairs: PositiveInt = 500
    """How many pairs MS-SSIM averages over."""
    copy_below: PositiveFloat = perceptual.COPY
    """The threshold below which a patch counts as a copy. It holds for any of its three distances
    to a training patch, each over the median of real patches' distances.
    """
    inside: bool = False
    """Whether only the inside of a mask is the model's, within the real patch, as synthesis inserts
    lesions. Otherwise models that draw the tissue again are scored by it, and models that return it
    unchanged are not.
    """


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest training patch of each patch: space -> distance and index [n]."""

    distance: Scores
    index: dict[str, NDArray[np.intp]]

    def ratios(self, real: Nearest, copy_below: float) -> Scores:
        """Compute distances in units of the real patches' median, and which patches are copies.

        "nearest_SPACE" -> [n], and "copy" -> [n]: 1 where a ratio is below `copy_below`, NaN where
        none is known.
        """
        ratios = {
            f"nearest_{space}": perceptual.copy_ratio(distance, real.distance[space])
            for space, distance in self.distance.items()
        }
        smallest = np.fmin.reduce(list(ratios.values()))
        return ratios | {"copy": np.where(np.isnan(smallest), np.nan, smallest < copy_below)}


@dataclass(frozen=True, eq=False)
class Pool:
    """All patches that a model may have been trained on, with their features."""

    patches: Patches
    features: Features


def evaluate(config: RealismConfig, output: Path) -> ComparisonReport:
    """Run every model on the context of patients it never saw; write tables, CSVs and sheets."""
    scorer = config.load_scorer()
    config.refuse_names(REAL, ONE_GREY)
    # Papers' LPIPS is comparable with the LPIPS of the original weights only.
    published = {
        name: Published({"lpips": value}, "ddsm")
        for name, value in PUBLISHED.items()
        if name in config.models and not scorer.lpips.note
    }
    copies = Measure(f"copies, below {config.copy_below:g}", "%", 100, 1, is_share=True)
    report = ComparisonReport(
        config=config,
        measures=scorer.mark_measures(MEASURES | {"copy": copies}) | texture.MEASURES,
        published=published,
        models_across=True,
        note=scorer.note,
    )
    scorer.write_sources(output / "networks.json")
    sources = {"tri_label": make_tri_labels, "mask": INPUTS["mask"]}
    for comparison in compare(config, sources, "image", limit=config.sample):
        add_comparison(comparison, config, scorer, report, output)
    report.write(output)
    return report


def make_tri_labels(patches: Patches, card: Mapping[str, Any], draw: int = 0) -> Images:
    """Make the input of an infilling generator, with the margin of its training.

    The noise follows from the patch and `draw`, a number of the caller's.
    """
    masks = patches.masks.astype(np.float32)
    return label_patches(patches.images, masks, draw, read_margin(card)).numpy()


def read_margin(card: Mapping[str, Any]) -> Margin | None:
    """Read the margin that an infilling generator was trained with; see `layers.tri_label`.

    It is the paper's 296 where a card says nothing, and None where it was trained without one.
    """
    return parse_margin(card.get("config", {}).get("model", {}).get("margin", 296))


def add_comparison(
    comparison: Comparison,
    config: RealismConfig,
    scorer: PerceptualScorer,
    report: ComparisonReport,
    output: Path,
) -> None:
    """Measure everything of one comparison, add it to the report and write its sheets."""
    patches = comparison.patches
    if config.inside:
        inside = {
            name: [np.where(patches.masks > 0, images, patches.images)]
            for name, images in comparison.outputs.items()
        }
        comparison = replace(comparison, runs=inside)
    # The trivial baseline is no network, so it was trained on no patch.
    outputs = comparison.outputs | {ONE_GREY: fill_masks(patches)}
    pool = Pool(comparison.pool, scorer.inception.features(comparison.pool.images))
    features = {
        name: scorer.inception.features(images)
        for name, images in {REAL: patches.images, **outputs}.items()
    }
    ratios = measure_nearest(comparison, pool, features, config, output)
    distances = {name: measure_to_real(images, patches, scorer) for name, images in outputs.items()}
    textures = {name: texture.measure(images, patches) for name, images in outputs.items()}
    # Real patches have no distance to themselves, the trivial baseline none to a training set.
    missing = {key: np.full(len(patches), np.nan) for key in (*TO_REAL, *ratios[REAL])}
    scores = {
        name: scorer.mark_scores(missing | distances.get(name, {}) | ratios.get(name, {}))
        | textures.get(name, {})
        for name in dict.fromkeys((*distances, *ratios))
    }

    def summarize(of_models: Mapping[str, Scores]) -> list[Fact]:
        marked = {name: scorer.mark_scores(values) for name, values in of_models.items()}
        return config.summarize(marked, patches.patient_ids, report.measures)

    statistics = make_statistics(outputs, patches, config, scorer, features, pool)
    facts = [
        *summarize(distances),
        *scorer.compare(statistics, patches.patient_ids, MEASURES, config, REAL),
        *summarize(ratios),
        *texture.summarize(textures, patches, config),
    ]
    report.add(comparison, scores, facts, (ONE_GREY_NOTE, texture.NOTE, *scorer.describe()))
    lpips = {name: distances[name]["lpips"] for name in comparison.outputs}
    sheets.write_comparison(comparison, lpips, config.rows, config.seed, output)


def measure_nearest(
    comparison: Comparison,
    pool: Pool,
    features: Mapping[str, Features],
    config: RealismConfig,
    output: Path,
) -> dict[str, Scores]:
    """Compare each model's patches with those that it was trained on, and write the nearest.

    The last row is that of real patches; it refers to the first model's training patches.
    """
    patches = comparison.patches
    ratios: dict[str, Scores] = {}
    of_real = None
    for name, images in comparison.outputs.items():
        allowed = find_training_patches(comparison, name)
        real = find_nearest(patches.images, patches, features[REAL], pool, allowed)
        nearest = find_nearest(images, patches, features[name], pool, allowed)
        ratios[name] = nearest.ratios(real, config.copy_below)
        of_real = of_real or real.ratios(real, config.copy_below)
        path = output / f"nearest-{name}{comparison.ending}"
        write_nearest_sheet(images, nearest, ratios[name], pool.patches, config.rows, path)
    return ratios | {REAL: of_real or {}}


def fill_masks(patches: Patches) -> Images:
    """Fill each mask with the mean intensity of all real masses, the trivial infilling."""
    return np.where(patches.masks > 0, texture.make_two_greys(patches), patches.images)


def measure_to_real(images: Images, patches: Patches, scorer: PerceptualScorer) -> Scores:
    """Measure how near each patch comes to the real one whose mass it renders: TO_REAL."""
    scores = synthesis.per_image(patches.images, images, patches.masks)
    scores["lpips"] = scorer.lpips.distance(patches.images, images)
    return {name: scores[name] for name in TO_REAL}


def find_training_patches(comparison: Comparison, model: str) -> NDArray[np.bool_]:
    """Mark the pool's patches that the fold behind each output was trained on, bool [n, m].

    The real patch of the output itself is skipped.
    """
    is_other = comparison.patches.ids[:, np.newaxis] != comparison.pool.ids
    in_training = [
        comparison.find_training_patches(network) for network in comparison.networks[model]
    ]
    return is_other & np.stack(in_training)[comparison.folds[model]]


def find_nearest(
    images: Images, patches: Patches, features: Features, pool: Pool, allowed: NDArray[np.bool_]
) -> Nearest:
    """Find the nearest patch of the pool in three spaces, among those that are allowed [n, m].

    The spaces are pixels (turned and mirrored too), the pixels of the mass alone, and features.
    """
    masks = patches.masks.astype(np.float32)
    nearest = {
        "pixels": perceptual.find_nearest_turned(images, pool.patches.images, allowed),
        "mass": perceptual.find_nearest_turned(images, pool.patches.images, allowed, masks),
        "features": perceptual.find_nearest(features, pool.features, allowed),
    }
    return Nearest(
        {space: distance for space, (distance, _) in nearest.items()},
        {space: index for space, (_, index) in nearest.items()},
    )


def make_statistics(
    outputs: Mapping[str, Images],
    patches: Patches,
    config: RealismConfig,
    scorer: PerceptualScorer,
    features: Mapping[str, Features],
    pool: Pool,
) -> dict[str, dict[str, Statistic]]:
    """Make the statistics of whole sets: LPIPS, FID, KID, a classifier's area and MS-SSIM.

    Real patches are compared with as many patches of other patients, where there are so many: FID
    grows as sets shrink.
    """
    count = len(patches)
    sets = {
        name: PatchSample(images, features[name], patches.patient_ids)
        for name, images in outputs.items()
    }
    of_others = np.flatnonzero(~np.isin(pool.patches.patient_ids, patches.patient_ids))
    if len(of_others) >= count:
        # In the archive's order, patient by patient: what a jackknife leaves out at once belongs to
        # one or two patients here.
        rows = np.sort(np.random.default_rng(config.seed).permutation(of_others)[:count])
        others = pool.patches
        sets[REAL] = PatchSample(others.images[rows], pool.features[rows], others.patient_ids[rows])
    pairs = perceptual.draw_pairs(count, config.pairs, config.seed)
    variety: dict[str, Statistic] = {}
    for name, images in {**outputs, REAL: patches.images}.items():
        values = perceptual.ms_ssim(images[pairs[:, 0]], images[pairs[:, 1]])
        variety[name] = partial(_average_pairs, pairs, values)
    real = PatchSample(patches.images, features[REAL], patches.patient_ids)
    tests = config.distinguish(
        {REAL: patches.images, **outputs},
        dict.fromkeys((REAL, *outputs), patches.masks),
        patches.patient_ids,
        REAL,
    )
    areas: dict[str, Statistic] = {name: test.measure_area for name, test in tests.items()}
    return {**scorer.make_statistics(real, sets), "auc": areas, "ms_ssim": variety}


def write_nearest_sheet(
    images: Images, nearest: Nearest, ratios: Scores, pool: Patches, count: int, path: Path
) -> None:
    """Write the patches that come nearest to training patches, next to these.

    The nearest patch comes first. Nothing is written where no distance is known.
    """
    smallest = np.fmin.reduce([ratios[f"nearest_{space}"] for space in nearest.index])
    order = np.argsort(smallest, kind="stable")
    rows = order[np.isfinite(smallest[order])][:count]
    if len(rows):
        training = {
            f"nearest, {space}": pool.images[index[rows]] for space, index in nearest.index.items()
        }
        image_grid.save_grid({"synthetic": images[rows], **training}, path)


def _average_pairs(
    pairs: NDArray[np.intp], values: NDArray[np.float64], rows: NDArray[np.intp]
) -> float:
    """Average the values of those pairs whose patches are both among the rows."""
    is_kept = np.isin(pairs, rows).all(axis=1)
    return float(values[is_kept].mean()) if is_kept.any() else np.nan
