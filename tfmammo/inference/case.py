"""What the CAD pipeline writes of one mammogram: overlay, mask, report and segmentation."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfmammo.archives import folder
from tfmammo.errors import PipelineError
from tfmammo.filesystem import sha256
from tfmammo.inference.pipeline import Pipeline, PipelineResult
from tfmammo.inference.report import (
    build_report,
    draw_overlay,
    encode_mask,
    format_label,
    write_segmentation,
)
from tfmammo.training.image_grid import encode_rgb_png

OVERLAY = "overlay.png"
MASK = "mask.png"
REPORT = "report.json"
SEGMENTATION = "segmentation.dcm"


def process_file(pipeline: Pipeline, path: Path, output: Path) -> tuple[Path, str]:
    """Read one mammogram, run the pipeline on it, and write its folder.

    Files of an earlier run in that folder are replaced.

    Returns:
        The folder, named after the file and its sha256, and one line that names the findings.

    Raises:
        ArchiveError: The mammogram can't be read.
        PipelineError: The mammogram can't be processed, or its folder can't be written.
    """
    result = pipeline.predict(folder.read_one(path))
    digest = sha256(path)
    case_folder = output / f"{path.stem}-{digest[:8]}"
    try:
        _write(pipeline, result, path, digest, case_folder)
    except OSError as error:
        raise PipelineError(f"{case_folder}: can't be written ({error.strerror})") from None
    labels = [format_label(number, finding) for number, finding in enumerate(result.findings, 1)]
    found = "; ".join(labels) or "no lesion found"
    return case_folder, " - ".join([found, *pipeline.list_remarks()])


def write_overlay(overlay: NDArray[np.uint8], output: Path) -> None:
    """Write overlay.png into a folder; the overlay is RGB, as `draw_overlay` returns it."""
    (output / OVERLAY).write_bytes(encode_rgb_png(overlay))


def write_report(content: Mapping[str, Any], output: Path) -> None:
    """Write report.json into a folder."""
    text = json.dumps(content, indent=2, allow_nan=False)
    (output / REPORT).write_text(f"{text}\n", encoding="utf-8")


def _write(
    pipeline: Pipeline, result: PipelineResult, path: Path, digest: str, output: Path
) -> None:
    """Write all files of a mammogram; those of an earlier run stay until all are written."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=output) as folder:
        made = Path(folder)
        write_overlay(draw_overlay(result), made)
        (made / MASK).write_bytes(encode_mask(result))
        reason = write_segmentation(pipeline, result, path, made / SEGMENTATION)
        files = {
            "overlay": OVERLAY,
            "mask": MASK,
            "segmentation": None if reason else SEGMENTATION,
        }
        content = {
            "input": {"sha256": digest},
            **build_report(result, pipeline),
            "files": files,
        }
        content["remarks"] += [reason] if reason else []
        write_report(content, made)
        for name in (OVERLAY, MASK, REPORT, SEGMENTATION):
            (output / name).unlink(missing_ok=True)
            if (made / name).exists():
                (made / name).replace(output / name)
