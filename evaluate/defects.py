"""Evaluate texture defects of synthetic images: holes, blotches, checkerboards (CAN's Fig. 3).

tfmammo evaluate defects --config defects --set data.name=inbreast data.root=DIR
models.CAN=[RUN,RUN,RUN]

Models make images of the masks of patients they never saw. Tissue is defective where its texture
is outside the range of real tissue. Sheets show a random choice of masks, and each model's
best and worst by the area of its defects; flat tissue is blue, harsh tissue orange. Two rows
show what the numbers mean: the real patches, and an image of two intensities.
"""

from tfmammo import cli
from tfmammo.evaluation.defects import DefectsConfig, evaluate
from tfmammo.evaluation.script import run_evaluation


def main() -> None:
    """Run every model on the masks of patients it never saw, compare, write and print."""
    files = "tables, CSVs and sheets"
    run_evaluation(__doc__, DefectsConfig, evaluate, "runs/defects", files)


if __name__ == "__main__":
    cli.run(main)
