"""Show mammograms before and after a synthesis inserted masses (infilling's Fig. 4, blending's
Fig. 5), and measure how visible the masses are.

tfmammo evaluate mammograms --config mammograms --set data.name=ddsm data.root=DIR
sets.unet=DIR

Each set is a folder of `tfmammo synthesize`. Mammograms are drawn at random; the largest and the
smallest contrast follow. Contrast and seam are compared with those of the same place before the
insertion and of real masses.
"""

from tfmammo import cli
from tfmammo.evaluation.mammograms import MammogramsConfig, evaluate
from tfmammo.evaluation.script import run_evaluation


def main() -> None:
    """Read the sets and their sources, measure, draw, write and print."""
    files = "table, CSV and figures"
    run_evaluation(__doc__, MammogramsConfig, evaluate, "runs/mammograms_evaluation", files)


if __name__ == "__main__":
    cli.run(main)
