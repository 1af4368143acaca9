"""Do synthetic masses help a detector? Trainings of one detector on real mammograms and on
more and more others, judged on unseen patients.

    arm          trained on
    real         the real mammograms of the training folds alone
    copies-600   and 600 turned, mirrored and scaled copies of them            tra_1 + tra_2 of the
    infilling paper
    unet-800     and `base` such copies and 800 synthetic mammograms            gan_1 + gan_2

Every arm is trained for every fold and seed. A fold's networks, the lesions, shapes and tissue of
its synthetic mammograms are all of its training patients: one split.json decides for all, and each
training refuses a set that knows a patient it holds out.

Everything is a command that a user could type (`plan`), run in an own process and not twice
(tfmammo.studies.workflow). The tables come from the boxes that evaluate/detection.py writes for
each arm. Every training, one fold with one seed, has a scale of scores of its own: recall and
figure of merit are measured training by training and averaged, in each draw of the bootstrap and of
the jackknife too, which take patients. A second row of each arm pools the scores of all its
trainings.

Source: Shen et al. (Mass image synthesis in mammogram with contextual information based on GANs,
2021), section 4.5; Lin et al. (Breast mass detection in mammograms via blending adversarial
learning, 2019), section 3.

Departures:
- Both train as many epochs whatever the training set, so that the larger one gets more steps; with
  training.steps all arms get the same,
  the Mask R-CNN's three stages together.
- Neither gives intervals or tests. Lin et al. give the deviation over folds, which stands here too.
  Shen et al.'s recall, Eq. (6), is that
  of all detections; their FROC area names no width and is not normalised, the one here is the mean
  height from 0 to the largest `fppi`.
- An arm of turned copies stands in Lin et al.'s study too: without it nobody knows whether
  synthetic masses or more mammograms did it.
- Normal mammograms train and judge (model.normal, and normal in configs/detection.yaml). In the
  papers' counts, 93 + 200 being "three
  times" and 566 + 1,500 = 2,066, there are none in training. The same normal mammograms are the
  background of synthetic masses.
- A mammogram is normal where the archive says so and marks no lesion; one with other findings alone
  is neither trained on nor judged. Of
  INbreast that is BI-RADS 1: by its authors' counts 67 mammograms beside 107 with masses, so that
  some 230 of 410 are left out, and false
  positives are counted per image of another set than the papers'. Tables say how many there are,
  and count the two kinds apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from tfmammo import config as configuration
from tfmammo.config import DataConfig, Experiment, Frozen, TrackingConfig
from tfmammo.errors import ConfigError
from tfmammo.metrics.detection import Criterion, recall_by
from tfmammo.metrics.summary import Measure
from tfmammo.studies.workflow import Step, overrides
from tfmammo.synthesis.config import SynthesisConfig

PERCENT = Measure("recall", "%", 100, 1).show
MERIT = Measure("figure of merit", "", 1, 3).show
REAL = "real"
EVALUATIONS = "evaluations"


class Command(Frozen):
    """A script with a config."""

    script: str = Field(pattern=r"^[a-z0-9_]+$")
    """A name of train/ without its ending."""
    config: Path | None = None
    """Its YAML file; null: configs/SCRIPT.yaml."""
    set: dict[str, Any] = {}
    """Values instead of the file's, nested as there; {fold} and {output} in a text stand for the
    fold and the study's folder.
    """


class Method(Frozen):
    """How synthetic mammograms are made: a config of `python -m tfmammo.synthesis`."""

    config: Path
    set: dict[str, Any] = {}
    """See Command; data, patients, count and format are the study's own."""


class StudyConfig(Frozen):
    """A config file of `evaluate/detection.py --study`."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    data: DataConfig = DataConfig()
    """What is set here holds for all commands: name, root, folds, split, seed, kinds ..."""
    detector: Command
    """The training that is repeated."""
    generators: dict[str, Command] = {}
    """Name -> training of a network, once a fold, in OUTPUT/generators/NAME/foldFOLD."""
    methods: dict[str, Method] = {}
    """Name -> synthesis."""
    copies: tuple[PositiveInt, ...] = ()
    """How many turned copies each arm without synthetic mammograms has."""
    base: NonNegativeInt = 0
    """How many those with synthetic ones have."""
    synthetic: tuple[PositiveInt, ...] = ()
    """How many synthetic ones."""
    spare: float = Field(default=0.5, ge=0)
    """Part by which more are made than are needed, as some can't be."""
    folds: tuple[NonNegativeInt, ...] | None = Field(default=None, min_length=1)
    """Which are held out in turn; null: all of data.folds."""
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    """Of the detector's trainings."""
    criterion: Criterion = "iou"
    """As for evaluate/detection.py."""
    threshold: float = Field(default=0.5, ge=0, lt=1)
    """As for evaluate/detection.py."""
    fppi: tuple[PositiveFloat, ...] = Field(default=(0.5, 1, 2, 4), min_length=1)
    """As for evaluate/detection.py."""
    growth: PositiveFloat = 1.0
    """False positives per image at which recall is drawn over the number of added mammograms."""
    samples: PositiveInt = 1000
    """As for evaluate/detection.py."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """As for evaluate/detection.py."""
    seed: NonNegativeInt = 0
    """As for evaluate/detection.py."""
    tracking: TrackingConfig = TrackingConfig()
    """Uri and experiment of the parent and all children."""

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        if bool(self.methods) != bool(self.synthetic):
            raise ValueError(
                "methods and synthetic belong together: how synthetic mammograms are made, and "
                "how many of them join"
            )
        if any(
            not set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
            for name in (*self.methods, *self.generators)
        ):
            raise ValueError(
                "names of methods and generators become folders: small letters, digits and _"
            )
        if {REAL, "copies"} & set(self.methods):
            raise ValueError(f"no method may be called {REAL} or copies")
        if self.data.split == "paper" or self.data.records:
            raise ValueError(
                "data: needs whole mammograms split by patient, not split=paper or records"
            )
        if self.folds and max(self.folds) >= self.data.folds:
            raise ValueError(f"folds: there are {self.data.folds} of them, from 0 on")
        return self

    @property
    def held_out(self) -> tuple[int, ...]:
        """The folds that are held out in turn; an official split has one."""
        return (
            (0,) if self.data.split == "official" else self.folds or tuple(range(self.data.folds))
        )

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
    return found + [
        Arm(f"{name}-{count}", config.base, name, count)
        for name in config.methods
        for count in config.synthetic
    ]


def plan(config: StudyConfig, output: Path, root: Path, parent: str) -> list[Step]:
    """All commands, each after those whose results it needs.

    Args:
        output: The study's folder, with split.json.
        root: Of the repository, where train, evaluate and configs are.
        parent: Id of the MLflow run that the trainings are shown under.
    """
    steps: list[Step] = []
    for fold in config.held_out:
        planner = _Fold(config, output, root, parent, fold)
        generators = [planner.generator(name) for name in config.generators]
        sets = {
            name: planner.synthesis(name, [one.name for one in generators])
            for name in config.methods
        }
        detectors = [
            planner.detector(arm, seed, sets) for seed in config.seeds for arm in arms(config)
        ]
        steps += [*generators, *sets.values(), *detectors]
    return steps + [
        _evaluation(config, output, root, arm, seed)
        for seed in config.seeds
        for arm in arms(config)
    ]


def check(steps: Sequence[Step]) -> None:
    """Refuse at once what a training or a synthesis would refuse hours later: a script or file that
    is not there, a wrong key.

    Keys of the section `model` are left to the scripts, whose they are.

    Raises:
        ConfigError: Names the step, the file and the key.
    """
    for step in steps:
        script = step.command[0]
        file = step.command[step.command.index("--config") + 1]
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
        return self._training(
            self.config.generators[name], f"generators/{name}/fold{self.fold}", {}, ()
        )

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
        step = self._step(
            f"synthetic/{name}/fold{self.fold}",
            ("-m", "tfmammo.synthesis.mammograms"),
            method.config,
            (own, method.set),
            needs,
        )
        return replace(step, extent=("--set", f"count={count}"), makes=("patients.json",))

    def _training(
        self, command: Command, name: str, values: Mapping[str, Any], needs: Sequence[str]
    ) -> Step:
        script = (str(self.root / "train" / f"{command.script}.py"),)
        place = {"split_file": str(self.output / "split.json"), "fold": self.fold}
        own = {"data": {**_shared(self.config), **place}}
        file = command.config or self.root / "configs" / f"{command.script}.yaml"
        step = self._step(name, script, file, (own, command.set, values), needs)
        tracking = self.config.tracking.model_dump(mode="json", exclude_unset=True) | {
            "parent": self.parent
        }
        return replace(
            step, aside=("--set", *overrides({"tracking": tracking})), makes=("export/card.json",)
        )

    def _step(
        self,
        name: str,
        script: Sequence[str],
        file: Path,
        values: Sequence[Mapping[str, Any]],
        needs: Sequence[str],
    ) -> Step:
        said = [
            one.replace("{fold}", str(self.fold)).replace("{output}", str(self.output))
            for part in values
            for one in overrides(part)
        ]
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
    counting = config.model_dump(
        mode="json", include={"criterion", "threshold", "fppi", "samples", "level", "seed"}
    )
    script = root / "evaluate" / "detection.py"
    file = root / "configs" / "detection.yaml"
    command = (
        str(script),
        "--config",
        str(file),
        "--output",
        str(output / _judged(arm, seed)),
        "--set",
        *overrides(values),
    )
    return Step(
        _judged(arm, seed),
        command,
        tuple(runs),
        aside=("--set", *overrides(counting)),
        makes=("boxes.json",),
    )


# Of the study's data section what no other config may say otherwise; the rest of it is passed on as
# it stands.
_DECIDED = {"split_file", "fold"}
