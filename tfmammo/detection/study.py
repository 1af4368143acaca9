"""Do synthetic masses help a detector? Trainings of one detector on real mammograms and on more and more others, judged on unseen patients.

    arm          trained on
    real         the real mammograms of the training folds alone
    copies-600   and 600 turned, mirrored and scaled copies of them            tra_1 + tra_2 of the infilling paper
    unet-800     and `base` such copies and 800 synthetic mammograms            gan_1 + gan_2

Every arm is trained for every fold and seed. A fold's networks, the lesions, shapes and tissue of its synthetic mammograms are all of its
training patients: one split.json decides for all, and each training refuses a set that knows a patient it holds out.

Everything is a command that a user could type (`plan`), run in an own process and not twice (tfmammo.steps). The tables come from the
boxes that evaluate/detection.py writes for each arm. Every training, one fold with one seed, has a scale of scores of its own: recall and
figure of merit are measured training by training and averaged, in each draw of the bootstrap and of the jackknife too, which take
patients. A second row of each arm pools the scores of all its trainings.

Source: Shen et al. (Mass image synthesis in mammogram with contextual information based on GANs, 2021), section 4.5; Lin et al. (Breast
mass detection in mammograms via blending adversarial learning, 2019), section 3.

Departures:
- Both train as many epochs whatever the training set, so that the larger one gets more steps; with training.steps all arms get the same,
  the Mask R-CNN's three stages together.
- Neither gives intervals or tests. Lin et al. give the deviation over folds, which stands here too. Shen et al.'s recall, Eq. (6), is that
  of all detections; their FROC area names no width and is not normalised, the one here is the mean height from 0 to the largest `fppi`.
- An arm of turned copies stands in Lin et al.'s study too: without it nobody knows whether synthetic masses or more mammograms did it.
- Normal mammograms train and judge (model.normal, and normal in configs/detection.yaml). In the papers' counts, 93 + 200 being "three
  times" and 566 + 1,500 = 2,066, there are none in training. The same normal mammograms are the background of synthetic masses.
- A mammogram is normal where the archive says so and marks no lesion; one with other findings alone is neither trained on nor judged. Of
  INbreast that is BI-RADS 1: by its authors' counts 67 mammograms beside 107 with masses, so that some 230 of 410 are left out, and false
  positives are counted per image of another set than the papers'. Tables say how many there are, and count the two kinds apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from tfmammo import config as configuration
from tfmammo.config import ConfigError, DataConfig, Experiment, Frozen, TrackingConfig
from tfmammo.data import splits
from tfmammo.data.patches import DataError
from tfmammo.detection.froc_tables import FALSE, count_of, mean_recall, measure, notes, recall_metrics
from tfmammo.metrics.detection import (
    ALL_DETECTIONS,
    Criterion,
    Matches,
    Training,
    false_positives_apart,
    froc_interval,
    match_kinds,
    recall_by,
)
from tfmammo.metrics.jafroc import jafroc_test, merit_for
from tfmammo.metrics.significance import holm
from tfmammo.metrics.style import quiet
from tfmammo.metrics.summary import Measure, Table
from tfmammo.recipe import SynthesisConfig
from tfmammo.steps import Step, overrides

PERCENT, MERIT = Measure("recall", "%", 100, 1).show, Measure("figure of merit", "", 1, 3).show
REAL, EVALUATIONS = "real", "evaluations"
# Of the study's data section what no other config may say otherwise; the rest of it is passed on as it stands.
_DECIDED = {"split_file", "fold"}


class Command(Frozen):
    """A script with a config. script: a name of train/ without its ending. config: its YAML file; null: configs/SCRIPT.yaml.

    set: values instead of the file's, nested as there; {fold} and {output} in a text stand for the fold and the study's folder.
    """

    script: str = Field(pattern=r"^[a-z0-9_]+$")
    config: Path | None = None
    set: dict[str, Any] = {}


class Method(Frozen):
    """How synthetic mammograms are made: a config of `python -m tfmammo.synthesis`. set: see Command; data, patients, count and format
    are the study's own.
    """

    config: Path
    set: dict[str, Any] = {}


class StudyConfig(Frozen):
    """A config file of `evaluate/detection.py --study`.

    data: what is set here holds for all commands: name, root, folds, split, seed, kinds ... detector: the training that is repeated.
    generators: name -> training of a network, once a fold, in OUTPUT/generators/NAME/foldFOLD. methods: name -> synthesis.
    copies: how many turned copies each arm without synthetic mammograms has. base: how many those with synthetic ones have; synthetic:
    how many synthetic ones. spare: part by which more are made than are needed, as some can't be.
    folds: which are held out in turn; null: all of data.folds. seeds: of the detector's trainings.
    criterion, threshold, fppi, samples, level, seed: as for evaluate/detection.py. growth: false positives per image at which recall is
    drawn over the number of added mammograms. tracking: uri and experiment of the parent and all children.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    data: DataConfig = DataConfig()
    detector: Command
    generators: dict[str, Command] = {}
    methods: dict[str, Method] = {}
    copies: tuple[PositiveInt, ...] = ()
    base: NonNegativeInt = 0
    synthetic: tuple[PositiveInt, ...] = ()
    spare: float = Field(default=0.5, ge=0)
    folds: tuple[NonNegativeInt, ...] | None = Field(default=None, min_length=1)
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    criterion: Criterion = "iou"
    threshold: float = Field(default=0.5, ge=0, lt=1)
    fppi: tuple[PositiveFloat, ...] = Field(default=(0.5, 1, 2, 4), min_length=1)
    growth: PositiveFloat = 1.0
    samples: PositiveInt = 1000
    level: float = Field(default=0.95, gt=0, lt=1)
    seed: NonNegativeInt = 0
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        if bool(self.methods) != bool(self.synthetic):
            raise ValueError("methods and synthetic belong together: how synthetic mammograms are made, and how many of them join")
        if any(not set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_") for name in (*self.methods, *self.generators)):
            raise ValueError("names of methods and generators become folders: small letters, digits and _")
        if {REAL, "copies"} & set(self.methods):
            raise ValueError(f"no method may be called {REAL} or copies")
        if self.data.split == "paper" or self.data.records:
            raise ValueError("data: needs whole mammograms split by patient, not split=paper or records")
        if self.folds and max(self.folds) >= self.data.folds:
            raise ValueError(f"folds: there are {self.data.folds} of them, from 0 on")
        return self

    @property
    def held_out(self) -> tuple[int, ...]:
        """The folds that are held out in turn; an official split has one."""
        return (0,) if self.data.split == "official" else self.folds or tuple(range(self.data.folds))

    @property
    def recall(self) -> str:
        """What is measured, in words."""
        return recall_by(self.criterion, self.threshold)


@dataclass(frozen=True)
class Arm:
    """What one detector is trained on beside the real mammograms."""

    name: str
    copies: int = 0
    method: str | None = None
    synthetic: int = 0

    @property
    def shown(self) -> str:
        """The same in words."""
        added = [f"{self.copies} copies"] if self.copies else []
        added += [f"{self.synthetic} by {self.method}"] if self.method else []
        return " + ".join(["real", *added]) if added else "real alone"


def arms(config: StudyConfig) -> list[Arm]:
    """Real alone first, then copies, then each method's."""
    found = [Arm(REAL), *(Arm(f"copies-{count}", count) for count in config.copies)]
    return found + [Arm(f"{name}-{count}", config.base, name, count) for name in config.methods for count in config.synthetic]


def plan(config: StudyConfig, output: Path, root: Path, parent: str) -> list[Step]:
    """All commands, each after those whose results it needs.

    Args:     output: the study's folder, with split.json. root: of the repository, where train, evaluate and configs are.
              parent: id of the MLflow run that the trainings are shown under.
    """
    steps: list[Step] = []
    for fold in config.held_out:
        planner = _Fold(config, output, root, parent, fold)
        generators = [planner.generator(name) for name in config.generators]
        sets = {name: planner.synthesis(name, [one.name for one in generators]) for name in config.methods}
        detectors = [planner.detector(arm, seed, sets) for seed in config.seeds for arm in arms(config)]
        steps += [*generators, *sets.values(), *detectors]
    return steps + [_evaluation(config, output, root, arm, seed) for seed in config.seeds for arm in arms(config)]


def check(steps: Sequence[Step]) -> None:
    """Refuse at once what a training or a synthesis would refuse hours later: a script or file that is not there, a wrong key.

    Keys of the section `model` are left to the scripts, whose they are.

    Raises:   ConfigError: names the step, the file and the key.
    """
    for step in steps:
        script, file = step.command[0], step.command[step.command.index("--config") + 1]
        if script != "-m" and not Path(script).is_file():
            raise ConfigError(f"{step.name}: there is no script {script}")
        schema = SynthesisConfig if script == "-m" else Experiment[dict[str, Any]]
        try:
            if not step.name.startswith(EVALUATIONS):
                configuration.parse(schema, file, step.overrides())
        except ConfigError as error:
            raise ConfigError(f"{step.name}: {error}") from None


@dataclass(frozen=True)
class _Fold:
    """The commands of one fold."""

    config: StudyConfig
    output: Path
    root: Path
    parent: str
    fold: int

    def generator(self, name: str) -> Step:
        return self._training(self.config.generators[name], f"generators/{name}/fold{self.fold}", {}, ())

    def detector(self, arm: Arm, seed: int, sets: Mapping[str, Step]) -> Step:
        added: dict[str, Any] = {"copies": arm.copies} if arm.copies else {}
        if arm.method:
            added |= {"synthetic": str(self.output / sets[arm.method].name), "count": arm.synthetic}
        values = {"training": {"seed": seed}} | ({"data": {"added": added}} if added else {})
        needs = (sets[arm.method].name,) if arm.method else ()
        return self._training(self.config.detector, _detector(arm, self.fold, seed), values, needs)

    def synthesis(self, name: str, needs: Sequence[str]) -> Step:
        method = self.config.methods[name]
        side = {"split_file": str(self.output / "split.json"), "fold": self.fold, "side": "train"}
        count = math.ceil((1 + self.config.spare) * max(self.config.synthetic))
        own = {"data": _shared(self.config), "patients": side, "format": "png"}
        step = self._step(f"synthetic/{name}/fold{self.fold}", ("-m", "tfmammo.synthesis"), method.config, (own, method.set), needs)
        return replace(step, extent=("--set", f"count={count}"), makes=("patients.json",))

    def _training(self, command: Command, name: str, values: Mapping[str, Any], needs: Sequence[str]) -> Step:
        script = (str(self.root / "train" / f"{command.script}.py"),)
        place = {"split_file": str(self.output / "split.json"), "fold": self.fold}
        own = {"data": {**_shared(self.config), **place}}
        file = command.config or self.root / "configs" / f"{command.script}.yaml"
        step = self._step(name, script, file, (own, command.set, values), needs)
        tracking = self.config.tracking.model_dump(mode="json", exclude_unset=True) | {"parent": self.parent}
        return replace(step, aside=("--set", *overrides({"tracking": tracking})), makes=("export/card.json",))

    def _step(self, name: str, script: Sequence[str], file: Path, values: Sequence[Mapping[str, Any]], needs: Sequence[str]) -> Step:
        said = [one.replace("{fold}", str(self.fold)).replace("{output}", str(self.output)) for part in values for one in overrides(part)]
        command = (
            *script,
            "--config",
            str(file if file.exists() else self.root / file),
            "--output",
            str(self.output / name),
            *(("--set", *said) if said else ()),
        )
        return Step(name, command, tuple(needs))


def _shared(config: StudyConfig) -> dict[str, Any]:
    return config.data.model_dump(mode="json", exclude_unset=True, exclude=_DECIDED)


def _detector(arm: Arm, fold: int, seed: int) -> str:
    return f"detectors/{arm.name}/fold{fold}-seed{seed}"


def _judged(arm: Arm, seed: int) -> str:
    return f"{EVALUATIONS}/{arm.name}/seed{seed}"


def _evaluation(config: StudyConfig, output: Path, root: Path, arm: Arm, seed: int) -> Step:
    runs = [_detector(arm, fold, seed) for fold in config.held_out]
    values = {"data": _shared(config), "detectors": [str(output / run) for run in runs]}
    # Of an evaluation the study reads the boxes, which do not depend on how they are counted.
    counting = config.model_dump(mode="json", include={"criterion", "threshold", "fppi", "samples", "level", "seed"})
    script, file = root / "evaluate" / "detection.py", root / "configs" / "detection.yaml"
    command = (str(script), "--config", str(file), "--output", str(output / _judged(arm, seed)), "--set", *overrides(values))
    return Step(_judged(arm, seed), command, tuple(runs), aside=("--set", *overrides(counting)), makes=("boxes.json",))


@dataclass(frozen=True, eq=False)
class Results:
    """What was found. matches: arm -> of each mammogram and seed; patients, trainings: likewise, alike for all arms."""

    config: StudyConfig
    matches: Mapping[str, Sequence[Matches]]
    patients: Sequence[str]
    trainings: Sequence[Training]

    @property
    def title(self) -> str:
        """What tables are headed with."""
        seeds, all_of = len(self.config.seeds), Matches.join(self.matches[REAL])
        lesions, images = all_of.lesions // seeds, all_of.images // seeds
        normal = sum(not one.lesions for one in self.matches[REAL]) // seeds
        held_out = f"{lesions} lesions in {images} unseen mammograms, {normal} of them normal, of {count_of(self.patients)}"
        folds = " and ".join(map(str, self.config.held_out))
        return f"{self.config.name}: {held_out}, fold{'s' * (len(folds) > 1)} {folds}, {seeds} seed{'s' * (seeds > 1)}"

    @property
    def heading(self) -> str:
        """The same for figures, which are narrow."""
        return self.title.replace(": ", "\n", 1)

    @property
    def drawing(self) -> tuple[int, int, float]:
        """Draws, seed and level of bootstrap intervals."""
        return self.config.samples, self.config.seed, self.config.level

    def shown(self) -> dict[str, Sequence[Matches]]:
        """The arms of the FROC figure: real alone, the most copies, the most synthetic mammograms of each method."""
        chosen: dict[str | None, Arm] = {}
        for arm in arms(self.config)[1:]:
            chosen[arm.method] = arm
        return {arm.shown: self.matches[arm.name] for arm in (Arm(REAL), *chosen.values())}


def results(config: StudyConfig, output: Path) -> Results:
    """What the evaluations left.

    Raises:   DataError: a file is missing or damaged, or two arms were judged on different mammograms.
    """
    found: dict[str, list[Matches]] = {}
    keys: dict[str, list[tuple[str, str, Training]]] = {}
    for arm in arms(config):
        found[arm.name], keys[arm.name] = [], []
        for seed in config.seeds:
            path = output / _judged(arm, seed) / "boxes.json"
            for name, one in _boxes(path).items():
                matches, patient, fold = _matched(one, config, path)
                keys[arm.name].append((name, patient, (fold, seed)))
                found[arm.name].append(matches)
    if any(keys[name] != keys[REAL] for name in keys):
        raise DataError(
            f"{output}: the arms were not judged on the same mammograms; remove {output / 'done' / EVALUATIONS} and run it again"
        )
    return Results(config, found, [patient for _, patient, _ in keys[REAL]], [training for *_, training in keys[REAL]])


def _boxes(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read ({error.__class__.__name__}); remove it from done and run the study again") from None


def _matched(one: Mapping[str, Any], config: StudyConfig, path: Path) -> tuple[Matches, str, int]:
    """What is right of one mammogram's boxes, its patient, and the fold of the detector that found them."""
    try:
        truth, kinds = [lesion["box"] for lesion in one["wanted"]], [lesion["kind"] for lesion in one["wanted"]]
        boxes, lesions = (np.array(rows, np.float64).reshape(-1, 4) for rows in (one["boxes"], truth))
        marks = boxes, np.array(one["scores"], np.float64), one["classes"], lesions, kinds
        matches = match_kinds(*marks, config.threshold, config.criterion, config.data.kinds)
        return matches, one["patient"], config.held_out[one["detector"]]
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path}: is not what evaluate/detection.py writes ({error.__class__.__name__})") from None


def recall_table(found: Results) -> Table:
    """Recall of every arm at numbers of false positives per image and of all detections, and the area up to the largest number.

    With the deviation over folds and intervals. Of several trainings a second row of each arm pools their scores.
    """
    config, body, pooled = found.config, [], [(0, 0)] * len(found.trainings)
    for arm in arms(config):
        body.append([arm.shown, *_recall_cells(found, arm, found.trainings)])
        if len(set(found.trainings)) > 1:
            body.append([f"{arm.shown}, pooled", *_recall_cells(found, arm, pooled)])
    header = ["trained on", *(f"{at:g}, %" for at in config.fppi), "all detections, %", f"mean from 0 to {max(config.fppi):g}, %"]
    spread = " ± SD over folds" if len({fold for fold, _ in found.trainings}) > 1 else ""
    title = f"{found.title}: {config.recall}{spread}, at false positives per image"
    return Table(title, header, body, notes(found.patients))


def _recall_cells(found: Results, arm: Arm, trainings: Sequence[Training]) -> list[str]:
    images, at = found.matches[arm.name], (*found.config.fppi, ALL_DETECTIONS)
    recall = measure(images, found.patients, trainings, at, found.drawing)
    area = measure(images, found.patients, trainings, [max(found.config.fppi)], found.drawing, "areas")
    columns = [*zip(*recall, strict=True), *zip(*area, strict=True)]
    return [_spread(PERCENT, *column) for column in columns]


def false_positive_table(found: Results) -> Table:
    """False positives per normal mammogram and per mammogram with lesions, at numbers of them per mammogram."""
    config, body = found.config, []
    for arm in arms(config):
        columns = false_positives_apart(found.matches[arm.name], found.trainings, config.fppi)
        body.append([arm.shown, *(f"{FALSE(normal)} / {FALSE(beside)}" for normal, beside in zip(*columns, strict=True))])
    header = ["trained on", *(f"{at:g}" for at in config.fppi)]
    return Table("Of these, false positives per normal mammogram / per mammogram with lesions", header, body)


def difference_table(found: Results, reference: Arm) -> Table:
    """How far every other arm is from one: recall, with intervals of the same patients drawn for both; JAFROC's figure of merit, with p."""
    config, others, trainings = found.config, found.matches[reference.name], found.trainings
    at = (*config.fppi, ALL_DETECTIONS)
    base, merit = mean_recall(others, trainings, at), merit_for(others, trainings)
    body, values = [], []
    for arm in (arm for arm in arms(config) if arm != reference):
        images = found.matches[arm.name]
        bounds = froc_interval(images, found.patients, at, *found.drawing, against=others, trainings=trainings, others_trainings=trainings)
        cells = [_signed(PERCENT, *value) for value in zip(mean_recall(images, trainings, at) - base, *bounds, strict=True)]
        test = jafroc_test(images, others, found.patients, merit, config.level, trainings, trainings)
        body.append([arm.shown, *cells, _signed(MERIT, test.difference, test.low, test.high)])
        values.append(test.p)
    rows = [[*row, MERIT(p), MERIT(corrected)] for row, p, corrected in zip(body, values, holm(values), strict=True)]
    header = ["trained on", *(f"{place:g}, %" for place in config.fppi), "all detections, %", f"{merit.upper()} figure of merit"]
    title = f"Differences in {config.recall} from {reference.shown}, at false positives per image"
    tested = int(np.isfinite(values).sum())
    return Table(title, [*header, "p, uncorrected", "p, Holm"], rows, notes(found.patients, tested))


def tables(found: Results) -> dict[str, Table]:
    """By the names of their files: against real alone, and against the copies that the synthetic mammograms join, or match in number."""
    made = {"recall": recall_table(found), "false_positives": false_positive_table(found)}
    made["difference"] = difference_table(found, Arm(REAL))
    base = found.config.base
    count = base or max(found.config.synthetic, default=0)
    if (control := Arm(f"copies-{count}", count)) in arms(found.config):
        made["difference-from-base" if base else "difference-from-copies"] = difference_table(found, control)
    return made


@quiet
def growth_figure(found: Results) -> Figure:
    """Recall over the number of added mammograms: of copies alone, and of each method's, with intervals."""
    config, figure = found.config, Figure(figsize=(5, 4), layout="constrained")
    axes, lines = figure.subplots(), [None, *config.methods] if config.copies else [*config.methods]
    start = Arm(REAL) if not config.base else Arm(f"copies-{config.base}", config.base)
    for method in lines:
        some = [arm for arm in arms(config) if arm.method == method and (method or arm.name != REAL)]
        some = ([Arm(REAL)] if method is None else [start] if start in arms(config) else []) + some
        values = [_at(found, arm) for arm in some]
        x = [arm.copies + arm.synthetic for arm in some]
        middle, low, high = (np.array([value[place] for value in values]) for place in range(3))
        axes.errorbar(
            x, middle, [np.maximum(middle - low, 0), np.maximum(high - middle, 0)], marker="o", capsize=2, label=method or "copies"
        )
    axes.set(
        xlabel="mammograms added to the real ones", ylabel=f"{config.recall}, {config.growth:g} false positives per image", ylim=(0, 1)
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
    images, at = found.matches[arm.name], [found.config.growth]
    mean, _, low, high = measure(images, found.patients, found.trainings, at, found.drawing)
    return float(mean[0]), float(low[0]), float(high[0])


def _spread(show: Any, mean: float, deviation: float, low: float, high: float) -> str:
    scatter = f" ± {show(deviation)}" if np.isfinite(deviation) else ""
    return f"{show(mean)}{scatter}" + (f"\n[{show(low)}, {show(high)}]" if np.isfinite(low) else "")


def _signed(show: Any, value: float, low: float, high: float) -> str:
    return show(value, "+") + (f"\n[{show(low, '+')}, {show(high, '+')}]" if np.isfinite(low) else "")
