"""Train the mask GAN: noise to masks of masses (see tfmammo/models/mask_gan.py).

python train/mask_gan.py --config configs/mask_gan.yaml --set data.name=ddsm data.root=DIR
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tfmammo import cli, datasets, export
from tfmammo import config as configuration
from tfmammo.data.patches import Patches
from tfmammo.data.tfrecord import Records
from tfmammo.export import saved_models
from tfmammo.models.mask_gan import (
    LIMITS,
    MaskGAN,
    MaskGANConfig,
    Plausibility,
    clean,
    distances,
    diversity,
    fit_plausibility,
    latent,
    nearest,
    plausible,
)
from tfmammo.training import loop, script

SAMPLES = 128  # masks that a validation draws


def main() -> None:
    """Read the config, split the masks by patient, train, export with the limits of
    plausibility.
    """
    chosen = cli.arguments(__doc__).parse_args()
    experiment = configuration.load(chosen.config, chosen.set, MaskGANConfig)
    script.prepare(experiment.training)
    output = chosen.output or script.default_output(experiment)
    train, held_out = (alone(patches) for patches in datasets.datasets(experiment.data, output))
    limits = fit_plausibility(train.masks)
    room = partial(MaskGAN, experiment.model, experiment.data.size, train.masks)
    judge = partial(validate, references=train.masks, limits=limits)
    metrics = loop.fit(
        room, experiment, train, held_out, output, judge, write=partial(write, limits=limits)
    )
    script.summary(experiment, metrics, held_out, output)


def alone(patches: Patches | Records) -> Patches:
    """The patches with one region each, as generated masks have; their images show it."""
    loaded = patches.load() if isinstance(patches, Records) else patches
    masks = clean(loaded.masks, median=1)
    return replace(loaded, masks=masks, images=masks.astype(np.float32))


def validate(
    functions: loop.Functions, held_out: Patches, references: np.ndarray, limits: Plausibility
) -> dict[str, float]:
    """How good, how varied and how new masks of fixed noise are, cleaned.

    Returns:
        "coverage": the mean Dice of a held-out mask with the generated one most like it, by which
        the best checkpoint is chosen: noise, copies of one mask and masks of another kind all lower
        it. "plausible": the share that `plausible` accepts. "diversity": of generated masks,
        "diversity_real" of held-out ones. "novelty": the mean distance to the nearest training
        mask, "novelty_smallest" the least, "novelty_real" that of held-out masks.
    """
    function = functions["generator"]
    noise = latent(SAMPLES, function.input_signature[0].shape[1])
    masks = clean(export.predict(function, "noise", noise)["mask"])
    novelty = nearest(masks, references)[0]
    return {
        "coverage": float(1 - distances(held_out.masks, masks).min(axis=1).mean()),
        "plausible": float(plausible(masks, limits).mean()),
        "diversity": diversity(masks),
        "diversity_real": diversity(held_out.masks),
        "novelty": float(novelty.mean()),
        "novelty_smallest": float(novelty.min()),
        "novelty_real": float(nearest(held_out.masks, references)[0].mean()),
    }


def write(room: Any, folder: Path, limits: Plausibility) -> dict[str, Any]:
    """The SavedModels, and beside them the limits of plausibility that the training masks give."""
    (folder / LIMITS).write_text(limits.model_dump_json(), encoding="utf-8")
    return saved_models(room, folder)


if __name__ == "__main__":
    cli.run(main)
