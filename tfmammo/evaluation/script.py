"""What the evaluate scripts share: read the config, evaluate, print the tables."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tfmammo import cli
from tfmammo.config import Frozen, TrainingConfig
from tfmammo.errors import ConfigError
from tfmammo.evaluation.report import Report
from tfmammo.metrics.summary import Table
from tfmammo.training import script

Config = TypeVar("Config", bound=Frozen)
# (config, output folder) -> what it found; it writes everything itself
Evaluate = Callable[[Config, Path], Report | Sequence[Table]]


def run_evaluation(
    description: str | None,
    schema: type[Config],
    evaluate: Evaluate[Config],
    default_output: str,
    files: str,
) -> None:
    """Read the arguments of a script and its config, evaluate in float32, and print the tables.

    `files` says what the output folder holds.
    """
    parser = cli.make_parser(description or "", schema)
    parser.add_data()
    run_with(parser.parse_args(), schema, evaluate, default_output, files)


def run_with(
    arguments: Namespace,
    schema: type[Config],
    evaluate: Evaluate[Config],
    default_output: str,
    files: str,
) -> None:
    """Run an evaluation with parsed arguments; otherwise as `run_evaluation`."""
    config = cli.read_config(schema, arguments)
    output = arguments.output or Path(default_output)
    check_output(output)
    script.configure_tensorflow(TrainingConfig(precision="float32"))
    found = evaluate(config, output)
    tables = found.tables if isinstance(found, Report) else found
    print_tables(tables, f"{files}: {output}")


def check_output(output: Path) -> None:
    """Check before anything is computed that the output can be a folder."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output: {output} is no folder")


def print_tables(tables: Sequence[Table], closing: str) -> None:
    """Print tables, and a line that says where everything was written."""
    for table in tables:
        cli.console.print(table)
    cli.console.print(closing)
