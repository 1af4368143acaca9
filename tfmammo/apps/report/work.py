"""How much of the papers' work the commands of an item do, in words for its facts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tfmammo.apps.report.config import PHANTOM, ReportConfig, Scale
from tfmammo.apps.report.facts import About
from tfmammo.apps.report.items import FROM_IMAGENET
from tfmammo.apps.report.plan import Plan, Planned
from tfmammo.config import DataConfig
from tfmammo.tracking.export.card import read_card


def describe_work(
    config: ReportConfig, plan: Plan, papers: Plan, behind: Sequence[Planned]
) -> About:
    """Describe the work of an item's steps and of all that they need, for an item without a name.

    `papers` is the plan of the scale paper.
    """
    of_command: dict[str, list[Planned]] = {}
    for one in behind:
        of_command.setdefault(one.command, []).append(one)
    lengths: dict[str, list[str]] = {}
    sizes: dict[str, None] = {}
    widths: set[Fraction] = set()
    for name, ours in of_command.items():
        command = config.commands[name]
        if plan.scale in command.work:
            lengths.setdefault(command.work[plan.scale], [])
        if not ours[0].is_training:
            continue
        theirs = papers.list_of(name)
        whole = _count_steps(theirs[:1]) if theirs and command.length_is_printed else ""
        lengths.setdefault(_relate(_count_steps(ours), whole), []).append(name)
        if theirs:
            small, large = ours[0].parsed, theirs[0].parsed
            sizes[_compare_sizes(small.data, large.data)] = None
            widths |= set(_compare_widths(small.model, large.model))
    parts = [*_name_lengths(lengths), *sizes, _name_widths(widths)]
    scripts = [(Path(one.step.command[0]).stem, one) for one in behind]
    random_starts = {
        script
        for script, one in scripts
        if script in FROM_IMAGENET and one.parsed.model.weights == "none"
    }
    return About(
        item="",
        scale=plan.scale,
        data=_list_titles(config, plan.scale, of_command),
        papers_data=_list_titles(config, "paper", of_command),
        work="; ".join(filter(None, parts)),
        runs=min(
            (count for steps in of_command.values() for count in _count_runs(steps)), default=1
        ),
        trained=0,
        is_smaller=any(sizes),
        random_starts=tuple(sorted(random_starts)),
    )


def _list_titles(config: ReportConfig, scale: Scale, names: Collection[str]) -> str:
    titles: dict[str, None] = {}
    for name in names:
        command = config.commands[name]
        key = command.get_archive(scale)
        if key is not None and command.get_overrides(scale) is not None:
            titles["phantoms" if key == PHANTOM else config.data[key].title] = None
    return " and ".join(titles)


def _count_steps(trainings: Iterable[Planned]) -> str:
    """Say how long runs are; those that were made elsewhere may differ."""
    lengths: set[int] = set()
    for one in trainings:
        training = one.parsed.training
        if one.export:
            lengths.add(read_card(one.export)["step"])
        elif training.steps:
            lengths.add(training.steps)
        elif training.epoch_samples:
            patches = training.batch_size * training.accumulate
            lengths.add(training.epochs * training.epoch_samples // patches)
        else:
            return f"{training.epochs} epochs"
    ends = sorted({min(lengths), max(lengths)})
    return " to ".join(f"{count:,}" for count in ends) + " steps"


def _relate(ours: str, papers: str) -> str:
    """Say how much of the paper's length ours is, or both where their units differ."""
    if not papers or ours == papers:
        return ours
    number, _, unit = ours.rpartition(" ")
    return f"{number} of {papers}" if papers.endswith(unit) else f"{ours} (the paper: {papers})"


def _name_lengths(lengths: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Say which command has which length, where there are several lengths."""
    for length, names in lengths.items():
        is_named = names and len(lengths) > 1
        yield f"{', '.join(names)}: {length}" if is_named else length


def _compare_sizes(small: DataConfig, large: DataConfig) -> str:
    """Say how much smaller patches are than the paper's; "" where they are not."""
    ours, papers = (
        "{} x {}".format(*data.canvas) if data.canvas else str(data.size) for data in (small, large)
    )
    return "" if ours == papers else f"{ours} of {papers} px"


def _compare_widths(small: Any, large: Any) -> Iterator[Fraction]:
    """Give the parts of the paper's width, level by level, of narrower networks."""
    for key in ("filters", "widths"):
        if hasattr(small, key):
            # The level of the image is the narrowest; a network for smaller patches has fewer.
            both = (sorted(np.ravel(getattr(model, key)).tolist()) for model in (small, large))
            for ours, papers in zip(*both, strict=False):
                if ours != papers:
                    yield Fraction(ours, papers)


def _name_widths(widths: Collection[Fraction]) -> str:
    """Say how wide networks are: "1/8 to 1/4 of the width"."""
    if not widths:
        return ""
    return " to ".join(map(str, sorted({min(widths), max(widths)}))) + " of the width"


def _count_runs(steps: Sequence[Planned]) -> list[int]:
    """Count the seeds or folds of a command's models; nothing for one that trains none."""
    if steps[0].is_training:
        return [len(steps)]
    study = steps[0].parsed
    if hasattr(study, "held_out"):  # a detection study, which trains its networks itself
        # a generator is trained once a fold, for the detectors of all seeds
        return [len(study.held_out) * (1 if study.generators else len(study.seeds))]
    return [len(study.seeds)] if hasattr(study, "shares") else []
