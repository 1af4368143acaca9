"""The commands of a scale as steps of tfmammo.studies.workflow, checked before anything runs."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tfmammo.apps.commands import find_schema
from tfmammo.apps.report.config import PHANTOM, CommandConfig, ReportConfig, Scale, TrainedConfig
from tfmammo.config import DataConfig, Experiment
from tfmammo.errors import ConfigError, ExportError
from tfmammo.studies import detection
from tfmammo.studies.workflow import Step, parse_step
from tfmammo.tracking.export.card import CARD, read_card

_TOKEN = re.compile(r"\{([a-z][a-z0-9_.]*)(?::(\d))?\}")
T = TypeVar("T")
TRACKING = "tracking"
WEIGHTS = "weights."
FOLDERS = {  # sections of the config whose folders commands need
    "predictions": "predictions of another tool",
    "checkpoints": "a published checkpoint",
}


@dataclass
class Plan:
    """The commands of a scale.

    Attributes:
        scale: The scale.
        steps: All steps, each after those that it depends on.
        steps_of: Command -> its steps, one a fold and seed. Of a command that is not wanted itself,
            those that another one needs: "{can:0}" needs the first alone.
        left_out: Command -> why it is not run.
        trained: Command -> the trainings that exports take the place of. They are no steps. As in
            `steps_of` those that a wanted command needs.
        exports: Each of these trainings -> the export that takes its place.
        read: Step -> the trainings of `trained` whose exports it reads.
    """

    scale: Scale
    steps: list[Step] = field(default_factory=list)
    steps_of: dict[str, list[Step]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    trained: dict[str, list[Step]] = field(default_factory=dict)
    exports: dict[str, Path] = field(default_factory=dict)
    read: dict[str, list[str]] = field(default_factory=dict)


def make_plan(
    config: ReportConfig, scale: Scale, output: Path, root: Path, wanted: Iterable[str]
) -> Plan:
    """Plan commands with all those whose files they read.

    Args:
        config: The report.
        scale: Which overrides.
        output: The folder of the report.
        root: The root of the repository, where train, evaluate and configs are.
        wanted: Names of commands.

    Raises:
        ConfigError: A command is not in the config, or commands need each other in a circle.
    """
    plan = Plan(scale)
    wanted = list(wanted)
    for name in wanted:
        _Planner(config, scale, output, root, plan).add(name)
    _leave_out_unneeded(plan, wanted)
    return plan


def _leave_out_unneeded(plan: Plan, wanted: Iterable[str]) -> None:
    """Leave out steps, and trainings made elsewhere, that no wanted command needs."""
    made = [plan.steps_of, plan.trained]
    needed = {step.name for name in wanted for steps in made for step in steps.get(name, ())}
    for step in reversed(plan.steps):  # each stands after those that it depends on
        if step.name in needed:
            needed.update(step.depends_on, plan.read[step.name])

    def keep(steps_of: dict[str, list[Step]]) -> dict[str, list[Step]]:
        kept = {
            name: [step for step in steps if step.name in needed]
            for name, steps in steps_of.items()
        }
        return {name: steps for name, steps in kept.items() if steps}

    plan.steps = [step for step in plan.steps if step.name in needed]
    plan.steps_of, plan.trained = map(keep, made)
    plan.exports = {name: path for name, path in plan.exports.items() if name in needed}


def show_plan(config: ReportConfig, scale: Scale, wanted: Iterable[str]) -> Plan:
    """Plan commands as a reader types them, in the root of the repository."""
    trained = {key: one.model_copy(update={"exports": ()}) for key, one in config.trained.items()}
    config = config.model_copy(update={"trained": trained})
    return make_plan(config, scale, Path(f"runs/report-{scale}"), Path("."), wanted)


def hide_folders(config: ReportConfig) -> ReportConfig:
    """Take this machine's folders out: a root becomes DIR, of another path the last part stays."""
    hidden = {
        key: archive.model_copy(update={"root": archive.root and Path("DIR")})
        for key, archive in config.data.items()
    }
    weights = {key: path and Path(path.name) for key, path in config.weights.items()}
    folders = {
        section: {key: path and Path(path.name) for key, path in getattr(config, section).items()}
        for section in FOLDERS
    }
    return config.model_copy(update={"data": hidden, "weights": weights} | folders)


def list_needed(config: ReportConfig, scale: Scale, wanted: Iterable[str]) -> list[str]:
    """List commands and all that they need, each after those that it needs."""
    names: dict[str, None] = {}

    def visit(name: str) -> None:
        for reference in _find_references(config, config.commands[name].get_overrides(scale)):
            visit(reference)
        names[name] = None

    for name in wanted:
        if name in config.commands:
            visit(name)
    return list(names)


def check_plan(plan: Plan, config: ReportConfig, root: Path) -> None:
    """Refuse at once what a command would refuse hours later: a missing file, a wrong key.

    Raises:
        ConfigError: Names the command, the file and the key.
    """
    for name, steps in plan.steps_of.items():
        command = config.commands[name]
        schema = find_schema(command.run)
        if schema is None:
            raise ConfigError(f"commands.{name}: the config of {command.run} is not known")
        script = command.run.split(maxsplit=1)[0]
        if script != "-m" and not (root / script).is_file():
            raise ConfigError(f"commands.{name}: there is no script {script}")
        for step in steps:
            parse_step(step, schema, f"commands.{name}")


def get_tracking_uri(output: Path) -> str:
    """Return the address of a report's MLflow store."""
    return f"sqlite:///{output / 'mlflow.db'}"


@dataclass(frozen=True)
class _Planner:
    """Adds commands to a plan."""

    config: ReportConfig
    scale: Scale
    output: Path
    root: Path
    plan: Plan

    def add(self, name: str) -> None:
        """Add a command, after those that it needs; nothing of it where one of them can't run."""
        if name in self.plan.steps_of or name in self.plan.left_out:
            return
        if reason := self._find_obstacle(name, ()):
            self.plan.left_out[name] = reason
            return
        command = self.config.commands[name]
        overrides = command.get_overrides(self.scale)
        assert overrides is not None
        for reference in _find_references(self.config, overrides):
            self.add(reference)
        steps = list(self._make_steps(name, command, overrides))
        if name in self.config.trained:
            self._check_exports(name, steps[0], len(steps))
            exports = self.config.trained[name].exports  # none in a plan that is only shown
            self.plan.exports |= zip((step.name for step in steps), exports, strict=False)
            self.plan.trained[name], steps = steps, []
        self.plan.steps_of[name] = steps
        self.plan.steps += steps

    def _check_exports(self, name: str, step: Step, wanted: int) -> None:
        """Refuse exports that can't take the place of a command's trainings.

        A plan that is only shown has none, and names the folders of trainings.
        """
        exports = self.config.trained[name].exports
        if not exports:
            return
        if len(exports) != wanted:
            raise ConfigError(
                f"trained.{name}: names {len(exports)} exports, and the scale {self.scale} has "
                f"{wanted} trainings"
            )
        of_id: dict[str, Path] = {}
        planned: Experiment[Any] = parse_step(
            step, find_schema(self.config.commands[name].run), name
        )
        for path in exports:
            try:
                card = read_card(path)
            except ExportError as error:
                raise ConfigError(f"trained.{name}: {error}") from None
            other = of_id.setdefault(str(card.get("id")), path)
            if other != path or exports.count(path) > 1:
                raise ConfigError(f"trained.{name}: {path} and {other} are one training")
            config = card.get("config", {})
            own = {"model": config.get("model"), "data.size": config.get("data", {}).get("size")}
            expected = {
                "model": planned.model.model_dump(mode="json"),
                "data.size": planned.data.size,
            }
            if "judge_seed" in expected["model"]:  # which the training fills in
                expected["model"]["judge_seed"] = (own["model"] or {}).get("judge_seed")
            for what, wants in expected.items():
                if own[what] != wants:
                    raise ConfigError(
                        f"trained.{name}: {path} has {what} {own[what]}, and the scale "
                        f"{self.scale} {wants}"
                    )
            steps, least = card.get("step", 0), planned.training.steps or 0
            if steps < least:
                raise ConfigError(
                    f"trained.{name}: {path} has made {steps:,} steps, and the scale {self.scale} "
                    f"asks for {least:,}"
                )

    def _find_obstacle(self, name: str, path: tuple[str, ...]) -> str | None:
        """Say why a command, or one that it needs, can't run here; None where all can."""
        if name in path:
            raise ConfigError(f"commands.{name}: needs itself, by {' -> '.join((*path, name))}")
        if name not in self.config.commands:
            raise ConfigError(f"commands.{name}: is missing, and an item needs it")
        command = self.config.commands[name]
        overrides = command.get_overrides(self.scale)
        if overrides is None:
            return f"no command at the scale {self.scale}"
        archive = command.get_archive(self.scale)
        if archive not in (None, PHANTOM) and self.config.data[archive or ""].root is None:
            return f"needs {self.config.data[archive or ''].title}: set data.{archive}.root"
        if command.package and not _is_installed(command.package):
            return f"needs the package {command.package}"
        for token in _find_tokens(overrides):
            section = token.partition(".")[0]
            if section in FOLDERS and self._get_folder(token) is None:
                return f"needs {FOLDERS[section]}: set {token}"
        reasons = (
            self._find_obstacle(reference, (*path, name))
            for reference in _find_references(self.config, overrides)
        )
        return next(filter(None, reasons), None)

    def _make_steps(
        self, name: str, command: CommandConfig, overrides: Collection[str]
    ) -> Iterator[Step]:
        tokens = _find_numbered_tokens(overrides)
        depends_on = self._select_steps(self.plan.steps_of, tokens)
        read = self._select_steps(self.plan.trained, tokens)
        inputs = tuple(
            dict.fromkeys(
                path for token, number in tokens for path in self._list_inputs(token, number)
            )
        )
        folds = command.folds.get(self.scale, 1)
        seeds = command.seeds.get(self.scale, 1)
        first = command.first_seed
        for fold, seed in itertools.product(range(folds), range(first, first + seeds)):
            step_name = name
            values = [*self._list_archive_overrides(command), *map(self._fill, overrides)]
            if folds > 1:
                step_name += f"/fold{fold}"
                values.append(f"{command.section}.fold={fold}")
            if seeds > 1:
                step_name += f"/seed{seed}"
                values.append(f"training.seed={seed}")
            run, *flags = command.run.split()
            script = (run, *flags) if run == "-m" else (str(self.root / run), *flags)
            arguments = (
                *script,
                "--config",
                str(self.root / command.config),
                "--output",
                str(self.output / step_name),
                *(("--set", *values) if values else ()),
            )
            is_training = run.startswith("train/")
            quiet = (
                f"tracking.uri={get_tracking_uri(self.output)}",
                "tracking.system_metrics=false",
            )
            outputs = ("export/card.json",) if is_training else ("table.md",)
            self.plan.read[step_name] = read
            yield Step(
                step_name,
                arguments,
                tuple(depends_on),
                ignored_args=("--set", *quiet) if is_training else (),
                outputs=outputs if command.outputs is None else command.outputs,
                inputs=inputs,
            )

    def _select_steps(
        self, steps_of: Mapping[str, list[Step]], tokens: Iterable[tuple[str, str]]
    ) -> list[str]:
        """Select the steps of commands that tokens stand for, by name."""
        names = (
            step.name
            for token, number in tokens
            if steps_of.get(token)
            for step in self._select(steps_of[token], token, number)
        )
        return list(dict.fromkeys(names))

    def _list_inputs(self, token: str, number: str) -> list[Path]:
        """List the files from elsewhere that a token stands for."""
        if token in self.plan.trained:
            trainings = self._select(self.plan.trained[token], token, number)
            exports = self.plan.exports  # none in a plan that is only shown
            return [exports[one.name] / CARD for one in trainings if one.name in exports]
        if token.startswith(WEIGHTS):
            path = self.config.weights.get(token.removeprefix(WEIGHTS))
            return [path] if path and path.is_file() else []
        if folder := self._get_folder(token):
            return sorted(path for path in folder.rglob("*") if path.is_file())
        return []

    def _get_folder(self, token: str) -> Path | None:
        """Return the folder from elsewhere that a token stands for; None where there is none."""
        section, _, key = token.partition(".")
        folders: dict[str, Path | None] = (
            getattr(self.config, section) if section in FOLDERS else {}
        )
        return folders.get(key)

    def _list_archive_overrides(self, command: CommandConfig) -> list[str]:
        key = command.get_archive(self.scale)
        if key is None:
            return []
        if key == PHANTOM:
            return [f"{command.section}.name={PHANTOM}", f"{command.section}.root=null"]
        archive = self.config.data[key]
        values = (*archive.set, f"root={archive.root}")
        return [f"{command.section}.{value}" for value in values]

    def _fill(self, override: str) -> str:
        """Replace the tokens of an override."""

        def replace(match: re.Match[str]) -> str:
            token = match[1]
            if token == TRACKING:
                return get_tracking_uri(self.output)
            if token.startswith(WEIGHTS):
                return str(self.config.weights.get(token.removeprefix(WEIGHTS)) or "none")
            if folder := self._get_folder(token):
                return str(folder)
            if token in self.config.commands:
                return self._format_folders(token, match[2] or "")
            return match[0]

        return _TOKEN.sub(replace, override)

    def _format_folders(self, name: str, number: str) -> str:
        steps = self.plan.trained.get(name) or self.plan.steps_of[name]
        steps = self._select(steps, name, number)
        folders = [str(self.plan.exports.get(step.name, self.output / step.name)) for step in steps]
        return folders[0] if len(folders) == 1 else json.dumps(folders)

    def _select(self, values: list[T], name: str, number: str) -> list[T]:
        """Select what a command has one of for each training, all or one by its number."""
        if not number:
            return values
        if int(number) >= len(values):
            raise ConfigError(
                f"commands: {{{name}:{number}}} is none of the {len(values)} folders of {name} at "
                f"scale {self.plan.scale}; they count from 0"
            )
        return [values[int(number)]]


def _find_references(config: ReportConfig, overrides: Iterable[str] | None) -> list[str]:
    """List the commands whose folders the overrides name."""
    return [token for token in _find_tokens(overrides) if token in config.commands]


def _find_tokens(overrides: Iterable[str] | None) -> list[str]:
    """List what stands in braces without numbers, once each."""
    return list(dict.fromkeys(token for token, _ in _find_numbered_tokens(overrides or ())))


def _find_numbered_tokens(overrides: Iterable[str]) -> list[tuple[str, str]]:
    """List what stands in braces: name and number, "" without one."""
    return [found for override in overrides for found in _TOKEN.findall(override)]


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


@dataclass(frozen=True)
class Extent:
    """How much of the papers' work the commands of an item do.

    Attributes:
        text: In words: "20,000 of 210,000 steps; 1/4 of the width; CBIS-DDSM for INbreast".
        is_papers_data: Whether the data are the papers'.
        trainings: The smallest number of seeds or folds behind a model.
    """

    text: str
    is_papers_data: bool
    trainings: int


def describe_extent(
    config: ReportConfig,
    scale: Scale,
    wanted: Collection[str],
    root: Path,
    exports: Mapping[str, Path] | None = None,
) -> Extent:
    """Describe the extent of commands; the plan in words comes from the config alone.

    Args:
        config: The report.
        scale: The scale.
        wanted: The commands of an item. Those that they need count as well.
        root: The root of the repository, whose configs the commands read.
        exports: Training -> the export that takes its place, whose own length counts.
    """
    names = list_needed(config, scale, wanted)
    ours = _list_titles(config, scale, names)
    papers = _list_titles(config, "paper", names)
    data = ours if papers in (ours, "") else f"{ours} for {papers}"
    complete = _pretend_all_data(config)
    ours_planned = make_plan(complete, scale, Path("runs"), root, wanted)
    papers_planned = make_plan(complete, "paper", Path("runs"), root, names)
    lengths: dict[str, list[str]] = {}
    sizes: dict[str, None] = {}
    widths: set[Fraction] = set()
    trainings = []
    for name in names:
        command = config.commands[name]
        if scale in command.extent:
            lengths.setdefault(command.extent[scale], [])
        if name in ours_planned.steps_of:
            trainings += _count_trainings(command, ours_planned.steps_of[name])
        if command.run.startswith("train/") and name in ours_planned.steps_of:
            steps = _count_exported_steps(ours_planned.steps_of[name], exports or {})
            steps = steps or _count_steps(command, ours_planned.steps_of[name][0])
            of_paper = papers_planned.steps_of.get(name)
            is_known = of_paper and command.length_is_printed
            whole = _count_steps(command, of_paper[0]) if of_paper and is_known else ""
            lengths.setdefault(_relate(steps, whole), []).append(name)
            if of_paper:
                small, large = (
                    parse_step(step, find_schema(command.run), step.name)
                    for step in (ours_planned.steps_of[name][0], of_paper[0])
                )
                sizes[_compare_sizes(small, large)] = None
                widths |= set(_compare_widths(small, large))
    text = "; ".join(filter(None, [*_name_lengths(lengths), *sizes, _name_widths(widths), data]))
    return Extent(text, ours == papers, min(trainings, default=1))


def _pretend_all_data(config: ReportConfig) -> ReportConfig:
    """Return a config in which all data is available and every package installed."""
    data = {
        key: archive.model_copy(update={"root": Path("DIR")})
        for key, archive in config.data.items()
    }
    folders = {key: dict.fromkeys(getattr(config, key), Path("DIR")) for key in FOLDERS}
    commands = {
        name: command.model_copy(update={"package": None})
        for name, command in config.commands.items()
    }
    complete = {"data": data, "trained": {}, "commands": commands}
    return config.model_copy(update=complete | folders)


def _list_titles(config: ReportConfig, scale: Scale, names: Collection[str]) -> str:
    titles: dict[str, None] = {}
    for name in names:
        command = config.commands[name]
        key = command.get_archive(scale)
        if key is not None and command.get_overrides(scale) is not None:
            titles["phantoms" if key == PHANTOM else config.data[key].title] = None
    return " and ".join(titles)


def _count_steps(command: CommandConfig, step: Step) -> str:
    """Say how long a training is."""
    experiment: Experiment[Any] = parse_step(step, find_schema(command.run), step.name)
    training = experiment.training
    if training.steps:
        return f"{training.steps:,} steps"
    if training.epoch_samples:
        patches = training.batch_size * training.accumulate
        count = training.epochs * training.epoch_samples // patches
        return f"{count:,} steps"
    return f"{training.epochs} epochs"


def _count_exported_steps(trainings: Iterable[Step], exports: Mapping[str, Path]) -> str:
    """Say how long the trainings were that exports take the place of; "" where none does."""
    counts = [read_card(exports[one.name])["step"] for one in trainings if one.name in exports]
    if not counts:
        return ""
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)})) + " steps"


def _name_lengths(lengths: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Say which training has which length, where there are several lengths.

    Examples:
        >>> list(_name_lengths({"2,000 steps": ["can", "unet"]}))
        ['2,000 steps']
        >>> list(_name_lengths({"2,000 steps": ["can"], "50 epochs": ["shape"], "4 tests": []}))
        ['can: 2,000 steps', 'shape: 50 epochs', '4 tests']
    """
    for length, names in lengths.items():
        is_named = names and len(lengths) > 1
        yield f"{', '.join(names)}: {length}" if is_named else length


def _compare_sizes(small: Experiment[Any], large: Experiment[Any]) -> str:
    """Say how much smaller patches are than the paper's; "" where they are not."""
    ours, papers = (_describe_size(experiment.data) for experiment in (small, large))
    return "" if ours == papers else f"{ours} of {papers} px"


def _compare_widths(small: Experiment[Any], large: Experiment[Any]) -> Iterator[Fraction]:
    """Give the parts of the paper's width that narrower networks have.

    The width of a network is the largest number of its filters.
    """
    for key in ("filters", "widths"):
        if hasattr(small.model, key):
            ours, papers = (np.max(getattr(one.model, key)).item() for one in (small, large))
            if ours != papers:
                yield Fraction(ours, papers)


def _name_widths(widths: Collection[Fraction]) -> str:
    """Say how wide networks are.

    Examples:
        >>> _name_widths({Fraction(1, 4), Fraction(1, 8)})
        '1/8 to 1/4 of the width'
        >>> _name_widths({Fraction(1, 4)})
        '1/4 of the width'
    """
    if not widths:
        return ""
    return " to ".join(map(str, sorted({min(widths), max(widths)}))) + " of the width"


def _describe_size(data: DataConfig) -> str:
    """Return the side of a patch, or height and width of the canvas of whole mammograms, px."""
    return "{} x {}".format(*data.canvas) if data.canvas else str(data.size)


def _relate(ours: str, papers: str) -> str:
    """Say how much of the paper's length ours is, or both where their units differ.

    Examples:
        >>> _relate("20,000 steps", "210,000 steps")
        '20,000 of 210,000 steps'
        >>> _relate("20,500 to 40,000 steps", "100,000 steps")
        '20,500 to 40,000 of 100,000 steps'
        >>> _relate("4,000 steps", "150 epochs")
        '4,000 steps (the paper: 150 epochs)'
    """
    if not papers or ours == papers:
        return ours
    number, _, unit = ours.rpartition(" ")
    return f"{number} of {papers}" if papers.endswith(unit) else f"{ours} (the paper: {papers})"


def _count_trainings(command: CommandConfig, steps: list[Step]) -> list[int]:
    """Count the seeds or folds of a command's models; nothing for a command that trains none."""
    if command.run.startswith("train/"):
        return [len(steps)]
    if command.run.startswith("evaluate/classification.py"):
        return [len(parse_step(steps[0], find_schema(command.run), "study").seeds)]
    if "--study" in command.run:
        study: detection.StudyConfig = parse_step(steps[0], detection.StudyConfig, "study")
        # a generator is trained once a fold, for the detectors of all seeds
        return [len(study.held_out) * (1 if study.generators else len(study.seeds))]
    return []


def format_commands(
    plan: Plan, names: Iterable[str], trained: Mapping[str, TrainedConfig] | None = None
) -> tuple[str, ...]:
    """Format the steps of commands for a shell, without what does not change the result.

    Trainings that were made elsewhere are comments.

    Args:
        plan: The plan.
        names: Of commands.
        trained: How trainings were made elsewhere.
    """
    lines = []
    for name in names:
        is_trained = name in plan.trained
        start = f"# {name}, trained {trained[name].how}, as: " if trained and is_trained else ""
        for step in plan.trained[name] if is_trained else plan.steps_of.get(name, ()):
            command = Step(step.name, step.command, resumable_args=step.resumable_args)
            lines.append(start + command.format_command())
    return tuple(lines)


def list_obstacles(plan: Plan, names: Iterable[str], failures: Mapping[str, str]) -> list[str]:
    """List why commands left no result: they were left out, or a step failed."""
    reasons = {plan.left_out[name]: None for name in names if name in plan.left_out}
    for name in names:
        for step in plan.steps_of.get(name, ()):
            if step.name in failures:
                reasons[failures[step.name]] = None
    return list(reasons)
