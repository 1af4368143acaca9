"""Train a U-Net with a residual encoder: images to mass masks, a modern segmenter.

See tfmammo/baselines/residual_unet.py.

tfmammo train residual_unet --config residual_unet --set data.name=inbreast
data.root=DIR
"""

from tfmammo import cli
from tfmammo.baselines.residual_unet import ResidualUNet, ResidualUNetConfig
from tfmammo.training import script


def main() -> None:
    """Read the config, split the data by patient, train, export."""
    script.train(__doc__, ResidualUNet, ResidualUNetConfig, monitor="dice")


if __name__ == "__main__":
    cli.run(main)
