"""What every command does around its work: how it reads its arguments and logs, and what
becomes of an error.
"""

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

    Errors of tfmammo and of the system become one line on stderr and exit code 2, Ctrl-C exit code
    130.

    A stop signal whose checkpoint is saved (`Interrupted`) is exit code 128 + its number.
    """
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        datefmt="[%X]",
        handlers=[_handler()],
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
            raise  # a fault of ours, which its traceback explains
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _handler() -> logging.Handler:
    error_console = Console(stderr=True)
    if error_console.is_terminal:
        return RichHandler(console=error_console, show_path=False, show_level=False)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return handler


class Parser(argparse.ArgumentParser):
    """argparse's parser, in which --set ends where the overrides end, and an unknown argument is an
    error that helps.
    """

    def add_overrides(self, example: str = "data.root=DIR") -> None:
        """Add --set KEY=VALUE ..., as often as wanted; what follows it and is no KEY=VALUE is
        another argument.
        """
        self.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help=f"overrides, one or more: --set {example}",
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse's own, with one --set for each override."""
        return super().parse_known_args(
            _one_by_one(sys.argv[1:] if args is None else args), namespace
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's own, but an unknown argument's error says what may be meant."""
        chosen, unknown = self.parse_known_args(args, namespace)
        self._refuse(unknown)
        return chosen

    def parse_with(
        self,
        args: Sequence[str] | None,
        sort: Callable[[Sequence[str]], tuple[Sequence[str], Collection[str]]],
    ) -> tuple[Any, list[str]]:
        """Parse, and hand on the arguments of somebody else's.

        Args:
            sort: Of arguments, those that the other does not know either, and the names that it
                does know.

        Returns:
            What was chosen here, and the other's arguments.
        """
        chosen, others = self.parse_known_args(args)
        if others:
            self._refuse(*sort(others))
        return chosen, others

    def _refuse(self, unknown: Sequence[str], further: Collection[str] = ()) -> None:
        if unknown:
            known = {*_options(self), *further}
            hints = [hint for argument in unknown if (hint := _hint(argument, unknown, known))]
            self.error(f"unknown: {' '.join(unknown)}" + "".join(f"; {hint}" for hint in hints))


def _one_by_one(arguments: Sequence[str]) -> list[str]:
    """The arguments with "--set a=1 b=2 FILE" as "--set a=1 --set b=2 FILE"."""
    found: list[str] = []
    open_set = False
    for place, argument in enumerate(arguments):
        if argument == "--":
            return found + list(arguments[place:])
        if open_set and found[-1] != "--set":
            open_set = bool(re.match(r"[^\s/=-][^\s/=]*=", argument))
            found += ["--set"] if open_set else []
        found.append(argument)
        open_set = open_set or argument == "--set"
    return found


def _options(parser: argparse.ArgumentParser) -> Iterable[str]:
    """All options of a parser and of its commands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _options(inner)


def _hint(argument: str, unknown: Sequence[str], known: Collection[str]) -> str | None:
    if not argument.startswith("-"):
        return None
    name, _, value = argument.partition("=")
    if close := difflib.get_close_matches(name, known, 1, 0.75):
        return f"did you mean {close[0]}?"
    following = unknown[unknown.index(argument) + 1 :][:1]
    value = value or next((word for word in following if not word.startswith("-")), "VALUE")
    return (
        f"a key of the config is set by --set {name.lstrip('-')}={value}"
        if "--set" in known
        else None
    )


def arguments(description: str, config: str | None = None) -> Parser:
    """The parser every script starts from: --config, --set, --output."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config",
        required=config is None,
        default=config,
        metavar="FILE",
        help="a YAML file from configs/",
    )
    parser.add_overrides("training.steps=3 data.root=DIR")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where to write; default: a folder of its own under runs/",
    )
    return parser
