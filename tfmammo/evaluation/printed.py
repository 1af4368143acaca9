"""The numbers that the five papers print, from printed.json, where each of them is kept once."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("printed.json")


@cache
def read_printed() -> dict[str, Any]:
    """Read the file: paper -> name, authors and items."""
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


def get_values(paper: str, item: str, scale: float = 1) -> dict[str, dict[str, float]]:
    """Return the numbers of a table or figure, each multiplied by a factor; nine digits are kept.

    Examples:
        >>> get_values("can", "table1", 0.01)["CAN"]["dice"]
        0.917
    """
    values = read_printed()[paper]["items"][item]["values"]
    return {
        row: {column: round(value * scale, 9) for column, value in columns.items()}
        for row, columns in values.items()
    }
