"""Train SegNet: images to mass masks, one of CAN's segmentation baselines.

See tfmammo/baselines/segnet.py.

tfmammo train segnet --config segnet --set data.name=inbreast data.root=DIR
"""

from tfmammo import cli
from tfmammo.baselines.segnet import SegNet, SegNetConfig
from tfmammo.training import script


def main() -> None:
    """Read the config, split the data by patient, train, export."""
    script.train(__doc__, SegNet, SegNetConfig, monitor="dice")


if __name__ == "__main__":
    cli.run(main)
