"""The command line that both syntheses share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tfmammo import cli
from tfmammo.data import runners
from tfmammo.data.runners import Runner


def make_parser(
    name: str, doc: str | None, schema: type[BaseModel], config: str, item: str
) -> cli.Parser:
    """Make the parser of a synthesis: a config or a recipe, overrides, and where to write.

    Args:
        name: Of the command: "synthesize".
        doc: The module's docstring, for --help.
        schema: The class of the config.
        config: An example of a config.
        item: What a recipe makes again.
    """
    parser = cli.make_command_parser(name, doc)
    parser.schema = schema
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument(
        "--config", metavar="FILE", help=f"a YAML file, or a shipped config: {config}"
    )
    inputs.add_argument("--recipe", metavar="FILE", type=Path, help=f"make this {item} again")
    parser.add_overrides()
    parser.add_print_config()
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where to write")
    runners.add_options(parser)
    return parser


def parse(parser: cli.Parser, arguments: Sequence[str] | None) -> tuple[Any, Runner]:
    """Parse the arguments of a synthesis."""
    options, runner = runners.parse(parser, arguments)
    if options.recipe and options.print_config:
        parser.error("--print-config shows what --config would run, and takes no --recipe")
    return options, runner
