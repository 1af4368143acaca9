"""The five papers' tables and figures, with every number that they print, from printed.json.

Printed numbers are in that file alone. Tables and the report of the papers read them by this
module.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from tfmammo.config import Frozen

FILE = Path(__file__).with_name("printed.json")


class PrintedItem(Frozen):
    """A table or figure of a paper: label, what it shows, row -> column -> printed number."""

    label: str
    shows: str
    values: dict[str, dict[str, float]]


class Paper(Frozen):
    """A paper, the name of its system, its claim, and its tables and figures in order."""

    title: str
    authors: str
    name: str
    claim: str
    items: dict[str, PrintedItem]


@cache
def read_papers() -> dict[str, Paper]:
    """Read all papers, by their keys."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return {key: Paper.model_validate(paper) for key, paper in content.items()}


def get_values(paper: str, item: str, scale: float = 1) -> dict[str, dict[str, float]]:
    """Return the numbers of a table or figure, each multiplied by a factor; nine digits are kept.

    Examples:
        >>> get_values("can", "table1", 0.01)["CAN"]["dice"]
        0.917
    """
    values = read_papers()[paper].items[item].values
    return {
        row: {column: round(value * scale, 9) for column, value in columns.items()}
        for row, columns in values.items()
    }
