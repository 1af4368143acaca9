"""The five papers' tables and figures, with every number that they print, from printed.json.

A printed number stands in that file and nowhere else. Tables and the report of the papers read it
from here.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from tfmammo.config import Frozen

FILE = Path(__file__).with_name("printed.json")


class PrintedItem(Frozen):
    """A table or figure of a paper.

    Attributes:
        label: What the paper calls it.
        shows: What it shows, in a sentence.
        values: Row -> column -> the number as printed.
    """

    label: str
    shows: str
    values: dict[str, dict[str, float]]


class Paper(Frozen):
    """A paper.

    Attributes:
        title: Its title.
        authors: Their names.
        name: What this package calls its system.
        claim: What it claims, in a sentence.
        items: Key -> table or figure, in the paper's order.
    """

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
    """Return the numbers of a table or figure, each multiplied by a factor.

    Args:
        paper: The key of the paper.
        item: The key of its table or figure.
        scale: The factor; 0.01 turns per cent into fractions. Nine digits are kept.

    Examples:
        >>> get_values("can", "table1", 0.01)["CAN"]["dice"]
        0.917
    """
    values = read_papers()[paper].items[item].values
    return {
        row: {column: round(value * scale, 9) for column, value in columns.items()}
        for row, columns in values.items()
    }
