"""Run the commands of the wanted items, and write their facts."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tfmammo.apps.report import facts as fact_files
from tfmammo.apps.report import rebuild
from tfmammo.apps.report.config import ReportConfig, Scale
from tfmammo.apps.report.curves import Curve
from tfmammo.apps.report.facts import Facts, make_curve
from tfmammo.apps.report.items import ITEMS, Item
from tfmammo.apps.report.plan import ROWS, Plan, Planned, complete, get_tracking_uri, make_plan
from tfmammo.apps.report.work import describe_work
from tfmammo.errors import ConfigError, DataError, TrackingError
from tfmammo.metrics.rows import Fact, join_subset, read_facts
from tfmammo.studies import workflow
from tfmammo.studies.workflow import DONE, OLD, Step
from tfmammo.tracking.export.card import CARD
from tfmammo.tracking.history import read_monitor

log = logging.getLogger(__name__)

EXPORTED = "curve.csv"  # beside the export of a run that was made elsewhere: step, measure


@dataclass(frozen=True)
class Options:
    """How a report is run."""

    scale: Scale = "small"
    only: tuple[str, ...] = ()  # papers and items, as "can" or "can_table1"; empty: all
    jobs: int = 1  # commands that run at once
    keep_going: bool = False  # after a failure, run what does not need the failed command
    any_version: bool = False  # continue with the results of another version of the package


def choose_items(only: Iterable[str], scale: Scale = "small") -> list[Item]:
    """Choose items that have commands, by the names of papers or items; all without a name.

    The scale of the papers has no studies of our own.
    """
    names = set(only)
    known = {name for item in ITEMS for name in (item.paper, item.key)}
    if unknown := sorted(names - known):
        raise ConfigError(
            f"--only {unknown[0]}: is no paper and no item ({', '.join(sorted(known))})"
        )
    chosen = [item for item in ITEMS if not names or {item.paper, item.key} & names]
    keys = {key for item in chosen for key in item.fact_keys}
    return [
        item
        for item in ITEMS
        if item.sources and item.key in keys and not (item.study and scale == "paper")
    ]


@dataclass(frozen=True)
class _Report:
    """A planned report."""

    config: ReportConfig
    output: Path
    root: Path
    items: list[Item]
    plan: Plan
    papers: Plan

    def format_command(self, one: Planned, is_for_facts: bool = True) -> str:
        """Format a step as a reader types it, for facts without this machine's folders."""
        places = {str(self.output): f"runs/report-{self.plan.scale}", f"{self.root}/": ""}
        for other in self.plan.planned:
            if other.export:
                places[str(other.export)] = f"runs/report-{self.plan.scale}/{other.step.name}"
        if is_for_facts:
            config = self.config
            for section in (config.weights, config.predictions, config.checkpoints):
                places |= {str(path): path.name for path in section.values() if path}
        command = []
        for argument in one.step.command:
            key, _, value = argument.partition("=")
            if is_for_facts and key.endswith(".root") and value != "null":
                argument = f"{key}=DIR"
            for path in sorted(places, key=len, reverse=True):
                argument = argument.replace(path, places[path])
            command.append(argument)
        text = Step(one.step.name, tuple(command)).format_command()
        if one.export:
            how = self.config.trained[one.command].how
            return f"# {one.command}, trained {how}, as: {text}"
        return text


def plan_report(config: ReportConfig, options: Options, output: Path, root: Path) -> _Report:
    """Plan the wanted items and, to describe their scale, the same commands as in the papers."""
    items = choose_items(options.only, options.scale)
    wanted = list(dict.fromkeys(name for item in items for name in item.sources))
    plan = make_plan(config, options.scale, output, root, wanted)
    names = dict.fromkeys(one.command for one in plan.planned)
    papers = make_plan(complete(config), "paper", output, root, names)
    return _Report(config, output, root, items, plan, papers)


def print_plan(config: ReportConfig, options: Options, root: Path) -> list[str]:
    """List the commands, then what is skipped and why."""
    report = plan_report(config, options, Path(f"runs/report-{options.scale}"), root)
    skipped = [f"# {name}: {reason}" for name, reason in report.plan.skipped.items()]
    return [*(report.format_command(one, False) for one in report.plan.planned), *skipped]


def run_report(config: ReportConfig, options: Options, output: Path, root: Path) -> list[str]:
    """Run what is not finished, write facts and pages, and say where the pages are.

    The facts of an item are written as soon as its last command is finished.

    Args:
        config: The report.
        options: Scale, items, and how to run them.
        output: The folder of commands.
        root: The root of the repository.

    Raises:
        ConfigError: A command would be refused, or there is no such readme.
        DataError: A command failed. With keep_going the pages are written first.
    """
    if config.readme and options.scale != "smoke" and not config.readme.is_file():
        raise ConfigError(
            f"readme: {config.readme}: no such file; start in a checkout, or set readme=null"
        )
    report = plan_report(config, options, output, root)
    output.mkdir(parents=True, exist_ok=True)
    for name, reason in report.plan.skipped.items():
        log.info("%s: skipped, %s", name, reason)
    waiting = list(report.items)
    finished: set[str] = set()

    def write_finished_items(name: str) -> None:
        finished.add(name)
        for item in list(waiting):
            steps = {one.step.name for one in _list_run(report.plan, item)}
            if steps <= finished and not _list_obstacles(report, item, {}):
                waiting.remove(item)
                _write_item(report, item, {})

    steps = report.plan.steps
    outcome = workflow.run_steps(
        [*map(_accept_versions, steps)] if options.any_version else steps,
        output,
        "",
        options.any_version,
        options.jobs,
        options.keep_going,
        write_finished_items,
    )
    for item in waiting:
        _write_item(report, item, outcome.failures)
    lines = rebuild.write_pages(config, options.scale, output)
    if outcome.failures:
        names = ", ".join(outcome.failures)
        raise DataError(f"{len(outcome.failures)} of {len(steps)} commands failed: {names}")
    return lines


def _accept_versions(step: Step) -> Step:
    """Let a study go on with its own steps of another version of the package."""
    if "--study" not in step.command:
        return step
    return replace(step, ignored_args=(*step.ignored_args, "--any-version"))


def _list_run(plan: Plan, item: Item) -> list[Planned]:
    return [one for name in item.sources for one in plan.list_of(name) if one.export is None]


def _list_obstacles(report: _Report, item: Item, failures: Mapping[str, str]) -> list[str]:
    """List why commands left no result: they were skipped, or a step failed.

    A command that has no run at this scale is no obstacle where others of the item have one.
    """
    plan, config = report.plan, report.config
    places = {str(report.output): "OUTPUT", str(report.root): "."}
    archives = (archive.root for archive in config.data.values())
    files = (*config.weights.values(), *config.checkpoints.values(), *config.predictions.values())
    places |= {str(path): "DIR" for path in (*archives, *files) if path and path.is_absolute()}
    commands = config.commands
    planned = [
        name for name in item.sources if commands[name].get_overrides(plan.scale) is not None
    ]
    skipped = (name for name in planned or item.sources if name in plan.skipped)
    reasons = {plan.skipped[name]: None for name in skipped}
    for one in plan.list_behind(item.sources):
        if one.step.name in failures:
            text = failures[one.step.name].partition("; all it said:")[0]
            for path, name in places.items():
                text = text.replace(path, name)
            reasons[text] = None
    return list(reasons)


def _write_item(report: _Report, item: Item, failures: Mapping[str, str]) -> None:
    """Write the facts of an item, or why there are none.

    A reason is not written at the scale smoke, nor over an earlier result.
    """
    plan, output = report.plan, report.output
    behind = plan.list_behind(item.sources)
    about = describe_work(report.config, plan, report.papers, behind).model_copy(
        update={"item": item.key, "commands": tuple(map(report.format_command, behind))}
    )
    if item.study and not any(item.key in other.facts for other in ITEMS):
        about = about.model_copy(update={"papers_data": ""})  # it decides no claim
    folder = rebuild.find_folder(report.config, plan.scale, output)
    if reasons := _list_obstacles(report, item, failures):
        log.info("%s: no result, %s", item.key, "; ".join(reasons))
        if plan.scale != "smoke" and not fact_files.has_result(folder, f"{item.key}.{plan.scale}"):
            about = about.model_copy(update={"reason": "; ".join(reasons)})
            fact_files.write(Facts(about), folder)
        return
    curves = [curve for one in behind for curve in _read_curves(one, output)]
    code = set()
    for one in behind:
        if one.export is None:
            file = output / DONE / f"{one.step.name}.json"
            note = json.loads(file.read_text(encoding="utf-8"))
            commit = f", commit {note['commit']}" if note.get("commit") else ""
            code.add(f"tfmammo {note['code']}{commit}")
    known = tuple(curve for curve in curves if curve.steps)
    about = about.model_copy(update={"trained": len(curves), "code": tuple(sorted(code))})
    rows = [
        row
        for one in _list_run(plan, item)
        for row in _read_rows(one.step, output, report.config.commands[one.command].subset)
    ]
    fact_files.write(Facts(about, tuple(rows), known), folder)


def _read_rows(step: Step, output: Path, subset: str) -> list[Fact]:
    """Read the rows that a step wrote; none of one that makes networks or images.

    `subset` names the part of the data that they describe, before what they name themselves.
    """
    files = (output / step.name / name for name in step.outputs)
    rows = (row for file in files if file.name == ROWS for row in read_facts(file))
    return [replace(row, subset=join_subset(subset, row.subset)) for row in rows]


def _read_curves(one: Planned, output: Path) -> list[Curve]:
    """Read the curves of a step that trains, or of the networks that a study trains.

    A run of which nothing is known has an empty curve.
    """
    if one.export:
        return [_read_exported_curve(one.step.name, one.export)]
    folder = output / one.step.name
    exports = (path.parent for path in folder.rglob(f"export/{CARD}"))
    folders = sorted(path.parent for path in exports if path.parent.suffix != OLD)
    curves = []
    for run in [folder] if one.is_training else folders:
        name = run.relative_to(output).as_posix()
        try:
            measure, history = read_monitor(run, get_tracking_uri(output))
        except TrackingError as error:
            log.warning("%s: no validation curve, %s", name, error)
            measure, history = "", {}
        curves.append(make_curve(name, measure, dict(history)))
    return curves


def _read_exported_curve(name: str, export: Path) -> Curve:
    path = export / EXPORTED
    if not path.exists():
        return make_curve(name, "", {})
    try:
        with path.open(newline="", encoding="utf-8") as file:
            (_, measure), *rows = csv.reader(file)
        history = {int(step): float(value) for step, value in rows}
    except (ValueError, csv.Error):
        raise ConfigError(f"{path}: is no table of steps and a measure") from None
    return make_curve(name, measure, history)
