"""Insert masses into normal mammograms, at native resolution and depth.

    tfmammo synthesize --config configs/synthesis_full.yaml --output DIR [--set KEY=VALUE
    ...] [--jobs N]
    tfmammo synthesize --recipe DIR/recipes/000000.json --output OTHER [--set data.root=DIR
    lesions.root=DIR generator=DIR]

An infilling network, a CAN or a vanilla GAN generates the masses (`renderer`, see
tfmammo.synthesis.renderers). Or they are real masses of any archive (tfmammo.synthesis.lesion_bank,
configs/synthesis_blending.yaml), blended in by a network or a method of tfmammo.baselines.poisson.

Into DIR go images/, lesion_masks/ and recipes/, and at the end annotations.json (COCO),
metadata.csv, patients.json, failures.csv and README.md. With DICOM or PNG, DIR is an archive
that `data.name=folder` reads, also in `tfmammo build` and the train scripts.

Every item follows from the config and its number alone. A stopped run resumes, and a greater
`count` adds items. A recipe reproduces its item, bit for bit with the same TensorFlow on the same
kind of machine. An item that could not be made is a failure with its reason; --retry tries it
again.

Beyond an item's supports (see tfmammo.synthesis.compositing) every stored value is the source's.
With mammograms=all a source may have lesions of its own. annotations.json and TFRecords list them
too, marked as not synthetic, because a detector would otherwise learn them as background.
lesion_masks/ has those of the inserted masses only.

A real lesion and the mammogram that it goes into may be of two patients; the result shows both.
With `patients`, both are on one side of a split, and so are the patients that sizes and shapes come
from. Without it, each recipe and metadata.csv name the lesion's patient. patients.json lists all
patients whom a set shows or derives from, or whose data its networks were trained on.

Deviations from Shen et al., section 4.3, besides those of tfmammo.synthesis.compositing and
tfmammo.models: sizes are drawn of the mass, not of its patch padded by 100 px, which is the same.
The patch is cut as the generator's training patches were (data.frame padded is the paper's). A
laterality that is not stated is not guessed.
"""

from __future__ import annotations

from collections.abc import Sequence

from tfmammo.synthesis import sets
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.mammograms import remake, synthesize


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    command = ("synthesize", __doc__, SynthesisConfig, "synthesis_full")
    sets.run_command(arguments, *command, synthesize, remake)


if __name__ == "__main__":
    main()
