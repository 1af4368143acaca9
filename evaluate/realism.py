"""Evaluate how real and how varied the patches of models look, and whether they are copies, on
patients that the models never saw.

tfmammo evaluate realism --config realism --set data.name=cdd_cesm data.root=DIR
alexnet=alexnet.npz heads=heads.npz

For any model that makes an image of a tri-label (tissue, mask, margin) or of a mask. All models
render the masses of the same real patches again. Sheets: real next to synthetic, and for each model
the patches that come nearest to one that it was trained on. The networks behind LPIPS, FID and KID
are downloaded, or files (tfmammo pretrained convert makes them), or random ones ("none"); then
tables, CSVs and the names of measures say so.
"""

from tfmammo import cli
from tfmammo.evaluation.realism import RealismConfig, evaluate
from tfmammo.evaluation.script import run_evaluation


def main() -> None:
    """Run every model on the context of patients it never saw, compare, write and print."""
    files = "tables, CSVs and sheets"
    run_evaluation(__doc__, RealismConfig, evaluate, "runs/realism", files)


if __name__ == "__main__":
    cli.run(main)
