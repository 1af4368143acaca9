"""Studies on a paper's own data: the rows of their runs, finished or not, as facts.

A study appends each run's scores to the CSV files of a folder below docs/results, one line a case.
Verdicts take the models that have every fold of a seed; the page shows the others as they are.
studies.yaml says what each study is, and the study's own config which runs it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tfmammo import shipped
from tfmammo.apps.report.curves import Curve
from tfmammo.apps.report.facts import FOLDS, RUNS, About, Facts
from tfmammo.apps.report.measures import UNKNOWN, format_interval
from tfmammo.config import Frozen, read_yaml
from tfmammo.metrics import case_scores
from tfmammo.metrics.case_scores import (
    CENTRED_DISC,
    MEASURES,
    POSTPROCESSED,
    WHOLE_PATCH,
    Cases,
    StudyScores,
    compare_arms,
    read_lines,
    read_scores,
)
from tfmammo.metrics.rows import Fact
from tfmammo.metrics.summary import Measure, correct_p, summarize

PROGRESS = "progress"  # the table of models as far as their runs are finished
ARMS = "arms"  # Dice in an arm less Dice in the first one
MORPHOLOGY = "morphology"  # before and after post-processing, in each arm
SAMPLES = 30_000  # so that the smallest p-value, corrected over some 30 pairs, is below 0.01


class ShownArm(Frozen):
    """How the page shows an arm."""

    name: str
    """Its name in words."""
    less: str = ""
    """What its Dice less that of the first arm is, on the same masses; "": not shown."""


class Study(Frozen):
    """A study whose rows are in docs/results."""

    key: str
    """The name of its facts."""
    item: str
    """The key of the item below which it has its section."""
    config: str
    """The name of its config: models, arms, folds, seeds, steps and folder."""
    command: str
    """What repeats it."""
    heading: str
    """Of its section."""
    data: str
    """The data that it is scored on, which are the paper's."""
    basis: str
    """What verdicts say of its data."""
    work: str
    """How long and how large, with the steps of each arm, "{unseen:,} steps", and of each model,
    "{models[SegNet]:,} steps".
    """
    is_smaller: bool = False
    """Whether its patches have fewer pixels than the paper's."""
    stand_ins: dict[str, str] = {}
    """Baseline -> the model that stands in for the paper's in claims against it: its copy with as
    large a share of the full width.
    """
    subset: str
    """What an arm is, in the rows' subsets: "protocol", "frame"."""
    arms: dict[str, ShownArm]
    """Arm -> how it is shown. The first one decides claims of orders."""
    shown: tuple[str, ...]
    """The lines of its table of Dice."""
    printed: dict[Literal["accuracy", "dice", "jaccard", "mcc"], str]
    """Each measure that is computed -> the paper's column of it. Others than Dice are in a second
    table, of the first arm.
    """
    printed_heading: str = "printed"
    """The heading of the paper's column of Dice."""
    intro: str
    """The paragraph above the table, with {work} and {runs}."""
    figure: str
    """What its figure shows: Dice of each model in several arms."""
    notes: tuple[str, ...] = ()
    """Paragraphs below, with rows as {rows:MODEL|MEASURE} and the differences of an arm by its
    name. One whose rows are not measured yet is not shown.
    """
    text: str
    """The last paragraph."""
    texts: dict[str, str] = {}
    """Item -> the paragraph that takes the place of its own once the study has rows."""

    @property
    def base(self) -> str:
        """The first arm."""
        return next(iter(self.arms))

    @property
    def plan(self) -> dict[str, Arm]:
        """Its arms, as the config has them."""
        return {name: arm for name, arm in read_plan(self.config).items() if name in self.arms}

    @property
    def folder(self) -> str:
        """The folder of its rows below docs/results."""
        return Path(_read_config(self.config)["rows"]).name

    def describe_work(self) -> str:
        """Say how long and how large its runs are."""
        arms = {name: arm.steps for name, arm in self.plan.items()}
        return self.work.format(models=read_steps(self.config), **arms)

    def name_part(self, arm: str) -> str:
        """Name an arm in the subsets of rows: "protocol=unseen"."""
        return f"{self.subset}={arm}"

    def name_difference(self, arm: str) -> str:
        """Name an arm less the first one, likewise."""
        return f"arm={arm};less={self.base}"


@dataclass(frozen=True)
class Arm:
    """The planned runs of an arm."""

    seeds: dict[str, int]  # of each model
    folds: int
    steps: int

    @property
    def runs(self) -> list[tuple[str, int, int]]:
        """They themselves: model, fold and seed."""
        return [
            (model, fold, seed)
            for model, count in self.seeds.items()
            for fold in range(self.folds)
            for seed in range(count)
        ]


@cache
def _read_config(name: str) -> dict[str, Any]:
    # not as a StudyConfig, whose module imports TensorFlow
    return read_yaml(shipped.find_config(name))


def read_plan(name: str) -> dict[str, Arm]:
    """Read the arms of a study's config."""
    content = _read_config(name)
    plan = {}
    for arm, values in content["arms"].items():
        seeds = values.get("seeds", 1)
        training = content["training"] | values.get("set", {}).get("training", {})
        plan[arm] = Arm(
            seeds if isinstance(seeds, dict) else dict.fromkeys(content["models"], seeds),
            values.get("folds", 1),
            training["steps"],
        )
    return plan


def read_steps(name: str) -> dict[str, int]:
    """Read the steps of each model of a study's config."""
    content = _read_config(name)
    return {
        model: values.get("set", {}).get("training", {}).get("steps", content["training"]["steps"])
        for model, values in content["models"].items()
    }


class _Studies(Frozen):
    studies: tuple[Study, ...]


STUDIES = {
    study.key: study
    for study in _Studies.model_validate(
        read_yaml(Path(__file__).with_name("studies.yaml"))
    ).studies
}


@dataclass(frozen=True)
class Rows:
    """The rows of a study so far."""

    study: Study
    scores: StudyScores
    curves: tuple[Curve, ...]
    code: tuple[str, ...]  # the commits that made them

    def list_seeds(self, arm: str, model: str) -> list[int]:
        """List the seeds whose folds are all finished."""
        planned = self.study.plan[arm]
        return [
            seed
            for seed in range(max(planned.seeds.values()))
            if all((arm, model, fold, seed) in self.scores.runs for fold in range(planned.folds))
        ]

    def collect(self, arm: str, models: Iterable[str]) -> Cases | None:
        """Collect the means over those seeds; models without any are skipped."""
        seeds = {model: self.list_seeds(arm, model) for model in models}
        return self.scores.collect(arm, {model: of for model, of in seeds.items() if of})

    def summarize(
        self,
        cases: Cases,
        compare: Literal["first", "pairs"] = "first",
        draws: int = 1,
        measures: Iterable[str] = ("dice",),
    ) -> list[Fact]:
        """Compute means and differences of models, with intervals and tests by patient."""
        chosen: dict[str, Measure] = {key: MEASURES[key] for key in measures}
        return summarize(cases.scores, cases.patients, chosen, draws * SAMPLES, compare=compare)


def read_rows(study: Study, folder: Path) -> Rows:
    """Read the files of a study; a folder without them has no runs yet."""
    points: dict[str, dict[int, float]] = {}
    for line in read_lines(folder / case_scores.CURVES):
        name = f"{line['arm']}/{line['model']}/fold{line['fold']}/seed{line['seed']}"
        points.setdefault(name, {})[int(line["step"])] = float(line["dice"])
    curves = tuple(
        Curve(name, "dice", tuple(of_run), tuple(of_run.values()))
        for name, of_run in points.items()
    )
    lines = read_lines(folder / case_scores.RUNS)
    code = sorted({f"commit {line['code']}" for line in lines})
    return Rows(study, read_scores(folder / case_scores.SCORES), curves, tuple(code))


def read_facts(folder: Path) -> dict[str, Facts]:
    """Make the facts of all studies with rows below docs/results, by their keys."""
    found = {
        key: make_facts(read_rows(study, folder / study.folder)) for key, study in STUDIES.items()
    }
    return {key: facts for key, facts in found.items() if facts}


def make_facts(rows: Rows) -> Facts | None:
    """Make facts of a study; None before its first run.

    Their tables are "means", "differences", "runs" or "folds", of the first arm's models that have
    every fold of a seed; "differences", "runs" or "folds" of each other arm, a subset; "morphology"
    and "arms", of such models in every arm; and "progress", of all models and arms.
    """
    study, scores = rows.study, rows.scores
    if not scores.runs:
        return None
    base = study.plan[study.base]
    counts = {
        arm: {model: len(rows.list_seeds(arm, model)) for model in planned.seeds}
        for arm, planned in study.plan.items()
    }
    complete = [model for model, count in counts[study.base].items() if count]
    seeds = {study.name_part(arm): of_arm for arm, of_arm in counts.items()}
    facts = [*_list_progress(rows), *_compare_morphology(rows), *_compare_arms(rows)]
    if cases := rows.collect(study.base, (*complete, CENTRED_DISC)):
        facts += correct_p(rows.summarize(cases, "pairs"))
    for arm in list(study.arms)[1:]:
        if cases := rows.collect(arm, (*study.plan[arm].seeds, CENTRED_DISC)):
            pairs = correct_p(rows.summarize(cases, "pairs"))
            facts += [replace(one, subset=study.name_part(arm)) for one in pairs if one.against]
    facts += [fact for arm in study.plan for fact in _list_repeats(rows, arm)]
    planned = {(name, *run) for name, arm in study.plan.items() for run in arm.runs}
    about = About(
        item=study.key,
        scale="small",
        data=study.data,
        papers_data=study.data,
        basis=study.basis,
        work=study.describe_work(),
        runs=base.folds * min((counts[study.base][model] for model in complete), default=1),
        seeds=seeds | {"": counts[study.base]},
        trained=len(planned & set(scores.runs)),
        is_smaller=study.is_smaller,
        stand_ins=study.stand_ins,
        commands=(study.command,),
        code=rows.code,
        is_preliminary=not planned <= set(scores.runs),
    )
    return Facts(about, tuple(facts), rows.curves)


def _list_progress(rows: Rows) -> Iterator[Fact]:
    """List the means of every model in every arm, over the runs so far."""
    study = rows.study
    for arm in study.arms:
        measures = study.printed if arm == study.base else ("dice",)
        for model in rows.scores.list_models(arm):
            cases = rows.scores.collect(arm, {model: None})
            if cases and model != WHOLE_PATCH:
                for fact in rows.summarize(cases, measures=measures):
                    yield replace(fact, table=PROGRESS, subset=study.name_part(arm))


def _compare_morphology(rows: Rows) -> list[Fact]:
    """Compare models before and after post-processing; Holm's correction is over all of them."""
    facts = []
    for arm, planned in rows.study.plan.items():
        for model in planned.seeds:
            pair = (model, f"{model}{POSTPROCESSED}")
            cases = rows.collect(arm, pair)
            if cases and len(cases.scores) == len(pair):
                part = rows.study.name_part(arm)
                found = rows.summarize(cases, draws=10)  # a corrected p-value is near 0.05
                facts += [replace(fact, table=MORPHOLOGY, subset=part) for fact in found]
    return correct_p(facts)


def _compare_arms(rows: Rows) -> list[Fact]:
    """Compare each model's Dice in the other arms with that in the first one."""
    study = rows.study
    facts: list[Fact] = []
    for arm, planned in study.plan.items():
        for model in (*planned.seeds, CENTRED_DISC):
            cases, base = (rows.collect(name, [model]) for name in (arm, study.base))
            if arm != study.base and cases and base:
                facts += compare_arms(cases, base, study.name_difference(arm), SAMPLES)
    return correct_p(facts)


def _list_repeats(rows: Rows, arm: str) -> Iterator[Fact]:
    """List the Dice of an arm's models in each of several seeds, over all folds, and of several
    folds.
    """
    study, collect = rows.study, rows.scores.collect
    place = "" if arm == study.base else f"{study.name_part(arm)};"
    folds = study.plan[arm].folds
    for model in study.plan[arm].seeds:
        seeds = rows.list_seeds(arm, model)
        parts: dict[tuple[str, str], Cases | None] = {}
        if len(seeds) > 1:
            parts |= {(RUNS, f"run={n}"): collect(arm, {model: [n]}) for n in seeds}
        if folds > 1 and seeds:
            parts |= {(FOLDS, f"fold={n}"): collect(arm, {model: seeds}, n) for n in range(folds)}
        for (table, subset), cases in parts.items():
            if cases:
                mean = float(cases.scores[model]["dice"].mean())
                about = {"subset": f"{place}{subset}"}
                yield MEASURES["dice"].make_fact(table, model, "dice", mean, **about)


def count_runs(study: Study, facts: Mapping[str, Facts], arm: str, model: str = "") -> int:
    """Count the finished runs of an arm, or of one of its models."""
    curves = facts[study.key].curves if study.key in facts else ()
    beginning = f"{arm}/{model}/" if model else f"{arm}/"
    return len({curve.run for curve in curves if curve.run.startswith(beginning)})


def describe_runs(study: Study, facts: Mapping[str, Facts], arms: Iterable[str] = ()) -> str:
    """Say how many runs of some arms are finished; by default of all together."""
    names = tuple(arms) or tuple(study.arms)
    done = sum(count_runs(study, facts, arm) for arm in names)
    planned = sum(len(study.plan[arm].runs) for arm in names)
    return f"{f'{done} of' if done < planned else 'all'} {planned} runs are finished"


def describe_difference(study: Study, facts: Mapping[str, Facts], arm: str) -> str:
    """List what the Dice of each model in an arm differs by from that in the first one."""
    found = []
    for model in study.shown if study.key in facts else ():
        row = facts[study.key].find(model, "dice", model, ARMS, study.name_difference(arm))
        found += [f"{model} {format_interval(row, with_p=True)}"] if row else []
    return "; ".join(found) or UNKNOWN
