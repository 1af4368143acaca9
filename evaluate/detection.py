"""Judge a detector on patients it never saw: recall over false positives per image (FROC) with intervals, and every box.

python evaluate/detection.py --config configs/detection.yaml --set data.name=inbreast data.root=DIR detectors=[RUN,RUN]

Several handles are the folds of one cross-validation: each mammogram goes to the one that was not trained on its patient.
With against=[RUN,RUN] a second detector is judged on the same mammograms, and the difference tested.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from tfmammo import config as configuration
from tfmammo.archives import archive_name, mammograms
from tfmammo.config import DataConfig, Frozen, TrainingConfig
from tfmammo.data import sampling
from tfmammo.data.patches import DataError
from tfmammo.detection.detections import Detections, Detector
from tfmammo.evaluation import EXPERIMENT, Handles, save
from tfmammo.metrics.average_precision import Boxes, average_precision, coco
from tfmammo.metrics.detection import FPPI, Criterion, Matches, froc, froc_interval, match_kinds
from tfmammo.metrics.figures import froc_figure
from tfmammo.metrics.jafroc import Merit, jafroc_test
from tfmammo.metrics.summary import Measure, Table
from tfmammo.record import Lesion, Mammogram, Skipped
from tfmammo.training import cli, tracking

PERCENT, MERIT = Measure("recall", "%", 100, 1).show, Measure("figure of merit", "", 1, 3).show


class DetectionConfig(Frozen):
    """data: which mammograms and kinds of lesions; its split is not used, and each detector preprocesses as in training.

    detectors: handle or handles, see Detector.load. against: likewise, what they are compared with, on mammograms that both may
    judge. patients: "unseen" judges a mammogram by the one detector that was not trained on its patient, and leaves it out where
    there is none; "all" takes the first one for all. normal: normal mammograms too, on which every box is a false positive.
    criterion: of a hit: "iou"; "ior", the part of a box that lies in the lesion's; "centre", the box's centre in the lesion's box.
    threshold: what IoU or IoR must exceed. fppi: the false positives per image at which recall is stated, and up to which its
    mean is. coco: COCO's average precision too; needs pycocotools. tracking_uri: as for evaluate/segmentation.py. samples: draws
    of the bootstrap over patients. level: of intervals.
    """

    data: DataConfig = DataConfig()
    detectors: Handles
    against: Handles | None = None
    patients: Literal["unseen", "all"] = "unseen"
    normal: bool = True
    criterion: Criterion = "iou"
    threshold: float = Field(default=0.5, ge=0, lt=1)
    fppi: tuple[PositiveFloat, ...] = Field(default=FPPI, min_length=1)
    coco: bool = False
    tracking_uri: str | None = None
    samples: PositiveInt = 1000
    level: float = Field(default=0.95, gt=0, lt=1)
    seed: NonNegativeInt = 0

    @property
    def recall(self) -> str:
        """What is measured, in words."""
        names = {"iou": f"at IoU > {self.threshold:g}", "ior": f"at IoR > {self.threshold:g}", "centre": "by centres"}
        return f"recall {names[self.criterion]}"


@dataclass(frozen=True)
class Judged:
    """One mammogram, the wanted lesions in it, what was found, and what of that is right."""

    mammogram: Mammogram
    lesions: tuple[Lesion, ...]
    found: Detections
    matches: Matches


@dataclass(frozen=True)
class Judgement:
    """What is judged, and all that the tables need. sets: "detectors" and, where there is one, "against", of the same mammograms."""

    config: DetectionConfig
    sets: Mapping[str, Sequence[Judged]]

    @property
    def patients(self) -> list[str]:
        """Of each mammogram."""
        return [one.mammogram.patient_id for one in self.sets["detectors"]]

    @property
    def matches(self) -> dict[str, list[Matches]]:
        """Of each set, of each mammogram."""
        return {name: [one.matches for one in judged] for name, judged in self.sets.items()}

    @property
    def title(self) -> str:
        """What tables are headed with."""
        matches = Matches.join(self.matches["detectors"])
        data = f"{matches.lesions} lesions in {matches.images} mammograms of {len(set(self.patients))} patients"
        return f"{archive_name(self.config.data)}: {data}"

    @property
    def drawing(self) -> tuple[int, int, float]:
        """Draws, seed and level of bootstrap intervals."""
        return self.config.samples, self.config.seed, self.config.level


def main() -> None:
    """Read the config, run the detectors on the patients they never saw, write and print."""
    chosen = cli.arguments(__doc__).parse_args()
    config = configuration.parse(DetectionConfig, chosen.config, chosen.set)
    cli.prepare(TrainingConfig(precision="float32"))
    if config.coco:
        coco()  # if it is missing, say so before the work
    output = chosen.output or Path("runs/detection")
    judgement = judge(config)
    tables = {"table" if name == "detectors" else name: recalls(judgement, name) for name in judgement.sets}
    if config.against:
        tables["difference"] = difference(judgement)
    if config.coco:
        tables["coco"] = precisions(judgement)
    write(output, tables, judgement.sets["detectors"])
    drawing = *judgement.drawing, judgement.title, config.recall
    save(froc_figure(judgement.matches, judgement.patients, max(config.fppi), *drawing), output / "froc.png")
    if config.tracking_uri:
        curve, at = froc(judgement.matches["detectors"], config.fppi), [f"{value:g}" for value in config.fppi]
        measures = {f"recall at {place}": value for place, value in zip(at, curve.tpr.tolist(), strict=True)}
        measures |= {f"mean recall to {place}": value for place, value in zip(at, curve.areas.tolist(), strict=True)}
        tracking.log_folder(output, config.tracking_uri, EXPERIMENT, config.model_dump(mode="json"), measures)
    for table in tables.values():
        cli.console.print(table)
    cli.console.print(f"tables, curve and boxes: {output}")


def judge(config: DetectionConfig) -> Judgement:
    """Every mammogram with a wanted lesion, and the normal ones, by the detectors that may judge it.

    Raises:   DataError: no mammogram with a lesion may be judged, or one by several detectors, or none knows its patients.
    """
    handles = {"detectors": config.detectors} | ({"against": config.against} if config.against else {})
    sets = {name: [Detector.load(handle, config.data.kinds, config.tracking_uri) for handle in handles[name]] for name in handles}
    skipped, judged = Skipped(), []
    for mammogram in mammograms(config.data, skipped):
        lesions = tuple(sampling.wanted(mammogram, config.data).values())
        if not lesions and not (config.normal and sampling.is_normal(mammogram)):
            continue
        judges = [_judge_of(mammogram, detectors, config.patients) for detectors in sets.values()]
        if None in judges:
            continue
        try:
            judged.append([_judged(mammogram, lesions, detector, config) for detector in judges if detector])
        except ValueError as error:
            skipped.add(mammogram.image_id, error)
    cli.report(skipped)
    if not any(one[0].lesions for one in judged):
        raise DataError(f"no mammogram with a {' or '.join(config.data.kinds)} is of a patient that a detector was not trained on")
    return Judgement(config, {name: [one[place] for one in judged] for place, name in enumerate(sets)})


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


def _judged(mammogram: Mammogram, lesions: tuple[Lesion, ...], detector: Detector, config: DetectionConfig) -> Judged:
    found, kinds = detector.predict(mammogram), [lesion.kind for lesion in lesions]
    boxes = found.boxes, found.scores, found.classes, _boxes(lesions), kinds
    return Judged(mammogram, lesions, found, match_kinds(*boxes, config.threshold, config.criterion))


def _boxes(lesions: Sequence[Lesion]) -> NDArray[np.float64]:
    return np.array([lesion.box for lesion in lesions], np.float64).reshape(-1, 4)


def recalls(judgement: Judgement, name: str) -> Table:
    """Recall of one set at numbers of false positives per image, its mean up to there (the normalised partial area), and intervals."""
    config, images = judgement.config, judgement.matches[name]
    curve, columns = froc(images, config.fppi), []
    measures: tuple[tuple[Literal["tpr", "areas"], NDArray[np.float64]], ...] = (("tpr", curve.tpr), ("areas", curve.areas))
    for of, values in measures:
        columns += [values, *froc_interval(images, judgement.patients, config.fppi, *judgement.drawing, of)]
    rows = [[f"{at:g}", *map(PERCENT, values)] for at, *values in zip(config.fppi, *columns, strict=True)]
    header = ["false positives per image", f"{config.recall}, %", "low", "high", "its mean from 0 to there, %", "low", "high"]
    return Table(judgement.title if len(judgement.sets) == 1 else f"{name}, {judgement.title}", header, rows)


def difference(judgement: Judgement) -> Table:
    """How far the two sets are apart: recall, with intervals of the same patients drawn for both; JAFROC's figure of merit, with p."""
    config, patients, (ours, others) = judgement.config, judgement.patients, judgement.matches.values()
    curves = froc(ours, config.fppi).tpr, froc(others, config.fppi).tpr
    bounds = froc_interval(ours, patients, config.fppi, *judgement.drawing, against=others)
    rows = []
    for at, a, b, low, high in zip(config.fppi, *curves, *bounds, strict=True):
        cells = [PERCENT(a), PERCENT(b), *(PERCENT(value, "+") for value in (a - b, low, high))]
        rows.append([f"{config.recall}, {at:g} false positives per image, %", *cells, "-"])
    merit: Merit = "jafroc" if any(not image.lesions for image in ours) else "jafroc1"
    test = jafroc_test(ours, others, patients, merit, config.level)
    cells = [MERIT(test.merit), MERIT(test.other), *(MERIT(value, "+") for value in (test.difference, test.low, test.high))]
    rows.append([f"{merit.upper()} figure of merit", *cells, MERIT(test.p)])
    return Table(f"detectors - against, {judgement.title}", ["", *judgement.sets, "difference", "low", "high", "p"], rows)


def precisions(judgement: Judgement) -> Table:
    """COCO's average precision of each set."""
    rows = []
    for name, judged in judgement.sets.items():
        images = [
            Boxes(one.found.boxes, one.found.scores, one.found.classes, _boxes(one.lesions), [lesion.kind for lesion in one.lesions])
            for one in judged
        ]
        rows.append([name, *map(PERCENT, average_precision(images).values())])
    header = ["", "AP at IoU 0.5 to 0.95, %", "AP at IoU 0.5, %", "AP at IoU 0.75, %", "average recall, %"]
    return Table(f"COCO, {judgement.title}", header, rows)


def write(output: Path, tables: Mapping[str, Table], judged: Sequence[Judged]) -> None:
    """Write table.md, a .csv of each table, and boxes.json: every mammogram's detections, native px, and true boxes."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "table.md").write_text("\n".join(table.markdown() for table in tables.values()), encoding="utf-8")
    for name, table in tables.items():
        with (output / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
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


if __name__ == "__main__":
    cli.run(main)
