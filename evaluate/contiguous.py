"""Add lesions to adjacent patches of one mammogram and put the patches back: how a contextual GAN
works in varying contexts (Fig. 3).

tfmammo evaluate contiguous --config contiguous --set data.name=cdd_cesm
data.root=DIR generator=RUN

Writes figure-contiguous.png (before above, after below), mammogram.png (all of it, in the source's
bit depth) and boxes.csv (the window of each patch and what was added in it, native px).
"""

from pathlib import Path

from tfmammo import cli
from tfmammo.config import TrainingConfig
from tfmammo.evaluation.contiguous import ContiguousConfig, evaluate
from tfmammo.training import script


def main() -> None:
    """Find a mammogram and a row of patches, add lesions, write."""
    arguments = cli.make_parser(__doc__, ContiguousConfig).parse_args()
    config = cli.read_config(ContiguousConfig, arguments)
    script.configure_tensorflow(TrainingConfig(precision="float32"))
    output = arguments.output or Path("runs/contiguous")
    cli.console.print(f"{evaluate(config, output)}: {output}")


if __name__ == "__main__":
    cli.run(main)
