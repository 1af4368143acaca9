"""Normal mammograms -> mammograms with masses, at native resolution and depth, each with
boxes, masks and a recipe.

    python -m tfmammo.synthesis --config configs/synthesis_full.yaml --output DIR [--set KEY=VALUE
    ...] [Beam's own flags]
    python -m tfmammo.synthesis --recipe DIR/recipes/000000.json --output OTHER [--set data.root=DIR
    lesions.root=DIR generator=DIR]

The masses are made up by an infilling or a CAN (`painter`, see tfmammo.painters), or are real ones
of any archive (tfmammo.grafts, configs/synthesis_blending.yaml), blended in by a network or by a
method of tfmammo.baselines.poisson; or a vanilla GAN makes them.

DIR gets images/, lesion_masks/, recipes/ and at the end annotations.json (COCO), metadata.csv,
patients.json, dead_letters.csv and README.md. With DICOM or PNG it is an archive that
`data.name=folder` reads, so that `python -m tfmammo.data.build` and the train scripts take it as it
is. Every item follows from the config and its number alone: a run that was stopped goes on where it
was, a greater `count` adds items, and a recipe makes its item again, bit for bit with the same
TensorFlow on the same kind of machine. What could not be made is a dead letter with its reason;
--retry tries it again.

Whatever lies beyond an item's supports (see tfmammo.insertion) is stored as in the source, value
for value. With mammograms=all a source may have lesions of its own: annotations.json and TFRecords
have them too, marked as not synthetic, for a detector would else learn that they are none;
lesion_masks/ are those of what was set in.

A real lesion and the mammogram that it is set into may be of two patients, and both are seen by
whoever sees the result. With `patients` both are of one side of a split, and so are those that
sizes and shapes come from; without it each recipe and metadata.csv say whose lesion it is.
patients.json tells everybody whom a set shows, derives from, or whose data its networks were
trained on.

Departures from Shen et al., section 4.3, beside those that tfmammo.insertion and tfmammo.models
name: sizes are drawn of the mass, not of its patch padded by 100 px, which is the same, and the
patch is cut as the generator's training patches were (data.frame padded is the paper's). A
generated patch does not replace the tissue as in the paper: what it changes is added with a faded
border, so that the tissue's grain stays and no square shows; whole_patch=true is the paper's way.
Sides of a mammogram whose laterality is not stated are not guessed.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from tfmammo import cli, config
from tfmammo.data import jobs
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.mammograms import remake, synthesise

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: what goes wrong becomes one line on stderr and exit code 2."""
    parser = cli.Parser(
        prog="python -m tfmammo.synthesis",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--config", metavar="FILE", help="a YAML file such as configs/synthesis_full.yaml"
    )
    what.add_argument("--recipe", metavar="FILE", type=Path, help="make this item again")
    parser.add_overrides()
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where to write")
    parser.add_argument("--retry", action="store_true", help="try again what could not be made")
    ours, flags = parser.parse_with(arguments, jobs.unknown_to_beam)

    def work() -> None:
        if ours.recipe:
            recipe = remake(ours.recipe, ours.output.resolve(), ours.set)
            log.info("%s: made again, bit for bit", ", ".join(recipe.files))
        else:
            synthesise(
                config.parse(SynthesisConfig, ours.config, ours.set),
                ours.output.resolve(),
                flags,
                ours.retry,
            )

    cli.run(work)


if __name__ == "__main__":
    main()
