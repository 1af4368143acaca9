"""What every command shares: how it reads its arguments, logs, and reports an error."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.logging import RichHandler

from tfmammo import shipped
from tfmammo.errors import Interrupted, TfmammoError

if TYPE_CHECKING:  # pydantic, which `tfmammo --help` does not wait for
    from pydantic import BaseModel

console = Console(markup=False)  # [brackets] of file names are no markup
log = logging.getLogger(__name__)
# By the name to import: the extra that a missing package comes with.
EXTRAS = {
    "apache_beam": "beam",
    "dicomweb_client": "pacs",
    "gradio": "serve",
    "fastapi": "serve",
    "prometheus_client": "serve",
    "pynetdicom": "pacs",
    "starlette": "serve",
    "uvicorn": "serve",
    "onnxruntime": "onnx",
    "tf2onnx": "onnx",
    "torch": "benchmark",
}
Schema = TypeVar("Schema", bound="BaseModel")


def run(main: Callable[[], object]) -> None:
    """Run a command.

    Errors of tfmammo and of the system, and a missing extra, become one line on stderr and exit
    code 2. Ctrl-C becomes the word "stopped" and exit code 130. A stop signal whose checkpoint is
    saved (`Interrupted`) becomes exit code 128 + its number.
    """
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        datefmt="[%X]",
        handlers=[_make_handler()],
        force=True,
    )
    logging.getLogger("tfmammo").setLevel(logging.INFO)
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except Interrupted as stop:
        log.info("%s", stop)
        sys.exit(128 + stop.signal)
    except BrokenPipeError:  # who reads the output has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        print(
            f'error: {package} is missing: pip install "tfmammo[{EXTRAS[package]}]"',
            file=sys.stderr,
        )
        sys.exit(2)
    except (TfmammoError, OSError) as error:  # any other one is a bug, which a traceback explains
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run_to_end(command: Sequence[str], quiet: bool) -> tuple[int, str]:
    """Run a command; return its exit code and, of a quiet one, what it said on stderr.

    Ctrl-C is passed on, and takes effect when the command has ended.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if quiet else None,
        stderr=subprocess.PIPE if quiet else None,
        text=True,
        process_group=0,  # Ctrl-C reaches it once, through us
    )
    interrupt = None
    while True:
        try:
            _, said = process.communicate()
            break
        except KeyboardInterrupt as error:
            interrupt = error
            process.send_signal(signal.SIGINT)
    if interrupt:
        raise interrupt
    return process.returncode, said or ""


def _make_handler() -> logging.Handler:
    error_console = Console(stderr=True)
    if error_console.is_terminal:
        return RichHandler(console=error_console, show_path=False, show_level=False)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return handler


def read_config(schema: type[Schema], options: argparse.Namespace) -> Schema:
    """Read the config that a command's arguments name, or print it and end.

    Args:
        schema: The config's class.
        options: Parsed arguments of a parser with `Parser.add_config`.

    Raises:
        ConfigError: As `config.parse`.
    """
    from tfmammo import config as configuration

    config = configuration.parse(schema, options.config, options.set)
    print_if_wanted(config, options)
    return config


def print_if_wanted(config: BaseModel, options: argparse.Namespace) -> None:
    """With --print-config print the config as YAML, and end the process."""
    from tfmammo import config as configuration

    if options.print_config:
        print(configuration.dump(config), end="")
        sys.exit()


class _PrintConfig(argparse.Action):
    """--print-config: nothing else is required then, because nothing else is read."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(nargs=0, default=False, **settings)

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, *_: Any) -> None:
        setattr(namespace, self.dest, True)
        for action in parser._actions:
            action.required = action.required and action.dest == "config"


class _SetData(argparse.Action):
    """--data NAME=DIR: data.name=NAME and data.root=DIR, at this place among the overrides."""

    def __call__(self, parser: Any, namespace: Any, values: Any, *_: Any) -> None:
        match = re.fullmatch(r"(\w+)=(.*)", values)
        name, root = match.groups() if match else ("folder", values)
        namespace.set = [*namespace.set, f"data.name={name}", f"data.root={json.dumps(root)}"]


class Parser(argparse.ArgumentParser):
    """argparse's parser with overrides of a config, and with hints on unknown arguments.

    --set takes all following arguments of the form KEY=VALUE. With `add_config`, --help lists the
    keys of the config.
    """

    schema: type[BaseModel] | None = None

    def format_help(self) -> str:
        """Format what --help shows."""
        text = super().format_help()
        if self.schema:
            from tfmammo.config import keys

            width = min(100, shutil.get_terminal_size().columns) - 2
            text += f"\n{keys.format_keys(self.schema, width)}\n"
        return text

    def add_overrides(self, example: str = "data.root=DIR") -> None:
        """Add --set KEY=VALUE ..., which may be given several times.

        Args:
            example: For --help.
        """
        self.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help=f"overrides, one or more: --set {example}",
        )

    def add_config(
        self,
        schema: type[BaseModel] | None,
        help: str = "a YAML file, or the name of a shipped config",
        required: bool = True,
        default: str | None = None,
        example: str = "data.root=DIR",
    ) -> None:
        """Add --config FILE, --set KEY=VALUE ... and --print-config; see `read_config`.

        Args:
            schema: The config's class, whose keys --help lists; None lists none.
            help: Of --config.
            required: Whether --config is.
            default: Of --config.
            example: An override.
        """
        self.schema = schema
        self.add_argument("--config", required=required, default=default, metavar="FILE", help=help)
        self.add_overrides(example)
        self.add_print_config()

    def add_data(self) -> None:
        """Add --data [NAME=]DIR, short for --set data.name=NAME data.root=DIR."""
        about = "the archive and its folder; DIR alone is a folder of images with masks"
        self.add_argument("--data", action=_SetData, dest="set", metavar="[NAME=]DIR", help=about)

    def add_running(self) -> None:
        """Add --plan, --jobs and --any-version of what runs several commands."""
        any_version = "accept the results of another version of the package"
        self.add_argument("--plan", action="store_true", help="show the commands, run nothing")
        self.add_argument("--jobs", type=parse_count, default=1, help="commands that run at once")
        self.add_argument("--any-version", action="store_true", help=any_version)

    def add_print_config(self) -> None:
        """Add --print-config, which `read_config` obeys."""
        text = "print the config with all defaults and overrides, and run nothing"
        self.add_argument("--print-config", action=_PrintConfig, help=text)

    def add_tracking_uri(self) -> None:
        """Add --tracking-uri URI."""
        default = "MLFLOW_TRACKING_URI, else mlflow.db here"
        self.add_argument("--tracking-uri", metavar="URI", help=f"MLflow's store ({default})")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse as argparse does, with one --set for each override."""
        arguments = sys.argv[1:] if args is None else args
        return super().parse_known_args(_repeat_set(arguments), namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; the error of an unknown argument names what may be meant.

        Options may precede a positional argument that may be missing: MODEL -o DIR IMAGES.
        """
        parsed, unknown = self.parse_known_args(args, namespace)
        may_follow = any(action.nargs in ("?", "*") for action in self._get_positional_actions())
        if unknown and may_follow:
            arguments = _repeat_set(sys.argv[1:] if args is None else args)
            parsed, unknown = self.parse_known_intermixed_args(arguments)
        self.refuse(unknown)
        return parsed

    def refuse(self, unknown: Sequence[str]) -> None:
        """End with an error that names unknown arguments, unless there are none."""
        if unknown:
            options = set(_list_options(self))
            sections = _list_sections(self.schema) if self.schema else ()
            hints = (_make_hint(argument, unknown, options, sections) for argument in unknown)
            parts = [f"unknown: {' '.join(unknown)}", *filter(None, hints)]
            self.error("; ".join(parts))

    def find_meant(self, argument: str) -> str | None:
        """Find the option of this parser that a mistyped one may mean."""
        return _find_meant(argument, set(_list_options(self)))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is no choice, with the one that may be meant instead of all."""
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(action, f"there is no {value}{suggest(value, choices)}")


def _repeat_set(arguments: Sequence[str]) -> list[str]:
    """Turn "--set a=1 b=2 FILE" into "--set a=1 --set b=2 FILE"."""
    repeated: list[str] = []
    in_overrides = False
    for index, argument in enumerate(arguments):
        if argument == "--":
            return repeated + list(arguments[index:])
        if in_overrides and repeated[-1] != "--set":
            in_overrides = bool(re.match(r"[^\s/=-][^\s/=]*=", argument))
            if in_overrides:
                repeated.append("--set")
        repeated.append(argument)
        in_overrides = in_overrides or argument == "--set"
    return repeated


def _list_options(parser: argparse.ArgumentParser) -> Iterable[str]:
    """List all options of a parser and of its commands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _list_options(inner)


def suggest(name: str, names: Sequence[str]) -> str:
    """Return the clause that follows "there is no NAME": which one may be meant, else all.

    Examples:
        >>> suggest("infiling", ["can", "infilling"])
        ', did you mean infilling?'
    """
    close = difflib.get_close_matches(name, names, 1)
    return f", did you mean {close[0]}?" if close else f"; there are {', '.join(names)}"


def _list_sections(schema: type[BaseModel]) -> list[str]:
    """List the keys of a config that hold keys of their own."""
    return [
        name
        for name, field in schema.model_fields.items()
        if hasattr(field.annotation, "model_fields")
    ]


def _find_meant(argument: str, options: Collection[str]) -> str | None:
    name = argument.partition("=")[0]
    close = difflib.get_close_matches(name, options, 1, 0.75) if name.startswith("-") else []
    return close[0] if close else None


def _make_hint(
    argument: str, unknown: Sequence[str], options: Collection[str], sections: Collection[str]
) -> str | None:
    if not argument.startswith("-"):
        is_key = "=" in argument and "--set" in options
        return "a key of the config is set by --set KEY=VALUE" if is_key else None
    name, _, value = argument.partition("=")
    if meant := _find_meant(argument, options):
        return f"did you mean {meant}?"
    if "--set" not in options:
        return None
    if name.lstrip("-") in sections:
        return f"the config has a section of that name: --set {name.lstrip('-')}.KEY=VALUE"
    following = unknown[unknown.index(argument) + 1 :][:1]
    value = value or next((word for word in following if not word.startswith("-")), "VALUE")
    return f"a key of the config is set by --set {name.lstrip('-')}={value}"


def name_program() -> str | None:
    """Name the command of `tfmammo` whose script this process runs, if it is one."""
    path = Path(sys.argv[0])
    name = shipped.name_command(f"{path.parent.name}/{path.name}")
    return f"tfmammo {name}" if name else None


def parse_count(text: str) -> int:
    """Parse the value of an option that counts, such as --jobs.

    Raises:
        argparse.ArgumentTypeError: It is no whole number of 1 or more.
    """
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of 1 or more")
    return int(text)


def make_command_parser(name: str, description: str | None) -> Parser:
    """Make the parser of `tfmammo NAME`, without arguments."""
    return Parser(
        prog=f"tfmammo {name}",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def make_parser(
    description: str, schema: type[BaseModel] | None = None, config: str | None = None
) -> Parser:
    """Make the parser that every script starts from: --config, --set, --output.

    Args:
        description: For --help.
        schema: The class of the config.
        config: The default config; None requires --config.
    """
    parser = Parser(
        prog=name_program(),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_config(
        schema, required=config is None, default=config, example="training.steps=3 data.root=DIR"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where to write; default: a folder of its own under runs/",
    )
    return parser
