"""Train the mask GAN: noise to masks of masses.

See tfmammo/models/mask_gan.py.

tfmammo train mask_gan --config mask_gan --set data.name=ddsm data.root=DIR
"""

from dataclasses import replace
from functools import partial

import numpy as np

from tfmammo import cli
from tfmammo.data.patches import Patches
from tfmammo.data.tfrecord import PatchSource
from tfmammo.evaluation.validation import validate_mask_gan
from tfmammo.models import mask_gan
from tfmammo.training import script


def main() -> None:
    """Read the config, split the masks by patient, train, export with limits of plausibility."""
    with script.start(__doc__, mask_gan.MaskGANConfig) as command:
        experiment = command.experiment
        train, held_out = (keep_one_region(patches) for patches in command.open_subsets())
        limits = mask_gan.fit_plausibility(train.masks)
        build = partial(mask_gan.MaskGAN, experiment.model, experiment.data.size, train.masks)
        validate = partial(validate_mask_gan, references=train.masks, limits=limits)
        write = partial(mask_gan.write, limits=limits)
        command.fit(build, train, held_out, validate, monitor="coverage", write=write)


def keep_one_region(patches: PatchSource) -> Patches:
    """Clean the masks to one region each, as generated masks have; their images show the mask."""
    loaded = patches.load()
    masks = mask_gan.clean(loaded.masks, median=1)
    return replace(loaded, masks=masks, images=masks.astype(np.float32))


if __name__ == "__main__":
    cli.run(main)
