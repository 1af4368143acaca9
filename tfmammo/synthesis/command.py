"""The command line that both syntheses share."""

from __future__ import annotations

from pathlib import Path

from tfmammo import cli


def make_parser(module: str, doc: str | None, config: str, item: str) -> cli.Parser:
    """Make the parser of a synthesis: a config or a recipe, overrides, and where to write.

    Args:
        module: What `python -m` runs.
        doc: The module's docstring, for --help.
        config: An example of a config.
        item: What a recipe makes again.
    """
    parser = cli.make_command_parser(module, doc)
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--config", metavar="FILE", help=f"a YAML file such as {config}")
    inputs.add_argument("--recipe", metavar="FILE", type=Path, help=f"make this {item} again")
    parser.add_overrides()
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where to write")
    return parser
