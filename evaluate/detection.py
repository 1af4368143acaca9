"""Judge a detector on patients it never saw: recall over false positives per image (FROC)
with intervals, and every box.

python evaluate/detection.py --config configs/detection.yaml --set data.name=inbreast data.root=DIR
detectors=[RUN,RUN]

Several handles are the folds of one cross-validation: each mammogram goes to the one that was not
trained on its patient. Their scores lie on scales of their own, so that each fold is measured by
itself; tables say the mean and, in a second row, what comes of pooled scores. With
against=[RUN,RUN] a second detector is judged on the same mammograms, and the difference tested.

python evaluate/detection.py --study infilling --set data.name=ddsm data.root=DIR
python evaluate/detection.py --study blending --set data.name=inbreast data.root=DIR

A study trains a detector on real mammograms, and on them and more and more synthetic ones, for
every fold, judges each on patients that it never saw, and tests the difference: see
tfmammo/studies/detection.py. It goes on where it was stopped; --plan shows its commands.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from tfmammo import cli, datasets
from tfmammo import config as configuration
from tfmammo.archives import archive_name, mammograms
from tfmammo.config import DataConfig, Frozen, TrainingConfig
from tfmammo.data import sampling
from tfmammo.detection.detections import Detections, Detector
from tfmammo.errors import DataError
from tfmammo.evaluation.comparison import EXPERIMENT, Handles, save
from tfmammo.evaluation.froc_tables import (
    FALSE,
    count_of,
    mean_recall,
    measure,
    notes,
    recall_metrics,
)
from tfmammo.mammogram import Lesion, Mammogram, Skipped
from tfmammo.metrics.average_precision import Boxes, average_precision, coco
from tfmammo.metrics.detection import (
    ALL_DETECTIONS,
    FPPI,
    Criterion,
    Matches,
    Training,
    false_positives_apart,
    froc_interval,
    match_kinds,
    recall_by,
)
from tfmammo.metrics.figures import froc_figure
from tfmammo.metrics.jafroc import Merit, jafroc_test, merit_for
from tfmammo.metrics.summary import Table
from tfmammo.studies import detection, detection_report, workflow
from tfmammo.studies.detection import MERIT, PERCENT
from tfmammo.tracking import runs, store
from tfmammo.training import script

ROOT = Path(__file__).resolve().parents[1]


class DetectionConfig(Frozen):
    """Detectors and the mammograms that they are compared on; or a whole study."""

    data: DataConfig = DataConfig()
    """Which mammograms and kinds of lesions; its split is not used, and each detector preprocesses
    as in training. What a detector finds of other kinds is not judged.
    """
    detectors: Handles
    """Handle or handles, see Detector.load."""
    against: Handles | None = None
    """Likewise, what they are compared with, on mammograms that both may judge."""
    patients: Literal["unseen", "all"] = "unseen"
    """"unseen" judges a mammogram by the one detector that was not trained on its patient, and
    leaves it out where there is none; "all" takes the first one for all.
    """
    normal: bool = True
    """Normal mammograms too, on which every box is a false positive."""
    criterion: Criterion = "iou"
    """Of a hit: "iou"; "ior", the part of a box that lies in the lesion's; "centre", the box's
    centre in the lesion's box.
    """
    threshold: float = Field(default=0.5, ge=0, lt=1)
    """What IoU or IoR must exceed."""
    fppi: tuple[PositiveFloat, ...] = Field(default=FPPI, min_length=1)
    """The false positives per image at which recall is stated, and up to which its mean is."""
    coco: bool = False
    """COCO's average precision too; needs pycocotools."""
    tracking_uri: str | None = None
    """As for evaluate/segmentation.py."""
    samples: PositiveInt = 1000
    """Draws of the bootstrap over patients."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Of intervals."""
    seed: NonNegativeInt = 0

    @property
    def recall(self) -> str:
        """What is measured, in words."""
        return recall_by(self.criterion, self.threshold)


@dataclass(frozen=True)
class Judged:
    """One mammogram, the wanted lesions in it, what was found, and what of that is right.

    Attributes:
        detector: Its place among the handles.
    """

    mammogram: Mammogram
    lesions: tuple[Lesion, ...]
    found: Detections
    matches: Matches
    detector: int


@dataclass(frozen=True)
class Judgement:
    """What is judged, and all that the tables need.

    Attributes:
        sets: "detectors" and, where there is one, "against", of the same mammograms.
    """

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
    def trainings(self) -> dict[str, list[Training]]:
        """Of each set, of each mammogram: the training that judged it."""
        return {name: [(one.detector, 0) for one in judged] for name, judged in self.sets.items()}

    @property
    def title(self) -> str:
        """What tables are headed with."""
        matches = Matches.join(self.matches["detectors"])
        normal = sum(not one.lesions for one in self.matches["detectors"])
        data = (
            f"{matches.lesions} lesions in {matches.images} mammograms, {normal} of them "
            f"normal, of {count_of(self.patients)}"
        )
        return f"{archive_name(self.config.data)}: {data}"

    @property
    def drawing(self) -> tuple[int, int, float]:
        """Draws, seed and level of bootstrap intervals."""
        return self.config.samples, self.config.seed, self.config.level


def main() -> None:
    """Read the config, run the detectors on the patients they never saw, write and print; or a
    study.
    """
    parser = cli.arguments(__doc__, config=str(ROOT / "configs" / "detection.yaml"))
    parser.add_argument(
        "--study",
        choices=("infilling", "blending"),
        help="a study instead, by default of configs/study_NAME.yaml",
    )
    parser.add_argument(
        "--plan", action="store_true", help="show a study's commands and run nothing"
    )
    parser.add_argument(
        "--any-version",
        action="store_true",
        help="go on with a study whose steps another version of the package made",
    )
    chosen = parser.parse_args()
    if chosen.plan and not chosen.study:
        parser.error("--plan shows a study's commands, and --study names none")
    if chosen.study:
        if chosen.config == parser.get_default("config"):
            chosen.config = ROOT / "configs" / f"study_{chosen.study}.yaml"
        run_study(
            configuration.parse(detection.StudyConfig, chosen.config, chosen.set),
            chosen.output,
            chosen.plan,
            chosen.any_version,
        )
        return
    config = configuration.parse(DetectionConfig, chosen.config, chosen.set)
    script.prepare(TrainingConfig(precision="float32"))
    if config.coco:
        coco()  # if it is missing, say so before the work
    output = chosen.output or Path("runs/detection")
    judgement = judge(config)
    tables = {
        "table" if name == "detectors" else name: recalls(judgement, name)
        for name in judgement.sets
    }
    if config.against:
        tables["difference"] = difference(judgement)
    if config.coco:
        tables["coco"] = precisions(judgement)
    write(output, tables, judgement.sets["detectors"])
    drawing = *judgement.drawing, judgement.title, config.recall
    figure = froc_figure(
        judgement.matches,
        judgement.patients,
        max(config.fppi),
        *drawing,
        trainings=judgement.trainings,
    )
    save(figure, output / "froc.png")
    if config.tracking_uri:
        measures = recall_metrics(
            judgement.matches["detectors"], judgement.trainings["detectors"], config.fppi
        )
        runs.log_folder(
            output, config.tracking_uri, EXPERIMENT, config.model_dump(mode="json"), measures
        )
    for table in tables.values():
        cli.console.print(table)
    cli.console.print(f"tables, curve and boxes: {output}")


def run_study(
    config: detection.StudyConfig, output: Path | None, plan: bool, any_version: bool = False
) -> None:
    """Run what a study has not run yet, then write and print its tables and figures; or only show
    its commands.

    any_version: go on with what another version of the package made, which every table then says.
    """
    output = (output or Path("runs") / config.name).resolve()
    planned = detection.plan(config, output, ROOT, "RUN")
    detection.check(planned)
    if plan:
        for step in planned:
            print(step.shown())
        return
    datasets.keep_archive_split(config.data, output)
    parent = runs.parent_run(output, config.tracking)
    planned = detection.plan(config, output, ROOT, parent)
    others = workflow.run(planned, output, detection_report.known(output), any_version)
    found = detection_report.results(config, output)
    report = output / "report"
    report.mkdir(exist_ok=True)
    tables = detection_report.tables(found)
    if others:
        note = f"{len(others)} of {len(planned)} steps were made by other versions of the package."
        tables = {
            name: replace(table, notes=(*table.notes, note)) for name, table in tables.items()
        }
    write_tables(report, tables)
    shown = found.shown()
    drawing = *found.drawing, found.heading, config.recall
    trainings = dict.fromkeys(shown, found.trainings)
    save(
        froc_figure(shown, found.patients, max(config.fppi), *drawing, trainings=trainings),
        report / "froc.png",
    )
    if len(config.copies) + len(config.synthetic) > 1:
        save(detection_report.growth_figure(found), report / "growth.png")
    uri = store.store_uri(config.tracking.uri)
    runs.log_folder(
        report,
        uri,
        config.tracking.experiment,
        config.model_dump(mode="json"),
        detection_report.metrics(found),
        parent,
    )
    for table in tables.values():
        cli.console.print(table)
    cli.console.print(f"tables and figures: {report}")


def judge(config: DetectionConfig) -> Judgement:
    """Every mammogram with a wanted lesion, and the normal ones, by the detectors that may judge
    it.

    Raises:
        DataError: No mammogram with a lesion may be judged, or one by several detectors, or none
            knows its patients.
    """
    datasets.refuse_added(config.data)
    handles = {"detectors": config.detectors} | (
        {"against": config.against} if config.against else {}
    )
    sets = {
        name: [
            Detector.load(handle, config.data.kinds, config.tracking_uri)
            for handle in handles[name]
        ]
        for name in handles
    }
    skipped = Skipped()
    judged = []
    for mammogram in mammograms(config.data, skipped):
        lesions = tuple(sampling.wanted(mammogram, config.data).values())
        if not lesions and not (config.normal and sampling.is_normal(mammogram)):
            continue
        judges = [_judge_of(mammogram, detectors, config.patients) for detectors in sets.values()]
        if None in judges:
            continue
        chosen = zip(sets.values(), judges, strict=True)
        try:
            judged.append(
                [
                    _judged(mammogram, lesions, detectors, judge, config)
                    for detectors, judge in chosen
                    if judge is not None
                ]
            )
        except ValueError as error:
            skipped.add(mammogram.image_id, error)
    datasets.report(skipped)
    if not any(one[0].lesions for one in judged):
        raise DataError(
            f"no mammogram with a {' or '.join(config.data.kinds)} is of a patient that a "
            "detector was not trained on"
        )
    return Judgement(
        config, {name: [one[place] for one in judged] for place, name in enumerate(sets)}
    )


def _judge_of(
    mammogram: Mammogram, detectors: Sequence[Detector], patients: Literal["unseen", "all"]
) -> int | None:
    """The place of the detector that may judge a mammogram; None where all were trained on its
    patient.
    """
    if patients == "all":
        return 0
    for detector in detectors:
        if detector.saw(mammogram.patient_id) is None:
            raise DataError(
                f"{detector.handle}: no card names the patients it was trained on; patients=all "
                "judges it all the same"
            )
    may = [
        place for place, detector in enumerate(detectors) if not detector.saw(mammogram.patient_id)
    ]
    if len(may) > 1:
        raise DataError(
            "detectors: a mammogram would be judged by several handles; give the folds of one "
            "split, or one handle"
        )
    return may[0] if may else None


def _judged(
    mammogram: Mammogram,
    lesions: tuple[Lesion, ...],
    detectors: Sequence[Detector],
    judge: int,
    config: DetectionConfig,
) -> Judged:
    found = detectors[judge].predict(mammogram)
    kinds = [lesion.kind for lesion in lesions]
    boxes = found.boxes, found.scores, found.classes, _boxes(lesions), kinds
    matches = match_kinds(*boxes, config.threshold, config.criterion, config.data.kinds)
    return Judged(mammogram, lesions, found, matches, judge)


def _boxes(lesions: Sequence[Lesion]) -> NDArray[np.float64]:
    return np.array([lesion.box for lesion in lesions], np.float64).reshape(-1, 4)


def recalls(judgement: Judgement, name: str) -> Table:
    """Recall of one set at numbers of false positives per image and of all its detections, Eq.

    (6) of the infilling paper.

    Beside each its mean from 0 to there (the normalised partial area), intervals, and the false
    positives on normal mammograms and on those with lesions apart. Each fold is measured by itself;
    of several, a second row pools their scores.
    """
    config = judgement.config
    images = judgement.matches[name]
    trainings = judgement.trainings[name]
    rows = _recall_rows(judgement, images, trainings, "")
    if len(set(trainings)) > 1:
        pooled = _recall_rows(judgement, images, [(0, 0)] * len(images), ", pooled")
        rows = [row for pair in zip(rows, pooled, strict=True) for row in pair]
    header = ["false positives per image", f"{config.recall}, %", "SD over folds", "low", "high"]
    header += [
        "its mean from 0 to there, %",
        "low",
        "high",
        "of them per normal mammogram",
        "per mammogram with lesions",
    ]
    title = judgement.title if len(judgement.sets) == 1 else f"{name}, {judgement.title}"
    return Table(title, header, rows, notes(judgement.patients))


def _recall_rows(
    judgement: Judgement, images: Sequence[Matches], trainings: Sequence[Training], said: str
) -> list[list[str]]:
    at = (*judgement.config.fppi, ALL_DETECTIONS)
    recall = measure(images, judgement.patients, trainings, at, judgement.drawing)
    mean, _, low, high = measure(
        images, judgement.patients, trainings, at, judgement.drawing, "areas"
    )
    apart = false_positives_apart(images, trainings, at)
    rows = []
    for number, place in enumerate(at):
        last = place == ALL_DETECTIONS
        cells = [PERCENT(values[number]) for values in recall]
        cells += ["-"] * 3 if last else [PERCENT(values[number]) for values in (mean, low, high)]
        cells += [FALSE(values[number]) for values in apart]
        rows.append([("all detections" if last else f"{place:g}") + said, *cells])
    return rows


def difference(judgement: Judgement) -> Table:
    """How far the two sets are apart: recall, with intervals of the same patients drawn for both;
    JAFROC's figure of merit, with p.
    """
    config = judgement.config
    patients = judgement.patients
    (ours, others) = judgement.matches.values()
    sides = judgement.trainings.values()
    at = (*config.fppi, ALL_DETECTIONS)
    a, b = (mean_recall(images, of, at) for images, of in zip((ours, others), sides, strict=True))
    trainings, others_trainings = sides
    bounds = froc_interval(
        ours,
        patients,
        at,
        *judgement.drawing,
        against=others,
        trainings=trainings,
        others_trainings=others_trainings,
    )
    rows = []
    for place, mine, theirs, low, high in zip(at, a, b, *bounds, strict=True):
        cells = [
            PERCENT(mine),
            PERCENT(theirs),
            *(PERCENT(value, "+") for value in (mine - theirs, low, high)),
        ]
        where = (
            "all detections" if place == ALL_DETECTIONS else f"{place:g} false positives per image"
        )
        rows.append([f"{config.recall}, {where}, %", *cells, "-"])
    merits = {merit_for(ours, trainings), merit_for(others, others_trainings)}
    merit: Merit = "jafroc" if merits == {"jafroc"} else "jafroc1"
    test = jafroc_test(ours, others, patients, merit, config.level, trainings, others_trainings)
    cells = [
        MERIT(test.merit),
        MERIT(test.other),
        *(MERIT(value, "+") for value in (test.difference, test.low, test.high)),
    ]
    rows.append([f"{merit.upper()} figure of merit", *cells, MERIT(test.p)])
    header = ["", *judgement.sets, "difference", "low", "high", "p"]
    return Table(f"detectors - against, {judgement.title}", header, rows, notes(patients, 1))


def precisions(judgement: Judgement) -> Table:
    """COCO's average precision of each set."""
    rows = []
    for name, judged in judgement.sets.items():
        images = [
            Boxes(
                one.found.boxes,
                one.found.scores,
                one.found.classes,
                _boxes(one.lesions),
                [lesion.kind for lesion in one.lesions],
            )
            for one in judged
        ]
        rows.append([name, *map(PERCENT, average_precision(images).values())])
    header = [
        "",
        "AP at IoU 0.5 to 0.95, %",
        "AP at IoU 0.5, %",
        "AP at IoU 0.75, %",
        "average recall, %",
    ]
    return Table(f"COCO, {judgement.title}", header, rows)


def write_tables(output: Path, tables: Mapping[str, Table]) -> None:
    """Write table.md and a .csv of each table."""
    (output / "table.md").write_text(
        "\n".join(table.markdown() for table in tables.values()), encoding="utf-8"
    )
    for name, table in tables.items():
        with (output / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([table.header, *table.body])


def write(output: Path, tables: Mapping[str, Table], judged: Sequence[Judged]) -> None:
    """Write the tables, and boxes.json: of every mammogram all detections, native px, true boxes,
    the wanted lesions, its patient, and the place of the detector among those given.
    """
    output.mkdir(parents=True, exist_ok=True)
    write_tables(output, tables)
    boxes: dict[str, dict[str, Any]] = {}
    for one in judged:
        boxes[one.mammogram.image_id] = {
            "patient": one.mammogram.patient_id,
            "detector": one.detector,
            "boxes": np.round(one.found.boxes.astype(float), 2).tolist(),
            "scores": np.round(one.found.scores.astype(float), 7).tolist(),
            "classes": list(one.found.classes),
            "truth": [list(lesion.box) for lesion in one.mammogram.lesions],
            "wanted": [{"kind": lesion.kind, "box": list(lesion.box)} for lesion in one.lesions],
        }
    (output / "boxes.json").write_text(json.dumps(boxes, indent=1), encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
