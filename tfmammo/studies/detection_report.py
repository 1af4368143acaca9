"""The detection studies' tables and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tfmammo.data import splits
from tfmammo.errors import DataError
from tfmammo.evaluation.froc_tables import (
    FALSE,
    count_of,
    mean_recall,
    measure,
    notes,
    recall_metrics,
)
from tfmammo.metrics.detection import (
    ALL_DETECTIONS,
    Matches,
    Training,
    false_positives_apart,
    froc_interval,
    match_kinds,
)
from tfmammo.metrics.jafroc import jafroc_test, merit_for
from tfmammo.metrics.plotting import quiet
from tfmammo.metrics.significance import holm
from tfmammo.metrics.summary import Table
from tfmammo.studies.detection import (
    EVALUATIONS,
    MERIT,
    PERCENT,
    REAL,
    Arm,
    StudyConfig,
    _judged,
    arms,
)


@dataclass(frozen=True, eq=False)
class Results:
    """What was found.

    Attributes:
        matches: Arm -> of each mammogram and seed.
        patients: Likewise, alike for all arms.
        trainings: Likewise, alike for all arms.
    """

    config: StudyConfig
    matches: Mapping[str, Sequence[Matches]]
    patients: Sequence[str]
    trainings: Sequence[Training]

    @property
    def title(self) -> str:
        """What tables are headed with."""
        seeds = len(self.config.seeds)
        all_of = Matches.join(self.matches[REAL])
        lesions = all_of.lesions // seeds
        images = all_of.images // seeds
        normal = sum(not one.lesions for one in self.matches[REAL]) // seeds
        held_out = (
            f"{lesions} lesions in {images} unseen mammograms, {normal} of them normal, of "
            f"{count_of(self.patients)}"
        )
        folds = " and ".join(map(str, self.config.held_out))
        return (
            f"{self.config.name}: {held_out}, fold{'s' * (len(folds) > 1)} {folds}, {seeds} "
            f"seed{'s' * (seeds > 1)}"
        )

    @property
    def heading(self) -> str:
        """The same for figures, which are narrow."""
        return self.title.replace(": ", "\n", 1)

    @property
    def drawing(self) -> tuple[int, int, float]:
        """Draws, seed and level of bootstrap intervals."""
        return self.config.samples, self.config.seed, self.config.level

    def shown(self) -> dict[str, Sequence[Matches]]:
        """The arms of the FROC figure: real alone, the most copies, the most synthetic mammograms
        of each method.
        """
        chosen: dict[str | None, Arm] = {}
        for arm in arms(self.config)[1:]:
            chosen[arm.method] = arm
        return {arm.shown: self.matches[arm.name] for arm in (Arm(REAL), *chosen.values())}


def results(config: StudyConfig, output: Path) -> Results:
    """What the evaluations left.

    Raises:
        DataError: A file is missing or damaged, or two arms were judged on different mammograms.
    """
    found: dict[str, list[Matches]] = {}
    keys: dict[str, list[tuple[str, str, Training]]] = {}
    for arm in arms(config):
        found[arm.name] = []
        keys[arm.name] = []
        for seed in config.seeds:
            path = output / _judged(arm, seed) / "boxes.json"
            for name, one in _boxes(path).items():
                matches, patient, fold = _matched(one, config, path)
                keys[arm.name].append((name, patient, (fold, seed)))
                found[arm.name].append(matches)
    if any(keys[name] != keys[REAL] for name in keys):
        raise DataError(
            f"{output}: the arms were not judged on the same mammograms; remove "
            f"{output / 'done' / EVALUATIONS} and run it again"
        )
    return Results(
        config,
        found,
        [patient for _, patient, _ in keys[REAL]],
        [training for *_, training in keys[REAL]],
    )


def _boxes(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: can't be read ({error.__class__.__name__}); remove it from done and run the "
            "study again"
        ) from None


def _matched(one: Mapping[str, Any], config: StudyConfig, path: Path) -> tuple[Matches, str, int]:
    """What is right of one mammogram's boxes, its patient, and the fold of the detector that found
    them.
    """
    try:
        truth = [lesion["box"] for lesion in one["wanted"]]
        kinds = [lesion["kind"] for lesion in one["wanted"]]
        boxes, lesions = (
            np.array(rows, np.float64).reshape(-1, 4) for rows in (one["boxes"], truth)
        )
        marks = boxes, np.array(one["scores"], np.float64), one["classes"], lesions, kinds
        matches = match_kinds(*marks, config.threshold, config.criterion, config.data.kinds)
        return matches, one["patient"], config.held_out[one["detector"]]
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{path}: is not what evaluate/detection.py writes ({error.__class__.__name__})"
        ) from None


def recall_table(found: Results) -> Table:
    """Recall of every arm at numbers of false positives per image and of all detections, and the
    area up to the largest number.

    With the deviation over folds and intervals. Of several trainings a second row of each arm pools
    their scores.
    """
    config = found.config
    body = []
    pooled = [(0, 0)] * len(found.trainings)
    for arm in arms(config):
        body.append([arm.shown, *_recall_cells(found, arm, found.trainings)])
        if len(set(found.trainings)) > 1:
            body.append([f"{arm.shown}, pooled", *_recall_cells(found, arm, pooled)])
    header = [
        "trained on",
        *(f"{at:g}, %" for at in config.fppi),
        "all detections, %",
        f"mean from 0 to {max(config.fppi):g}, %",
    ]
    spread = " ± SD over folds" if len({fold for fold, _ in found.trainings}) > 1 else ""
    title = f"{found.title}: {config.recall}{spread}, at false positives per image"
    return Table(title, header, body, notes(found.patients))


def _recall_cells(found: Results, arm: Arm, trainings: Sequence[Training]) -> list[str]:
    images = found.matches[arm.name]
    at = (*found.config.fppi, ALL_DETECTIONS)
    recall = measure(images, found.patients, trainings, at, found.drawing)
    area = measure(
        images, found.patients, trainings, [max(found.config.fppi)], found.drawing, "areas"
    )
    columns = [*zip(*recall, strict=True), *zip(*area, strict=True)]
    return [_spread(PERCENT, *column) for column in columns]


def false_positive_table(found: Results) -> Table:
    """False positives per normal mammogram and per mammogram with lesions, at numbers of them per
    mammogram.
    """
    config = found.config
    body = []
    for arm in arms(config):
        columns = false_positives_apart(found.matches[arm.name], found.trainings, config.fppi)
        body.append(
            [
                arm.shown,
                *(
                    f"{FALSE(normal)} / {FALSE(beside)}"
                    for normal, beside in zip(*columns, strict=True)
                ),
            ]
        )
    header = ["trained on", *(f"{at:g}" for at in config.fppi)]
    return Table(
        "Of these, false positives per normal mammogram / per mammogram with lesions", header, body
    )


def difference_table(found: Results, reference: Arm) -> Table:
    """How far every other arm is from one: recall, with intervals of the same patients drawn for
    both; JAFROC's figure of merit, with p.
    """
    config = found.config
    others = found.matches[reference.name]
    trainings = found.trainings
    at = (*config.fppi, ALL_DETECTIONS)
    base = mean_recall(others, trainings, at)
    merit = merit_for(others, trainings)
    body = []
    values = []
    for arm in (arm for arm in arms(config) if arm != reference):
        images = found.matches[arm.name]
        bounds = froc_interval(
            images,
            found.patients,
            at,
            *found.drawing,
            against=others,
            trainings=trainings,
            others_trainings=trainings,
        )
        cells = [
            _signed(PERCENT, *value)
            for value in zip(mean_recall(images, trainings, at) - base, *bounds, strict=True)
        ]
        test = jafroc_test(
            images, others, found.patients, merit, config.level, trainings, trainings
        )
        body.append([arm.shown, *cells, _signed(MERIT, test.difference, test.low, test.high)])
        values.append(test.p)
    rows = [
        [*row, MERIT(p), MERIT(corrected)]
        for row, p, corrected in zip(body, values, holm(values), strict=True)
    ]
    header = [
        "trained on",
        *(f"{place:g}, %" for place in config.fppi),
        "all detections, %",
        f"{merit.upper()} figure of merit",
    ]
    title = f"Differences in {config.recall} from {reference.shown}, at false positives per image"
    tested = int(np.isfinite(values).sum())
    return Table(title, [*header, "p, uncorrected", "p, Holm"], rows, notes(found.patients, tested))


def tables(found: Results) -> dict[str, Table]:
    """By the names of their files: against real alone, and against the copies that the synthetic
    mammograms join, or match in number.
    """
    made = {"recall": recall_table(found), "false_positives": false_positive_table(found)}
    made["difference"] = difference_table(found, Arm(REAL))
    base = found.config.base
    count = base or max(found.config.synthetic, default=0)
    if (control := Arm(f"copies-{count}", count)) in arms(found.config):
        made["difference-from-base" if base else "difference-from-copies"] = difference_table(
            found, control
        )
    return made


@quiet
def growth_figure(found: Results) -> Figure:
    """Recall over the number of added mammograms: of copies alone, and of each method's, with
    intervals.
    """
    config = found.config
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    lines = [None, *config.methods] if config.copies else [*config.methods]
    start = Arm(REAL) if not config.base else Arm(f"copies-{config.base}", config.base)
    for method in lines:
        some = [
            arm for arm in arms(config) if arm.method == method and (method or arm.name != REAL)
        ]
        some = ([Arm(REAL)] if method is None else [start] if start in arms(config) else []) + some
        values = [_at(found, arm) for arm in some]
        x = [arm.copies + arm.synthetic for arm in some]
        middle, low, high = (np.array([value[place] for value in values]) for place in range(3))
        axes.errorbar(
            x,
            middle,
            [np.maximum(middle - low, 0), np.maximum(high - middle, 0)],
            marker="o",
            capsize=2,
            label=method or "copies",
        )
    axes.set(
        xlabel="mammograms added to the real ones",
        ylabel=f"{config.recall}, {config.growth:g} false positives per image",
        ylim=(0, 1),
    )
    axes.set_title(found.heading, fontsize=8)
    axes.legend()
    return figure


def metrics(found: Results) -> dict[str, float]:
    """Numbers for the tracking store."""
    measured: dict[str, float] = {}
    for name, images in found.matches.items():
        values = recall_metrics(images, found.trainings, found.config.fppi)
        measured |= {f"{name}/{measure}": value for measure, value in values.items()}
    return measured


def known(output: Path) -> str:
    """What all steps depend on beside their commands: who is held out when."""
    return splits.load(output / "split.json").digest()


def _at(found: Results, arm: Arm) -> tuple[float, float, float]:
    """Recall at `growth` false positives per image, with its interval."""
    images = found.matches[arm.name]
    at = [found.config.growth]
    mean, _, low, high = measure(images, found.patients, found.trainings, at, found.drawing)
    return float(mean[0]), float(low[0]), float(high[0])


def _spread(show: Any, mean: float, deviation: float, low: float, high: float) -> str:
    scatter = f" ± {show(deviation)}" if np.isfinite(deviation) else ""
    return f"{show(mean)}{scatter}" + (f"\n[{show(low)}, {show(high)}]" if np.isfinite(low) else "")


def _signed(show: Any, value: float, low: float, high: float) -> str:
    return show(value, "+") + (
        f"\n[{show(low, '+')}, {show(high, '+')}]" if np.isfinite(low) else ""
    )
