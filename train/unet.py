"""Train U-Net: images to mass masks, one of CAN's segmentation baselines.

See tfmammo/baselines/unet.py.

tfmammo train unet --config unet --set data.name=inbreast data.root=DIR
"""

from tfmammo import cli
from tfmammo.baselines.unet import UNet, UNetConfig
from tfmammo.training import script


def main() -> None:
    """Read the config, split the data by patient, train, export."""
    script.train(__doc__, UNet, UNetConfig, monitor="dice")


if __name__ == "__main__":
    cli.run(main)
