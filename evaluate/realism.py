"""Judge how real the patches of models look, how various they are, and whether they are
copies, on patients never seen.

python evaluate/realism.py --config configs/realism.yaml --set data.name=cdd_cesm data.root=DIR
alexnet=alexnet.npz heads=heads.npz

For any model that makes an image of a tri-label (tissue, mask, margin) or of a mask; all paint the
masses of the same real patches anew. Sheets: real beside synthetic, and for each model what comes
nearest to a patch that it was trained on. The networks that look at the patches are downloaded, or
files (python -m tfmammo.pretrained makes them), or random ones ("none"), which tables, CSVs and the
names of measures then say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from tfmammo import cli
from tfmammo import config as configuration
from tfmammo.config import TrainingConfig
from tfmammo.data.patches import Patches
from tfmammo.errors import ConfigError
from tfmammo.evaluation import comparison as evaluation
from tfmammo.evaluation.perceptual import SET_MEASURES, Judge, Scores, Statistic, check_size
from tfmammo.layers import patch_seeds, uniform_noise
from tfmammo.metrics import perceptual, synthesis
from tfmammo.metrics.summary import Measure, Table
from tfmammo.models.infilling import tri_label
from tfmammo.training import image_grid, script

REAL = "real patches"
# mean LPIPS on DDSM; "-": without margin
PRINTED = {"G_unet": 0.02021, "G_unet-": 0.02170, "G_crn": 0.02436, "G_crn-": 0.02549}
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


class RealismConfig(evaluation.EvaluationConfig):
    """What is compared and with which networks."""

    sample: int = Field(default=100, ge=2)
    """Patches judged, drawn by `seed`."""
    alexnet: str = "imagenet"
    """Of LPIPS."""
    heads: str = "none"
    """Of LPIPS."""
    inception: str = "imagenet"
    """Of FID, KID and the nearest patch in features: "imagenet", a path, or "none"; see
    tfmammo.pretrained.
    """
    pairs: PositiveInt = 500
    """Of MS-SSIM."""
    subsets: PositiveInt = 100
    """Of KID."""
    subset_size: int = Field(default=50, ge=2)
    """Of KID."""
    copy_below: PositiveFloat = perceptual.COPY
    """A patch counts as a copy if one of its three distances to a training patch, over the median
    of real patches' distances, is below this.
    """
    rows: PositiveInt = 6
    """Of the sheets."""


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest training patch of each patch.

    Attributes:
        distance: Space -> [n]; see `perceptual.nearest`.
        index: Space -> [n]; see `perceptual.nearest`.
    """

    distance: Scores
    index: dict[str, NDArray[np.intp]]

    def ratios(self, real: Nearest, copy_below: float) -> Scores:
        """Distances in units of the real patches' median, and "copy": 1 where one is below, NaN
        where none is known.
        """
        found = {
            f"nearest_{space}": perceptual.copy_ratio(own, real.distance[space])
            for space, own in self.distance.items()
        }
        least = np.min(list(found.values()), axis=0)
        return found | {"copy": np.where(np.isnan(least), np.nan, least < copy_below)}


def main() -> None:
    """Read the config, run every model on the context of patients it never saw, compare, write and
    print.
    """
    chosen = cli.arguments(__doc__).parse_args()
    config = configuration.parse(RealismConfig, chosen.config, chosen.set)
    check_size(config.data.size)
    if REAL in config.models:
        raise ConfigError(f"models: {REAL} is the name of a row of its own")
    script.prepare(TrainingConfig(precision="float32"))
    output = chosen.output or Path("runs/realism")
    judge = Judge(
        perceptual.LPIPS(config.alexnet, config.heads), perceptual.Inception(config.inception)
    )
    known = {
        name: evaluation.Published({"lpips": value}, "ddsm")
        for name, value in PRINTED.items()
        if name in config.models
    }
    printed = {} if judge.lpips.note else known
    measures = MEASURES | {"copy": Measure(f"copies, below {config.copy_below:g}", "%", 100, 1)}
    report = evaluation.Report(
        config, judge.measures(measures), printed, models_across=True, note=judge.note
    )
    sources = {"tri_label": tri_labels, "mask": evaluation.INPUTS["mask"]}
    for comparison in evaluation.compare(config, sources, "image", limit=config.sample):
        examine(comparison, config, judge, report, output)
    report.write(output)
    for table in report.tables:
        cli.console.print(table)
    cli.console.print(f"tables, CSVs and sheets: {output}")


def tri_labels(patches: Patches, card: Mapping[str, Any]) -> NDArray[np.float32]:
    """What an infilling generator takes, with the margin that it was trained with; its noise
    follows from the patch.
    """
    margin = card.get("config", {}).get("model", {}).get("margin", 296)
    noise = uniform_noise(patch_seeds(patches.images, 0), patches.images.shape[1])
    return tri_label(patches.images, patches.masks.astype(np.float32), noise, margin).numpy()


def examine(
    comparison: evaluation.Comparison,
    config: RealismConfig,
    judge: Judge,
    report: evaluation.Report,
    output: Path,
) -> None:
    """Measure everything of one comparison, add it to the report and draw its sheets."""
    patches = comparison.patches
    pool = comparison.pool
    assert pool is not None
    features = {
        name: judge.inception.features(images)
        for name, images in {REAL: patches.images, **comparison.outputs}.items()
    }
    pool_features = judge.inception.features(pool.images)
    own = {name: to_real(images, patches, judge) for name, images in comparison.outputs.items()}
    ratios = {}
    mark = "-leaky" if comparison.protocol == "paper" else ""
    for name, images in comparison.outputs.items():
        allowed = trained_on(comparison, name, pool)
        real = nearest(patches.images, patches, features[REAL], pool, pool_features, allowed)
        near = nearest(images, patches, features[name], pool, pool_features, allowed)
        ratios[name] = near.ratios(real, config.copy_below)
        # of the first model's training patches
        ratios.setdefault(REAL, real.ratios(real, config.copy_below))
        nearest_sheet(
            images, near, ratios[name], pool, config.rows, output / f"nearest-{name}{mark}.png"
        )
    ratios[REAL] = ratios.pop(REAL)  # the last row
    patients = patches.patient_ids
    statistics = of_sets(comparison, config, judge, features, pool, pool_features)
    rows = [
        *config.summaries({name: judge.marked(scores) for name, scores in own.items()}, patients),
        *judge.rows(statistics, patients, config.level, REAL, config.compare),
        *config.summaries(
            {name: judge.marked(scores) for name, scores in ratios.items()}, patients
        ),
    ]
    none = {name: np.full(len(patches), np.nan) for name in TO_REAL}
    report.add(
        comparison,
        {name: judge.marked({**own.get(name, none), **scores}) for name, scores in ratios.items()},
        rows,
    )
    report.tables.append(kid_table(features, config, judge))
    sheet(comparison, config, output / f"sheet{mark}.png")


def to_real(images: NDArray[np.float32], patches: Patches, judge: Judge) -> Scores:
    """How near each patch comes to the real one whose mass it paints anew.

    Returns:
        TO_REAL -> float64 [n].
    """
    pixels = synthesis.per_image(patches.images, images, patches.masks)
    return {
        name: judge.lpips.distance(patches.images, images) if name == "lpips" else pixels[name]
        for name in TO_REAL
    }


def trained_on(comparison: evaluation.Comparison, model: str, pool: Patches) -> NDArray[np.bool_]:
    """bool [n, m]: which patches of the pool the fold was trained on that made each output, its own
    real patch left out.
    """
    other = comparison.patches.ids[:, np.newaxis] != pool.ids
    seen = [comparison.trained_on(network) for network in comparison.networks[model]]
    return other & np.stack(seen)[comparison.folds[model]]


def nearest(
    images: NDArray[np.float32],
    patches: Patches,
    features: NDArray[np.float32],
    pool: Patches,
    pool_features: NDArray[np.float32],
    allowed: NDArray[np.bool_],
) -> Nearest:
    """The nearest of the pool in pixels (turned and mirrored too), in the pixels of the mass alone,
    and in features.
    """
    masks = patches.masks.astype(np.float32)
    found = {
        "pixels": perceptual.nearest_turned(images, pool.images, allowed),
        "mass": perceptual.nearest_turned(images, pool.images, allowed, masks),
        "features": perceptual.nearest(features, pool_features, allowed),
    }
    return Nearest(
        {space: one[0] for space, one in found.items()},
        {space: one[1] for space, one in found.items()},
    )


def of_sets(
    comparison: evaluation.Comparison,
    config: RealismConfig,
    judge: Judge,
    features: Mapping[str, NDArray[np.float32]],
    pool: Patches,
    pool_features: NDArray[np.float32],
) -> dict[str, dict[str, Statistic]]:
    """Measure -> model -> its number for some rows of the patches.

    Real patches are compared with as many of other patients, where there are so many, for FID grows
    as sets shrink.
    """
    patches = comparison.patches
    n = len(comparison.patches)
    free = np.flatnonzero(~np.isin(pool.patient_ids, patches.patient_ids))
    pairs = perceptual.random_pairs(n, config.pairs, config.seed)
    sets = {name: (images, features[name], True) for name, images in comparison.outputs.items()}
    if len(free) >= n:
        # In the archive's order, patient by patient: what a jackknife leaves out at once is of one
        # or two patients here, too.
        others = np.sort(np.random.default_rng(config.seed).permutation(free)[:n])
        sets[REAL] = (pool.images[others], pool_features[others], False)
    variety: dict[str, Statistic] = {
        name: partial(
            _of_pairs, pairs, perceptual.ms_ssim(images[pairs[:, 0]], images[pairs[:, 1]])
        )
        for name, images in {**comparison.outputs, REAL: patches.images}.items()
    }
    return {**judge.statistics(patches.images, features[REAL], sets), "ms_ssim": variety}


def kid_table(
    features: Mapping[str, NDArray[np.float32]], config: RealismConfig, judge: Judge
) -> Table:
    """KID as it is usually reported."""
    size = min(config.subset_size, len(features[REAL]))
    body = []
    for name, found in features.items():
        if name != REAL and size > 1:
            values = perceptual.kid(
                features[REAL], found, config.subsets, size, config.seed, paired=True
            )
            body.append([name, *(f"{1000 * value:.2f}" for value in values)])
    note = f" ({judge.inception.note})" if judge.inception.note else ""
    title = f"KID x 1000 over {config.subsets} subsets of {size} patches{note}"
    warning = (
        "The deviation is that of one subset's KID. Subsets share patches, so it bounds "
        "nothing; the intervals above do."
    )
    return Table(title, ["", "mean", "standard deviation"], body, (warning,))


def sheet(comparison: evaluation.Comparison, config: RealismConfig, path: Path) -> None:
    """Write mask, real patch and every model's of some patches, side by side."""
    patches = comparison.patches
    rows = np.random.default_rng(config.seed).permutation(len(patches))[: config.rows]
    image_grid.save(
        {
            "mask": patches.masks[rows],
            "real": patches.images[rows],
            **{name: i[rows] for name, i in comparison.outputs.items()},
        },
        path,
    )


def nearest_sheet(
    images: NDArray[np.float32], near: Nearest, ratios: Scores, pool: Patches, rows: int, path: Path
) -> None:
    """Write the patches that come nearest to training patches, the nearest first, each beside
    those.
    """
    least = np.min([ratios[f"nearest_{space}"] for space in near.index], axis=0)
    chosen = [row for row in np.argsort(least, kind="stable") if np.isfinite(least[row])][:rows]
    if chosen:
        beside = {
            f"nearest, {space}": pool.images[index[chosen]] for space, index in near.index.items()
        }
        image_grid.save({"synthetic": images[chosen], **beside}, path)


def _of_pairs(
    pairs: NDArray[np.intp], values: NDArray[np.float64], rows: NDArray[np.intp]
) -> float:
    kept = np.isin(pairs, rows).all(axis=1)
    return float(values[kept].mean()) if kept.any() else np.nan


if __name__ == "__main__":
    cli.run(main)
