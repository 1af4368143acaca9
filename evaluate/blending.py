"""Judge how well lesions are blended into normal tissue: networks, Poisson editing, direct
paste and a vanilla GAN, side by side.

python evaluate/blending.py --config configs/blending_evaluation.yaml --set data.name=cdd_cesm
data.root=DIR

Every method sets the same held-out lesions into the same normal tissue of held-out patients, each
lesion where it was in its own patch, neither turned nor resized. The vanilla GAN draws patches from
noise, as many as there are lesions; measured is where its training lesions lie in the mean. Real
patches, the lesions' own, are a row of their own: what a perfect method would reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from tfmammo import cli, datasets, export
from tfmammo import config as configuration
from tfmammo.baselines.poisson import METHODS
from tfmammo.config import DataConfig, TrainingConfig
from tfmammo.data import splits
from tfmammo.data.labelled import blend_patches
from tfmammo.data.patches import Patches
from tfmammo.errors import ConfigError, DataError
from tfmammo.evaluation import comparison as evaluation
from tfmammo.evaluation.perceptual import SET_MEASURES, Judge, Scores, check_size
from tfmammo.evaluation.two_sample import two_sample
from tfmammo.metrics import blending, perceptual
from tfmammo.metrics.summary import Measure, Row
from tfmammo.models.blending import LESION, NORMAL, pasted
from tfmammo.models.mask_gan import clean, latent
from tfmammo.training import image_grid, script

REAL = "real patches"
VANILLA = "vanilla GAN"
MEASURES = {
    "seam": Measure("seam: grey jumps across the border over those beside it", "", 1, 2),
    "contrast": Measure("contrast of the lesion", "", 1, 3),
    "l1_background": Measure("L1 of the background x 1000", "", 1000, 2),
    "gradient_background": Measure("gradient difference of the background x 1000", "", 1000, 2),
    **SET_MEASURES,
    "auc": Measure("told from real patches, AUC", "", 1, 3),
}

Direct = Literal["paste", "poisson", "mixed", "opencv", "opencv_mixed"]


class BlendingEvaluationConfig(evaluation.EvaluationConfig):
    """What is compared.

    models: runs of train/blending.py. data: as in their training, its folds, seed and stratify too,
    for these say which tissue a lesion is set into.
    """

    methods: tuple[Direct, ...] = ("paste", "poisson", "mixed", "opencv", "opencv_mixed")
    """Of tfmammo.baselines.poisson."""
    vanilla: evaluation.Handles | None = None
    """Runs of train/vanilla_gan.py, or null."""
    alexnet: str = "imagenet"
    """Of LPIPS."""
    heads: str = "none"
    """Of LPIPS."""
    inception: str = "imagenet"
    """Of FID and KID: "imagenet", a path, or "none"; see tfmammo.pretrained."""
    folds: int = Field(default=5, ge=2)
    """Of the classifier that tells made patches from real ones."""
    steps: PositiveInt = 200
    """Of the classifier that tells made patches from real ones."""
    rows: PositiveInt = 6
    """Of the sheet."""


def main() -> None:
    """Read the config, pair lesions and tissue, run every method, compare, write and print."""
    chosen = cli.arguments(__doc__).parse_args()
    config = configuration.parse(BlendingEvaluationConfig, chosen.config, chosen.set)
    check(config)
    script.prepare(TrainingConfig(precision="float32"))
    output = chosen.output or Path("runs/blending_evaluation")
    judge = Judge(
        perceptual.LPIPS(config.alexnet, config.heads), perceptual.Inception(config.inception)
    )
    lesions, tissue = paired(config.data, config.seed, output)
    comparison = compared(config, lesions, tissue)
    under = tissue.take(rows_of(lesions, comparison.patches))
    images, masks = made(config, comparison, under, lesions)
    report = evaluation.Report(
        config, judge.measures(MEASURES), models_across=True, note=judge.note
    )
    scores = {
        name: of_image(images[name], masks[name], under.images, name in (REAL, VANILLA))
        for name in images
    }
    rows = per_image(scores, config, comparison.patches)
    rows += of_sets(images, masks, judge, config, comparison.patches)
    report.add(comparison, scores, rows)
    report.write(output)
    sheet({"tissue": under.images, **images}, config, output / "sheet.png")
    for table in report.tables:
        cli.console.print(table)
    cli.console.print(f"table, CSVs and sheet: {output}")


def check(config: BlendingEvaluationConfig) -> None:
    """Make sure that the config can be worked with.

    Raises:
        ConfigError: It can't.
    """
    check_size(config.data.size)
    if taken := [name for name in config.models if name in (REAL, VANILLA, "tissue", *METHODS)]:
        raise ConfigError(f"models: {taken[0]} is the name of a row of its own")
    if config.patients != "unseen":
        raise ConfigError(
            "patients: lesions and tissue must be of patients that no model was trained on (unseen)"
        )


def paired(data: DataConfig, seed: int, output: Path) -> tuple[Patches, Patches]:
    """All lesions of an archive, and for each a patch of normal tissue from its own fold: two
    Patches of equal length.

    Raises:
        DataError: A fold has lesions and no normal tissue.
    """
    split = datasets.archive_split(data, output)
    patches = datasets.all_patches(split, blend_patches)
    lesions, normal = (
        patches.take(np.flatnonzero(patches.labels == label)) for label in (LESION, NORMAL)
    )
    places = splits.describe(patches, split, "").patients
    of_lesion, of_normal = (
        np.array([str(places[one]) for one in part.patient_ids.tolist()])
        for part in (lesions, normal)
    )
    random = np.random.default_rng(seed)
    rows = np.empty(len(lesions), np.intp)
    for row, place in enumerate(of_lesion):
        free = np.flatnonzero(of_normal == place)
        if not len(free):
            raise DataError(
                f"fold {place} has lesions, but no normal tissue to set them into; "
                "data.sampling.normal=tissue takes it beside lesions"
            )
        rows[row] = free[random.integers(len(free))]
    return lesions, normal.take(rows)


def compared(
    config: BlendingEvaluationConfig, lesions: Patches, tissue: Patches
) -> evaluation.Comparison:
    """What the networks make of all lesions that each of them may judge."""

    def three_channels(patches: Patches, card: Mapping[str, Any]) -> NDArray[np.float32]:
        under = tissue.take(rows_of(lesions, patches))
        if np.isin(under.patient_ids, sorted(export.trained_on(card, "the blending"))).any():
            raise DataError(
                "a lesion would be set into tissue of a patient that its model was trained on; "
                "data.folds, seed and stratify must be those"
                " of the training"
            )
        return channels(under, patches)

    form = lesions.images.shape[1:]
    # The lesions are made already: no pixel is read a second time.
    return evaluation.compare(
        config, {"pasted": three_channels}, "image", make=lambda *_: lesions, shape=form
    )[0]


def channels(tissue: Patches, lesions: Patches) -> NDArray[np.float32]:
    """What a blending network takes: float32 [n, size, size, 3] in [0, 1]."""
    return pasted(tissue.images, lesions.images, lesions.masks.astype(np.float32)).numpy()


def rows_of(lesions: Patches, patches: Patches) -> NDArray[np.intp]:
    """Where each of some lesions stands among all of them."""
    places = {name: row for row, name in enumerate(lesions.ids.tolist())}
    return np.array([places[name] for name in patches.ids.tolist()], np.intp)


def made(
    config: BlendingEvaluationConfig,
    comparison: evaluation.Comparison,
    under: Patches,
    lesions: Patches,
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.uint8]]]:
    """Images and masks by method, each [n, size, size, 1]: the networks', the direct ones', the
    vanilla GAN's and the real ones.
    """
    patches = comparison.patches
    images = dict(comparison.outputs)
    for name in config.methods:
        parts = zip(under.images, patches.images, patches.masks, strict=True)
        images[name] = np.stack(
            [METHODS[name](tissue, lesion, mask) for tissue, lesion, mask in parts]
        )
    masks = dict.fromkeys(images, patches.masks)
    if config.vanilla:
        images[VANILLA], masks[VANILLA] = from_noise(config, patches, lesions)
    return images | {REAL: patches.images}, masks | {REAL: patches.masks}


def from_noise(
    config: BlendingEvaluationConfig, patches: Patches, lesions: Patches
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The vanilla GAN's images and cleaned masks, one for each lesion, by the fold that never saw
    its patient.
    """
    own = config.model_copy(update={"models": {VANILLA: config.vanilla}})
    form = lesions.images.shape[1:]

    def noise(some: Patches, card: Mapping[str, Any]) -> NDArray[np.float32]:
        function = next(
            one for one in card["functions"].values() if set(one["inputs"]) == {"noise"}
        )
        return latent(len(lesions), function["inputs"]["noise"]["shape"][1], config.seed)[
            rows_of(lesions, some)
        ]

    found = {}
    for target in ("image", "mask"):
        judged = evaluation.compare(
            own, {"noise": noise}, target, make=lambda *_: lesions, shape=form
        )[0]
        if judged.patches.ids.tolist() != patches.ids.tolist():
            raise DataError(
                f"vanilla: judges {len(judged.patches)} patches and the other models "
                f"{len(patches)}; they must be of one split"
            )
        found[target] = judged.outputs[VANILLA]
    return found["image"], clean(found["mask"])


def of_image(
    images: NDArray[np.float32], masks: NDArray[np.uint8], tissue: NDArray[np.float32], whole: bool
) -> Scores:
    """The measures of single images. whole: nothing was set into the tissue, so that there is no
    background to compare.
    """
    scores = {
        "seam": blending.seam_strength(images, masks),
        "contrast": blending.lesion_contrast(images, masks),
    }
    nothing = np.full(len(images), np.nan)
    background = dict.fromkeys(("l1_background", "gradient_background"), nothing)
    return scores | (background if whole else blending.background_error(images, tissue, masks))


def per_image(
    scores: Mapping[str, Scores], config: BlendingEvaluationConfig, patches: Patches
) -> list[Row]:
    """The table's rows of what single images have; the vanilla GAN's, of which some may lack a
    lesion, apart.
    """
    first = next(iter(scores))
    placed = {name: values for name, values in scores.items() if name not in (REAL, VANILLA)}
    seen = {
        name: {key: values[key] for key in ("seam", "contrast")} for name, values in scores.items()
    }
    patients = patches.patient_ids
    rows = config.summaries(
        {name: values for name, values in seen.items() if name != VANILLA}, patients
    )
    if VANILLA in seen:
        rows += [
            row
            for row in config.summaries({first: seen[first], VANILLA: seen[VANILLA]}, patients)
            if row.model == VANILLA
        ]
    background = {
        name: {key: values[key] for key in ("l1_background", "gradient_background")}
        for name, values in placed.items()
    }
    return rows + config.summaries(background, patients)


def of_sets(
    images: Mapping[str, NDArray[np.float32]],
    masks: Mapping[str, NDArray[np.uint8]],
    judge: Judge,
    config: BlendingEvaluationConfig,
    patches: Patches,
) -> list[Row]:
    """The table's rows of what is known of whole sets alone: distances to the real patches, and
    whether a classifier tells them apart.
    """
    features = {name: judge.inception.features(values) for name, values in images.items()}
    sets = {name: (values, features[name], True) for name, values in images.items() if name != REAL}
    rows = judge.rows(
        judge.statistics(images[REAL], features[REAL], sets),
        patches.patient_ids,
        config.level,
        REAL,
        config.compare,
    )
    patients = patches.patient_ids
    for name in sets:
        found = two_sample(
            images[REAL],
            images[name],
            patients,
            patients,
            masks[REAL],
            masks[name],
            folds=config.folds,
            seed=config.seed,
            size=min(128, config.data.size),
            steps=config.steps,
            level=config.level,
        )
        rows.append(
            Row(
                name,
                "auc",
                len(patients),
                len(set(patients.tolist())),
                found.auc,
                found.low,
                found.high,
            )
        )
    return rows


def sheet(
    panels: Mapping[str, NDArray[np.float32]], config: BlendingEvaluationConfig, path: Path
) -> None:
    """Write the tissue, every method's image and the lesion's own patch of some lesions, side by
    side.
    """
    some = np.random.default_rng(config.seed).permutation(len(panels[REAL]))[: config.rows]
    image_grid.save({name: values[some] for name, values in panels.items()}, path)


if __name__ == "__main__":
    cli.run(main)
