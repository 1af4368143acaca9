"""Train the vanilla GAN: lesion patches from noise alone.

See tfmammo/baselines/vanilla_gan.py.

tfmammo train vanilla_gan --config vanilla_gan --set data.name=inbreast data.root=DIR
"""

from functools import partial

from tfmammo import cli
from tfmammo.baselines.vanilla_gan import VanillaGAN, VanillaGANConfig
from tfmammo.data import datasets
from tfmammo.evaluation.validation import validate_vanilla_gan
from tfmammo.training import script


def main() -> None:
    """Read the config, split the patches by patient, train, export."""
    with script.start(__doc__, VanillaGANConfig) as command:
        model = command.experiment.model
        data = datasets.pin_archive_split(command.experiment.data, command.output)
        train, held_out = datasets.open_subsets(data, command.output)
        build = partial(VanillaGAN, model, data.size)
        validate = partial(validate_vanilla_gan, z=model.z)
        command.fit(build, train, held_out, validate, monitor="likeness")


if __name__ == "__main__":
    cli.run(main)
