"""Train Pix2Pix: masks to mass images, CAN's synthesis baseline.

See tfmammo/baselines/pix2pix.py.

tfmammo train pix2pix --config pix2pix --set data.name=inbreast data.root=DIR
"""

from functools import partial

from tfmammo import cli
from tfmammo.baselines.pix2pix import Pix2Pix, Pix2PixConfig
from tfmammo.training import script


def main() -> None:
    """Read the config, split the data by patient, train, export."""
    with script.start(__doc__, Pix2PixConfig) as command:
        model = command.experiment.model
        train, held_out = command.open_subsets()
        build = partial(Pix2Pix, model, command.experiment.data.size)
        monitor = "ssim" if model.direction == "mask_to_image" else "dice"
        command.fit(build, train, held_out, script.compute_validation_metrics, monitor=monitor)


if __name__ == "__main__":
    cli.run(main)
