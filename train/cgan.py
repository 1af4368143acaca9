"""Train the cGAN: framed mammograms to masks, Dice and an adversary.

See tfmammo/models/cgan.py.

tfmammo train cgan --config cgan --set data.name=inbreast data.root=DIR
"""

from tfmammo import cli
from tfmammo.models.cgan import CGAN, CGANConfig
from tfmammo.training import script


def main() -> None:
    """Read the config, split the data by patient, train, export."""
    script.train(__doc__, CGAN, CGANConfig, monitor="dice")


if __name__ == "__main__":
    cli.run(main)
