"""Add lesions to adjacent patches of one mammogram and put the patches back: how a contextual GAN
works in varying contexts (Fig. 3).

tfmammo evaluate contiguous --config contiguous --set data.name=cdd_cesm
data.root=DIR generator=RUN

Writes figure-contiguous.png (before above, after below), mammogram.png (all of it, in the source's
bit depth) and boxes.csv (the window of each patch and what was added in it, native px).
"""

from tfmammo import cli
from tfmammo.evaluation.contiguous import ContiguousConfig, evaluate
from tfmammo.evaluation.script import run_evaluation


def main() -> None:
    """Find a mammogram and a row of patches, add lesions, write."""
    files = "figure, mammogram and boxes"
    run_evaluation(__doc__, ContiguousConfig, evaluate, "runs/contiguous", files)


if __name__ == "__main__":
    cli.run(main)
