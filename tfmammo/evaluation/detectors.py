"""Compare several detectors on one set of mammograms: what evaluate/detectors.py writes.

The cGAN's review calls the SSD the best of the detectors that it compares; the infilling paper uses
a Light-Head R-CNN, the blending paper a Mask R-CNN. No paper compares the three on one set. The
trivial baseline puts boxes of usual sizes at random places of the breast, with random scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from tfmammo.data.anatomy import breast_mask
from tfmammo.data.sampling import random_stream
from tfmammo.evaluation.comparison import ModelURIs, Name
from tfmammo.evaluation.detection import (
    MammogramsOfDetectors,
    Prediction,
    collect,
    match_counted,
    run_sets,
)
from tfmammo.evaluation.froc import (
    add_differences,
    add_false_positives,
    add_recall,
    add_runs,
    measure_seconds,
    tabulate_seconds,
)
from tfmammo.evaluation.report import Report, save_figure
from tfmammo.metrics.boxes import Matches
from tfmammo.metrics.detection import Found
from tfmammo.metrics.rows import write_facts

RANDOM_BOXES = "random boxes"
RANDOM_NOTE = (
    f"{RANDOM_BOXES}: at random places of the breast, of the sizes of other patients' lesions, "
    "with random scores."
)


class DetectorsConfig(MammogramsOfDetectors):
    """Detectors, and the mammograms that they are compared on."""

    detectors: dict[Name, ModelURIs] = Field(min_length=1)
    """Name -> one model URI, or several: the folds of a cross-validation. The others are compared
    with the first one.
    """
    boxes: PositiveInt = 100
    """Boxes of the trivial baseline in each mammogram."""

    @model_validator(mode="after")
    def _check_names(self) -> DetectorsConfig:
        if RANDOM_BOXES in self.detectors:
            raise ValueError(f"detectors: {RANDOM_BOXES} is the name of the trivial baseline")
        return self


def evaluate(config: DetectorsConfig, output: Path) -> Report:
    """Run all detectors on the same mammograms, and write tables and the FROC curves."""
    sets = run_sets(config, config.detectors)
    detected = collect(config, sets)
    first = next(iter(sets))
    random = match_random_boxes(sets[first], config)
    baseline = {RANDOM_BOXES: Found.by_one_run(random)}
    detected = replace(detected, found={**detected.found, **baseline})
    report = Report(config=config)
    add_recall(report, detected, (RANDOM_NOTE,))
    add_false_positives(report, detected)
    add_differences(report, detected, {first: ""})
    add_runs(report, detected)
    seconds = {
        name: measure_seconds((one.detector, one.seconds) for one in found)
        for name, found in sets.items()
    }
    facts, timing = tabulate_seconds(seconds, detected)
    output.mkdir(parents=True, exist_ok=True)
    write_facts(output / "seconds.csv", facts)
    save_figure(detected.draw(), output / "froc.png")
    report.write(output)
    report.tables.append(timing)
    return report


def match_random_boxes(predictions: Sequence[Prediction], config: DetectorsConfig) -> list[Matches]:
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
        random = random_stream(config.seed, prediction.mammogram.image_id, 0)
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
