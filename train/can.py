"""Train CAN: masks to mass images and mass images to masks, with one discriminator.

See tfmammo/models/can.py.

tfmammo train can --config can --set data.name=inbreast data.root=DIR
"""

from tfmammo import cli
from tfmammo.models.can import CAN, CANConfig
from tfmammo.training import script


def main() -> None:
    """Read the config, split the data by patient, train, export."""
    script.train(__doc__, CAN, CANConfig, monitor="dice")


if __name__ == "__main__":
    cli.run(main)
