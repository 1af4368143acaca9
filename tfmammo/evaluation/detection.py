"""Run detectors on mammograms of patients they never saw: what evaluate/detection.py writes.

The cGAN's review calls the SSD the best of the detectors that it compares; the infilling paper uses
a Light-Head R-CNN, the blending paper a Mask R-CNN. No paper compares the three on one set. The
trivial baseline puts boxes of usual sizes at random places of the breast, with random scores.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from tfmammo.archives import read_mammograms
from tfmammo.data import datasets, sampling
from tfmammo.data.anatomy import breast_mask
from tfmammo.detection.detections import Detections, Detector
from tfmammo.document import say_count
from tfmammo.errors import DataError
from tfmammo.evaluation.comparison import ModelURIs, Name, Settings
from tfmammo.evaluation.froc import (
    RECALL,
    Detected,
    add_differences,
    add_false_positives,
    add_recall,
    add_runs,
    add_scores,
    measure_seconds,
    tabulate_seconds,
)
from tfmammo.evaluation.report import Report, save_figure
from tfmammo.mammogram import Lesion, Mammogram, Skipped, stack_boxes
from tfmammo.metrics.average_precision import Boxes, average_precision, import_coco
from tfmammo.metrics.boxes import Criterion, Matches, find_spared, match_kinds, recall_by
from tfmammo.metrics.detection import FPPI, Found
from tfmammo.metrics.rows import write_facts
from tfmammo.metrics.summary import Table

log = logging.getLogger(__name__)

UNNAMED = "detectors"  # the name of one detector that the config gives none
RANDOM_BOXES = "random boxes"
RANDOM_NOTE = (
    f"{RANDOM_BOXES}: at random places of the breast, of the sizes of other patients' lesions, "
    "with random scores."
)
COCO = {
    "ap": "AP at IoU 0.5 to 0.95, %",
    "ap50": "AP at IoU 0.5, %",
    "ap75": "AP at IoU 0.75, %",
    "ar": "average recall, %",
}


def _name_detector(value: Any) -> Any:
    return {UNNAMED: value} if isinstance(value, str | list | tuple) else value


class DetectionConfig(Settings):
    """Detectors, the mammograms that they are evaluated on, and what counts.

    `data` has the kinds of lesions; detections of other kinds are ignored. Each detector
    preprocesses as in training. A mammogram for which a detector has no eligible run is skipped.
    """

    detectors: Annotated[
        dict[Name, ModelURIs], BeforeValidator(_name_detector), Field(min_length=1)
    ]
    """Name -> one model URI, or several: the folds of a cross-validation; see `Detector.load`. The
    other detectors are compared with the first one. One detector alone needs no name.
    """
    boxes: NonNegativeInt = 0
    """Boxes of the trivial baseline in each mammogram; with 0 it has no row."""
    samples: PositiveInt = 1000
    """Draws of the bootstrap over patients."""
    normal: bool = True
    """Whether normal mammograms count too. On them every box is a false positive."""
    criterion: Criterion = "iou"
    """What makes a hit: "iou"; "ior", the part of a box that is in the lesion's box; "centre",
    the box's centre is in the lesion's box.
    """
    threshold: float = Field(default=0.5, ge=0, lt=1)
    """What IoU or IoR must exceed."""
    fppi: tuple[PositiveFloat, ...] = Field(default=FPPI, min_length=1)
    """The numbers of false positives per image at which recall is given."""
    coco: bool = False
    """Whether to compute COCO's average precision too; needs pycocotools."""

    @model_validator(mode="after")
    def _check_names(self) -> DetectionConfig:
        if RANDOM_BOXES in self.detectors:
            raise ValueError(f"detectors: {RANDOM_BOXES} is the name of the trivial baseline")
        return self

    @property
    def recall(self) -> str:
        """What is measured, in words."""
        return recall_by(self.criterion, self.threshold)


@dataclass(frozen=True)
class Prediction:
    """What one detector finds in one mammogram.

    Attributes:
        mammogram: The mammogram.
        lesions: Its lesions of the kinds that count.
        detections: Everything that the detector finds.
        matches: Which detections are right.
        detector: The index of the detector among the URIs of its set.
        seconds: What reading, preprocessing and detection took, s.
    """

    mammogram: Mammogram
    lesions: tuple[Lesion, ...]
    detections: Detections
    matches: Matches
    detector: int
    seconds: float


# Set -> predictions for the same mammograms
Sets = Mapping[str, Sequence[Prediction]]


def evaluate(config: DetectionConfig, output: Path) -> Report:
    """Run the detectors on patients they never saw, and write tables, FROC curves and boxes."""
    if config.coco:
        import_coco()  # fails before the work if pycocotools is missing
    sets = run_sets(config)
    first = next(iter(sets))
    trained = collect(config, sets)
    detected = trained
    if config.boxes:
        random = Found.by_one_run(match_random_boxes(sets[first], config))
        detected = replace(trained, found={**trained.found, RANDOM_BOXES: random})
    report = Report(config=config)
    add_recall(report, detected, (RANDOM_NOTE,) if config.boxes else ())
    add_false_positives(report, detected)
    add_scores(report, trained)
    if len(detected.found) > 1:
        add_differences(report, detected, {first: ""})
    add_runs(report, detected)
    if config.coco:
        add_precision(report, detected, sets)
    seconds = {
        name: measure_seconds((one.detector, one.seconds) for one in of_set)
        for name, of_set in sets.items()
    }
    facts, timing = tabulate_seconds(seconds, detected)
    output.mkdir(parents=True, exist_ok=True)
    write_boxes(output / "boxes.json", sets[first])
    write_facts(output / "seconds.csv", facts)
    save_figure(detected.draw(), output / "froc.png")
    report.write(output)
    report.tables.append(timing)  # only printed: table.md is the same if this is repeated
    return report


def collect(config: DetectionConfig, sets: Sets) -> Detected:
    """Collect the matches of all sets for their tables."""
    first = next(iter(sets.values()))
    images = [prediction.matches for prediction in first]
    patients = [prediction.mammogram.patient_id for prediction in first]
    total = Matches.join(images)
    return Detected(
        {
            name: Found([one.matches for one in of_set], [(one.detector, 0) for one in of_set])
            for name, of_set in sets.items()
        },
        patients,
        config.fppi,
        config.draws,
        config.recall,
        f"{config.data.archive_name}: {say_count(total.lesions, 'lesion')} in "
        f"{say_count(total.images, 'mammogram')}, "
        f"{sum(not matches.lesions for matches in images)} of them normal, of "
        f"{say_count(len(set(patients)), 'patient')}",
    )


def run_sets(config: DetectionConfig) -> Sets:
    """Run the eligible detectors on every mammogram with a lesion that counts, and on normal ones.

    All sets get the same mammograms, for which each of them has an eligible detector.
    """
    datasets.refuse_added(config.data)
    sets = {
        name: [Detector.load(uri, config.data.kinds, config.tracking_uri) for uri in uris]
        for name, uris in config.detectors.items()
    }
    predictions: dict[str, list[Prediction]] = {name: [] for name in sets}
    skipped = Skipped()
    left_out = 0
    for mammogram in read_mammograms(config.data, skipped):
        lesions = tuple(sampling.select_lesions(mammogram, config.data).values())
        if not lesions and not (config.normal and sampling.is_normal(mammogram)):
            continue
        if sampling.note_lost(mammogram, config.data.kinds, skipped):
            continue
        eligible = {
            name: _find_eligible(mammogram, detectors, config.patients)
            for name, detectors in sets.items()
        }
        if None in eligible.values():
            left_out += 1
            continue
        try:
            of_mammogram = {
                name: _predict(mammogram, lesions, sets[name][index], index, config)
                for name, index in eligible.items()
                if index is not None
            }
        except ValueError as error:
            skipped.add(mammogram.image_id, error)
            continue
        for name, prediction in of_mammogram.items():
            predictions[name].append(prediction)
    datasets.log_skipped(skipped)
    if left_out:
        log.info(
            "%d mammograms are skipped, because no detector of a set is new to their patients; "
            "with folds, name the runs of all of them",
            left_out,
        )
    if not any(prediction.lesions for prediction in next(iter(predictions.values()))):
        raise DataError(
            f"no mammogram with a {sampling.describe_wanted(config.data)} is of a patient that a "
            "detector was not trained on"
        )
    return predictions


def _find_eligible(
    mammogram: Mammogram, detectors: Sequence[Detector], patients: Literal["unseen", "all"]
) -> int | None:
    """Find the detector that is eligible for a mammogram; None where all know its patient."""
    if patients == "all":
        return 0
    for detector in detectors:
        if detector.saw(mammogram.patient_id) is None:
            raise DataError(
                f"{detector.handle}: no card names the patients it was trained on; patients=all "
                "evaluates it anyway"
            )
    eligible = [
        index for index, detector in enumerate(detectors) if not detector.saw(mammogram.patient_id)
    ]
    if len(eligible) > 1:
        raise DataError(
            "detectors: several URIs are eligible for one mammogram; give the folds of one split, "
            "or one URI"
        )
    return eligible[0] if eligible else None


def _predict(
    mammogram: Mammogram,
    lesions: tuple[Lesion, ...],
    detector: Detector,
    index: int,
    config: DetectionConfig,
) -> Prediction:
    start = time.perf_counter()
    detections = detector.predict(mammogram)
    seconds = time.perf_counter() - start
    found = detections.boxes, detections.scores, detections.classes
    counted, matches = match_counted(*found, mammogram, lesions, config)
    return Prediction(mammogram, lesions, detections.select(counted), matches, index, seconds)


def match_counted(
    boxes: NDArray[np.floating],
    scores: NDArray[np.floating],
    kinds: Sequence[str],
    mammogram: Mammogram,
    lesions: Sequence[Lesion],
    config: DetectionConfig,
) -> tuple[NDArray[np.bool_], Matches]:
    """Match boxes with lesions.

    Boxes on lesions that do not count, which are there all the same, do not count either.

    Returns:
        Which boxes count, bool [n], and their matches.
    """
    truth = stack_boxes(lesions)
    unwanted = stack_boxes(sampling.list_unselected(mammogram, config.data))
    rule = config.threshold, config.criterion
    counted = ~find_spared(boxes, truth, unwanted, *rule)
    found = boxes[counted], scores[counted], list(compress(kinds, counted))
    true_kinds = [lesion.kind for lesion in lesions]
    return counted, match_kinds(*found, truth, true_kinds, *rule, config.data.kinds)


def match_random_boxes(predictions: Sequence[Prediction], config: DetectionConfig) -> list[Matches]:
    """Match the boxes of the trivial baseline in the mammograms of any detector's predictions.

    Boxes on lesions that do not count are left out, as of every detector.
    """
    sizes = []
    for prediction in predictions:
        mammogram = prediction.mammogram
        for lesion in prediction.lesions:
            top, left, bottom, right = lesion.box
            sides = (bottom - top) / mammogram.rows, (right - left) / mammogram.cols
            sizes.append((mammogram.patient_id, (*sides, lesion.kind)))
    matches = []
    for prediction in predictions:
        patient = prediction.mammogram.patient_id
        of_others = [size for owner, size in sizes if owner != patient]
        random = sampling.random_stream(config.seed, prediction.mammogram.image_id, 0)
        boxes, kinds = draw_boxes(prediction, of_others, config.boxes, random)
        scores = random.random(len(boxes))
        shown = prediction.mammogram, prediction.lesions
        matches.append(match_counted(boxes, scores, kinds, *shown, config)[1])
    return matches


def draw_boxes(
    prediction: Prediction,
    sizes: Sequence[tuple[float, float, str]],
    count: int,
    random: np.random.Generator,
) -> tuple[NDArray[np.float64], list[str]]:
    """Draw boxes of usual sizes whose centres are anywhere on the breast.

    Sizes are height and width of lesions, as parts of their mammogram's, and their kind. Without
    any there are no boxes.

    Returns:
        Boxes in native px, float64 [n, 4], and their kinds.
    """
    mammogram = prediction.mammogram
    places = np.argwhere(breast_mask(mammogram.pixels())[..., 0])
    if not sizes or not len(places):
        return np.empty((0, 4)), []
    centres = places[random.integers(len(places), size=count)] + 0.5
    chosen = [sizes[number] for number in random.integers(len(sizes), size=count)]
    limits = np.array([mammogram.rows, mammogram.cols], np.float64)
    half = np.array([size[:2] for size in chosen]) * limits / 2
    low = np.clip(centres - half, 0, limits)
    high = np.clip(centres + half, 0, limits)
    return np.concatenate([low, high], axis=1), [kind for _, _, kind in chosen]


def add_precision(report: Report, detected: Detected, sets: Sets) -> None:
    """Add COCO's average precision of each set, the mean over its detectors.

    Each detector's scores have a scale of their own, so boxes of several have no common order. A
    detector whose mammograms show no lesion has no precision, and is skipped.
    """
    body = []
    for name, predictions in sets.items():
        images = [
            Boxes(
                prediction.detections.boxes,
                prediction.detections.scores,
                prediction.detections.classes,
                stack_boxes(prediction.lesions),
                [lesion.kind for lesion in prediction.lesions],
            )
            for prediction in predictions
        ]
        values = [
            list(average_precision([images[row] for row in rows]).values())
            for rows in detected.found[name].rows_with_lesions().values()
        ]
        means = np.mean(values, axis=0)
        report.facts += [
            detected.make_fact(RECALL, "coco", name, key, value)
            for key, value in zip(COCO, means, strict=True)
        ]
        body.append([name, *map(RECALL.show, means)])
    note = "The mean over folds, because scores of different runs have scales of their own."
    table = Table(f"COCO, {detected.title}", ["", *COCO.values()], body, (note,))
    report.tables.append(table)


def write_boxes(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write all detections and true boxes of every mammogram as JSON, in native px.

    Further keys are the lesions that count, the patient, and the index of the detector.
    """
    boxes: dict[str, dict[str, Any]] = {}
    for prediction in predictions:
        mammogram = prediction.mammogram
        detections = prediction.detections
        boxes[mammogram.image_id] = {
            "patient": mammogram.patient_id,
            "detector": prediction.detector,
            "boxes": np.round(detections.boxes.astype(float), 2).tolist(),
            "scores": np.round(detections.scores.astype(float), 7).tolist(),
            "classes": list(detections.classes),
            "truth": [list(lesion.box) for lesion in mammogram.lesions],
            "wanted": [
                {"kind": lesion.kind, "box": list(lesion.box)} for lesion in prediction.lesions
            ],
        }
    path.write_text(json.dumps(boxes, indent=1), encoding="utf-8")
