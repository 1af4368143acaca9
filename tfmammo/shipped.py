"""The configs and scripts that come with the package.

In a checkout, configs/, train/ and evaluate/ are next to the package. A wheel has the same three
folders inside of it, where setup.py puts them.
"""

from __future__ import annotations

import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
FOLDER = "repository"  # of the wheel; setup.py names it too
ROOT = _PACKAGE / FOLDER if (_PACKAGE / FOLDER).is_dir() else _PACKAGE.parent
"""The folder that holds configs, train and evaluate."""
# What `python` runs, and what it is for.
COMMANDS = {
    "predict": ("-m tfmammo.inference", "find and outline lesions in a folder of images"),
    "report": ("evaluate/report.py", "re-run the five papers' tables and figures"),
    "compare": ("evaluate/compare.py", "compare segmentation models as a paper does"),
    "archives": ("-m tfmammo.archives", "inspect an archive before training on it"),
    "build": ("-m tfmammo.data.build", "turn a large archive into records to stream from"),
    "export": ("-m tfmammo.apps.exchange", "write a data set for another tool"),
    "synthesize": ("-m tfmammo.synthesis", "insert lesions into mammograms"),
    "synthesize-patches": ("-m tfmammo.synthesis.patches", "make patches with lesions"),
    "stress": ("-m tfmammo.apps.stress", "find out where a detector fails"),
    "audit": ("-m tfmammo.apps.audit", "find out whether a generator reveals its patients"),
    "runs": ("-m tfmammo.tracking", "list training runs, and name their store"),
    "registry": ("-m tfmammo.apps.registry", "list, promote and roll back registered models"),
    "serve": ("-m tfmammo.apps.serving", "answer requests over HTTP"),
    "studio": ("-m tfmammo.apps.studio", "edit mammograms in a browser"),
    "pacs": ("-m tfmammo.apps.pacs", "find lesions in studies of a PACS, and store them there"),
    "reader-study": ("-m tfmammo.apps.reader_study", "ask readers which lesions are real"),
    "estimate": ("-m tfmammo.apps.estimate", "measure how long a build or a synthesis will take"),
    "demo": ("-m tfmammo.apps.demo", "show what the systems do, without training or data"),
    "pretrained": ("-m tfmammo.apps.zoo", "list, show and unpack the networks of the package"),
}


def name_command(target: str) -> str | None:
    """Name what `python` runs as users of `tfmammo` type it; None where there is no such command.

    Examples:
        >>> name_command("-m tfmammo.apps.serving register"), name_command("train/can.py")
        ('serve register', 'train can')
    """
    for name, (runs, _) in COMMANDS.items():
        if f"{target} ".startswith(f"{runs} "):
            return name + target.removeprefix(runs)
    script, _, others = target.partition(" ")
    folder, _, name = script.removesuffix(".py").rpartition("/")
    return f"{folder} {name} {others}".rstrip() if folder in ("train", "evaluate") else None


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
        What `python` runs: "train/can.py --config configs/can.yaml --set data.root=DIR".
    """
    head = (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    command = re.search(r"^# (python|tfmammo) (\S+)(.*)", head, re.MULTILINE)
    assert command, f"{name}: its first lines name no command"
    program, first, others = command.groups()
    return (first if program == "python" else COMMANDS[first][0]) + others
