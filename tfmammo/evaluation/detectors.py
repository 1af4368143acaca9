"""Several detectors on one set of mammograms: what evaluate/detectors.py writes.

The cGAN's review calls the SSD the best of the detectors that it compares; the infilling paper uses
a Light-Head R-CNN, the blending paper a Mask R-CNN. No paper compares the three on one set.

The trivial baseline does not look for lesions: it puts boxes of usual sizes at random places of the
breast, with random scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from tfmammo.config import DataConfig, Frozen
from tfmammo.data.anatomy import breast_mask
from tfmammo.data.sampling import random_stream
from tfmammo.evaluation.comparison import ModelURIs, Name
from tfmammo.evaluation.detection import (
    DetectionConfig,
    EvaluationResult,
    Prediction,
    measure_seconds,
    run_sets,
)
from tfmammo.evaluation.froc_tables import (
    compute_recall_metrics,
    make_notes,
    make_recall_cells,
    tabulate_differences,
    tabulate_trainings,
    write_table,
    write_tables,
)
from tfmammo.evaluation.report import EXPERIMENT, save_figure
from tfmammo.mammogram import stack_boxes
from tfmammo.metrics.detection import FPPI, Criterion, Matches, Training, match_kinds
from tfmammo.metrics.figures import draw_froc
from tfmammo.metrics.summary import Table
from tfmammo.tracking import runs

RANDOM_BOXES = "random boxes"


class DetectorsConfig(Frozen):
    """Detectors, and the mammograms that they are compared on."""

    data: DataConfig = DataConfig()
    """As for evaluate/detection.py."""
    detectors: dict[Name, ModelURIs] = Field(min_length=1)
    """Name -> one model URI, or several: the folds of a cross-validation. The others are compared
    with the first one.
    """
    patients: Literal["unseen", "all"] = "unseen"
    """As for evaluate/detection.py."""
    normal: bool = True
    """Whether normal mammograms count too. On them every box is a false positive."""
    criterion: Criterion = "iou"
    """What makes a hit, as for evaluate/detection.py."""
    threshold: float = Field(default=0.5, ge=0, lt=1)
    """What IoU or IoR must exceed."""
    fppi: tuple[PositiveFloat, ...] = Field(default=FPPI, min_length=1)
    """The numbers of false positives per image at which recall is given."""
    boxes: PositiveInt = 100
    """Boxes of the trivial baseline in each mammogram."""
    tracking_uri: str | None = None
    """The MLflow server of models:/ URIs; null means the environment's. Where it is set, tables and
    figures are logged there too.
    """
    samples: PositiveInt = 1000
    """Draws of the bootstrap over patients."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Confidence level of intervals."""
    seed: NonNegativeInt = 0
    """Seed of the bootstrap and of the trivial baseline."""

    @model_validator(mode="after")
    def _check_names(self) -> DetectorsConfig:
        if RANDOM_BOXES in self.detectors:
            raise ValueError(f"detectors: {RANDOM_BOXES} is the name of the trivial baseline")
        return self

    def make_evaluation(self) -> DetectionConfig:
        """Return the config that evaluate/detection.py would have for the first detector."""
        shared = self.model_dump(exclude={"data", "detectors", "boxes"})
        first = next(iter(self.detectors.values()))
        return DetectionConfig(data=self.data, detectors=first, **shared)


def evaluate(config: DetectorsConfig, output: Path) -> list[Table]:
    """Run all detectors on the same mammograms, and write tables and the FROC curves.

    Returns:
        The tables.

    Raises:
        DataError: As `run_sets`.
    """
    evaluation = config.make_evaluation()
    result = run_sets(evaluation, config.detectors)
    matches: dict[str, tuple[Sequence[Matches], Sequence[Training]]] = {
        name: (result.matches[name], result.trainings[name]) for name in config.detectors
    }
    baseline = match_random_boxes(result.first, config)
    matches[RANDOM_BOXES] = baseline, [(0, 0)] * len(baseline)
    title = f"Differences in {evaluation.recall} from {next(iter(matches))}, at false positives "
    tables = {
        "table": tabulate_recall(result, matches),
        "difference": tabulate_differences(
            matches,
            next(iter(matches)),
            result.patients,
            config.fppi,
            result.bootstrap,
            (f"{title}per image", "detector"),
        ),
        "trainings": tabulate_trainings(matches, result.patients, "detector"),
    }
    output.mkdir(parents=True, exist_ok=True)
    write_tables(output, tables)
    timing = tabulate_seconds(result)
    write_table(output / "seconds.csv", timing)
    figure = draw_froc(
        {name: images for name, (images, _) in matches.items()},
        result.patients,
        max(config.fppi),
        *result.bootstrap,
        result.title,
        evaluation.recall,
        trainings={name: trainings for name, (_, trainings) in matches.items()},
    )
    save_figure(figure, output / "froc.png")
    if config.tracking_uri:
        metrics = {
            f"{name}/{key}": value
            for name, (images, trainings) in matches.items()
            for key, value in compute_recall_metrics(images, trainings, config.fppi).items()
        }
        content = config.model_dump(mode="json")
        runs.log_folder(output, config.tracking_uri, EXPERIMENT, content, metrics)
    return [*tables.values(), timing]


def match_random_boxes(predictions: Sequence[Prediction], config: DetectorsConfig) -> list[Matches]:
    """Match the boxes of the trivial baseline.

    Args:
        predictions: Of any detector; only mammograms and lesions are used.
        config: How many boxes, and what makes a hit.

    Returns:
        The matches in each mammogram.
    """
    sizes = [
        (prediction.mammogram.patient_id, *_measure_sides(prediction, lesion.box), lesion.kind)
        for prediction in predictions
        for lesion in prediction.lesions
    ]
    matches = []
    for prediction in predictions:
        patient = prediction.mammogram.patient_id
        of_others = [size[1:] for size in sizes if size[0] != patient]
        random = random_stream(config.seed, prediction.mammogram.image_id, 0)
        boxes, kinds = draw_boxes(prediction, of_others, config.boxes, random)
        lesions = prediction.lesions
        matches.append(
            match_kinds(
                boxes,
                random.random(len(boxes)),
                kinds,
                stack_boxes(lesions),
                [lesion.kind for lesion in lesions],
                config.threshold,
                config.criterion,
                config.data.kinds,
            )
        )
    return matches


def _measure_sides(prediction: Prediction, box: Sequence[int]) -> tuple[float, float]:
    """Measure the sides of a box as parts of the mammogram's."""
    mammogram = prediction.mammogram
    return (box[2] - box[0]) / mammogram.rows, (box[3] - box[1]) / mammogram.cols


def draw_boxes(
    prediction: Prediction,
    sizes: Sequence[tuple[float, float, str]],
    count: int,
    random: np.random.Generator,
) -> tuple[NDArray[np.float64], list[str]]:
    """Draw boxes of usual sizes whose centres lie anywhere on the breast.

    Args:
        prediction: Of the mammogram.
        sizes: Height and width of lesions, as parts of their mammogram's, and their kind. Without
            any there are no boxes.
        count: Number of boxes.
        random: Source of all draws.

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


def tabulate_recall(
    result: EvaluationResult,
    matches: Mapping[str, tuple[Sequence[Matches], Sequence[Training]]],
) -> Table:
    """Tabulate recall of every detector, with deviations over folds and intervals.

    Each fold is measured by itself, and the folds are averaged.
    """
    config = result.config
    body = [
        [
            name,
            *make_recall_cells(images, result.patients, trainings, config.fppi, result.bootstrap),
        ]
        for name, (images, trainings) in matches.items()
    ]
    header = [
        "detector",
        *(f"{rate:g}, %" for rate in config.fppi),
        "all detections, %",
        f"mean from 0 to {max(config.fppi):g}, %",
    ]
    title = f"{result.title}: {config.recall} ± SD over folds, at false positives per image"
    notes = (
        f"{RANDOM_BOXES}: at random places of the breast, of the sizes of other patients' lesions, "
        "with random scores.",
    )
    images, _ = next(iter(matches.values()))  # all have the same lesions
    return Table(title, header, body, notes + make_notes(images, result.patients))


def tabulate_seconds(result: EvaluationResult) -> Table:
    """Tabulate how long each detector took for a mammogram.

    It is not part of table.md, which has the same content whenever an evaluation is repeated.
    """
    body = []
    for name, predictions in result.sets.items():
        seconds = [(prediction.detector, prediction.seconds) for prediction in predictions]
        body.append([name, f"{measure_seconds(seconds):.3f}"])
    title = "Seconds per mammogram, on this machine: reading, preprocessing and detection, median"
    return Table(title, ["detector", "s"], body)
