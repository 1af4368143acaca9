"""The config of evaluate/report.py: data folders, and the commands of each scale."""

from __future__ import annotations

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
    return [
        inner for part in value for inner in (_flatten(part) if isinstance(part, list) else [part])
    ]


# As after --set, or config keys whose values are folders and files: {models: {CAN: can}}
Overrides = Annotated[tuple[str | dict[str, Any], ...], BeforeValidator(_flatten)]


class ArchiveConfig(Frozen):
    """Data that commands read."""

    title: str
    """What it is, in words, for the report."""
    root: Path | None = None
    """Its folder; null: not available, and commands that need it are skipped."""
    set: tuple[str, ...] = ()
    """Overrides of a `data` section: name=folder frame=full."""


class CommandConfig(Frozen):
    """A command, with its overrides at each scale.

    An override that is a mapping gives config keys the folders of other commands and files from
    elsewhere: {models: {CAN: can, U-Net: can_unet}}. A command's name means the folders of all its
    runs, can/0 that of its first one, and can/0/split.json a file in it. weights.NAME is a file of
    `weights`, else none; predictions.NAME and checkpoints.NAME are folders; tracking is the
    report's MLflow store.
    """

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
    """Scale -> number of training runs, one a fold; 1 where none is named."""
    seeds: dict[Scale, PositiveInt] = {}
    """Scale -> number of training runs of each fold; 1 where none is named."""
    first_seed: NonNegativeInt = 0
    """Seed of the first of several runs. The others count on from it."""
    set: Overrides = ()
    """Overrides at every scale."""
    smoke: Overrides | None = ()
    """Further overrides at this scale; null: the command is skipped at it."""
    small: Overrides | None = ()
    """As `smoke`."""
    paper: Overrides | None = ()
    """As `smoke`."""
    package: str | None = None
    """A package that the command needs besides tfmammo's own."""
    outputs: tuple[str, ...] | None = None
    """The files that prove it done; null: export/card.json of a training run, else rows.csv. Facts
    come from the rows.csv among them.
    """
    subset: str = ""
    """The part of the data that its rows describe, where an item has several: archive=INbreast."""
    length_is_printed: bool = True
    """Whether the paper prints how long this is trained. Else the report gives our length alone."""
    work: dict[Scale, str] = {}
    """Scale -> its length in words, where it is no single training run."""

    def get_overrides(self, scale: Scale) -> Overrides | None:
        """Return the overrides of a scale; None where the command is skipped at it."""
        of_scale: Overrides | None = getattr(self, scale)
        return None if of_scale is None else (*self.set, *of_scale)

    def get_archive(self, scale: Scale) -> str | None:
        """Return the key of the archive at a scale; None for a command that reads none."""
        return None if self.archive is None else self.archive.get(scale, PHANTOM)


class TrainedConfig(Frozen):
    """Runs of a train command that were made elsewhere, on a GPU for instance."""

    exports: tuple[Path, ...] = Field(min_length=1)
    """Their exports, of all seeds of the first fold, then of the next one; none of fewer steps than
    the config's.
    """
    how: str = "elsewhere"
    """On what they were trained, and by which program, as facts say it."""


class ReportConfig(Frozen):
    """A config file of evaluate/report.py."""

    results: Path = Path("docs/results")
    """The folder of facts and pages. The scale `smoke` writes both to OUTPUT/results instead."""
    readme: Path | None = None
    """A Markdown file whose text between two marks the report writes, but not at the scale `smoke`.
    """
    data: dict[str, ArchiveConfig] = {}
    """Archives, by the keys that commands use."""
    weights: dict[str, Path | None] = {}
    """Files of published networks; null: random weights, and tables say so."""
    predictions: dict[str, Path | None] = {}
    """Folders of masks that other tools predicted; null: commands that need them are skipped."""
    checkpoints: dict[str, Path | None] = {}
    """Published checkpoints to start from; null: commands that need them are skipped."""
    trained: dict[str, TrainedConfig] = {}
    """Train command -> exports that take the place of its runs."""
    aliases: Any = None
    """Lists of overrides for YAML's aliases; the report does not read them."""
    commands: dict[str, CommandConfig]
    """Name -> command. The name is also the name of its folder below OUTPUT."""

    @model_validator(mode="after")
    def _check_names(self) -> ReportConfig:
        for name in self.trained:
            if name not in self.commands or not self.commands[name].run.startswith("train/"):
                raise ValueError(f"trained.{name}: trains nothing in `commands`")
        for name, command in self.commands.items():
            for key in (command.archive or {}).values():
                if key != PHANTOM and key not in self.data:
                    raise ValueError(f"commands.{name}: there is no data.{key}")
        return self
