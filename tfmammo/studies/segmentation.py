"""Segmentation models under several protocols, each run scored case by case.

A run is one model in one arm, fold and seed: two commands train it and score it on its held-out
patches. Its scores are then appended to CSV files, from which all tables are made. A run whose
scores are there is not repeated, even where its folder is gone, so that a long study can go on
elsewhere with its rows alone.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt

from tfmammo.config import DataConfig, Frozen
from tfmammo.errors import ConfigError, DataError
from tfmammo.evaluation.comparison import Name
from tfmammo.evaluation.segmentation import CENTRED_DISC, MEASURES, PUBLISHED, WHOLE_PATCH
from tfmammo.metrics.segmentation import paired_test
from tfmammo.metrics.summary import Printed, Table, format_p, make_tables, summarize, write_csv
from tfmammo.studies import workflow
from tfmammo.studies.segmenters import check_steps, read_rows
from tfmammo.studies.workflow import Step, format_overrides
from tfmammo.tracking import export, runs

log = logging.getLogger(__name__)

SCORES = "scores.csv"
RUNS = "runs.csv"
CURVES = "curves.csv"
BASELINES = (WHOLE_PATCH, CENTRED_DISC)
KEYS = ("arm", "model", "fold", "seed")


class ModelConfig(Frozen):
    """One model of the study."""

    script: str
    """Its train script: "can"."""
    config: Path | None = None
    """Its config file; null: the shipped one of its script's name."""
    set: dict[str, Any] = {}
    """What differs from that config, as sections: {model: {filters: [16, 32]}}."""


class ArmConfig(Frozen):
    """One protocol, by which every model is trained and scored."""

    set: dict[str, Any] = {}
    """What differs from the models' configs, as sections: {data: {split: paper}}."""
    folds: PositiveInt = 1
    """Folds by patient, each held out once. With 1 the split of `set` is taken, and where that is
    drawn, each seed draws another.
    """
    seeds: PositiveInt = 1
    """Runs of each model and fold, which differ by their seed: 0, 1, 2, ..."""
    models: tuple[str, ...] | None = None
    """The titles of its models; null: all."""


class StudyConfig(Frozen):
    """A config file of a study."""

    name: str = Field(pattern=r"^\w+$")
    """Names the folder of the runs, and their experiment in MLflow."""
    rows: Path
    """The folder of the CSV files."""
    data: DataConfig = DataConfig()
    """The patches of all arms."""
    test: DataConfig | None = None
    """Patches of another archive, all of which are scored; null: the held-out ones."""
    models: dict[Name, ModelConfig] = Field(min_length=1)
    """Title in tables -> the model."""
    arms: dict[Name, ArmConfig] = Field(min_length=1)
    """Name -> the protocol. The first is what the others are compared with."""
    training: dict[str, Any] = {}
    """Keys of the training section that all models share: {steps: 20000}."""
    threshold: float = Field(default=0.5, gt=0, le=1)
    """The probability from which on a pixel is mass."""
    samples: PositiveInt = 10_000
    """Draws of the bootstrap and of the permutation test."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Confidence level of intervals."""
    seed: NonNegativeInt = 0
    """Seed of these draws."""


@dataclass(frozen=True)
class Run:
    """One training run, and how it is scored."""

    arm: str
    model: str
    fold: int
    seed: int
    train: Step
    score: Step

    @property
    def key(self) -> tuple[str, ...]:
        """Its values of `KEYS`, as they are written."""
        return self.arm, self.model, str(self.fold), str(self.seed)

    def hash_settings(self, root: str) -> str:
        """Hash what decides its scores, wherever the archive's folder is."""
        overrides = [text for text in self.train.overrides if "root=" not in text]
        content = "\n".join([Path(self.train.command[0]).name, *overrides, root])
        return hashlib.sha256(content.encode()).hexdigest()[:12]


def plan_runs(config: StudyConfig, output: Path, root: Path) -> list[Run]:
    """Plan all runs: seed after seed, arm after arm, fold after fold, model after model.

    Args:
        config: The study.
        output: The folder of its runs.
        root: The folder of configs, train and evaluate.

    Raises:
        ConfigError: An arm names a model that the study lacks.
    """
    arms = config.arms.items()
    for name, arm in arms:
        for title in set(arm.models or ()) - set(config.models):
            raise ConfigError(f"arms.{name}.models: {title} is none of {', '.join(config.models)}")
    return [
        _plan_run(config, output, root, name, title, fold, seed)
        for seed in range(max(arm.seeds for _, arm in arms))
        for name, arm in arms
        if seed < arm.seeds
        for fold in range(arm.folds)
        for title in arm.models or config.models
    ]


def _plan_run(
    config: StudyConfig, output: Path, root: Path, name: str, title: str, fold: int, seed: int
) -> Run:
    arm, model = config.arms[name], config.models[title]
    data = config.data.model_dump(mode="json", exclude_unset=True)
    if arm.folds > 1:
        data |= {"split": "patient", "folds": arm.folds, "fold": fold}
    else:
        data |= {"seed": seed}
    folder = f"{name}/{title}/fold{fold}/seed{seed}".replace(" ", "_")
    file = model.config or root / "configs" / f"{model.script}.yaml"
    tracking = {"experiment": f"tfmammo-{config.name}"}
    train = Step(
        folder,
        (
            str(root / "train" / f"{model.script}.py"),
            *("--config", str(file), "--output", str(output / folder), "--set"),
            *format_overrides({"data": data}),
            *format_overrides({"training": {**config.training, "seed": seed}}),
            *format_overrides(arm.set),
            *format_overrides(model.set),
        ),
        ignored_args=("--set", *format_overrides({"tracking": tracking})),
        outputs=("export/card.json",),
    )
    scored = config.test or config.data
    score = Step(
        f"scores/{folder}",
        (
            str(root / "evaluate" / "segmentation.py"),
            *("--config", str(root / "configs" / "segmentation.yaml")),
            *("--output", str(output / "scores" / folder), "--set"),
            *format_overrides({"data": scored.model_dump(mode="json", exclude_unset=True)}),
            f"models={{{title}: {output / folder}}}",
            f"threshold={config.threshold}",
            "samples=100",
        ),
        depends_on=(folder,),
        outputs=("per_image.csv",),
    )
    return Run(name, title, fold, seed, train, score)


def run_study(
    config: StudyConfig,
    output: Path,
    root: Path,
    schemas: Mapping[str, Any],
    jobs: int = 1,
    any_version: bool = False,
) -> list[Table]:
    """Make the runs whose scores are missing, and tabulate all.

    Args:
        config: The study.
        output: The folder of its runs.
        root: The folder of configs, train and evaluate.
        schemas: Script -> the class of its config.
        jobs: Commands at once.
        any_version: Go on with what another version of the package made.

    Raises:
        ConfigError: A command would be refused.
        DataError: A command failed, or rows were made with other settings.
    """
    planned = plan_runs(config, output, root)
    check_steps([run.train for run in planned], schemas)
    missing = find_missing(config, planned)
    log.info("%d of %d runs have their scores", len(planned) - len(missing), len(planned))
    by_step = {run.score.name: run for run in missing}

    def on_finish(name: str) -> None:
        if name in by_step:
            append_rows(config, by_step[name], output)

    steps = [step for run in missing for step in (run.train, run.score)]
    workflow.run_steps(steps, output, "", any_version, jobs, on_finish=on_finish)
    return tabulate(config)


def find_missing(config: StudyConfig, planned: Sequence[Run]) -> list[Run]:
    """List the runs that have no scores yet.

    Raises:
        DataError: Some were made with other settings.
    """
    known = {tuple(row[key] for key in KEYS): row["settings"] for row in _read(config.rows / RUNS)}
    for run in planned:
        if known.get(run.key, _hash(config, run)) != _hash(config, run):
            raise DataError(
                f"{config.rows / RUNS}: {', '.join(run.key)} was made with other settings; take "
                "its lines out of the CSV files, or name another folder by rows=DIR"
            )
    return [run for run in planned if run.key not in known]


def _hash(config: StudyConfig, run: Run) -> str:
    test = config.test and config.test.model_dump_json(exclude_unset=True, exclude={"root"})
    return run.hash_settings(str(test))


def append_rows(config: StudyConfig, run: Run, output: Path) -> None:
    """Append the scores of a finished run, its curve and what made it.

    Trivial baselines are kept once for each arm, fold and drawn split.
    """
    own = dict(zip(KEYS, run.key, strict=True))
    kept = _read(config.rows / SCORES)
    known = {tuple(row[key] for key in KEYS) for row in kept}
    is_drawn = config.arms[run.arm].folds == 1
    scores = []
    for line in read_rows(output / run.score.name / "per_image.csv"):
        key = own | {"model": line["model"]}
        if line["model"] in BASELINES and (
            tuple(key.values()) in known or (run.seed and not is_drawn)
        ):
            continue
        values = {measure: f"{float(line[measure]):.6f}" for measure in MEASURES}
        scores.append(key | {"patient": line["patient"][:8], "case": line["id"]} | values)
    _, history = runs.read_monitor(output / run.train.name)
    curve = [own | {"step": step, "dice": f"{value:.4f}"} for step, value in history.items()]
    folder = output / run.train.name / "export"
    card = export.read_card(folder)
    about = own | {
        "steps": card["step"],
        "parameters": " ".join(f"{name}:{count}" for name, count in card["networks"].items()),
        "precision": card.get("precision", ""),
        "patients": len(card["train_patients"]),
        "weights": _hash_files(folder),
        "code": str(card.get("git_commit", ""))[:12],
        "settings": _hash(config, run),
    }
    config.rows.mkdir(parents=True, exist_ok=True)
    write_csv(config.rows / SCORES, [*kept, *scores])
    write_csv(config.rows / CURVES, [*_read(config.rows / CURVES), *curve])
    # the last: a run counts as made once its line is here
    write_csv(config.rows / RUNS, [*_read(config.rows / RUNS), about])


def _read(path: Path) -> list[dict[str, str]]:
    return read_rows(path) if path.exists() else []


def _hash_files(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("variables.data*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Cases:
    """The scores of one arm, averaged over the runs that scored a case.

    Attributes:
        scores: Model -> measure -> float64 [n].
        ids: The lesion of each case, str [n].
        patients: The patient of each case, str [n].
    """

    scores: Mapping[str, Mapping[str, NDArray[np.float64]]]
    ids: NDArray[np.str_]
    patients: NDArray[np.str_]


def read_cases(path: Path, arm: str) -> Cases | None:
    """Read the scores of an arm: for each lesion the mean over its copies, folds and seeds.

    Lesions that some model has not scored are left out. None where there are none.
    """
    values: dict[str, dict[str, list[list[float]]]] = {}
    patients = {}
    for row in _read(path):
        if row["arm"] == arm:
            lesion = row["case"].partition("~")[0]
            patients[lesion] = row["patient"]
            numbers = [float(row[measure]) for measure in MEASURES]
            values.setdefault(row["model"], {}).setdefault(lesion, []).append(numbers)
    common = sorted(set.intersection(*map(set, values.values()))) if values else []
    if not common:
        return None
    scores = {}
    for model in sorted(values, key=lambda name: name in BASELINES):
        means = np.array([np.mean(values[model][lesion], axis=0) for lesion in common])
        scores[model] = dict(zip(MEASURES, means.T, strict=True))
    return Cases(scores, np.array(common), np.array([patients[lesion] for lesion in common]))


def tabulate(config: StudyConfig) -> list[Table]:
    """Tabulate each arm, and what the first arm's Dice differs by from that of the others."""
    read = {name: read_cases(config.rows / SCORES, name) for name in config.arms}
    arms = {name: cases for name, cases in read.items() if cases}
    tables: list[Table] = []
    for name, cases in arms.items():
        count = f"{len(cases.ids)} masses of {len(set(cases.patients))} patients"
        draws = config.samples, config.seed, config.level
        rows = summarize(cases.scores, cases.patients, *draws, "pairs")
        printed = {
            model: Printed(published.values)
            for model, published in PUBLISHED.items()
            if model in cases.scores
        }
        title = f"{config.name}, {name}: {count}"
        tables += make_tables(rows, MEASURES, title, printed, False, config.samples, config.level)
    base = next(iter(config.arms))
    if base in arms:
        others = [name for name in arms if name != base]
        tables += [_tabulate_arms(config, arms[base], arms[name], name) for name in others]
    return tables


def _tabulate_arms(config: StudyConfig, first: Cases, other: Cases, name: str) -> Table:
    """Tabulate the Dice of an arm less that of the first one, on the lesions of both."""
    common, rows, others = np.intersect1d(first.ids, other.ids, return_indices=True)
    patients = first.patients[rows]
    body = []
    for model in (model for model in first.scores if model in other.scores):
        test = paired_test(
            other.scores[model]["dice"][others],
            first.scores[model]["dice"][rows],
            patients,
            config.samples,
            config.seed,
            config.level,
        )
        show = MEASURES["dice"].show
        interval = f"[{show(test.low, '+')}, {show(test.high, '+')}]"
        body.append([model, f"{show(test.difference, '+')} {interval}", format_p(test.p)])
    base = next(iter(config.arms))
    title = (
        f"Dice of {name} less that of {base}, %: {len(common)} masses of "
        f"{len(set(patients))} patients"
    )
    return Table(title, ["", "difference", "p"], body, ())
