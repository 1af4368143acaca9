"""The training runs of a study, each of them a command of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tfmammo import shipped
from tfmammo.config import Frozen, format_overrides
from tfmammo.studies.workflow import Step, make_command


class TrainedConfig(Frozen):
    """How a model is trained."""

    config: Path | None = None
    """Its config file; null: the shipped one of its script's name."""
    set: dict[str, Any] = {}
    """What differs from that config, as sections: {model: {filters: [16, 32]}}."""


class ScriptConfig(TrainedConfig):
    """A train script, and how a model is trained with it."""

    script: str = Field(pattern=r"^[a-z0-9_]+$")
    """The name of a file in train/ without its ending: "can"."""


def plan_training(
    name: str,
    script: str,
    config: Path | None,
    values: Sequence[Mapping[str, Any]],
    tracking: Mapping[str, Any],
    output: Path,
    root: Path,
    depends_on: Sequence[str] = (),
) -> Step:
    """Plan one run of a train script in `root`, in the folder `name` of the study's output.

    `values` differ from the config file, nested as there; the later ones count. `tracking` changes
    no result.
    """
    overrides = [override for part in values for override in format_overrides(part)]
    file = find_config(config or root / "configs" / f"{script}.yaml", root)
    return Step(
        name,
        make_command([str(root / "train" / f"{script}.py")], file, output / name, overrides),
        tuple(depends_on),
        ignored_args=("--set", *format_overrides({"tracking": tracking})),
        outputs=("export/card.json",),
    )


def find_config(file: Path, root: Path) -> Path:
    """Find a config by its path, or by the name of a shipped one; else it is a path in `root`."""
    config = shipped.find_config(file)
    return config if config.exists() else root / file
