"""Evaluate how well lesions are blended into normal tissue: networks, Poisson editing, direct
paste and a vanilla GAN, side by side.

tfmammo evaluate blending --config blending_evaluation --set data.name=cdd_cesm
data.root=DIR

Every method inserts the same held-out lesions into the same normal tissue of held-out patients.
Each lesion keeps the place that it had in its own patch; it is neither turned nor resized. The
vanilla GAN generates patches from noise, as many as there are lesions. They are measured where its
training lesions are on average. The lesions' own real patches have a row of their own: what a
perfect method would reach.
"""

from tfmammo import cli
from tfmammo.evaluation.blending import BlendingEvaluationConfig, evaluate
from tfmammo.evaluation.script import run_evaluation


def main() -> None:
    """Pair lesions and tissue, run every method, compare, write and print."""
    files = "table, CSVs and sheet"
    run_evaluation(__doc__, BlendingEvaluationConfig, evaluate, "runs/blending_evaluation", files)


if __name__ == "__main__":
    cli.run(main)
