"""Evaluate segmentation models in three crop modes of the same lesions: full, loose and tight.

tfmammo evaluate frames --config frames --set data.name=inbreast data.root=DIR

Each crop mode gets a folder with the tables of evaluate/segmentation.py. Figures show the same
randomly drawn lesions in all crop modes (croppings.png, overlays.png), masks before and after
morphology (morphology-FRAME.png: a random choice, the largest gains, the largest losses) and missed
masses (failures-FRAME.png: a random choice of patches with several masses, then the least part
found). Morphology has a test of its own. Without models (models={}) the croppings alone are drawn.
"""

from tfmammo import cli
from tfmammo.evaluation.frames import FramesConfig, evaluate
from tfmammo.evaluation.script import run_evaluation


def main() -> None:
    """Run the models of every crop mode, compare, write and print."""
    files = "tables, CSVs and figures"
    run_evaluation(__doc__, FramesConfig, evaluate, "runs/frames", files)


if __name__ == "__main__":
    cli.run(main)
