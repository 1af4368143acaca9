"""Evaluate shape classifiers on patients they never saw: accuracy with intervals, confusion
matrices, ROC curves of the folds.

tfmammo evaluate shape --config shape_evaluation --set data.name=ddsm data.root=DIR

A trivial baseline shows what the accuracy means: "most frequent" gives every mass the commonest
shape among the masks that the first model was trained on.
"""

from tfmammo import cli
from tfmammo.evaluation.comparison import EvaluationConfig
from tfmammo.evaluation.script import run_evaluation
from tfmammo.evaluation.shape import evaluate


def main() -> None:
    """Run every model on the masks of patients it never saw, compare, write and print."""
    files = "tables, CSVs and figures"
    run_evaluation(__doc__, EvaluationConfig, evaluate, "runs/shape_evaluation", files)


if __name__ == "__main__":
    cli.run(main)
