"""Evaluate segmentation models on patients they never saw: tables with intervals and paired
tests, CSVs, figures.

python evaluate/segmentation.py --config configs/segmentation.yaml --set data.name=inbreast
data.root=DIR models.CAN=[RUN,RUN,RUN]

Two trivial baselines, which do not look at the image, show what the numbers are worth. "whole
patch" calls everything mass. "centred disc" knows only how the patches are cut: its radius is the
best one for the masks that the first model was trained on. Figures: the best, median and worst
cases of each model; where all models are right and wrong, side by side; box plots; ROC curves over
pixels.
"""

from tfmammo import cli
from tfmammo.evaluation.script import run_evaluation
from tfmammo.evaluation.segmentation import SegmentationConfig, evaluate


def main() -> None:
    """Run every model on the patients it never saw, compare, write and print."""
    files = "tables, CSVs and figures"
    run_evaluation(__doc__, SegmentationConfig, evaluate, "runs/segmentation", files)


if __name__ == "__main__":
    cli.run(main)
