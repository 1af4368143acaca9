"""Find, outline and name the lesions of a mammogram: box, mask and shape of each, by three
trained models.

python evaluate/case.py --config configs/case.yaml MAMMOGRAM.dcm [MORE ...] --output DIR

Every mammogram gets a folder in DIR, named after its file and the beginning of the file's sha256:
overlay.png, report.json and, of a DICOM, segmentation.dcm, which by its standard repeats the
patient's name and number; the other two hold nothing of them.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2

import tfmammo._tensorflow  # TensorFlow's first import, without its chatter
from tfmammo import cli
from tfmammo import config as configuration
from tfmammo.archives import folder
from tfmammo.archives.writers import segmentation
from tfmammo.config import TrainingConfig
from tfmammo.data.tfrecord import sha256
from tfmammo.errors import ArchiveError, CaseError
from tfmammo.inference.pipeline import CaseConfig, Chain
from tfmammo.inference.report import label, outlined, overlay, report
from tfmammo.training import script

OVERLAY = "overlay.png"
REPORT = "report.json"
SEGMENTATION = "segmentation.dcm"


def main() -> None:
    """Read the config and the models, then each mammogram; those that can't be read are told of at
    the end, with exit code 2.
    """
    parser = cli.arguments(__doc__)
    parser.add_argument(
        "mammograms",
        nargs="+",
        type=Path,
        metavar="MAMMOGRAM",
        help="an image file, DICOM or other",
    )
    chosen = parser.parse_args()
    config = configuration.parse(CaseConfig, chosen.config, chosen.set)
    script.prepare(TrainingConfig(precision="float32"))
    chain = Chain.load(config)
    failed = []
    for path in chosen.mammograms:
        try:
            read(chain, path, chosen.output or Path("runs/case"))
        except (ArchiveError, CaseError) as error:
            failed.append(f"{path}: {str(error).removeprefix(f'{path}: ')}")
    if failed:
        raise CaseError("; ".join(failed))


def read(chain: Chain, path: Path, output: Path) -> None:
    """One mammogram: read it, print what was found, write its folder; an earlier run's files there
    are replaced.

    Raises:
        ArchiveError: It can't be read, or the folder can't be written.
        CaseError: It can't be read, or the folder can't be written.
    """
    case = chain.read(folder.mammogram(path))
    digest = sha256(path)
    place = output / f"{path.stem}-{digest[:8]}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name in (OVERLAY, REPORT, SEGMENTATION):
            (place / name).unlink(missing_ok=True)
        (place / OVERLAY).write_bytes(cv2.imencode(".png", overlay(case)[..., ::-1])[1].tobytes())
        models = {
            stage: json.dumps(known, sort_keys=True) for stage, known in chain.describe().items()
        }
        without = segmentation.written(
            place / SEGMENTATION, path, outlined(case), tfmammo.__version__, models
        )
        files = {"overlay": OVERLAY, "segmentation": None if without else SEGMENTATION}
        content = {
            "input": {"sha256": digest},
            **report(case, chain),
            "files": files,
            "remarks": [without] if without else [],
        }
        (place / REPORT).write_text(
            json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise CaseError(f"{place}: can't be written ({error.strerror})") from None
    found = "; ".join(label(number, finding) for number, finding in enumerate(case.findings, 1))
    cli.console.print(
        f"{path}: {found or 'no lesion found'}",
        f"-> {place}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


if __name__ == "__main__":
    cli.run(main)
