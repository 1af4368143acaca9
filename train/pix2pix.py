"""Train Pix2Pix: masks to mass images, CAN's synthesis baseline (see tfmammo/baselines/pix2pix.py).

python train/pix2pix.py --config configs/pix2pix.yaml --set data.name=inbreast data.root=DIR
"""

from tfmammo import cli
from tfmammo.baselines.pix2pix import Pix2Pix, Pix2PixConfig
from tfmammo.training import script


def main() -> None:
    """Read the config, split the data by patient, train, export."""
    script.train(__doc__, Pix2Pix, Pix2PixConfig)


if __name__ == "__main__":
    cli.run(main)
