"""Compare the cGAN's content losses over a training, Dice against L1: each run's own loss,
and the held-out Dice of both.

tfmammo evaluate losses --config losses --set runs.Dice=runs/cgan/fold0
runs.L1=runs/cgan/l1

The two losses are different quantities, so the lower curve is not necessarily the better one.
Held-out Dice is one quantity.
"""

from pathlib import Path

from tfmammo import cli
from tfmammo.evaluation.losses import LossesConfig, evaluate


def main() -> None:
    """Read the histories of the runs from MLflow, write losses.png and losses.csv."""
    arguments = cli.make_parser(__doc__, LossesConfig).parse_args()
    config = cli.read_config(LossesConfig, arguments)
    output = arguments.output or Path("runs/losses")
    evaluate(config, output)
    cli.console.print(f"figure and values: {output}")


if __name__ == "__main__":
    cli.run(main)
