"""Run the report: commands of the wanted items, their facts, and the page."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tfmammo import document, filesystem
from tfmammo.apps.report import facts as fact_files
from tfmammo.apps.report import page
from tfmammo.apps.report.config import ReportConfig, Scale
from tfmammo.apps.report.curves import read_curves, read_exported_curves
from tfmammo.apps.report.facts import CURVES, PICTURES, Facts
from tfmammo.apps.report.items import ITEMS, WITH_EXTRAS, Extra, Item
from tfmammo.apps.report.plan import (
    Plan,
    check_plan,
    describe_extent,
    format_commands,
    get_tracking_uri,
    hide_folders,
    list_needed,
    list_obstacles,
    make_plan,
    show_plan,
)
from tfmammo.errors import ConfigError, DataError
from tfmammo.studies import workflow
from tfmammo.studies.workflow import Step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How a report is run.

    Attributes:
        scale: Which overrides of the commands.
        only: Papers and items, as "can" or "can_table1"; empty: all.
        jobs: How many commands run at once.
        keep_going: After a failure, run what does not need the failed command.
        any_version: Continue with the results of another version of the package.
    """

    scale: Scale = "small"
    only: tuple[str, ...] = ()
    jobs: int = 1
    keep_going: bool = False
    any_version: bool = False


def choose_items(only: Iterable[str], scale: Scale = "small") -> list[Item | Extra]:
    """Choose items by the names of papers or items; all where no name is given.

    Args:
        only: Names. "beyond" stands for all extras.
        scale: The scale; that of the papers has no extras.

    Raises:
        ConfigError: A name is neither.
    """
    names = list(only)
    known = {name for item in WITH_EXTRAS for name in (item.paper, item.key)}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"--only {name}: is no paper and no item ({', '.join(sorted(known))})"
            )
    items: tuple[Item | Extra, ...] = ITEMS if scale == "paper" else WITH_EXTRAS
    return [item for item in items if not names or {item.paper, item.key} & set(names)]


def list_commands(items: Iterable[Item | Extra]) -> list[str]:
    """List the commands of items."""
    return list(dict.fromkeys(name for item in items for name in item.commands))


def plan_report(config: ReportConfig, options: Options, output: Path, root: Path) -> Plan:
    """Plan the wanted items, and check every command.

    Raises:
        ConfigError: A command would be refused, at this scale or at the paper's, which the extent
            is described by; see `plan.check_plan`.
    """
    items = choose_items(options.only, options.scale)
    plan = make_plan(config, options.scale, output, root, list_commands(items))
    check_plan(plan, config, root)
    for item in items:
        describe_extent(config, options.scale, item.commands, root)
    return plan


def print_plan(config: ReportConfig, options: Options, root: Path) -> list[str]:
    """List the commands with the folders that were given, then what is left out and why."""
    plan_report(config, options, Path("runs"), root)
    shown = show_plan(
        config, options.scale, list_commands(choose_items(options.only, options.scale))
    )
    left_out = [f"# {name}: {reason}" for name, reason in shown.left_out.items()]
    return [*format_commands(shown, shown.trained | shown.steps_of, config.trained), *left_out]


def run_report(config: ReportConfig, options: Options, output: Path, root: Path) -> list[str]:
    """Run what is not finished, write facts and pictures, and write the page.

    The facts of an item are written as soon as its last command is finished.

    Args:
        config: The report.
        options: Scale, items, and how to run them.
        output: The folder of commands, pictures and the HTML page.
        root: The root of the repository.

    Returns:
        Where the page was written, in words.

    Raises:
        ConfigError: A command would be refused, or there is no such readme.
        DataError: A command failed. With keep_going the page is written first.
    """
    if config.readme and options.scale != "smoke" and not config.readme.is_file():
        raise ConfigError(
            f"readme: {config.readme}: no such file; start in a checkout, or set readme=null"
        )
    output.mkdir(parents=True, exist_ok=True)
    plan = plan_report(config, options, output, root)
    for name, reason in plan.left_out.items():
        log.info("%s: left out, %s", name, reason)
    find_facts_folder(config, options.scale, output).mkdir(parents=True, exist_ok=True)
    waiting = [item for item in choose_items(options.only, options.scale) if not item.reason]
    finished: set[str] = set()

    def write_complete_items(name: str) -> None:
        finished.add(name)
        for item in list(waiting):
            if _list_steps(item, plan) <= finished and not list_obstacles(plan, item.commands, {}):
                waiting.remove(item)
                _write_item(item, config, plan, {}, output, root)

    steps = [*map(_accept_versions, plan.steps)] if options.any_version else plan.steps
    outcome = workflow.run_steps(
        steps,
        output,
        "",
        options.any_version,
        options.jobs,
        options.keep_going,
        write_complete_items,
    )
    for item in waiting:
        _write_item(item, config, plan, outcome.failures, output, root)
    lines = write_page(config, options.scale, output)
    if outcome.failures:
        names = ", ".join(outcome.failures)
        raise DataError(f"{len(outcome.failures)} of {len(plan.steps)} commands failed: {names}")
    return lines


def _accept_versions(step: Step) -> Step:
    """Let a study go on with its own steps of another version of the package, too."""
    if "--study" not in step.command:
        return step
    return replace(step, ignored_args=(*step.ignored_args, "--any-version"))


def _list_steps(item: Item | Extra, plan: Plan) -> set[str]:
    return {step.name for name in item.commands for step in plan.steps_of.get(name, ())}


def _write_item(
    item: Item | Extra,
    config: ReportConfig,
    plan: Plan,
    failures: dict[str, str],
    output: Path,
    root: Path,
) -> None:
    """Write the facts and the picture of an item, or at the scale smoke why there are none."""
    names = list_needed(config, plan.scale, item.commands)
    shown = show_plan(hide_folders(config), plan.scale, item.commands)
    commands = format_commands(shown, names, config.trained)
    plan = make_plan(config, plan.scale, output, root, item.commands)  # without others' trainings
    extent = describe_extent(config, plan.scale, item.commands, root, plan.exports)
    reasons = list_obstacles(plan, names, failures)
    folder = find_facts_folder(config, plan.scale, output)
    facts = Facts(
        item=item.key,
        scale=plan.scale,
        extent=extent.text,
        is_papers_data=extent.is_papers_data,
        trainings=extent.trainings,
        commands=commands,
    )
    if reasons:
        log.info("%s: no result, %s", item.key, "; ".join(reasons))
        if plan.scale != "smoke":
            return
        folders = {output: "OUTPUT", root: "."}
        reason = fact_files.describe_obstacles(reasons, folders)
        facts = facts.model_copy(update={"reason": reason})
    else:
        facts = fact_files.add_tables(facts, item, plan, output)
        steps = [step for name in names for step in plan.steps_of.get(name, ())]
        curves = read_curves(steps, output, get_tracking_uri(output))
        curves += read_exported_curves(plan.exports)
        facts = facts.model_copy(update={"curves": curves})
        picture = fact_files.find_picture(item, plan, output)
        shown_picture = output / PICTURES / f"{item.key}.png"
        if picture:
            shown_picture.parent.mkdir(exist_ok=True)
            shutil.copyfile(picture, shown_picture)
        elif item.picture:
            log.warning("%s: %s made no picture", item.key, item.picture)
            shown_picture.unlink(missing_ok=True)  # of facts that have changed since
    fact_files.write_facts(facts, folder)


def find_facts_folder(config: ReportConfig, scale: Scale, output: Path) -> Path:
    """Return the folder of facts: the repository's, or the output's at the scale smoke."""
    return output / "facts" if scale == "smoke" else config.facts


def write_page(config: ReportConfig, scale: Scale, output: Path) -> list[str]:
    """Write the page from facts and pictures alone.

    Returns:
        Where it was written, in words.

    Raises:
        ConfigError: There is no folder of facts.
    """
    folder = find_facts_folder(config, scale, output)
    if not folder.is_dir():
        raise ConfigError(f"facts: {folder}: no such folder, so there is nothing to report")
    markdown = output / "report.md" if scale == "smoke" else config.markdown
    for place in (output, markdown.parent):
        place.mkdir(parents=True, exist_ok=True)
    facts = fact_files.read_facts(folder)
    blocks = page.build_page(facts)
    pictures = {
        item.key: path.read_bytes()
        for item in WITH_EXTRAS
        # those of OUTPUT are of this scale
        if item.key in facts and facts[item.key].scale == scale
        if (path := output / PICTURES / f"{item.key}.png").is_file()
    }
    drawn = page.draw_curves(facts)
    relative = Path(os.path.relpath(folder / CURVES, markdown.parent)).as_posix()
    files = page.link_curves(facts, relative)
    if files:
        (folder / CURVES).mkdir(exist_ok=True)
    for key, file in files.items():
        filesystem.write_atomically(markdown.parent / file, drawn[key], durable=False)
    kept = {Path(file).name for file in files.values()}
    for path in (folder / CURVES).glob("*.png"):
        if path.name not in kept:  # of facts that have changed since
            path.unlink()
    html = document.render_html(page.TITLE, blocks, pictures | drawn)
    filesystem.write_atomically(output / "report.html", html, durable=False)
    filesystem.write_atomically(markdown, document.render_markdown(blocks, files), durable=False)
    if config.readme and scale != "smoke":
        text = page.replace_summary(config.readme.read_text(encoding="utf-8"), facts)
        filesystem.write_atomically(config.readme, text, durable=False)
    return [f"page: {output / 'report.html'}", f"Markdown: {markdown}"]
