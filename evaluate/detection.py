"""Judge a detector on patients it never saw: recall over false positives per image (FROC) with intervals, and every box.

python evaluate/detection.py --config configs/detection.yaml --set data.name=inbreast data.root=DIR detectors=[RUN,RUN]

Several handles are the folds of one cross-validation: each mammogram goes to the one that was not trained on its patient.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt

from tfmammo import config as configuration
from tfmammo.archives import archive_name, mammograms
from tfmammo.config import DataConfig, Frozen, TrainingConfig
from tfmammo.data import sampling
from tfmammo.data.patches import DataError
from tfmammo.detection.detections import Detections, Detector
from tfmammo.evaluation import EXPERIMENT, Handles, save
from tfmammo.metrics.detection import FPPI, Matches, froc_interval, match_kinds
from tfmammo.metrics.summary import Table
from tfmammo.record import Mammogram, Skipped
from tfmammo.training import cli, tracking


class DetectionConfig(Frozen):
    """data: which mammograms and kinds of lesions; its split is not used, and each detector preprocesses as in training.

    detectors: handle or handles, see Detector.load. patients: "unseen" judges a mammogram by the one detector that was not
    trained on its patient, and leaves it out where there is none; "all" takes the first one for all. normal: normal
    mammograms too, on which every box is a false positive. iou: the least overlap of a hit. fppi: the false positives per
    image at which recall is stated. tracking_uri: as for evaluate/segmentation.py. samples: draws of the bootstrap over patients.
    level: of intervals.
    """

    data: DataConfig = DataConfig()
    detectors: Handles
    patients: Literal["unseen", "all"] = "unseen"
    normal: bool = True
    iou: float = Field(default=0.5, gt=0, le=1)
    fppi: tuple[float, ...] = Field(default=FPPI, min_length=1)
    tracking_uri: str | None = None
    samples: PositiveInt = 1000
    level: float = Field(default=0.95, gt=0, lt=1)
    seed: NonNegativeInt = 0


@dataclass(frozen=True)
class Judged:
    """One mammogram, what was found in it, and what of that is right."""

    mammogram: Mammogram
    found: Detections
    matches: Matches


def main() -> None:
    """Read the config, run the detectors on the patients they never saw, write and print."""
    chosen = cli.arguments(__doc__).parse_args()
    config = configuration.parse(DetectionConfig, chosen.config, chosen.set)
    cli.prepare(TrainingConfig(precision="float32"))
    output = chosen.output or Path("runs/detection")
    judged = judge(config)
    matches = Matches.join([one.matches for one in judged])
    recall = matches.froc(config.fppi)
    patients = [one.mammogram.patient_id for one in judged]
    low, high = froc_interval([one.matches for one in judged], patients, config.fppi, config.samples, config.seed, config.level)
    title = f"{archive_name(config.data)}: {matches.lesions} lesions in {matches.images} mammograms of {len(set(patients))} patients"
    rows = [(f"{at:g}", *(f"{100 * value:.1f}" for value in values)) for at, *values in zip(config.fppi, recall, low, high, strict=True)]
    header = ["false positives per image", f"recall at IoU {config.iou:g}, %", "low", "high"]
    table = Table(title, header, [list(row) for row in rows])
    write(output, table, judged)
    save(figure(config, judged, title), output / "froc.png")
    if config.tracking_uri:
        recalls = {f"recall at {at:g}": float(value) for at, value in zip(config.fppi, recall, strict=True)}
        tracking.log_folder(output, config.tracking_uri, EXPERIMENT, config.model_dump(mode="json"), recalls)
    cli.console.print(table)
    cli.console.print(f"table, curve and boxes: {output}")


def judge(config: DetectionConfig) -> list[Judged]:
    """Every mammogram with a wanted lesion, and the normal ones, by the detector that may judge it.

    Raises:   DataError: no mammogram with a lesion may be judged, or one by several detectors, or none knows its patients.
    """
    skipped, judged = Skipped(), []
    detectors = [Detector.load(handle, config.data.kinds, config.tracking_uri) for handle in config.detectors]
    for mammogram in mammograms(config.data, skipped):
        lesions = list(sampling.wanted(mammogram, config.data).values())
        if not lesions and not (config.normal and sampling.is_normal(mammogram)):
            continue
        detector = _judge_of(mammogram, detectors, config.patients)
        if detector is None:
            continue
        try:
            truth = np.array([lesion.box for lesion in lesions], np.float64).reshape(-1, 4)
            found = detector.predict(mammogram)
        except ValueError as error:
            skipped.add(mammogram.image_id, error)
            continue
        matches = match_kinds(found.boxes, found.scores, found.classes, truth, [lesion.kind for lesion in lesions], config.iou)
        judged.append(Judged(mammogram, found, matches))
    cli.report(skipped)
    if not any(one.matches.lesions for one in judged):
        raise DataError(f"no mammogram with a {' or '.join(config.data.kinds)} is of a patient that a detector was not trained on")
    return judged


def _judge_of(mammogram: Mammogram, detectors: Sequence[Detector], patients: Literal["unseen", "all"]) -> Detector | None:
    if patients == "all":
        return detectors[0]
    for detector in detectors:
        if detector.saw(mammogram.patient_id) is None:
            raise DataError(f"{detector.handle}: no card names the patients it was trained on; patients=all judges it all the same")
    may = [detector for detector in detectors if not detector.saw(mammogram.patient_id)]
    if len(may) > 1:
        raise DataError("detectors: a mammogram would be judged by several handles; give the folds of one split, or one handle")
    return may[0] if may else None


def write(output: Path, table: Table, judged: Sequence[Judged]) -> None:
    """Write table.md, table.csv and boxes.json: every mammogram's detections, native px, and true boxes."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "table.md").write_text(table.markdown(), encoding="utf-8")
    with (output / "table.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([table.header, *table.body])
    boxes: dict[str, dict[str, Any]] = {}
    for one in judged:
        boxes[one.mammogram.image_id] = {
            "boxes": np.round(one.found.boxes.astype(float), 1).tolist(),
            "scores": np.round(one.found.scores.astype(float), 4).tolist(),
            "classes": list(one.found.classes),
            "truth": [list(lesion.box) for lesion in one.mammogram.lesions],
        }
    (output / "boxes.json").write_text(json.dumps(boxes, indent=1), encoding="utf-8")


def figure(config: DetectionConfig, judged: Sequence[Judged], title: str) -> Figure:
    """The FROC curve with its band."""
    at: NDArray[np.float64] = np.linspace(0, max(config.fppi), 81)
    matches, patients = [one.matches for one in judged], [one.mammogram.patient_id for one in judged]
    low, high = froc_interval(matches, patients, at.tolist(), config.samples, config.seed, config.level)
    drawn = Figure(figsize=(5, 4), layout="constrained")
    axes = drawn.subplots()
    axes.fill_between(at, low, high, alpha=0.2, linewidth=0)
    axes.plot(at, Matches.join(matches).froc(at.tolist()))
    axes.set(xlabel="false positives per image", ylabel=f"recall at IoU {config.iou:g}", ylim=(0, 1), xlim=(0, at[-1]))
    axes.set_title(title, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn


if __name__ == "__main__":
    cli.run(main)
