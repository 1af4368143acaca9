"""The files of a prediction: those of each image, and those that list all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tfmammo import archives, filesystem
from tfmammo.archives import coco
from tfmammo.archives.findings import CATEGORIES
from tfmammo.archives.named_files import is_dicom
from tfmammo.errors import ArchiveError
from tfmammo.inference.images import BOX_COLUMNS, Image, is_patch, predict_each
from tfmammo.inference.pipeline import Pipeline, PipelineConfig, PipelineResult
from tfmammo.inference.report import (
    SIZES,
    describe_finding,
    draw_overlay,
    encode_mask,
    write_segmentation,
)
from tfmammo.inference.scores import (
    MEASURES,
    compute_scores,
    find_kinds,
    find_patients,
    select_truth,
)
from tfmammo.mammogram import Lesion, Skipped, escape_cell
from tfmammo.metrics.summary import write_csv
from tfmammo.training.image_grid import encode_rgb_png

FAILURES = "failures.csv"
COLUMNS = ("file", "kind", "score", *BOX_COLUMNS[0], *SIZES, "shape")  # of lesions.csv
# of an image, by its name
FILES = ("findings/{}.json", "masks/{}.png", "overviews/{}.png", "segmentations/{}.dcm")
OVERVIEW = 1600  # px


@dataclass(frozen=True, eq=False)
class Part:
    """Images that are predicted together, with all that a process needs to do so."""

    images: tuple[Image, ...]
    output: Path
    config: PipelineConfig
    overview: bool
    truth: bool


@dataclass(frozen=True)
class Summary:
    """What a folder of predictions holds.

    Attributes:
        images: How many images were predicted on.
        lesions: How many lesions were predicted.
        failures: Image -> why it has no result.
        scores: Mean of each measure over the images that count; empty without `truth`.
        scored: How many images count: not those of patients that a model was trained on, nor those
            that lost a lesion on reading.
        seen: How many images are of patients that a model was trained on.
    """

    images: int
    lesions: int
    failures: dict[str, str]
    scores: dict[str, float] = field(default_factory=dict)
    scored: int = 0
    seen: int = 0


@lru_cache(maxsize=1)
def load(config: PipelineConfig) -> Pipeline:
    """Load the stages, once for all parts that a process makes."""
    return Pipeline.load(config)


def make(part: Part) -> None:
    """Write the results of the images of a part that are not finished; see `predict_files`."""
    pipeline = load(part.config)
    missing = [image for image in part.images if _read_record(part, image) is None]
    failed = Skipped()
    for image, result in predict_each(pipeline, missing, failed):
        try:
            record = _write_result(part, pipeline, image, result)
        except ArchiveError as error:  # of a true mask
            record = {"failure": str(error)}
        _write(part.output, f"findings/{image.name}.json", filesystem.to_json(record))
    for image in missing:
        if reason := failed.reasons.get(image.source):
            remove_results(part.output, image.name)
            content = filesystem.to_json({"failure": reason})
            _write(part.output, f"findings/{image.name}.json", content)


def remove_results(output: Path, name: str) -> None:
    """Remove what an earlier call wrote of an image that has no result any more."""
    for file in FILES:
        (output / file.format(name)).unlink(missing_ok=True)


def _write_result(
    part: Part, pipeline: Pipeline, image: Image, result: PipelineResult
) -> dict[str, Any]:
    """Write the files of an image; return what its record holds."""
    mammogram = image.mammogram
    size = mammogram.rows, mammogram.cols
    files = []
    if pipeline.gives_masks:
        files.append(f"masks/{image.name}.png")
        _write(part.output, files[-1], encode_mask(result))
    if part.overview:
        files.append(f"overviews/{image.name}.png")
        overview = draw_overlay(result, min(OVERVIEW, 4 * max(size)))
        _write(part.output, files[-1], encode_rgb_png(overview))
    if mammogram.file and is_dicom(mammogram.file):
        path = part.output / f"segmentations/{image.name}.dcm"
        path.unlink(missing_ok=True)  # of an image that was another one
        if not write_segmentation(pipeline, result, mammogram.file, path):
            files.append(f"segmentations/{image.name}.dcm")
    record: dict[str, Any] = {
        "identity": _identify(part, image),
        "files": files,
        "findings": [
            describe_finding(finding, mammogram)
            | {"coco": coco.describe(finding.lesion or Lesion(finding.kind, finding.box), *size)}
            for finding in result.findings
            if finding.lesion or not is_patch(part.config, image)
        ],
    }
    if part.truth:
        lesions = select_truth(pipeline, mammogram)
        seen = mammogram.patient_id in find_patients(pipeline)
        lacks = mammogram.lacks(find_kinds(pipeline))
        record |= {
            "truth": [{"kind": each.kind} | coco.describe(each, *size) for each in lesions],
            "seen": seen,
            "scores": {} if seen or lacks else compute_scores(pipeline, image, result),
        }
    return record


def read_part(part: Part) -> list[dict[str, Any]] | None:
    """Read the records of a part; None unless all of its images are finished."""
    records = [_read_record(part, image) for image in part.images]
    return None if None in records else records  # type: ignore[return-value]


def _read_record(part: Part, image: Image) -> dict[str, Any] | None:
    """Read the record of an image; None unless it is of this file, with these boxes, and whole."""
    try:
        text = (part.output / f"findings/{image.name}.json").read_text(encoding="utf-8")
        record: dict[str, Any] = json.loads(text)
    except (OSError, ValueError):
        return None
    if "failure" in record:
        return record
    is_whole = all((part.output / file).is_file() for file in record["files"])
    return record if is_whole and record["identity"] == _identify(part, image) else None


def _identify(part: Part, image: Image) -> list[Any]:
    """Identify an image by its files, by what its archive states, and by the boxes given for it."""
    mammogram = image.mammogram
    files = archives.list_files(mammogram)[: None if part.truth else 1]
    regions = None  # the whole image is a patch, or a detector finds them
    if image.regions is not None:
        regions = [[each.kind, each.score, *each.box] for each in image.regions]
    return [*map(filesystem.sha256, files), archives.fingerprint([mammogram]), regions]


def _write(output: Path, name: str, content: bytes | str) -> None:
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    filesystem.write_atomically(output / name, content)


def write_lists(
    images: Sequence[Image],
    records: Sequence[dict[str, Any]],
    failed: Skipped,
    output: Path,
    truth: bool,
    info: dict[str, Any],
) -> Summary:
    """Write what lists all images: images.json, predictions.json and tables.

    `info` goes into images.json.
    """
    failures = dict(failed.reasons)
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    lesions: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for image, record in zip(images, records, strict=True):
        if "failure" in record:
            failures[image.source] = record["failure"]
            continue
        mammogram = image.mammogram
        number = len(listed) + 1
        size = {"height": mammogram.rows, "width": mammogram.cols}
        listed.append({"id": number, "file_name": image.file_name} | size)
        for finding in record["findings"]:
            category = {"image_id": number, "category_id": CATEGORIES[finding["kind"]]}
            predictions.append(category | {"score": finding["score"]} | finding["coco"])
            edges = dict(zip(BOX_COLUMNS[0], finding["box"], strict=True))
            told = {"file": escape_cell(image.file_name)} | finding | edges
            lesions.append({column: told[column] for column in COLUMNS})
        for lesion in record.get("truth", ()):
            place = {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0}
            place["category_id"] = CATEGORIES[lesion.pop("kind")]
            annotations.append(place | lesion)
        if truth:
            about = {"image": escape_cell(image.name), "seen": record["seen"]}
            rows.append(about | record["scores"])
    content = {"info": info, "images": listed, "annotations": annotations}
    content["categories"] = [{"id": number, "name": kind} for kind, number in CATEGORIES.items()]
    _write(output, "images.json", json.dumps(content))
    _write(output, "predictions.json", json.dumps(predictions))
    write_csv(output / "lesions.csv", lesions, COLUMNS)
    if truth:
        write_csv(output / "scores.csv", rows, ("image", "seen", *MEASURES))
    (output / FAILURES).unlink(missing_ok=True)
    if failures:
        reasons = [
            {"image": escape_cell(name), "reason": escape_cell(reason)}
            for name, reason in failures.items()
        ]
        write_csv(output / FAILURES, reasons)
    scored = [row for row in rows if len(row) > 2]
    seen = sum(row["seen"] for row in rows)
    return Summary(len(listed), len(predictions), failures, _average(scored), len(scored), seen)


def _average(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Average measures over images, and count lesions over all images."""
    means = {
        name: float(np.mean(values))
        for name in MEASURES[:4]
        if (values := [row[name] for row in rows if name in row])
    }
    counts = {name: sum(row.get(name, 0) for row in rows) for name in MEASURES[4:]}
    if counts["lesions"]:
        means["sensitivity"] = counts["found"] / counts["lesions"]
    if any("lesions" in row for row in rows):
        means["false_positives_per_image"] = counts["false_positives"] / len(rows)
    return means
