"""Run a detection study, and write its tables and figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tfmammo.data import datasets, splits
from tfmammo.errors import DataError
from tfmammo.evaluation.detection import measure_seconds
from tfmammo.evaluation.froc_tables import (
    FALSE_POSITIVES,
    compute_recall_metrics,
    format_patients,
    make_notes,
    make_recall_cells,
    measure,
    tabulate_differences,
    tabulate_trainings,
    write_table,
    write_tables,
)
from tfmammo.evaluation.report import save_figure
from tfmammo.metrics.detection import (
    ALL_DETECTIONS,
    Matches,
    Training,
    false_positives_apart,
    match_kinds,
)
from tfmammo.metrics.figures import draw_froc
from tfmammo.metrics.plotting import plot_style
from tfmammo.metrics.summary import Table, write_csv
from tfmammo.studies import workflow
from tfmammo.studies.detection import (
    EVALUATIONS,
    REAL,
    SPLIT,
    Arm,
    StudyConfig,
    check_steps,
    list_arms,
    name_evaluation,
    plan_steps,
)
from tfmammo.tracking import runs, store

BASE = ", which synthetic ones join"  # the base in titles
RUN_ID = "RUN"  # stands for the parent run's id in a plan that is only shown


@dataclass(frozen=True, eq=False)
class Results:
    """The evaluations of all arms.

    Attributes:
        config: The study.
        matches: Arm -> the matches in each mammogram and with each seed.
        patients: The patient of each of these, the same for all arms.
        trainings: The training (fold, seed) behind each of these, the same for all arms.
    """

    config: StudyConfig
    matches: Mapping[str, Sequence[Matches]]
    patients: Sequence[str]
    trainings: Sequence[Training]

    def list_matches(self) -> dict[str, tuple[Sequence[Matches], Sequence[Training]]]:
        """List the matches of each arm by its title, and the training behind each."""
        return {
            arm.title: (self.matches[arm.name], self.trainings) for arm in list_arms(self.config)
        }

    @property
    def title(self) -> str:
        """The heading of the tables."""
        seeds = len(self.config.seeds)
        images = self.matches[REAL]
        total = Matches.join(images)
        normal = sum(not matches.lesions for matches in images) // seeds
        held_out = (
            f"{total.lesions // seeds} lesions in {total.images // seeds} unseen mammograms, "
            f"{normal} of them normal, of {format_patients(self.patients)}"
        )
        folds = " and ".join(map(str, self.config.held_out))
        return (
            f"{self.config.name}: {held_out}, fold{'s' * (len(folds) > 1)} {folds}, {seeds} "
            f"seed{'s' * (seeds > 1)}"
        )

    @property
    def heading(self) -> str:
        """The title in two lines, for figures, which are narrow."""
        return self.title.replace(": ", "\n", 1)

    @property
    def bootstrap(self) -> tuple[int, int, float]:
        """Draws, seed and level of bootstrap intervals."""
        return self.config.samples, self.config.seed, self.config.level

    def select_curves(self) -> dict[str, Sequence[Matches]]:
        """Select the arms of the FROC figure, by their titles.

        They are real alone, the arm with the most copies, and for each method the arm with the most
        synthetic mammograms.
        """
        last_of: dict[str | None, Arm] = {}
        for arm in list_arms(self.config)[1:]:
            last_of[arm.method] = arm
        return {arm.title: self.matches[arm.name] for arm in (Arm(REAL), *last_of.values())}


def show_plan(config: StudyConfig, output: Path, root: Path) -> None:
    """Print the commands of a study.

    Args:
        config: The study.
        output: The study's folder.
        root: The root of the repository, where train, evaluate and configs are.

    Raises:
        ConfigError: A step would be refused; see `check_steps`.
    """
    steps = plan_steps(config, output, root, RUN_ID)
    check_steps(steps)
    for step in steps:
        print(step.format_command())


def run_study(
    config: StudyConfig, output: Path, root: Path, any_version: bool = False, jobs: int = 1
) -> list[Table]:
    """Run the steps of a study that are not finished, and write its tables and figures.

    Args:
        config: The study.
        output: The study's folder; the report is written to its folder "report".
        root: The root of the repository, where train, evaluate and configs are.
        any_version: Continue with what another version of the package made. Every table then says
            so.
        jobs: How many steps run at once. With more than one, seconds per image are those of a
            machine that does several things.

    Returns:
        The tables.

    Raises:
        ConfigError: A step would be refused, see `check_steps`.
        DataError: A step failed, or its folder holds other work.
    """
    check_steps(plan_steps(config, output, root, RUN_ID))
    datasets.write_archive_split(config.data, output)
    parent = runs.open_parent_run(output, config.tracking)
    steps = plan_steps(config, output, root, parent)
    split_digest = splits.load(output / SPLIT).digest()
    outcome = workflow.run_steps(steps, output, split_digest, any_version, jobs)
    results = read_results(config, output)
    tables = make_tables(results)
    if outcome.of_other_versions:
        count = len(outcome.of_other_versions)
        note = f"{count} of {len(steps)} steps were made by other versions of the package."
        tables = {
            name: replace(table, notes=(*table.notes, note)) for name, table in tables.items()
        }
    write_report(results, tables, output / "report")
    timing = tabulate_seconds(config, output)
    if timing:
        write_table(output / "report" / "seconds.csv", timing)
    runs.log_folder(
        output / "report",
        store.store_uri(config.tracking.uri),
        config.tracking.experiment,
        config.model_dump(mode="json"),
        compute_metrics(results),
        parent,
    )
    return [*tables.values(), timing] if timing else list(tables.values())


def write_report(results: Results, tables: Mapping[str, Table], folder: Path) -> None:
    """Write the tables, froc.png and growth.csv.

    Where there are several numbers of mammograms, growth.png shows recall at `growth` false
    positives per image, and growth-all.png recall of all detections, Eq. (6) of the infilling
    paper.
    """
    config = results.config
    folder.mkdir(exist_ok=True)
    write_tables(folder, tables)
    curves = results.select_curves()
    figure = draw_froc(
        curves,
        results.patients,
        max(config.fppi),
        *results.bootstrap,
        results.heading,
        config.recall,
        trainings=dict.fromkeys(curves, results.trainings),
    )
    save_figure(figure, folder / "froc.png")
    write_csv(folder / "growth.csv", make_growth_rows(results))
    if len(config.copies) + len(config.synthetic) > 1:
        save_figure(draw_growth(results, config.growth), folder / "growth.png")
        save_figure(draw_growth(results, ALL_DETECTIONS), folder / "growth-all.png")


def read_results(config: StudyConfig, output: Path) -> Results:
    """Read what the evaluations of a study wrote.

    Raises:
        DataError: A file is missing or damaged, or two arms were evaluated on different mammograms.
    """
    matches: dict[str, list[Matches]] = {}
    keys: dict[str, list[tuple[str, str, Training]]] = {}
    for arm in list_arms(config):
        matches[arm.name] = []
        keys[arm.name] = []
        for seed in config.seeds:
            path = output / name_evaluation(arm, seed) / "boxes.json"
            for name, boxes in _read_boxes(path).items():
                of_mammogram, patient, fold = _match_boxes(boxes, config, path)
                matches[arm.name].append(of_mammogram)
                keys[arm.name].append((name, patient, (fold, seed)))
    if any(of_arm != keys[REAL] for of_arm in keys.values()):
        raise DataError(
            f"{output}: the arms were not evaluated on the same mammograms; remove "
            f"{output / 'done' / EVALUATIONS} and run it again"
        )
    patients = [patient for _, patient, _ in keys[REAL]]
    trainings = [training for _, _, training in keys[REAL]]
    return Results(config, matches, patients, trainings)


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
    """Match the boxes of one mammogram.

    Args:
        content: What boxes.json says of the mammogram.
        config: The study.
        path: Of boxes.json.

    Returns:
        The matches, the patient, and the fold of the detector that found the boxes.
    """
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


def make_tables(results: Results) -> dict[str, Table]:
    """Make the tables, by the names of their files.

    Arms are compared with real alone, with as many copies as the largest arm of a method adds, with
    the copies that the synthetic mammograms join, and with the largest arm of each method but the
    first.
    """
    config = results.config
    tables = {
        "recall": tabulate_recall(results),
        "false_positives": tabulate_false_positives(results),
        "difference": tabulate_difference(results, Arm(REAL)),
    }
    controls = {
        "difference-from-copies": (config.base + max(config.synthetic, default=0), ""),
        "difference-from-base": (config.base, BASE),
    }
    for name, (count, role) in controls.items():
        control = Arm(f"copies-{count}", count)
        if control in list_arms(config):
            tables[name] = tabulate_difference(results, control, role)
    largest = {arm.method: arm for arm in list_arms(config) if arm.method}
    for arm in list(largest.values())[1:]:
        tables[f"difference-from-{arm.name}"] = tabulate_difference(results, arm)
    if len(set(results.trainings)) > 1:
        tables["trainings"] = tabulate_trainings(
            results.list_matches(), results.patients, "trained on"
        )
    return tables


def tabulate_recall(results: Results) -> Table:
    """Tabulate recall of every arm, at numbers of false positives per image and of all detections.

    The last column is the area up to the largest number. Cells have the deviation over folds, and
    intervals. Where there are several trainings, a second row of each arm pools their scores.
    """
    config = results.config
    body = []
    pooled = [(0, 0)] * len(results.trainings)
    for arm in list_arms(config):
        images = results.matches[arm.name]
        settings = config.fppi, results.bootstrap
        cells = make_recall_cells(images, results.patients, results.trainings, *settings)
        body.append([arm.title, *cells])
        if len(set(results.trainings)) > 1:
            cells = make_recall_cells(images, results.patients, pooled, *settings)
            body.append([f"{arm.title}, pooled", *cells])
    header = [
        "trained on",
        *(f"{rate:g}, %" for rate in config.fppi),
        "all detections, %",
        f"mean from 0 to {max(config.fppi):g}, %",
    ]
    folds = {fold for fold, _ in results.trainings}
    deviation = " ± SD over folds" if len(folds) > 1 else ""
    title = f"{results.title}: {config.recall}{deviation}, at false positives per image"
    images = next(iter(results.matches.values()))  # all have the same lesions
    return Table(title, header, body, make_notes(images, results.patients))


def tabulate_false_positives(results: Results) -> Table:
    """Tabulate false positives per normal mammogram and per mammogram with lesions.

    The columns are numbers of false positives per mammogram of either kind.
    """
    config = results.config
    body = []
    for arm in list_arms(config):
        normal, with_lesions = false_positives_apart(
            results.matches[arm.name], results.trainings, config.fppi
        )
        cells = [
            f"{FALSE_POSITIVES(first)} / {FALSE_POSITIVES(second)}"
            for first, second in zip(normal, with_lesions, strict=True)
        ]
        body.append([arm.title, *cells])
    title = "Of these, false positives per normal mammogram / per mammogram with lesions"
    return Table(title, ["trained on", *(f"{rate:g}" for rate in config.fppi)], body)


def tabulate_difference(results: Results, reference: Arm, role: str = "") -> Table:
    """Tabulate how far every other arm is from a reference arm; see `tabulate_differences`.

    Args:
        results: Of a study.
        reference: The arm.
        role: What it is in the study, for the title.
    """
    config = results.config
    title = (
        f"Differences in {config.recall} from {reference.title}{role}, at false positives per image"
    )
    return tabulate_differences(
        results.list_matches(),
        reference.title,
        results.patients,
        config.fppi,
        results.bootstrap,
        (title, "trained on"),
    )


def tabulate_seconds(config: StudyConfig, output: Path) -> Table | None:
    """Tabulate how long each arm's detectors took for a mammogram.

    It is not part of table.md, which has the same content whenever a study is repeated.

    Returns:
        Medians over the mammograms of all evaluations of an arm; None where no times are known.
    """
    body = []
    for arm in list_arms(config):
        medians = []
        for seed in config.seeds:
            path = output / name_evaluation(arm, seed) / "seconds.csv"
            if path.is_file():
                with path.open(newline="", encoding="utf-8") as file:
                    lines = list(csv.DictReader(file))
                seconds = [(int(line["detector"]), float(line["seconds"])) for line in lines]
                medians.append(measure_seconds(seconds))
        if medians:
            body.append([arm.title, f"{np.mean(medians):.3f}"])
    if not body:
        return None
    title = "Seconds per mammogram, on this machine: reading, preprocessing and detection, median"
    return Table(title, ["trained on", "s"], body)


@plot_style
def draw_growth(results: Results, rate: float) -> Figure:
    """Draw recall over the number of added mammograms, with intervals.

    There is one line for copies alone, and one for each method.

    Args:
        results: Of a study.
        rate: False positives per image; infinite for all detections.
    """
    config = results.config
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
        values = np.array([_measure_growth(results, arm, rate) for arm in line])
        recall, low, high = values.T
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
    axes.set_title(results.heading, fontsize=8)
    axes.legend()
    return figure


def _measure_growth(results: Results, arm: Arm, rate: float) -> tuple[float, float, float]:
    """Measure recall at a number of false positives per image, with its interval."""
    images = results.matches[arm.name]
    mean, _, low, high = measure(
        images, results.patients, results.trainings, [rate], results.bootstrap
    )
    return float(mean[0]), float(low[0]), float(high[0])


def make_growth_rows(results: Results) -> list[dict[str, Any]]:
    """Make the lines of growth.csv, one for each arm and number of false positives per image.

    Returns:
        Parts, from 0 to 1. `false_positives` is infinite for all detections, where `area`, the mean
        recall from 0 to there, is empty. `deviation` is that over folds.
    """
    config = results.config
    rates = (*config.fppi, ALL_DETECTIONS)
    rows = []
    for arm in list_arms(config):
        arguments = results.matches[arm.name], results.patients, results.trainings
        recall = measure(*arguments, rates, results.bootstrap)
        area = measure(*arguments, rates, results.bootstrap, "areas")
        for number, rate in enumerate(rates):
            keys = ("recall", "deviation", "low", "high")
            row = {
                "arm": arm.name,
                "copies": arm.copies,
                "method": arm.method or "",
                "synthetic": arm.synthetic,
                "false_positives": float(rate),
            }
            row |= {key: float(values[number]) for key, values in zip(keys, recall, strict=True)}
            has_area = np.isfinite(rate)
            for key, values in zip(("area", "", "area_low", "area_high"), area, strict=True):
                if key:
                    row[key] = float(values[number]) if has_area else np.nan
            rows.append(row)
    return rows


def compute_metrics(results: Results) -> dict[str, float]:
    """Compute what the tracking store keeps of a study."""
    metrics: dict[str, float] = {}
    for name, images in results.matches.items():
        of_arm = compute_recall_metrics(images, results.trainings, results.config.fppi)
        metrics |= {f"{name}/{key}": value for key, value in of_arm.items()}
    return metrics
