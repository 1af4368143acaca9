"""The config of evaluate/report.py: data folders, and the commands of each scale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from tfmammo.config import Frozen

Scale = Literal["smoke", "small", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "small", "paper")
PHANTOM = "phantom"


def _flatten(value: Any) -> Any:
    """Flatten nested lists, which is how YAML's aliases join."""
    if not isinstance(value, list):
        return value
    return [inner for part in value for inner in (_flatten(part) if _is_list(part) else [part])]


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


Overrides = Annotated[tuple[str, ...], BeforeValidator(_flatten)]


class ArchiveConfig(Frozen):
    """Data that commands read."""

    title: str
    """What it is, in words, for the report."""
    root: Path | None = None
    """Its folder; null: not available, and commands that need it are left out."""
    set: Overrides = ()
    """Overrides of a `data` section: name=folder frame=full."""


class CommandConfig(Frozen):
    """A command of the README, with its overrides at each scale."""

    run: str = Field(pattern=r"^(train/|evaluate/)[a-z0-9_]+\.py( --.*)?$|^-m tfmammo[a-z_.]+$")
    """A script, or a module after -m, and its flags."""
    config: str = Field(pattern=r"^configs/[a-z0-9_]+\.yaml$")
    """Its config file."""
    archive: dict[Scale, str] | None = None
    """Scale -> a key of `data`; a scale that is not named takes the phantom. null: the command
    reads no archive.
    """
    section: str = "data"
    """The config section of the archive."""
    folds: dict[Scale, PositiveInt] = {}
    """Scale -> number of trainings, one a fold; 1 where none is named."""
    seeds: dict[Scale, PositiveInt] = {}
    """Scale -> number of trainings of each fold; 1 where none is named."""
    first_seed: NonNegativeInt = 0
    """Seed of the first of several trainings. The others count on from it."""
    set: Overrides = ()
    """Overrides at every scale. "{NAME}" stands for the folders of another command, "{NAME:0}" for
    its first one, "{NAME:1}" for its second, "{tracking}" for the report's MLflow store,
    "{weights.NAME}" for a file of `weights`, else "none", "{predictions.NAME}" and
    "{checkpoints.NAME}" for a folder of `predictions` and of `checkpoints`.
    """
    smoke: Overrides | None = ()
    """Further overrides at this scale; null: the command is left out at it."""
    small: Overrides | None = ()
    """As `smoke`."""
    paper: Overrides | None = ()
    """As `smoke`."""
    package: str | None = None
    """A package that the command needs besides tfmammo's own."""
    outputs: tuple[str, ...] | None = None
    """The files that prove it done; null: export/card.json of a training, else table.md."""
    length_is_printed: bool = True
    """Whether the paper prints how long this training is. Else the report gives our length alone.
    """
    extent: dict[Scale, str] = {}
    """Scale -> its extent in words, where it is no single training."""

    def get_overrides(self, scale: Scale) -> Overrides | None:
        """Return the overrides of a scale; None where the command is left out at it."""
        of_scale: Overrides | None = getattr(self, scale)
        return None if of_scale is None else (*self.set, *of_scale)

    def get_archive(self, scale: Scale) -> str | None:
        """Return the key of the archive at a scale; None for a command that reads none."""
        return None if self.archive is None else self.archive.get(scale, PHANTOM)


class TrainedConfig(Frozen):
    """Trainings of a command that were made elsewhere, on a GPU for instance."""

    exports: tuple[Path, ...] = Field(min_length=1)
    """Their exports, of all seeds of the first fold, then of the next one; none of fewer steps than
    the config's.
    """
    how: str = "elsewhere"
    """On what they were trained, and by which program, as facts and the page say it."""


class ReportConfig(Frozen):
    """A config file of evaluate/report.py."""

    facts: Path = Path("docs/results")
    """The folder of facts. The scale `smoke` writes them to OUTPUT/facts instead."""
    markdown: Path = Path("docs/results.md")
    """The page in Markdown. The scale `smoke` writes it to OUTPUT/report.md instead."""
    readme: Path | None = None
    """A Markdown file whose text between two marks the report writes, but not at the scale `smoke`.
    """
    data: dict[str, ArchiveConfig] = {}
    """Archives, by the keys that commands use."""
    weights: dict[str, Path | None] = {}
    """Files of published networks; null: random weights, and tables say so."""
    predictions: dict[str, Path | None] = {}
    """Folders of masks that other tools predicted; null: commands that need them are left out."""
    checkpoints: dict[str, Path | None] = {}
    """Published checkpoints to start from; null: commands that need them are left out."""
    trained: dict[str, TrainedConfig] = {}
    """Training command -> exports that take the place of its trainings, which are not run then."""
    aliases: Any = None
    """Lists of overrides for YAML's aliases; the report does not read them."""
    commands: dict[str, CommandConfig]
    """Name -> command. The name is also the name of its folder below OUTPUT."""

    @model_validator(mode="after")
    def _check_trained(self) -> ReportConfig:
        for name in self.trained:
            if name not in self.commands or not self.commands[name].run.startswith("train/"):
                raise ValueError(f"trained.{name}: is no training of `commands`")
        return self

    @model_validator(mode="after")
    def _check_archives(self) -> ReportConfig:
        for name, key in self._list_archives():
            if key != PHANTOM and key not in self.data:
                raise ValueError(f"commands.{name}: there is no data.{key}")
        return self

    def _list_archives(self) -> Iterator[tuple[str, str]]:
        for name, command in self.commands.items():
            for key in (command.archive or {}).values():
                yield name, key
