"""tfmammo, one command: train, evaluate, synthesize, serve, and look at what is there.

`tfmammo train can` runs train/can.py, and `tfmammo synthesize` the module tfmammo.synthesis.
Both ways take the same arguments and share every line.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import runpy
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from tfmammo import __version__, cli, shipped
from tfmammo.errors import ConfigError

FOLDERS = {
    "train": "train a model",
    "evaluate": "evaluate models on patients they never saw",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error becomes one line on stderr and exit code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    cli.run(lambda: _run(words))


def _run(words: Sequence[str]) -> None:
    name, *others = words or ["--help"]
    if name in ("-h", "--help"):
        print(_format_help())
    elif name == "--version":
        print(f"tfmammo {__version__}")
    elif name in FOLDERS:
        _run_script(name, others)
    elif name in shipped.COMMANDS:
        _start(shipped.COMMANDS[name][0], others)
    elif name in OWN:
        OWN[name](others)
    else:
        known = [*FOLDERS, *shipped.COMMANDS, *OWN]
        raise ConfigError(f"tfmammo has no command {name}{cli.suggest(name, known)}")


def _format_help() -> str:
    rows = [
        *((f"{folder} NAME", summary) for folder, summary in FOLDERS.items()),
        *((name, summary) for name, (_, summary) in shipped.COMMANDS.items()),
        ("configs", "list, show and copy the shipped configs"),
        ("schema NAME", "print the JSON schema of a shipped config"),
        ("complete", "suggest the next word, for the shell"),
    ]
    lines = [f"  {name:<20}{summary}" for name, summary in rows]
    closing = "tfmammo COMMAND --help says more. A config is a file, or the name of a shipped one."
    return "\n".join(["usage: tfmammo COMMAND ...", "", *lines, "", closing])


def _run_script(folder: str, words: Sequence[str]) -> None:
    """Run train/NAME.py or evaluate/NAME.py."""
    names = _list_names(folder)
    name, *others = words or ["--help"]
    if name in ("-h", "--help"):
        lines = [f"  {each:<20}{_summarize(folder, each)}" for each in names]
        usage = f"usage: tfmammo {folder} NAME --config CONFIG [--set KEY=VALUE ...]"
        print("\n".join([usage, "", *lines, "", f"tfmammo {folder} NAME --help says more."]))
        return
    if name not in names:
        raise ConfigError(f"{folder}: there is no {name}{cli.suggest(name, names)}")
    _start(f"{folder}/{name}.py", others)


def _list_names(folder: str) -> list[str]:
    """List the scripts of a folder, without those that are commands of their own."""
    targets = {target for target, _ in shipped.COMMANDS.values()}
    names = shipped.list_scripts(folder)
    return [name for name in names if f"{folder}/{name}.py" not in targets]


def _summarize(folder: str, name: str) -> str:
    """Return the first lines of a script's docstring; the script is not imported."""
    source = (shipped.ROOT / folder / f"{name}.py").read_text(encoding="utf-8")
    paragraph, *_ = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")
    return textwrap.shorten(paragraph, 76, placeholder=" ...")


def _start(target: str, arguments: Sequence[str]) -> None:
    """Run a script or a module as `python` runs it, in this process.

    Args:
        target: "train/can.py" or "-m tfmammo.synthesis".
        arguments: The command's own.
    """
    sys.argv = ["tfmammo", *arguments]
    if target.startswith("-m "):
        runpy.run_module(target.removeprefix("-m "), run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(shipped.ROOT / target), run_name="__main__")


def _configs(words: Sequence[str]) -> None:
    """List, show or copy the shipped configs."""
    parser = cli.Parser(prog="tfmammo configs", description="The shipped configs.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list their names, and the command that takes each")
    showing = commands.add_parser("show", help="print one")
    showing.add_argument("name", metavar="NAME")
    copying = commands.add_parser("copy", help="copy one, to be edited")
    copying.add_argument("name", metavar="NAME")
    copying.add_argument(
        "to", type=Path, nargs="?", help="a file or a folder; by default NAME.yaml"
    )
    options = parser.parse_args(words)
    if options.command == "list":
        for name in shipped.list_configs():
            command = shipped.name_command(shipped.read_command(name).split(" --config ")[0])
            print(f"{name:<24}tfmammo {command} --config {name}")
        return
    content = _locate(options.name).read_text(encoding="utf-8")
    if options.command == "show":
        print(content, end="")
        return
    target = options.to or Path(f"{options.name}.yaml")
    target = target / f"{options.name}.yaml" if target.is_dir() else target
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        raise ConfigError(f"{target}: is there already, and is not overwritten") from None
    print(target)


def _schema(words: Sequence[str]) -> None:
    """Print the JSON schema of a shipped config."""
    parser = cli.Parser(
        prog="tfmammo schema",
        description="""Print the JSON schema of a shipped config, for editors that complete keys:

tfmammo configs copy can && tfmammo schema can > can.schema.json

and as the first line of can.yaml
# yaml-language-server: $schema=can.schema.json""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME")
    name = parser.parse_args(words).name
    _locate(name)
    from tfmammo.apps.commands import find_schema
    from tfmammo.nn import _tensorflow  # noqa: F401  # the first to import TensorFlow: it is quiet

    command = shipped.read_command(name).replace(f" --config configs/{name}.yaml", "")
    schema = find_schema(command).model_json_schema()
    dialect = "https://json-schema.org/draft/2020-12/schema"
    print(json.dumps({"$schema": dialect, **schema}, indent=2))


def _complete(words: Sequence[str]) -> None:
    """Print the words that may come next on the line that bash hands over in COMP_LINE."""
    parser = cli.Parser(
        prog="tfmammo complete",
        description="""Suggest the next word. One line in ~/.bashrc makes bash ask for it:

complete -o default -C "tfmammo complete" tfmammo

zsh does so as well, after
autoload -U bashcompinit && bashcompinit""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", help="what bash adds, which is not read")
    parser.parse_args(words)
    line = os.environ.get("COMP_LINE", "tfmammo ")[: int(os.environ.get("COMP_POINT", 10**6))]
    *before, beginning = line.split(" ")
    before = [word for word in before if word]
    candidates: list[str] = []
    if len(before) == 1:
        candidates = [*FOLDERS, *shipped.COMMANDS, *OWN]
    elif before[-1] in ("--config", "schema", "show", "copy"):
        candidates = shipped.list_configs()
    elif before[-1] in FOLDERS and len(before) == 2:
        candidates = _list_names(before[-1])
    elif before[1:] == ["configs"]:
        candidates = ["list", "show", "copy"]
    elif beginning.startswith("-"):
        candidates = ["--config", "--set", "--output", "--print-config", "--help"]
    print("\n".join(word for word in candidates if word.startswith(beginning)))


def _locate(name: str) -> Path:
    names = shipped.list_configs()
    if name not in names:
        raise ConfigError(f"{name}: is no shipped config{cli.suggest(name, names)}")
    return shipped.ROOT / "configs" / f"{name}.yaml"


OWN: dict[str, Callable[[Sequence[str]], None]] = {
    "configs": _configs,
    "schema": _schema,
    "complete": _complete,
}


if __name__ == "__main__":
    main()
