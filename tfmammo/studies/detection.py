"""Do synthetic masses help a detector? Plan runs on real mammograms plus more and more others.

    arm          trained on
    real         the real mammograms of the training folds alone
    copies-600   and 600 turned, mirrored and scaled copies of them (tra_1 + tra_2 of the infilling
                 paper)
    unet-800     and `base` such copies and 800 synthetic mammograms (gan_1 + gan_2)

Every arm is trained for every fold and seed, and evaluated on unseen patients. The networks of a
fold, and the lesions, shapes and tissue of its synthetic mammograms, come from its training
patients alone: one split.json decides for all, and each run refuses a set that knows a patient it
holds out.

Everything is a command that a user could type (`plan_steps`). Each runs in a process of its own,
and only once (tfmammo.studies.workflow). The tables come from the boxes that evaluate/detection.py
writes for each arm; see tfmammo.evaluation.froc for how they are measured.

Source: Shen et al. (Mass image synthesis in mammogram with contextual information based on GANs,
2021), section 4.5; Lin et al. (Breast mass detection in mammograms via blending adversarial
learning, 2019), section 3.

Deviations:
- Both papers train as many epochs whatever the training set, so that a larger set gets more steps.
  With training.steps all arms get the same number, the Mask R-CNN's three stages together.
- Neither paper gives intervals or tests. Lin et al. give the deviation over folds, which is given
  here. Shen et al. name no score from which a detection counts in Eq. (6); here all do. They name
  no width of their FROC area; the one here is the mean height from 0 to the largest `fppi`.
- Lin et al.'s study gets an arm of turned copies. Without it nobody knows whether synthetic
  masses or more mammograms made the difference.
- Normal mammograms are evaluated (normal in configs/detection.yaml). In the papers' training sets
  there are none, by their counts: 93 + 200 is "three times", and 2,066 is 1,500 copies and 566 real
  ones, if 566, which is not printed, is inferred rightly. The infilling study does not train on
  them either (model.normal), so that the detector knows the background of synthetic masses from
  these alone. The blending study trains on them.
- A mammogram is normal where the archive says so and marks no lesion. One with other findings only
  is neither trained on nor evaluated. In INbreast, normal is BI-RADS 1: by its authors' counts 67
  mammograms, and 107 have masses, so that some 230 of 410 are skipped. False positives are
  counted per image of another set than the papers'. Tables say how many there are, and count the
  two kinds apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from tfmammo.config import DataConfig, Frozen, Statistics, TrackingConfig, format_overrides
from tfmammo.data.splits import check_folds
from tfmammo.metrics.boxes import Criterion, recall_by
from tfmammo.studies.training import ScriptConfig, find_config, plan_training
from tfmammo.studies.workflow import Step, make_command

REAL = "real"
EVALUATIONS = "evaluations"
SPLIT = "split.json"
FOLDER_CHARACTERS = set("abcdefghijklmnopqrstuvwxyz0123456789_")
# Of the study's data section what no other config may set otherwise; the rest is passed on as it
# is.
_DECIDED = {"split_file", "fold"}


class Method(Frozen):
    """How synthetic mammograms are made: a config of `tfmammo synthesize`."""

    config: Path
    """Its YAML file."""
    set: dict[str, Any] = {}
    """What differs from that config, as sections; data, patients, count and format are the study's
    own.
    """


class StudyConfig(Statistics):
    """A config file of `evaluate/detection.py --study`."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """The study's name; its folder is runs/NAME."""
    data: DataConfig = DataConfig()
    """The archive and its split: name, root, folds, split, seed, kinds ... What is set here holds
    for all commands.
    """
    detector: ScriptConfig
    """How the detector is trained, again and again."""
    generators: dict[str, ScriptConfig] = {}
    """Name -> how a network is trained, once a fold, in OUTPUT/generators/NAME/foldFOLD."""
    methods: dict[str, Method] = {}
    """Name -> synthesis. In the texts of every `set`, also those above, {fold} and {output} are
    replaced by the fold and the study's folder.
    """
    copies: tuple[PositiveInt, ...] = ()
    """How many turned copies each arm without synthetic mammograms has."""
    base: NonNegativeInt = 0
    """How many turned copies each arm with synthetic mammograms has."""
    synthetic: tuple[PositiveInt, ...] = ()
    """How many synthetic mammograms each arm of a method has."""
    spare: float = Field(default=0.5, ge=0)
    """Oversampling margin: the share of synthetic mammograms that is made beyond those needed,
    because some can't be made.
    """
    folds: tuple[NonNegativeInt, ...] | None = Field(default=None, min_length=1)
    """The folds that are held out in turn; null: all of data.folds."""
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    """The seeds of the detector's runs."""
    criterion: Criterion = "iou"
    """What makes a hit, as for evaluate/detection.py."""
    threshold: float = Field(default=0.5, ge=0, lt=1)
    """What IoU or IoR must exceed."""
    fppi: tuple[PositiveFloat, ...] = Field(default=(0.5, 1, 2, 4), min_length=1)
    """The numbers of false positives per image at which recall is given."""
    growth: PositiveFloat = 1.0
    """The false positives per image at which recall is drawn over the number of added mammograms.
    """
    samples: PositiveInt = 1000
    """Draws of the bootstrap over patients."""
    tracking: TrackingConfig = TrackingConfig()
    """The MLflow server and experiment of the parent run and all child runs."""

    @model_validator(mode="after")
    def _check_consistent(self) -> StudyConfig:
        if bool(self.methods) != bool(self.synthetic):
            raise ValueError(
                "methods and synthetic belong together: how synthetic mammograms are made, and "
                "how many of them join"
            )
        for name in (*self.methods, *self.generators):
            if not set(name) <= FOLDER_CHARACTERS:
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
        if self.data.split == "official":
            return (0,)
        return self.folds or tuple(range(self.data.folds))

    @property
    def recall(self) -> str:
        """What is measured, in words."""
        return recall_by(self.criterion, self.threshold)


@dataclass(frozen=True)
class Arm:
    """What one detector is trained on besides the real mammograms."""

    name: str
    copies: int = 0
    method: str | None = None
    synthetic: int = 0

    @property
    def title(self) -> str:
        """The arm in words."""
        parts = [f"{self.copies} copies"] if self.copies else []
        parts += [f"{self.synthetic} by {self.method}"] if self.method else []
        return " + ".join(["real", *parts]) if parts else "real alone"


def list_arms(config: StudyConfig) -> list[Arm]:
    """List the arms: real alone first, then copies, then those of each method."""
    arms = [Arm(REAL), *(Arm(f"copies-{count}", count) for count in config.copies)]
    return arms + [
        Arm(f"{name}-{count}", config.base, name, count)
        for name in config.methods
        for count in config.synthetic
    ]


def plan_steps(config: StudyConfig, output: Path, root: Path, parent: str) -> list[Step]:
    """List all commands, each after those that it depends on.

    Args:
        config: The study.
        output: The study's folder, with split.json.
        root: The root of the repository, where train, evaluate and configs are.
        parent: Id of the MLflow run that the others are shown under.
    """
    if config.data.split == "patient":
        check_folds(config.data, config.data.folds)
    steps: list[Step] = []
    for fold in config.held_out:
        planner = _FoldPlanner(config, output, root, parent, fold)
        generators = [planner.plan_generator(name) for name in config.generators]
        names = [step.name for step in generators]
        sets = {name: planner.plan_synthesis(name, names) for name in config.methods}
        detectors = [
            planner.plan_detector(arm, seed, sets)
            for seed in config.seeds
            for arm in list_arms(config)
        ]
        steps += [*generators, *sets.values(), *detectors]
    return steps + [
        _plan_evaluation(config, output, root, arm, seed)
        for seed in config.seeds
        for arm in list_arms(config)
    ]


def name_evaluation(arm: Arm, seed: int) -> str:
    """Return the name of the step that evaluates an arm's runs with one seed."""
    return f"{EVALUATIONS}/{arm.name}/seed{seed}"


@dataclass(frozen=True)
class _FoldPlanner:
    """Plans the commands of one fold."""

    config: StudyConfig
    output: Path
    root: Path
    parent: str
    fold: int

    def plan_generator(self, name: str) -> Step:
        folder = f"generators/{name}/fold{self.fold}"
        return self._plan_training(self.config.generators[name], folder, {}, ())

    def plan_detector(self, arm: Arm, seed: int, sets: Mapping[str, Step]) -> Step:
        """Plan the training of an arm's detector on this fold; `sets` are its synthetic ones."""
        extra: dict[str, Any] = {"copies": arm.copies} if arm.copies else {}
        depends_on: tuple[str, ...] = ()
        if arm.method:
            depends_on = (sets[arm.method].name,)
            extra["synthetic"] = str(self.output / sets[arm.method].name)
            extra["count"] = arm.synthetic
        values: dict[str, Any] = {"training": {"seed": seed}}
        if extra:
            values["data"] = {"added": extra}
        folder = _name_detector(arm, self.fold, seed)
        return self._plan_training(self.config.detector, folder, values, depends_on)

    def plan_synthesis(self, name: str, depends_on: Sequence[str]) -> Step:
        """Plan the synthetic set of a method, which sees this fold's training patients alone."""
        method = self.config.methods[name]
        split_file = str(self.output / SPLIT)
        patients = {"split_file": split_file, "fold": self.fold, "side": "train"}
        values = {"data": _share_data(self.config), "patients": patients, "format": "png"}
        if len(wanted := self.config.data.pathologies or ()) == 1:
            values["pathology"] = wanted[0]  # else no detector of such lesions is trained on them
        count = math.ceil((1 + self.config.spare) * max(self.config.synthetic))
        folder = f"synthetic/{name}/fold{self.fold}"
        script = ("-m", "tfmammo.synthesis")
        file = find_config(method.config, self.root)
        overrides = format_overrides(self._fill(values)) + format_overrides(self._fill(method.set))
        return Step(
            folder,
            make_command(script, file, self.output / folder, overrides),
            tuple(depends_on),
            resumable_args=("--set", f"count={count}"),
            outputs=("patients.json",),
        )

    def _plan_training(
        self, trained: ScriptConfig, name: str, values: Mapping[str, Any], depends_on: Sequence[str]
    ) -> Step:
        split = {"split_file": str(self.output / SPLIT), "fold": self.fold}
        data = {"data": {**_share_data(self.config), **split}}
        tracking = self.config.tracking.model_dump(mode="json", exclude_unset=True)
        return plan_training(
            name,
            trained.script,
            trained.config,
            [self._fill(part) for part in (data, trained.set, values)],
            {**tracking, "parent": self.parent},
            self.output,
            self.root,
            depends_on,
        )

    def _fill(self, value: Any) -> Any:
        """Put this fold and the study's folder into the texts of a value."""
        if isinstance(value, Mapping):
            return {key: self._fill(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._fill(inner) for inner in value]
        if isinstance(value, str):
            return value.replace("{fold}", str(self.fold)).replace("{output}", str(self.output))
        return value


def _share_data(config: StudyConfig) -> dict[str, Any]:
    """Return the part of the data section that all commands get."""
    return config.data.model_dump(mode="json", exclude_unset=True, exclude=_DECIDED)


def _name_detector(arm: Arm, fold: int, seed: int) -> str:
    return f"detectors/{arm.name}/fold{fold}-seed{seed}"


def _plan_evaluation(config: StudyConfig, output: Path, root: Path, arm: Arm, seed: int) -> Step:
    detectors = [_name_detector(arm, fold, seed) for fold in config.held_out]
    runs = [str(output / name) for name in detectors]
    # The study reads the boxes of an evaluation. Those on lesions that do not count are left out by
    # the rule of matching, but nothing else of how they are counted decides them.
    rule = config.model_dump(mode="json", include={"criterion", "threshold"}, exclude_defaults=True)
    counting = config.model_dump(mode="json", include={"fppi", "samples", "level", "seed"})
    name = name_evaluation(arm, seed)
    command = make_command(
        [str(root / "evaluate" / "detection.py")],
        root / "configs" / "detection.yaml",
        output / name,
        format_overrides({"data": _share_data(config), "detectors": runs, **rule}),
    )
    ignored_args = ("--set", *format_overrides(counting))
    return Step(name, command, tuple(detectors), ignored_args=ignored_args, outputs=("boxes.json",))
