"""Train and score segmentation models under several protocols, case by case.

A run is one model in one arm, fold and seed: two commands train it and score it on its held-out
patches. Its scores are then appended to CSV files, from which all tables are made. A run whose
scores are there is not repeated, even where its folder is gone, so that a long study can go on
elsewhere with its rows alone.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt

from tfmammo.config import DataConfig, Frozen, Statistics, format_overrides
from tfmammo.data.splits import check_folds
from tfmammo.errors import ConfigError, DataError
from tfmammo.evaluation.comparison import Name
from tfmammo.evaluation.report import Report
from tfmammo.evaluation.segmentation import PUBLISHED
from tfmammo.filesystem import sha256
from tfmammo.metrics.case_scores import (
    BASELINES,
    CURVES,
    KEYS,
    MEASURES,
    POSTPROCESSED,
    RUNS,
    SCORES,
    Cases,
    compare_arms,
    read_lines,
    read_scores,
)
from tfmammo.metrics.rows import Fact
from tfmammo.metrics.summary import (
    Table,
    correct_p,
    describe_p,
    make_tables,
    summarize,
    write_csv,
)
from tfmammo.models.cgan import PostprocessConfig
from tfmammo.studies import workflow
from tfmammo.studies.systems import check_steps
from tfmammo.studies.training import ScriptConfig, plan_training
from tfmammo.studies.workflow import Step, make_command
from tfmammo.tracking import export
from tfmammo.tracking.history import read_monitor

log = logging.getLogger(__name__)

# Keys of an arm's data section that say which patients it trains on, not what a patch is.
SPLIT_KEYS = {
    "split",
    "split_file",
    "folds",
    "fold",
    "seed",
    "paper_samples",
    "paper_test",
    "augment",
}


class ArmConfig(Frozen):
    """One protocol, by which every model is trained and scored."""

    set: dict[str, Any] = {}
    """What differs from the models' configs, as sections: {data: {split: paper}}. What it says of a
    patch, as {data: {frame: tight}}, holds for the scored patches as well.
    """
    folds: PositiveInt = 1
    """Folds by patient, each held out once. With 1 the split of `set` is taken, and where that is
    drawn, each seed draws another.
    """
    seeds: PositiveInt | dict[Name, PositiveInt] = 1
    """Runs of each model and fold, which differ by their seed: 0, 1, 2, ... One number holds for
    all models; {CAN: 3, U-Net: 1} names the arm's models, each with its own.
    """

    def count_seeds(self, models: Iterable[str]) -> dict[str, int]:
        """Return model -> its seeds; `models` are those of the study."""
        return self.seeds if isinstance(self.seeds, dict) else dict.fromkeys(models, self.seeds)


class StudyConfig(Statistics):
    """A config file of a study."""

    name: str = Field(pattern=r"^\w+$")
    """Names the folder of the runs, and their experiment in MLflow."""
    rows: Path
    """The folder of the CSV files."""
    data: DataConfig = DataConfig()
    """The patches of all arms."""
    test: DataConfig | None = None
    """Patches of another archive, all of which are scored; null: the held-out ones."""
    models: dict[Name, ScriptConfig] = Field(min_length=1)
    """Title in tables -> the model."""
    arms: dict[Name, ArmConfig] = Field(min_length=1)
    """Name -> the protocol. The first is what the others are compared with."""
    training: dict[str, Any] = {}
    """Keys of the training section that all models share: {steps: 20000}."""
    threshold: float = Field(default=0.5, gt=0, le=1)
    """The probability from which on a pixel is mass."""
    postprocess: PostprocessConfig | None = None
    """Morphology: each model's masks are scored again after it, as "NAME + post-processing"."""
    tracking_uri: str | None = None
    """The tracking store of the runs; null: the environment's."""


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
        """Hash what decides its scores, wherever archive, tracking store and weights are."""
        overrides = [
            re.sub(r"weights=.*/", "weights=", text)
            for text in self.train.overrides
            if "root=" not in text and not text.startswith("tracking.uri=")
        ]
        content = "\n".join([Path(self.train.command[0]).name, *overrides, root])
        return hashlib.sha256(content.encode()).hexdigest()[:12]


def plan_runs(config: StudyConfig, output: Path, root: Path) -> list[Run]:
    """Plan all runs: seed after seed, arm after arm, fold after fold, model after model."""
    seeds = {name: arm.count_seeds(config.models) for name, arm in config.arms.items()}
    for arm in config.arms.values():
        if arm.folds > 1:
            check_folds(config.data, arm.folds)
    for name, of_arm in seeds.items():
        for title in set(of_arm) - set(config.models):
            raise ConfigError(f"arms.{name}.seeds: {title} is none of {', '.join(config.models)}")
    return [
        _plan_run(config, output, root, name, title, fold, seed)
        for seed in range(max(count for of_arm in seeds.values() for count in of_arm.values()))
        for name, arm in config.arms.items()
        for fold in range(arm.folds)
        for title, count in seeds[name].items()
        if seed < count
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
    training = {"training": {**config.training, "seed": seed}}
    tracking = {"experiment": f"tfmammo-{config.name}", "uri": config.tracking_uri}
    train = plan_training(
        folder,
        model.script,
        model.config,
        [{"data": data}, training, arm.set, model.set],
        tracking,
        output,
        root,
    )
    scored = (config.test or config.data).model_dump(mode="json", exclude_unset=True)
    scored |= {
        key: value for key, value in arm.set.get("data", {}).items() if key not in SPLIT_KEYS
    }
    overrides = {"data": scored}
    if config.postprocess:
        overrides["postprocess"] = config.postprocess.model_dump(mode="json")
    command = make_command(
        [str(root / "evaluate" / "segmentation.py")],
        root / "configs" / "segmentation.yaml",
        output / "scores" / folder,
        [
            *format_overrides(overrides),
            f"models={{{title}: {output / folder}}}",
            f"threshold={config.threshold}",
            "samples=100",
        ],
    )
    score = Step(f"scores/{folder}", command, depends_on=(folder,), outputs=("per_image.csv",))
    return Run(name, title, fold, seed, train, score)


def run_study(
    config: StudyConfig,
    output: Path,
    root: Path,
    jobs: int = 1,
    any_version: bool = False,
) -> Report:
    """Make the runs whose scores are missing, and write the tables of all to the output.

    Args:
        config: The study.
        output: The folder of its runs.
        root: The folder of configs, train and evaluate.
        jobs: Commands at once.
        any_version: Go on with what another version of the package made.
    """
    planned = plan_runs(config, output, root)
    check_steps([run.train for run in planned])
    missing = find_missing(config, planned)
    log.info("%d of %d runs have their scores", len(planned) - len(missing), len(planned))
    by_step = {run.score.name: run for run in missing}

    def on_finish(name: str) -> None:
        if name in by_step:
            append_rows(config, by_step[name], output)

    steps = [step for run in missing for step in (run.train, run.score)]
    workflow.run_steps(steps, output, "", any_version, jobs, on_finish=on_finish)
    report = tabulate(config)
    report.write(output)
    return report


def find_missing(config: StudyConfig, planned: Sequence[Run]) -> list[Run]:
    """List the runs that have no scores yet; refuse scores that were made with other settings."""
    known = {_read_key(row): row["settings"] for row in read_lines(config.rows / RUNS)}
    for run in planned:
        if run.key in known and known[run.key] != _hash(config, run):
            raise DataError(
                f"{config.rows / RUNS}: {', '.join(run.key)} was made with other settings; take "
                "its lines out of the CSV files, or name another folder by rows=DIR"
            )
    return [run for run in planned if run.key not in known]


def _hash(config: StudyConfig, run: Run) -> str:
    test = config.test and config.test.model_dump_json(exclude_unset=True, exclude={"root"})
    morphology = config.postprocess.model_dump_json() if config.postprocess else ""
    threshold = "" if config.threshold == 0.5 else f"threshold={config.threshold}"
    own = "" if config.models[run.model].config is None else sha256(run.train.config_file)
    return run.hash_settings(f"{test}{morphology}{threshold}{own}")


def append_rows(config: StudyConfig, run: Run, output: Path) -> None:
    """Append the scores of a finished run, its curve and what made it.

    Trivial baselines are kept once for each arm, fold and drawn split.
    """
    own = dict(zip(KEYS, run.key, strict=True))
    models = (run.model, f"{run.model}{POSTPROCESSED}")
    # of a run that was stopped before its line was in runs.csv there may be some already
    made = {tuple((own | {"model": model}).values()) for model in models}
    kept, curves, runs = (
        [line for line in read_lines(config.rows / name) if _read_key(line) not in made]
        for name in (SCORES, CURVES, RUNS)
    )
    known = set(map(_read_key, kept))
    is_drawn = config.arms[run.arm].folds == 1 and config.test is None
    scores = []
    for line in read_lines(output / run.score.name / "per_image.csv"):
        key = own | {"model": line["model"]}
        if line["model"] in BASELINES and (
            tuple(key.values()) in known or (run.seed and not is_drawn)
        ):
            continue
        values = {measure: f"{float(line[measure]):.6f}" for measure in MEASURES}
        scores.append(key | {"patient": line["patient"][:8], "case": line["id"]} | values)
    _, history = read_monitor(output / run.train.name, config.tracking_uri)
    curve = [own | {"step": step, "dice": f"{value:.4f}"} for step, value in history.items()]
    folder = output / run.train.name / "export"
    card = export.read_card(folder)
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("variables.data*")):
        digest.update(path.read_bytes())
    about = own | {
        "steps": card["step"],
        "parameters": " ".join(f"{name}:{count}" for name, count in card["networks"].items()),
        "precision": card.get("precision", ""),
        "patients": len(card["train_patients"]),
        "weights": digest.hexdigest()[:12],
        "code": str(card.get("git_commit", ""))[:12],
        "settings": _hash(config, run),
    }
    config.rows.mkdir(parents=True, exist_ok=True)
    write_csv(config.rows / SCORES, [*kept, *scores])
    write_csv(config.rows / CURVES, [*curves, *curve])
    # the last: a run counts as made once its line is here
    write_csv(config.rows / RUNS, [*runs, about])


def _read_key(line: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(line[key] for key in KEYS)


def tabulate(config: StudyConfig) -> Report:
    """Tabulate each arm, and what the first arm's Dice differs by from that of the others."""
    scores = read_scores(config.rows / SCORES)
    read = {
        name: scores.collect(name, _list_planned(scores.list_models(name), arm, config))
        for name, arm in config.arms.items()
    }
    arms = {name: cases for name, cases in read.items() if cases}
    report = Report(config=config)
    archive = (config.test or config.data).archive_name
    for name, cases in arms.items():
        facts = correct_p(summarize(cases.scores, cases.patients, MEASURES, *config.draws, "pairs"))
        report.facts += [replace(fact, subset=f"arm={name}") for fact in facts]
        # another archive's patients are unseen whatever the split
        split = config.arms[name].set.get("data", {}).get("split", config.data.split)
        is_leaky = split == "paper" and config.test is None
        printed = {
            model: (published.label(model, archive, is_leaky), published.values)
            for model, published in PUBLISHED.items()
            if model in cases.scores
        }
        count = f"{len(cases.ids)} masses of {len(set(cases.patients))} patients"
        title = f"{config.name}, {name}: {count}"
        report.tables += make_tables(
            facts, MEASURES, title, printed, False, config.samples, config.level
        )
    facts = _compare_arms(config, arms)
    report.facts += facts
    for subset in dict.fromkeys(fact.subset for fact in facts):
        report.tables.append(_tabulate_difference(config, facts, subset))
    return report


def _list_planned(
    models: Sequence[str], arm: ArmConfig, config: StudyConfig
) -> dict[str, range | None]:
    """List the models of an arm that the config has, each with its seeds; None: all."""
    planned = {title: range(count) for title, count in arm.count_seeds(config.models).items()}
    planned |= {f"{title}{POSTPROCESSED}": seeds for title, seeds in planned.items()}
    return {model: planned.get(model) for model in models if model in planned or model in BASELINES}


def _compare_arms(config: StudyConfig, arms: Mapping[str, Cases]) -> list[Fact]:
    """Compare each model's Dice in the other arms with that in the first one, all p corrected."""
    base, *others = config.arms
    facts: list[Fact] = []
    for name in others:
        if base in arms and name in arms:
            subset = f"arm={name};less={base}"
            facts += compare_arms(arms[name], arms[base], subset, *config.draws)
    return correct_p(facts)


def _tabulate_difference(config: StudyConfig, facts: Sequence[Fact], subset: str) -> Table:
    """Tabulate the facts of one pair of arms; the correction covers all pairs."""
    chosen = [fact for fact in facts if fact.subset == subset]
    arm, first = (part.partition("=")[2] for part in subset.split(";"))
    count = f"{chosen[0].images} masses of {chosen[0].patients} patients"
    title = f"Dice of {arm} less that of {first}, %: {count}"
    body = [[fact.model, MEASURES["dice"].format_fact(fact)] for fact in chosen]
    notes = describe_p(chosen, MEASURES, config.samples, config.level, corrected_over=facts)
    return Table(title, ["", "difference"], body, notes)
