"""Train the blending GAN: a lesion grown into normal tissue (see tfmammo/models/blending.py).

python train/blending.py --config configs/blending.yaml --set data.name=inbreast data.root=DIR
"""

from functools import partial

import numpy as np

from tfmammo import cli, datasets, export
from tfmammo import config as configuration
from tfmammo.data.labelled import blend_patches, check_binary
from tfmammo.data.patches import Patches
from tfmammo.metrics.blending import background_error, seam_strength
from tfmammo.metrics.synthesis import sliced_wasserstein
from tfmammo.models.blending import LESION, NORMAL, Blending, BlendingConfig, pasted
from tfmammo.training import loop, script


def main() -> None:
    """Read the config, split the patches by patient, train, export."""
    chosen = cli.arguments(__doc__).parse_args()
    experiment = configuration.load(chosen.config, chosen.set, BlendingConfig)
    script.prepare(experiment.training)
    output = chosen.output or script.default_output(experiment)
    found = datasets.datasets(
        datasets.archive_split(experiment.data, output), output, blend_patches
    )
    sides = zip(found, ("the training folds", "the held-out fold"), strict=True)
    train, held_out = (
        check_binary(part, where) for part, where in sides if isinstance(part, Patches)
    )
    lesions, tissue = (
        held_out.take(np.flatnonzero(held_out.labels == label)) for label in (LESION, NORMAL)
    )

    def make() -> Blending:
        return Blending(
            experiment.model,
            experiment.data.size,
            tissue.images[: experiment.training.grid_samples],
        )

    metrics = loop.fit(make, experiment, train, lesions, output, partial(validate, tissue=tissue))
    script.summary(experiment, metrics, lesions, output)


def validate(functions: loop.Functions, held_out: Patches, tissue: Patches) -> dict[str, float]:
    """How G blends held-out lesions into held-out tissue, always the same pairs, the lesions where
    they were.

    Returns:
        "likeness", by which the best checkpoint is chosen: minus the sliced Wasserstein distance to
        the real lesions' patches; "likeness_of_pasted": that of the patches with the lesion pasted
        in. "seam": see metrics.blending, 1 is no seam; "background": mean absolute change beyond
        the mask.
    """
    masks = held_out.masks.astype(np.float32)
    under = tissue.images[np.arange(len(held_out)) % len(tissue)]
    channels = pasted(under, held_out.images, masks).numpy()
    made = export.predict(functions["generator"], "pasted", channels)["image"]
    return {
        "likeness": -sliced_wasserstein(held_out.images, made),
        "likeness_of_pasted": -sliced_wasserstein(held_out.images, channels[..., 1:2]),
        "seam": float(np.nanmean(seam_strength(made, held_out.masks))),
        "background": float(
            np.mean(background_error(made, under, held_out.masks)["l1_background"])
        ),
    }


if __name__ == "__main__":
    cli.run(main)
