"""The commands of a scale as an ordered list of steps of tfmammo.studies.workflow."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from tfmammo.apps.commands import find_schema
from tfmammo.apps.report.config import PHANTOM, CommandConfig, ReportConfig, Scale
from tfmammo.config import format_override
from tfmammo.errors import ConfigError, ExportError
from tfmammo.studies.workflow import Step, make_command, parse_step
from tfmammo.tracking.export.card import CARD, read_card

ROWS = "rows.csv"
TRACKING = "tracking"
FOLDERS = {  # sections of the config whose folders commands need
    "predictions": "predictions of another tool",
    "checkpoints": "a published checkpoint",
}
COMPLETE = Path("DIR")  # in place of every folder from elsewhere, where all of them are available


@dataclass(frozen=True)
class Planned:
    """A step of the plan."""

    command: str  # the name of its command
    step: Step
    parsed: Any  # its config
    export: Path | None = None  # takes its place, so that it is not run

    @property
    def is_training(self) -> bool:
        """Whether it trains a network."""
        return Path(self.step.command[0]).parent.name == "train"


@dataclass
class Plan:
    """The commands of a scale."""

    scale: Scale
    planned: list[Planned] = field(default_factory=list)  # each after those that it depends on
    skipped: dict[str, str] = field(default_factory=dict)  # command -> why it is not run

    @property
    def steps(self) -> list[Step]:
        """The steps that are run, which wait for no run that was made elsewhere."""
        run = {one.step.name for one in self.planned if one.export is None}
        return [
            replace(one.step, depends_on=tuple(name for name in one.step.depends_on if name in run))
            for one in self.planned
            if one.export is None
        ]

    def list_of(self, command: str) -> list[Planned]:
        """List the steps of a command."""
        return [one for one in self.planned if one.command == command]

    def list_behind(self, commands: Iterable[str]) -> list[Planned]:
        """List the steps of commands and all that these need, in order."""
        needed = {one.step.name for name in commands for one in self.list_of(name)}
        for one in reversed(self.planned):
            if one.step.name in needed:
                needed.update(one.step.depends_on)
        return [one for one in self.planned if one.step.name in needed]


def make_plan(
    config: ReportConfig, scale: Scale, output: Path, root: Path, wanted: Iterable[str]
) -> Plan:
    """Plan commands with all those whose files they read, and parse the config of each.

    Args:
        config: The report.
        scale: Which overrides.
        output: The folder of the report.
        root: The root of the repository, where train, evaluate and configs are.
        wanted: Names of commands.

    Raises:
        ConfigError: A command is not in the config, has a wrong key, or needs itself.
    """
    planner = _Planner(config, scale, output, root)
    wanted = list(wanted)
    for name in wanted:
        planner.add(name)
    # of a command that others take a single run of, the other runs are not needed
    planner.plan.planned = planner.plan.list_behind(wanted)
    return planner.plan


def complete(config: ReportConfig) -> ReportConfig:
    """Return a config in which all data is available and every package installed."""
    data = {
        key: archive.model_copy(update={"root": COMPLETE}) for key, archive in config.data.items()
    }
    folders = {key: dict.fromkeys(getattr(config, key), COMPLETE) for key in FOLDERS}
    commands = {
        name: command.model_copy(update={"package": None})
        for name, command in config.commands.items()
    }
    update = {"data": data, "trained": {}, "commands": commands, **folders}
    return config.model_copy(update=update)


def get_tracking_uri(output: Path) -> str:
    """Return the address of a report's MLflow store."""
    return f"sqlite:///{output / 'mlflow.db'}"


class _Planner:
    """Adds commands to a plan."""

    def __init__(self, config: ReportConfig, scale: Scale, output: Path, root: Path) -> None:
        self.config = config
        self.scale = scale
        self.output = output
        self.root = root
        self.plan = Plan(scale)

    def add(self, name: str) -> None:
        """Add a command, after those that it needs; nothing of it where one of them can't run."""
        if name in self.plan.skipped or self.plan.list_of(name):
            return
        if reason := self._find_obstacle(name, ()):
            self.plan.skipped[name] = reason
            return
        command = self.config.commands[name]
        for needed in self._list_needed(command):
            self.add(needed)
        schema = find_schema(command.run)
        script = command.run.split(maxsplit=1)[0]
        if schema is None:
            raise ConfigError(f"commands.{name}: the config of {command.run} is not known")
        if script != "-m" and not (self.root / script).is_file():
            raise ConfigError(f"commands.{name}: there is no script {script}")
        planned = [
            Planned(name, step, parse_step(step, schema, f"commands.{name}"))
            for step in self._make_steps(name, command)
        ]
        if name in self.config.trained:
            planned = self._take_exports(name, planned)
        self.plan.planned += planned

    def _take_exports(self, name: str, planned: list[Planned]) -> list[Planned]:
        """Put exports in the place of a command's runs, if they can be."""
        exports = self.config.trained[name].exports
        if len(exports) != len(planned):
            raise ConfigError(
                f"trained.{name}: names {len(exports)} exports, and the scale {self.scale} has "
                f"{len(planned)} runs"
            )
        of_id: dict[str, Path] = {}
        for one, path in zip(planned, exports, strict=True):
            try:
                card = read_card(path)
            except ExportError as error:
                raise ConfigError(f"trained.{name}: {error}") from None
            if (other := of_id.setdefault(str(card.get("id")), path)) != path or (
                exports.count(path) > 1
            ):
                raise ConfigError(f"trained.{name}: {path} and {other} are one run")
            config, wants = card.get("config", {}), one.parsed.model.model_dump(mode="json")
            own = dict(config.get("model") or {})
            if "judge_seed" in wants:  # which a run fills in
                own["judge_seed"] = wants["judge_seed"]
            sizes = config.get("data", {}).get("size"), one.parsed.data.size
            if own != wants or sizes[0] != sizes[1]:
                raise ConfigError(f"trained.{name}: {path} has another model or data.size")
            steps, least = card.get("step", 0), one.parsed.training.steps or 0
            if steps < least:
                raise ConfigError(
                    f"trained.{name}: {path} has made {steps:,} steps, and the scale {self.scale} "
                    f"asks for {least:,}"
                )
        return [
            replace(one, export=path, step=replace(one.step, depends_on=()))
            for one, path in zip(planned, exports, strict=True)
        ]

    def _find_obstacle(self, name: str, path: tuple[str, ...]) -> str | None:
        """Say why a command, or one that it needs, can't run here; None where all can."""
        if name in path:
            raise ConfigError(f"commands.{name}: needs itself, by {' -> '.join((*path, name))}")
        if name not in self.config.commands:
            raise ConfigError(f"commands.{name}: is missing, and an item or a command needs it")
        command = self.config.commands[name]
        if command.get_overrides(self.scale) is None:
            return f"no command at the scale {self.scale}"
        archive = command.get_archive(self.scale)
        if archive not in (None, PHANTOM) and self.config.data[archive or ""].root is None:
            return f"needs {self.config.data[archive or ''].title}: set data.{archive}.root"
        if command.package and not _is_installed(command.package):
            return f"needs the package {command.package}"
        for reference in self._list_references(command):
            section, _, key = reference.partition(".")
            if section in FOLDERS and getattr(self.config, section).get(key) is None:
                return f"needs {FOLDERS[section]}: set {reference}"
        obstacles = (
            self._find_obstacle(needed, (*path, name)) for needed in self._list_needed(command)
        )
        return next(filter(None, obstacles), None)

    def _list_references(self, command: CommandConfig) -> list[str]:
        """List what the mappings of a command name."""
        overrides = command.get_overrides(self.scale) or ()
        trees = [override for override in overrides if isinstance(override, dict)]
        return list(dict.fromkeys(leaf for tree in trees for leaf in _list_leaves(tree)))

    def _list_needed(self, command: CommandConfig) -> list[str]:
        """List the commands among them."""
        elsewhere = (TRACKING, "weights.", *(f"{section}." for section in FOLDERS))
        references = self._list_references(command)
        names = [name.partition("/")[0] for name in references if not name.startswith(elsewhere)]
        return list(dict.fromkeys(names))

    def _make_steps(self, name: str, command: CommandConfig) -> Iterator[Step]:
        found = [self._find(reference) for reference in self._list_references(command)]
        depends_on = dict.fromkeys(one.step.name for each in found for one in each.runs)
        values = self._list_archive_overrides(command)
        for override in command.get_overrides(self.scale) or ():
            if isinstance(override, str):
                values.append(override)
                continue
            for key, tree in override.items():
                values.append(format_override(key, self._resolve(tree)))
        run, *flags = command.run.split()
        script = (run, *flags) if run == "-m" else (str(self.root / run), *flags)
        is_training = run.startswith("train/")
        uri = format_override("tracking.uri", get_tracking_uri(self.output))
        quiet = (uri, "tracking.system_metrics=false")
        outputs = ("export/card.json",) if is_training else (ROWS,)
        folds = command.folds.get(self.scale, 1)
        seeds = command.seeds.get(self.scale, 1)
        first = command.first_seed
        for fold, seed in itertools.product(range(folds), range(first, first + seeds)):
            step_name, own = name, list(values)
            if folds > 1:
                step_name += f"/fold{fold}"
                own.append(f"{command.section}.fold={fold}")
            if seeds > 1:
                step_name += f"/seed{seed}"
                own.append(f"training.seed={seed}")
            config, output = self.root / command.config, self.output / step_name
            yield Step(
                step_name,
                make_command(script, config, output, own),
                tuple(depends_on),
                ignored_args=("--set", *quiet) if is_training else (),
                outputs=outputs if command.outputs is None else command.outputs,
                inputs=tuple(path for each in found for path in each.inputs),
            )

    def _list_archive_overrides(self, command: CommandConfig) -> list[str]:
        key = command.get_archive(self.scale)
        if key is None:
            return []
        if key == PHANTOM:
            return [f"{command.section}.name={PHANTOM}", f"{command.section}.root=null"]
        archive = self.config.data[key]
        root = format_override("root", archive.root)
        return [f"{command.section}.{value}" for value in (*archive.set, root)]

    def _resolve(self, tree: Any) -> Any:
        """Replace the references of an override's value by what they name."""
        if isinstance(tree, Mapping):
            return {key: self._resolve(inner) for key, inner in tree.items()}
        values = self._find(str(tree)).values
        return values[0] if len(values) == 1 else values

    def _find(self, reference: str) -> _Found:
        """Find what a reference names: files from elsewhere, or one run or all of a command."""
        section, _, key = reference.partition(".")
        if reference == TRACKING:
            return _Found([get_tracking_uri(self.output)])
        if section == "weights":
            path = self.config.weights.get(key)
            return _Found([str(path or "none")], inputs=[path] if path and path.is_file() else [])
        if section in FOLDERS:
            folder = getattr(self.config, section)[key]
            prefix = "masks:" if section == "predictions" else ""
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            return _Found([f"{prefix}{folder}"], inputs=files)
        name, _, rest = reference.partition("/")
        number, _, file = rest.partition("/")
        runs = self.plan.list_of(name)
        if number:
            if not number.isdigit() or int(number) >= len(runs):
                raise ConfigError(
                    f"commands: {reference} is none of the {len(runs)} runs of {name} at the scale "
                    f"{self.scale}; they count from 0"
                )
            runs = [runs[int(number)]]
        folders = [one.export or self.output / one.step.name for one in runs]
        values = [str(folder / file) if file else str(folder) for folder in folders]
        return _Found(values, runs, [one.export / CARD for one in runs if one.export])


@dataclass(frozen=True)
class _Found:
    """What a reference names."""

    values: list[str]  # in its place in an override
    runs: Sequence[Planned] = ()  # of a command
    inputs: Sequence[Path] = ()  # files from elsewhere, whose content counts


def _list_leaves(tree: Any) -> Iterator[str]:
    if isinstance(tree, Mapping):
        for inner in tree.values():
            yield from _list_leaves(inner)
    else:
        yield str(tree)


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
