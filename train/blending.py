"""Train the blending GAN: a real lesion blended into normal tissue.

See tfmammo/models/blending.py.

tfmammo train blending --config blending --set data.name=inbreast data.root=DIR
"""

from functools import partial

import numpy as np

from tfmammo import cli
from tfmammo.data import datasets
from tfmammo.data.labelled import check_binary, make_blend_patches
from tfmammo.evaluation.validation import validate_blending
from tfmammo.models.blending import LESION, NORMAL, Blending, BlendingConfig
from tfmammo.training import script


def main() -> None:
    """Read the config, split the patches by patient, train, export."""
    with script.start(__doc__, BlendingConfig) as command:
        experiment = command.experiment
        data = datasets.pin_archive_split(experiment.data, command.output)
        train, held_out = datasets.open_subsets(data, command.output, make_blend_patches)
        train = check_binary(train.load(), "the training folds")
        held_out = check_binary(held_out, "the held-out fold")
        lesions, tissue = (
            held_out.take(np.flatnonzero(held_out.labels == label)) for label in (LESION, NORMAL)
        )
        shown = tissue.images[: experiment.training.grid_samples]
        build = partial(Blending, experiment.model, data.size, shown)
        validate = partial(validate_blending, tissue=tissue)
        command.fit(build, train, lesions, validate, monitor="likeness")


if __name__ == "__main__":
    cli.run(main)
