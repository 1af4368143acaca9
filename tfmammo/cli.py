"""What every command shares: how it reads its arguments, logs, and reports an error."""

from __future__ import annotations

import argparse
import difflib
import logging
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

from tfmammo.errors import Interrupted, TfmammoError

console = Console()
log = logging.getLogger(__name__)


def run(main: Callable[[], object]) -> None:
    """Run a command.

    Errors of tfmammo and of the system become one line on stderr and exit code 2. Ctrl-C becomes
    exit code 130. A stop signal whose checkpoint is saved (`Interrupted`) becomes exit code 128 +
    its number.
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
    except KeyboardInterrupt:
        sys.exit(130)
    except Interrupted as stop:
        log.info("%s", stop)
        sys.exit(128 + stop.signal)
    except (ValueError, OSError) as error:
        if not isinstance(error, OSError | TfmammoError):
            raise  # a bug of ours, which its traceback explains
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _make_handler() -> logging.Handler:
    error_console = Console(stderr=True)
    if error_console.is_terminal:
        return RichHandler(console=error_console, show_path=False, show_level=False)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return handler


class Parser(argparse.ArgumentParser):
    """argparse's parser with overrides of a config, and with hints on unknown arguments.

    --set takes all following arguments of the form KEY=VALUE.
    """

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
        help: str = "a YAML file from configs/",
        required: bool = True,
        default: str | None = None,
        example: str = "data.root=DIR",
    ) -> None:
        """Add --config FILE, and --set KEY=VALUE ... with an example of an override."""
        self.add_argument("--config", required=required, default=default, metavar="FILE", help=help)
        self.add_overrides(example)

    def add_tracking_uri(self) -> None:
        """Add --tracking-uri URI."""
        default = "MLFLOW_TRACKING_URI, else mlflow.db here"
        self.add_argument("--tracking-uri", metavar="URI", help=f"MLflow's store ({default})")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse as argparse does, with one --set for each override."""
        arguments = sys.argv[1:] if args is None else args
        return super().parse_known_args(_repeat_set(arguments), namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; the error of an unknown argument names what may be meant."""
        parsed, unknown = self.parse_known_args(args, namespace)
        self._refuse(unknown)
        return parsed

    def parse_with(
        self,
        args: Sequence[str] | None,
        sort: Callable[[Sequence[str]], tuple[Sequence[str], Collection[str]]],
    ) -> tuple[Any, list[str]]:
        """Parse, and return the arguments that belong to another parser.

        Args:
            args: None takes the process's.
            sort: Takes the arguments that this parser does not know. It returns those that the
                other parser does not know either, and the names that the other one knows.

        Returns:
            What this parser read, and the other's arguments.
        """
        parsed, others = self.parse_known_args(args)
        if others:
            self._refuse(*sort(others))
        return parsed, others

    def _refuse(self, unknown: Sequence[str], further: Collection[str] = ()) -> None:
        if unknown:
            options = {*_list_options(self), *further}
            hints = (_make_hint(argument, unknown, options) for argument in unknown)
            parts = [f"unknown: {' '.join(unknown)}", *filter(None, hints)]
            self.error("; ".join(parts))


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


def _make_hint(argument: str, unknown: Sequence[str], options: Collection[str]) -> str | None:
    if not argument.startswith("-"):
        return None
    name, _, value = argument.partition("=")
    if close := difflib.get_close_matches(name, options, 1, 0.75):
        return f"did you mean {close[0]}?"
    if "--set" not in options:
        return None
    following = unknown[unknown.index(argument) + 1 :][:1]
    value = value or next((word for word in following if not word.startswith("-")), "VALUE")
    return f"a key of the config is set by --set {name.lstrip('-')}={value}"


def make_command_parser(module: str, description: str | None) -> Parser:
    """Make the parser of `python -m MODULE`, without arguments."""
    return Parser(
        prog=f"python -m {module}",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def make_parser(description: str, config: str | None = None) -> Parser:
    """Make the parser that every script starts from: --config, --set, --output.

    Args:
        description: For --help.
        config: The default config file; None requires --config.
    """
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_config(
        required=config is None, default=config, example="training.steps=3 data.root=DIR"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where to write; default: a folder of its own under runs/",
    )
    return parser
