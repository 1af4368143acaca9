"""Write masks, boxes and shapes of lesions for a folder of images.

tfmammo predict runs/can patches/ -o predicted
tfmammo predict cgan mammograms/ -o predicted --boxes light_head --classifier runs/shape --overview
tfmammo predict light_head a.dcm b.png -o predicted
tfmammo predict runs/unet DIR -o predicted --archive inbreast --boxes truth --truth

MODEL is a run's folder, an export, models:/NAME@ALIAS, or a network that comes with the package.
IMAGES are files, or folders of them at any depth: PNG, TIFF, JPEG, PGM, BMP or DICOM. A detector
finds boxes. A segmenter outlines the lesion in images cropped around it; for whole mammograms,
--boxes names the regions. A classifier names the shape of each outlined mass. Running the same
command again adds missing results.

The output folder holds masks/NAME.png (0 tissue, 255 lesion, in the image's own pixels),
lesions.csv, predictions.json (COCO results) beside images.json, findings/NAME.json, and
segmentations/NAME.dcm for DICOM images. Images that can't be used are listed in failures.csv; the
exit code is then 1.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from tfmammo import cli
from tfmammo.config import TrainingConfig
from tfmammo.document import say_count
from tfmammo.errors import ConfigError
from tfmammo.inference.predict import predict_files
from tfmammo.inference.writing import FAILURES, Summary
from tfmammo.mammogram import LesionKind
from tfmammo.training import script


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; images that fail end in exit code 1."""
    parser = cli.make_command_parser("predict", __doc__)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGES")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    about = "the name of the archive that IMAGES is the folder of; with --truth: folder"
    parser.add_argument("--archive", metavar="NAME", help=about)
    about = "regions: a detector, a COCO file, a CSV table, or the word truth"
    parser.add_argument("--boxes", metavar="BOXES", help=about)
    about = "a network that classifies the shapes of outlined masses"
    parser.add_argument("--classifier", metavar="MODEL", help=about)
    about = "lesion kinds of classes 1, 2, ... of a detector trained elsewhere; default: mass"
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help=about)
    about = "least score of a detection; default: 0.5"
    parser.add_argument("--score", type=float, default=0.5, metavar="S", help=about)
    about = "probability from which on a pixel is lesion; default: 0.5"
    parser.add_argument("--threshold", type=float, default=0.5, metavar="P", help=about)
    about = "clean a segmenter's masks by morphology, as Singh et al. do"
    parser.add_argument("--postprocess", action="store_true", help=about)
    parser.add_argument("--overview", action="store_true", help="draw what was found on each image")
    about = "score the results by the lesions that the archive states"
    parser.add_argument("--truth", action="store_true", help=about)
    about = "processes that work at once, each with its own copy of the model; default: 1"
    parser.add_argument("--jobs", type=cli.parse_count, default=1, metavar="N", help=about)
    parser.add_tracking_uri()
    options = parser.parse_args(arguments)
    cli.run(lambda: _run(options))


def _run(options: Namespace) -> None:
    kinds = get_args(LesionKind)
    for kind in options.kinds or ():
        if kind not in kinds:
            raise ConfigError(
                f"--kinds: {kind} is none of {', '.join(kinds)}; name IMAGES before --kinds"
            )
    if not options.images and options.archive != "phantom":
        raise ConfigError("IMAGES: give at least one file or folder")
    script.configure_tensorflow(TrainingConfig(precision="float32"))
    summary = predict_files(**vars(options))
    for name, reason in summary.failures.items():
        print(f"{name}: {reason}", file=sys.stderr)
    print(*_describe(summary, options), sep="\n")
    if summary.failures:
        sys.exit(1)


def _describe(summary: Summary, options: Namespace) -> list[str]:
    output = options.output
    images = say_count(summary.images, "image")
    lines = [f"{say_count(summary.lesions, 'lesion')} in {images}: {output}"]
    if summary.failures:
        failed = say_count(len(summary.failures), "image")
        lines.append(f"{failed} without a result: {output / FAILURES}")
    if summary.seen:
        lines.append(
            f"not scored, because the model was trained on the patient: "
            f"{say_count(summary.seen, 'image')}"
        )
    if summary.scores:
        words = {
            "sensitivity": "{:.1%} of the lesions found",
            "false_positives_per_image": "{:.2f} false positives per image",
        }
        measures = [
            words.get(name, name + " {:.4f}").format(value)
            for name, value in summary.scores.items()
        ]
        lines.append(f"over {say_count(summary.scored, 'image')}: {', '.join(measures)}")
    elif options.truth and not summary.seen:
        lines.append("not scored, because no image has an annotated lesion")
    return lines


if __name__ == "__main__":
    main()
