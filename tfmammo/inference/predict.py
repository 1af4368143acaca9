"""Predict on many images: masks and boxes, written as files or one result after the other.

    predict.json                what made the folder
    masks/NAME.png              0 tissue, 255 lesion, in the image's own pixels
    segmentations/NAME.dcm      DICOM SEG of a DICOM image with a lesion
    overviews/NAME.png          boxes, outlines and scores over the image, on request
    findings/NAME.json          each lesion's box, outline, score and size
    images.json                 COCO: the images, and with `truth` their lesions
    predictions.json            COCO results: the predicted lesions
    scores.csv                  with `truth`: measures of each image
    failures.csv                images without a result, and why

NAME is the image's path without its ending. `findings` is written last, so an image that has it is
finished. A segmenter sees the regions in `boxes`, cut out as its training patches were, or else
whole images, which must be patches then.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

import tfmammo
from tfmammo import filesystem
from tfmammo.archives import coco, folder
from tfmammo.data import jobs
from tfmammo.data.extraction import extract_patches
from tfmammo.data.runners import HERE, Runner
from tfmammo.data.sampling import select_lesions
from tfmammo.errors import ArchiveError, ConfigError, PipelineError
from tfmammo.inference.images import KINDS, TRUTH, Image
from tfmammo.inference.pipeline import Pipeline, PipelineConfig, PipelineResult, Prepared
from tfmammo.inference.report import (
    describe_finding,
    draw_overlay,
    encode_mask,
    write_segmentation,
)
from tfmammo.mammogram import Lesion, Mammogram, Skipped, escape_cell, stack_boxes
from tfmammo.metrics import detection, segmentation
from tfmammo.models.cgan import PostprocessConfig
from tfmammo.tracking import export, models
from tfmammo.training.image_grid import encode_png

log = logging.getLogger(__name__)

IDENTITY = "predict.json"
TOGETHER = 8  # whole patches that a network sees at once
FAILURES = "failures.csv"
MEASURES = ("dice", "jaccard", "accuracy", "mcc", "lesions", "found", "false_positives")
LARGEST = 1500  # px of a patch's shorter side: 105 mm of a detector of 0.07 mm
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
        scored: How many images count: those with lesions of patients that no model was trained on.
        seen: How many images are of patients that a model was trained on.
    """

    images: int
    lesions: int
    failures: dict[str, str]
    scores: dict[str, float] = field(default_factory=dict)
    scored: int = 0
    seen: int = 0


def make_config(
    model: str | Path,
    boxes: str | Path | None = None,
    *,
    score: float = 0.5,
    threshold: float = 0.5,
    tracking_uri: str | None = None,
) -> PipelineConfig:
    """Make the config of the stages: a segmenter, a detector, or both.

    Args:
        model: A model URI of a segmenter or a detector.
        boxes: Of a segmenter: the model URI of a detector. A file, or "truth", is no model.
        score: Least score of a detection.
        threshold: A pixel belongs to the mask from this probability on.
        tracking_uri: Store of models:/ and runs:/.

    Raises:
        ConfigError: `boxes` are given, and the model needs none.
        TfmammoError: The model can't be found.
    """
    settings: dict[str, Any] = {
        "score": score,
        "threshold": threshold,
        "tracking_uri": tracking_uri,
        # Evaluations score masks as the network gives them.
        "postprocess": PostprocessConfig(closing=0, erosion=0, dilation=0),
    }
    if _is_segmenter(model, tracking_uri):
        detector = str(boxes) if boxes and not _is_given(boxes) else None
        return PipelineConfig(segmenter=str(model), detector=detector, **settings)
    if boxes:
        raise ConfigError(f"boxes: are for segmenters, and {model} is a detector")
    return PipelineConfig(detector=str(model), **settings)


def _is_segmenter(model: str | Path, tracking_uri: str | None) -> bool:
    path = Path(model)
    if str(model).startswith("https://") or any(
        (place / "saved_model.pb").is_file() and not (place.parent / export.CARD).is_file()
        for place in (path, path / "saved_model")
    ):
        return False  # only detectors of other tools have no card
    card = export.read_card(models.resolve(model, tracking_uri))
    return any(
        set(function["inputs"]) == {"image"} and "mask" in function["outputs"]
        for function in card["functions"].values()
    )


def _is_given(boxes: str | Path) -> bool:
    """Whether boxes come from a file or the archive, not from a detector."""
    return str(boxes) == TRUTH or Path(boxes).suffix.lower() in (".json", ".csv")


# Predictions


def predict_each(
    pipeline: Pipeline, images: Iterable[Image], failed: Skipped
) -> Iterator[tuple[Image, PipelineResult]]:
    """Predict on images, one after the other; no more than a few are in memory.

    Args:
        pipeline: The stages.
        images: The images.
        failed: Takes images that can't be read or processed.
    """
    waiting = []
    for image in images:
        try:
            _check_size(pipeline, image)
            waiting.append((image, pipeline.prepare(image.mammogram, image.regions)))
        except (ArchiveError, PipelineError) as error:
            failed.add(image.source, str(error).removeprefix(f"{image.source}: "))
        if len(waiting) == count_together(pipeline.config, [image]):
            yield from _segment(pipeline, waiting)
            waiting = []
    yield from _segment(pipeline, waiting)


def _segment(
    pipeline: Pipeline, waiting: Sequence[tuple[Image, Prepared]]
) -> Iterator[tuple[Image, PipelineResult]]:
    results = pipeline.segment([prepared for _, prepared in waiting])
    yield from zip((image for image, _ in waiting), results, strict=True)


def count_together(config: PipelineConfig, images: Sequence[Image]) -> int:
    """Count the images that a network sees at once: patches together, mammograms one by one."""
    is_patch = config.detector is None and all(image.regions is None for image in images)
    return TOGETHER if is_patch else 1


def _check_size(pipeline: Pipeline, image: Image) -> None:
    rows, cols = image.mammogram.rows, image.mammogram.cols
    if count_together(pipeline.config, [image]) > 1 and min(rows, cols) > LARGEST:
        raise PipelineError(
            f"{image.source}: has {rows} x {cols} px, and the model takes "
            "patches; boxes name the regions: a detector or a file"
        )


def predict_files(
    images: Sequence[Image],
    output: Path,
    config: PipelineConfig,
    failed: Skipped,
    overview: bool = False,
    truth: bool = False,
    runner: Runner = HERE,
) -> Summary:
    """Predict on images and write a folder; a second run makes what is missing.

    Args:
        images: Of `open_images`, with their boxes.
        output: A new folder, or one of an earlier run with the same models and settings.
        config: The stages.
        failed: Images that could not be opened.
        overview: Write overviews.
        truth: Score the results by the lesions that the archive states.
        runner: How many processes work at once.

    Raises:
        ConfigError: The folder holds other files, or results of other models or settings.
        TfmammoError: A model can't be read.
    """
    pipeline = load(config)
    settings = config.model_dump(
        mode="json", exclude={"detector", "segmenter", "classifier", "tracking_uri"}
    )
    identity = {
        "models": pipeline.hash_models(),
        "settings": settings | {"overview": overview, "truth": truth},
        "tfmammo": tfmammo.__version__,
    }
    together = count_together(config, images)
    parts = [
        Part(tuple(images[start : start + together]), output, config, overview, truth)
        for start in range(0, len(images), together)
    ]
    steps = jobs.PartSteps(
        make=make, read=_read_part, name=lambda part: part.images[0].name, command="prediction"
    )
    with jobs.claim_folder(output, identity, IDENTITY):
        for path in output.glob("findings/**/*.json"):
            if "failure" in json.loads(path.read_text(encoding="utf-8")):
                path.unlink()  # it is tried again
        records = [record for part in jobs.complete_parts(parts, steps, runner) for record in part]
        return _write_lists(images, records, failed, output, truth)


@lru_cache(maxsize=1)
def load(config: PipelineConfig) -> Pipeline:
    """Load the stages, once in a process."""
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
            content = filesystem.to_json({"failure": reason})
            _write(part.output, f"findings/{image.name}.json", content)


def _write_result(
    part: Part, pipeline: Pipeline, image: Image, result: PipelineResult
) -> dict[str, Any]:
    """Write the files of an image; return what its record holds."""
    mammogram = image.mammogram
    size = mammogram.rows, mammogram.cols
    _write(part.output, f"masks/{image.name}.png", encode_mask(result))
    if part.overview:
        overview = draw_overlay(result, min(OVERVIEW, 4 * max(size)))
        _write(part.output, f"overviews/{image.name}.png", encode_png(overview))
    if mammogram.file and folder.is_dicom(mammogram.file):
        path = part.output / f"segmentations/{image.name}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_segmentation(pipeline, result, mammogram.file, path)
    is_patch = count_together(part.config, [image]) > 1
    record: dict[str, Any] = {
        "identity": _identify(image),
        "findings": [
            describe_finding(finding, mammogram)
            | {"coco": coco.describe(finding.lesion or Lesion(finding.kind, finding.box), *size)}
            for finding in result.findings
            if finding.lesion or not is_patch
        ],
    }
    if part.truth:
        lesions = _select_truth(pipeline, mammogram)
        seen = mammogram.patient_id in find_patients(pipeline)
        record |= {
            "truth": [{"kind": each.kind} | coco.describe(each, *size) for each in lesions],
            "seen": seen,
            "scores": {} if seen else compute_scores(pipeline, image, result),
        }
    return record


def _read_part(part: Part) -> list[dict[str, Any]] | None:
    records = [_read_record(part, image) for image in part.images]
    return None if None in records else records  # type: ignore[return-value]


def _read_record(part: Part, image: Image) -> dict[str, Any] | None:
    """Read the record of an image; None unless it is of this file, with these boxes."""
    try:
        text = (part.output / f"findings/{image.name}.json").read_text(encoding="utf-8")
        record: dict[str, Any] = json.loads(text)
    except (OSError, ValueError):
        return None
    is_whole = (part.output / f"masks/{image.name}.png").is_file()
    if "failure" in record or (record["identity"] == _identify(image) and is_whole):
        return record
    return None


def _identify(image: Image) -> list[Any]:
    """Identify an image by the hash of its file, and by the boxes that were given."""
    file = image.mammogram.file
    regions = [[each.kind, each.score, *each.box] for each in image.regions or ()]
    return [filesystem.sha256(file) if file else image.mammogram.image_id, regions]


def _write(output: Path, name: str, content: bytes | str) -> None:
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    filesystem.write_atomically(output / name, content)


# Scores


def find_patients(pipeline: Pipeline) -> frozenset[str]:
    """Find the patients that a stage was trained on, by their pseudonyms."""
    return frozenset[str]().union(
        *(
            export.find_patients(stage.card, stage.handle) or ()
            for stage in (pipeline.detector, pipeline.segmenter)
            if stage
        )
    )


def _select_truth(pipeline: Pipeline, mammogram: Mammogram) -> list[Lesion]:
    if pipeline.data:
        return list(select_lesions(mammogram, pipeline.data).values())
    kinds = pipeline.detector.kinds if pipeline.detector else ()
    return [lesion for lesion in mammogram.lesions if lesion.kind in kinds]


def compute_scores(pipeline: Pipeline, image: Image, result: PipelineResult) -> dict[str, float]:
    """Score the result of one image by its true lesions.

    Returns:
        The measures of `metrics.segmentation.per_image`, where the image has an outlined lesion: of
        a whole patch at the network's size, as evaluations score it, else in the image's own
        pixels. Where boxes were detected: lesions, found, and false_positives, by an intersection
        over union above 0.5.

    Raises:
        ArchiveError: A true mask can't be read.
    """
    mammogram = image.mammogram
    lesions = _select_truth(pipeline, mammogram)
    scores: dict[str, float] = {}
    if pipeline.data and count_together(pipeline.config, [image]) > 1:
        config = pipeline.data.model_copy(update={"frame": "full"})
        for patch in extract_patches(mammogram, config, Skipped()):
            output = result.findings[0].output
            assert output is not None
            scores = _score_mask(patch.mask, output, pipeline.config.threshold)
    elif outlined := [lesion for lesion in lesions if lesion.outlines]:
        masks = [lesion.mask(mammogram.rows, mammogram.cols) for lesion in outlined]
        if any(finding.lesion for finding in result.findings) or pipeline.segmenter:
            scores = _score_mask(np.max(masks, axis=0), result.mask)
    if pipeline.detector:
        found = result.findings
        matches = detection.match_kinds(
            np.reshape([finding.box for finding in found], (-1, 4)),
            np.array([finding.score for finding in found]),
            [finding.kind for finding in found],
            stack_boxes(lesions),
            [lesion.kind for lesion in lesions],
        )
        scores |= {
            "lesions": matches.lesions,
            "found": len(matches.hits),
            "false_positives": len(matches.false_positives),
        }
    return scores


def _score_mask(truth: Any, output: Any, threshold: float = 0.5) -> dict[str, float]:
    measures = segmentation.per_image(truth[np.newaxis], output[np.newaxis], threshold)
    return {name: float(values[0]) for name, values in measures.items()}


def describe(summary: Summary, output: Path) -> list[str]:
    """Describe a folder of predictions in a few sentences."""
    lines = [f"{summary.lesions} lesions in {summary.images} images: {output}"]
    if summary.failures:
        lines.append(f"{len(summary.failures)} images have no result: {output / FAILURES}")
    if summary.seen:
        lines.append(
            f"{summary.seen} images are of patients that the model was trained on, and not scored"
        )
    if summary.scores:
        words = {
            "sensitivity": "{:.1%} of the lesions found",
            "false_positives_per_image": "{:.2f} false positives an image",
        }
        measures = [
            words.get(name, name + " {:.4f}").format(value)
            for name, value in summary.scores.items()
        ]
        lines.append(f"over {summary.scored} images: {', '.join(measures)}")
    return lines


# Lists


def _write_lists(
    images: Sequence[Image],
    records: Sequence[dict[str, Any]],
    failed: Skipped,
    output: Path,
    truth: bool,
) -> Summary:
    """Write what lists all images: images.json, predictions.json, scores.csv, failures.csv."""
    failures = dict(failed.reasons)
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for image, record in zip(images, records, strict=True):
        if "failure" in record:
            failures[image.source] = record["failure"]
            continue
        mammogram = image.mammogram
        number = len(listed) + 1
        ending = mammogram.file.suffix if mammogram.file else ""
        size = {"height": mammogram.rows, "width": mammogram.cols}
        listed.append({"id": number, "file_name": f"{image.name}{ending}"} | size)
        for finding in record["findings"]:
            category = {"image_id": number, "category_id": KINDS.index(finding["kind"]) + 1}
            predictions.append(category | {"score": finding["score"]} | finding["coco"])
        for lesion in record.get("truth", ()):
            place = {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0}
            place["category_id"] = KINDS.index(lesion.pop("kind")) + 1
            annotations.append(place | lesion)
        if truth:
            rows.append({"image": image.name, "seen": record["seen"]} | record["scores"])
    categories = [{"id": number, "name": kind} for number, kind in enumerate(KINDS, 1)]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    _write(output, "images.json", json.dumps(content))
    _write(output, "predictions.json", json.dumps(predictions))
    if truth:
        _write(output, "scores.csv", _format_csv(["image", "seen", *MEASURES], rows))
    (output / FAILURES).unlink(missing_ok=True)
    if failures:
        reasons = [{"image": name, "reason": reason} for name, reason in failures.items()]
        _write(output, FAILURES, _format_csv(["image", "reason"], reasons))
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
    if any("lesions" in row for row in rows):
        means["sensitivity"] = counts["found"] / max(1, counts["lesions"])
        means["false_positives_per_image"] = counts["false_positives"] / len(rows)
    return means


def _format_csv(columns: list[str], rows: Iterable[dict[str, Any]]) -> str:
    text = StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: escape_cell(str(value)) for key, value in row.items()})
    return text.getvalue()
