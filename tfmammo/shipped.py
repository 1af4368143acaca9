"""The configs and scripts that come with the package.

In a checkout, configs/, train/ and evaluate/ lie beside the package. A wheel has the same three
folders inside of it, where setup.py puts them.
"""

from __future__ import annotations

import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
FOLDER = "repository"  # of the wheel; setup.py names it too
ROOT = _PACKAGE / FOLDER if (_PACKAGE / FOLDER).is_dir() else _PACKAGE.parent
"""The folder that holds configs, train and evaluate."""


def list_configs() -> list[str]:
    """List the names of the shipped configs: "can", "unet", ..."""
    return sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def list_scripts(folder: str) -> list[str]:
    """List the names of the scripts in "train" or "evaluate"."""
    return sorted(path.stem for path in (ROOT / folder).glob("*.py"))


def find_config(config: str | Path) -> Path:
    """Find a config by its path, else by the name of a shipped one.

    Args:
        config: A path, or a bare name such as "can". A file of that path wins.

    Returns:
        The file. A path that leads nowhere is returned as it is.
    """
    path = Path(config)
    if not path.is_file() and str(path) in list_configs():
        return ROOT / "configs" / f"{path}.yaml"
    return path


def read_command(name: str) -> str:
    """Read the command that the first lines of a shipped config name.

    Args:
        name: The config's name.

    Returns:
        What follows `python`: "train/can.py --config configs/can.yaml --set data.root=DIR".
    """
    head = (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    command = re.search(r"^# python (.+)", head, re.MULTILINE)
    assert command, f"{name}: its first lines name no command"
    return command[1]
