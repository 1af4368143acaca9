"""Compare the cGAN's content losses during training, Dice against L1: each run's own loss,
and the held-out Dice of both.

tfmammo evaluate losses --config losses --set runs.Dice=runs/cgan/fold0
runs.L1=runs/cgan/l1

The two losses are different quantities, so the lower curve is not necessarily the better one.
Held-out Dice is one quantity.
"""

from tfmammo import cli
from tfmammo.evaluation.losses import LossesConfig, evaluate
from tfmammo.evaluation.script import run_evaluation


def main() -> None:
    """Read the histories of the runs from MLflow, write losses.png and losses.csv."""
    run_evaluation(__doc__, LossesConfig, evaluate, "runs/losses", "figure and values")


if __name__ == "__main__":
    cli.run(main)
