"""Train FCN-8s: images to mass masks, one of CAN's segmentation baselines.

See tfmammo/baselines/fcn8s.py.

tfmammo train fcn8s --config fcn8s --set data.name=inbreast data.root=DIR
"""

from tfmammo import cli
from tfmammo.baselines.fcn8s import FCN8s, FCN8sConfig
from tfmammo.training import script


def main() -> None:
    """Read the config, split the data by patient, train, export."""
    script.train(__doc__, FCN8s, FCN8sConfig, monitor="dice")


if __name__ == "__main__":
    cli.run(main)
