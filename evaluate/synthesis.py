"""Evaluate mask-to-image models on patients they never saw: sheets like CAN's Fig. 2 and 3, and how
near they come to the real image.

tfmammo evaluate synthesis --config synthesis --set data.name=inbreast data.root=DIR
models.CAN=[RUN,RUN,RUN]

The sheet has one row per patch: mask, real image, and one column per model. Tables also measure
texture: the finest wavelet band in the mass, and checkerboards. LPIPS, FID and KID are added where
the folder in TFMAMMO_WEIGHTS has the published networks.
"""

from tfmammo import cli
from tfmammo.evaluation.script import run_evaluation
from tfmammo.evaluation.synthesis import SynthesisConfig, evaluate


def main() -> None:
    """Run every model on the masks of patients it never saw, compare, write and print."""
    files = "tables, CSVs and sheets"
    run_evaluation(__doc__, SynthesisConfig, evaluate, "runs/synthesis", files)


if __name__ == "__main__":
    cli.run(main)
