"""Detectors on mammograms of patients they never saw: what evaluate/detection.py writes."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from tfmammo.archives import read_mammograms
from tfmammo.config import DataConfig, Frozen
from tfmammo.data import datasets, sampling
from tfmammo.detection.detections import Detections, Detector
from tfmammo.errors import DataError
from tfmammo.evaluation.comparison import ModelURIs
from tfmammo.evaluation.froc_tables import (
    FALSE_POSITIVES,
    MERIT,
    PERCENT,
    compute_mean_recall,
    compute_recall_metrics,
    format_patients,
    make_notes,
    measure,
    write_tables,
)
from tfmammo.evaluation.report import EXPERIMENT, save_figure
from tfmammo.mammogram import Lesion, Mammogram, Skipped, stack_boxes
from tfmammo.metrics.average_precision import Boxes, average_precision, import_coco
from tfmammo.metrics.detection import (
    ALL_DETECTIONS,
    FPPI,
    Criterion,
    Matches,
    Training,
    false_positives_apart,
    find_spared,
    froc_interval,
    match_kinds,
    recall_by,
    rows_by_training,
)
from tfmammo.metrics.figures import draw_froc
from tfmammo.metrics.jafroc import choose_common_merit, jafroc_test
from tfmammo.metrics.summary import Table, format_p, write_csv
from tfmammo.tracking import runs

log = logging.getLogger(__name__)

DETECTORS = "detectors"
AGAINST = "against"


class DetectionConfig(Frozen):
    """Detectors, and the mammograms that they are evaluated on."""

    data: DataConfig = DataConfig()
    """The mammograms and the kinds of lesions. The split is not used, and each detector
    preprocesses as in training. Detections of other kinds are left out.
    """
    detectors: ModelURIs
    """One model URI, or several: the folds of a cross-validation; see `Detector.load`."""
    against: ModelURIs | None = None
    """A second detector, for a comparison on the mammograms that both are eligible for."""
    patients: Literal["unseen", "all"] = "unseen"
    """"unseen" gives a mammogram to the one detector that was not trained on its patient, and
    leaves it out where there is none; "all" gives all mammograms to the first detector.
    """
    normal: bool = True
    """Whether normal mammograms count too. On them every box is a false positive."""
    criterion: Criterion = "iou"
    """What makes a hit: "iou"; "ior", the part of a box that lies in the lesion's box; "centre",
    the box's centre lies in the lesion's box.
    """
    threshold: float = Field(default=0.5, ge=0, lt=1)
    """What IoU or IoR must exceed."""
    fppi: tuple[PositiveFloat, ...] = Field(default=FPPI, min_length=1)
    """The numbers of false positives per image at which recall and its mean from 0 are given."""
    coco: bool = False
    """Whether to compute COCO's average precision too; needs pycocotools."""
    tracking_uri: str | None = None
    """The MLflow server of models:/ URIs; null means the environment's. Where it is set, tables and
    figures are logged there too.
    """
    samples: PositiveInt = 1000
    """Draws of the bootstrap over patients."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Confidence level of intervals."""
    seed: NonNegativeInt = 0
    """Seed of the bootstrap."""

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


@dataclass(frozen=True)
class EvaluationResult:
    """All that the tables need.

    Attributes:
        config: The evaluation's config.
        sets: DETECTORS and, where there is one, AGAINST -> predictions for the same mammograms;
            or several detectors by their names.
    """

    config: DetectionConfig
    sets: Mapping[str, Sequence[Prediction]]

    @property
    def first(self) -> Sequence[Prediction]:
        """The predictions of the first set."""
        return next(iter(self.sets.values()))

    @property
    def patients(self) -> list[str]:
        """The patient of each mammogram."""
        return [prediction.mammogram.patient_id for prediction in self.first]

    @property
    def matches(self) -> dict[str, list[Matches]]:
        """Set -> the matches in each mammogram."""
        return {
            name: [prediction.matches for prediction in predictions]
            for name, predictions in self.sets.items()
        }

    @property
    def trainings(self) -> dict[str, list[Training]]:
        """Set -> the training behind the prediction for each mammogram."""
        return {
            name: [(prediction.detector, 0) for prediction in predictions]
            for name, predictions in self.sets.items()
        }

    @property
    def title(self) -> str:
        """The heading of the tables."""
        images = [prediction.matches for prediction in self.first]
        total = Matches.join(images)
        normal = sum(not matches.lesions for matches in images)
        return (
            f"{self.config.data.archive_name}: {total.lesions} lesions in {total.images} "
            f"mammograms, {normal} of them normal, of {format_patients(self.patients)}"
        )

    @property
    def bootstrap(self) -> tuple[int, int, float]:
        """Draws, seed and level of bootstrap intervals."""
        return self.config.samples, self.config.seed, self.config.level


def evaluate(config: DetectionConfig, output: Path) -> list[Table]:
    """Run the detectors on patients they never saw, and write tables, the FROC curve and boxes.

    Returns:
        The tables.
    """
    if config.coco:
        import_coco()  # fails before the work if pycocotools is missing
    result = run_detectors(config)
    tables = {
        "table" if name == DETECTORS else name: tabulate_recall(result, name)
        for name in result.sets
    }
    if config.against:
        tables["difference"] = tabulate_difference(result)
    if config.coco:
        tables["coco"] = tabulate_precision(result)
    output.mkdir(parents=True, exist_ok=True)
    write_tables(output, tables)
    write_boxes(output / "boxes.json", result.sets[DETECTORS])
    write_csv(output / "seconds.csv", list_seconds(result.sets[DETECTORS]))
    figure = draw_froc(
        result.matches,
        result.patients,
        max(config.fppi),
        *result.bootstrap,
        result.title,
        config.recall,
        trainings=result.trainings,
    )
    save_figure(figure, output / "froc.png")
    if config.tracking_uri:
        metrics = compute_recall_metrics(
            result.matches[DETECTORS], result.trainings[DETECTORS], config.fppi
        )
        content = config.model_dump(mode="json")
        runs.log_folder(output, config.tracking_uri, EXPERIMENT, content, metrics)
    return list(tables.values())


def run_detectors(config: DetectionConfig) -> EvaluationResult:
    """Run `detectors`, and `against` where it is given; see `run_sets`."""
    uris = {DETECTORS: config.detectors}
    if config.against:
        uris[AGAINST] = config.against
    return run_sets(config, uris)


def run_sets(config: DetectionConfig, uris: Mapping[str, Sequence[str]]) -> EvaluationResult:
    """Run the eligible detectors on every mammogram with a lesion that counts, and on normal ones.

    Args:
        config: The mammograms, and what counts. Its own detectors are not used.
        uris: Set -> the model URIs of its detectors. All sets get the same mammograms, for which
            each of them has an eligible detector.

    Raises:
        DataError: There is no such mammogram with a lesion, several detectors are eligible for one,
            or a detector does not name its patients.
    """
    datasets.refuse_added(config.data)
    sets = {
        name: [Detector.load(uri, config.data.kinds, config.tracking_uri) for uri in of_set]
        for name, of_set in uris.items()
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
            "%d mammograms are left out, because no detector of a set is new to their patients; "
            "with folds, name the runs of all of them",
            left_out,
        )
    if not any(prediction.lesions for prediction in next(iter(predictions.values()))):
        raise DataError(
            f"no mammogram with a {sampling.describe_wanted(config.data)} is of a patient that a "
            "detector was not trained on"
        )
    return EvaluationResult(config, predictions)


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
    # lesions of these kinds that do not count are there all the same
    spared = find_spared(
        detections.boxes,
        stack_boxes(lesions),
        stack_boxes(sampling.list_unselected(mammogram, config.data)),
        config.threshold,
        config.criterion,
    )
    detections = detections.select(~spared)
    matches = match_kinds(
        detections.boxes,
        detections.scores,
        detections.classes,
        stack_boxes(lesions),
        [lesion.kind for lesion in lesions],
        config.threshold,
        config.criterion,
        config.data.kinds,
    )
    return Prediction(mammogram, lesions, detections, matches, index, seconds)


def tabulate_recall(result: EvaluationResult, name: str) -> Table:
    """Tabulate recall of one set at numbers of false positives per image, and of all detections.

    Recall of all detections is Eq. (6) of the infilling paper. Further columns are its mean from 0
    to there (the normalised partial area), intervals, and the false positives on normal mammograms
    and on those with lesions. Each fold is measured by itself; where there are several, a second
    row pools their scores.
    """
    config = result.config
    images = result.matches[name]
    trainings = result.trainings[name]
    rows = _make_recall_rows(result, images, trainings, "")
    if len(set(trainings)) > 1:
        pooled = _make_recall_rows(result, images, [(0, 0)] * len(images), ", pooled")
        rows = [row for pair in zip(rows, pooled, strict=True) for row in pair]
    header = [
        "false positives per image",
        f"{config.recall}, %",
        "SD over folds",
        "low",
        "high",
        "its mean from 0 to there, %",
        "low",
        "high",
        "of them per normal mammogram",
        "per mammogram with lesions",
    ]
    title = result.title if len(result.sets) == 1 else f"{name}, {result.title}"
    return Table(title, header, rows, make_notes(images, result.patients))


def _make_recall_rows(
    result: EvaluationResult,
    images: Sequence[Matches],
    trainings: Sequence[Training],
    ending: str,
) -> list[list[str]]:
    """Make the rows of `tabulate_recall`; `ending` is appended to their names."""
    rates = (*result.config.fppi, ALL_DETECTIONS)
    arguments = images, result.patients, trainings, rates, result.bootstrap
    recall = measure(*arguments)
    mean, _, low, high = measure(*arguments, "areas")
    false_positives = false_positives_apart(images, trainings, rates)
    rows = []
    for number, rate in enumerate(rates):
        is_last = rate == ALL_DETECTIONS
        name = ("all detections" if is_last else f"{rate:g}") + ending
        cells = [PERCENT(values[number]) for values in recall]
        cells += ["-"] * 3 if is_last else [PERCENT(values[number]) for values in (mean, low, high)]
        cells += [FALSE_POSITIVES(values[number]) for values in false_positives]
        rows.append([name, *cells])
    return rows


def tabulate_difference(result: EvaluationResult) -> Table:
    """Tabulate how far the two sets are apart.

    Recall has intervals for which the same patients are drawn for both sets. JAFROC's figure of
    merit has p, too.
    """
    config = result.config
    ours, others = result.matches.values()
    trainings, other_trainings = result.trainings.values()
    rates = (*config.fppi, ALL_DETECTIONS)
    recall = compute_mean_recall(ours, trainings, rates)
    other_recall = compute_mean_recall(others, other_trainings, rates)
    bounds = froc_interval(
        ours,
        result.patients,
        rates,
        *result.bootstrap,
        against=others,
        trainings=trainings,
        others_trainings=other_trainings,
    )
    rows = []
    for rate, value, other, low, high in zip(rates, recall, other_recall, *bounds, strict=True):
        place = f"{rate:g} false positives per image"
        if rate == ALL_DETECTIONS:
            place = "all detections"
        signed = [PERCENT(number, "+") for number in (value - other, low, high)]
        rows.append([f"{config.recall}, {place}, %", PERCENT(value), PERCENT(other), *signed, "-"])
    merit = choose_common_merit(result.patients, (ours, trainings), (others, other_trainings))
    test = jafroc_test(
        ours, others, result.patients, merit, config.level, trainings, other_trainings
    )
    signed = [MERIT(number, "+") for number in (test.difference, test.low, test.high)]
    cells = [MERIT(test.merit), MERIT(test.other), *signed, format_p(test.p)]
    rows.append([f"{merit.upper()} figure of merit", *cells])
    header = ["", *result.sets, "difference", "low", "high", "p"]
    title = f"detectors - against, {result.title}"
    return Table(title, header, rows, make_notes(ours, result.patients, int(np.isfinite(test.p))))


def tabulate_precision(result: EvaluationResult) -> Table:
    """Tabulate COCO's average precision of each set, the mean over its detectors.

    Each training's scores have a scale of their own, so boxes of several have no common order. A
    detector whose mammograms show no lesion has no precision, and is left out.
    """
    rows = []
    for name, predictions in result.sets.items():
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
        groups = rows_by_training(result.trainings[name], len(images)).values()
        values = [
            list(average_precision([images[row] for row in rows_of_one]).values())
            for rows_of_one in groups
            if any(images[row].true_kinds for row in rows_of_one)
        ]
        rows.append([name, *map(PERCENT, np.mean(values, axis=0))])
    header = [
        "",
        "AP at IoU 0.5 to 0.95, %",
        "AP at IoU 0.5, %",
        "AP at IoU 0.75, %",
        "average recall, %",
    ]
    note = "The mean over folds: scores of different trainings have scales of their own."
    return Table(f"COCO, {result.title}", header, rows, (note,))


def list_seconds(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Make the lines of seconds.csv, in the order of the work.

    The first mammogram of each detector, and the first of each size, include the tracing of its
    graph.
    """
    return [
        {"detector": prediction.detector, "seconds": round(prediction.seconds, 4)}
        for prediction in predictions
    ]


def measure_seconds(seconds: Iterable[tuple[int, float]]) -> float:
    """Return the median time of a mammogram, s, averaged over detectors.

    The first one of each detector is left out, which includes tracing.

    Args:
        seconds: The detector and the time of each mammogram, in the order of the work.
    """
    by_detector: dict[int, list[float]] = {}
    for detector, time_taken in seconds:
        by_detector.setdefault(detector, []).append(time_taken)
    medians = [np.median(times[1:] if len(times) > 1 else times) for times in by_detector.values()]
    return float(np.mean(medians))


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
