"""Run a detection study, and write its rows, tables and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tfmammo.data import datasets, splits
from tfmammo.document import say_count
from tfmammo.errors import DataError
from tfmammo.evaluation.froc import (
    Detected,
    add_differences,
    add_false_positives,
    add_recall,
    add_runs,
)
from tfmammo.evaluation.report import Report, save_figure
from tfmammo.metrics.boxes import Matches, match_kinds
from tfmammo.metrics.detection import ALL_DETECTIONS, Found, Run
from tfmammo.metrics.plotting import plot_style
from tfmammo.studies import workflow
from tfmammo.studies.detection import (
    EVALUATIONS,
    REAL,
    SPLIT,
    Arm,
    StudyConfig,
    list_arms,
    name_evaluation,
    plan_steps,
)
from tfmammo.studies.systems import check_steps
from tfmammo.tracking import runs, store

BASE = ", which synthetic ones join"  # the base in titles
RUN_ID = "RUN"  # the parent run's id in a plan that is only shown


def show_plan(config: StudyConfig, output: Path, root: Path) -> None:
    """Print the commands of a study; otherwise as `run_study`."""
    steps = plan_steps(config, output, root, RUN_ID)
    check_steps(steps)
    for step in steps:
        print(step.format_command())


def run_study(
    config: StudyConfig, output: Path, root: Path, any_version: bool = False, jobs: int = 1
) -> Report:
    """Run the steps of a study that are not finished, and write its tables and figures.

    Args:
        config: The study.
        output: The study's folder; the report is written to its folder "report".
        root: The root of the repository, where train, evaluate and configs are.
        any_version: Continue with what another version of the package made. Every table then says
            so.
        jobs: How many steps run at once.
    """
    check_steps(plan_steps(config, output, root, RUN_ID))
    datasets.write_archive_split(config.data, output)
    parent = runs.open_parent_run(output, config.tracking)
    steps = plan_steps(config, output, root, parent)
    split_digest = splits.load(output / SPLIT).digest()
    outcome = workflow.run_steps(steps, output, split_digest, any_version, jobs)
    detected = read_results(config, output)
    report = make_report(config, detected)
    if outcome.of_other_versions:
        count = len(outcome.of_other_versions)
        note = f"{count} of {len(steps)} steps were made by other versions of the package."
        report.tables = [replace(one, notes=(*one.notes, note)) for one in report.tables]
    folder = output / "report"
    draw_figures(config, detected, folder)
    report.write(folder)
    uri = store.store_uri(config.tracking.uri)
    content = config.model_dump(mode="json")
    metrics = report.list_metrics()
    runs.log_folder(folder, uri, config.tracking.experiment, content, metrics, parent)
    return report


def read_results(config: StudyConfig, output: Path) -> Detected:
    """Read what the evaluations of a study wrote."""
    found: dict[str, Found] = {}
    keys: dict[str, list[tuple[str, str]]] = {}
    for arm in list_arms(config):
        images: list[Matches] = []
        trained: list[Run] = []
        keys[arm.name] = []
        for seed in config.seeds:
            path = output / name_evaluation(arm, seed) / "boxes.json"
            for name, boxes in _read_boxes(path).items():
                of_mammogram, patient, fold = _match_boxes(boxes, config, path)
                images.append(of_mammogram)
                trained.append((fold, seed))
                keys[arm.name].append((name, patient))
        found[arm.name] = Found(images, trained)
    real = found[REAL]
    if any(keys[name] != keys[REAL] or found[name].runs != real.runs for name in found):
        raise DataError(
            f"{output}: the arms were not evaluated on the same mammograms; remove "
            f"{output / 'done' / EVALUATIONS} and run it again"
        )
    patients = [patient for _, patient in keys[REAL]]
    seeds = len(config.seeds)
    total = Matches.join(real.images)
    normal = sum(not matches.lesions for matches in real.images) // seeds
    folds = " and ".join(map(str, config.held_out))
    title = (
        f"{config.name}: {say_count(total.lesions // seeds, 'lesion')} in "
        f"{say_count(total.images // seeds, 'unseen mammogram')}, {normal} of them normal, of "
        f"{say_count(len(set(patients)), 'patient')}, "
        f"fold{'s' * (len(config.held_out) > 1)} {folds}, {say_count(seeds, 'seed')}"
    )
    return Detected(
        found,
        patients,
        config.fppi,
        config.draws,
        config.recall,
        title,
        "trained on",
        {arm.name: arm.title for arm in list_arms(config)},
        total.images // seeds,
    )


def _read_boxes(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: can't be read ({error.__class__.__name__}); remove it from done and run the "
            "study again"
        ) from None


def _match_boxes(
    content: Mapping[str, Any], config: StudyConfig, path: Path
) -> tuple[Matches, str, int]:
    """Match the boxes of one mammogram; return its patient and the detector's fold."""
    try:
        boxes = np.array(content["boxes"], np.float64).reshape(-1, 4)
        lesions = [lesion["box"] for lesion in content["wanted"]]
        matches = match_kinds(
            boxes,
            np.array(content["scores"], np.float64),
            content["classes"],
            np.array(lesions, np.float64).reshape(-1, 4),
            [lesion["kind"] for lesion in content["wanted"]],
            config.threshold,
            config.criterion,
            config.data.kinds,
        )
        return matches, content["patient"], config.held_out[content["detector"]]
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{path}: is not what evaluate/detection.py writes ({error.__class__.__name__})"
        ) from None


def make_report(config: StudyConfig, detected: Detected) -> Report:
    """Make the facts and tables.

    Arms are compared with real alone, with as many copies as the largest arm of a method adds, with
    the copies that the synthetic mammograms join, and with the largest arm of each method but the
    first.
    """
    report = Report(config=config)
    add_recall(report, detected)
    add_false_positives(report, detected)
    counts = {config.base + max(config.synthetic, default=0): "", config.base: BASE}
    controls = {Arm(f"copies-{count}", count): role for count, role in counts.items()}
    largest = {arm.method: arm.name for arm in list_arms(config) if arm.method}
    references = {
        REAL: "",
        **{arm.name: role for arm, role in controls.items() if arm in list_arms(config)},
        **dict.fromkeys(list(largest.values())[1:], ""),
    }
    add_differences(report, detected, references)
    if len(set(detected.found[REAL].runs)) > 1:
        add_runs(report, detected)
    return report


def draw_figures(config: StudyConfig, detected: Detected, folder: Path) -> None:
    """Write froc.png of real alone, the most copies, and the largest arm of each method.

    Where there are several numbers of mammograms, growth.png shows recall at `growth` false
    positives per image, and growth-all.png recall of all detections, Eq. (6) of the infilling
    paper.
    """
    last_of = {arm.method: arm.name for arm in list_arms(config)[1:]}
    heading = detected.title.replace(": ", "\n", 1)  # figures are narrow
    save_figure(detected.draw((REAL, *last_of.values()), heading), folder / "froc.png")
    if len(config.copies) + len(config.synthetic) > 1:
        save_figure(draw_growth(config, detected, config.growth), folder / "growth.png")
        save_figure(draw_growth(config, detected, ALL_DETECTIONS), folder / "growth-all.png")


@plot_style
def draw_growth(config: StudyConfig, detected: Detected, rate: float) -> Figure:
    """Draw recall over the number of added mammograms: a line for copies and for each method.

    The rate of false positives per image is infinite for all detections.
    """
    arms = list_arms(config)
    base = Arm(f"copies-{config.base}", config.base) if config.base else Arm(REAL)
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    methods = [None, *config.methods] if config.copies else [*config.methods]
    for method in methods:
        if method is None:
            line = [arm for arm in arms if arm.method is None]
        else:
            line = [arm for arm in arms if arm == base or arm.method == method]
        values = np.array([detected.measure(arm.name, [rate]) for arm in line])[..., 0]
        recall, _, low, high = values.T
        axes.errorbar(
            [arm.copies + arm.synthetic for arm in line],
            recall,
            [np.maximum(recall - low, 0), np.maximum(high - recall, 0)],
            marker="o",
            capsize=2,
            label=method or "copies",
        )
    place = f"{rate:g} false positives per image" if np.isfinite(rate) else "all detections"
    axes.set(
        xlabel="mammograms added to the real ones",
        ylabel=f"{config.recall}, {place}",
        ylim=(0, 1),
    )
    axes.set_title(detected.title.replace(": ", "\n", 1), fontsize=8)
    axes.legend()
    return figure
