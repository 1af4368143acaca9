"""What is verified about the implementation itself, whatever the runs say: verified.csv."""

from __future__ import annotations

import csv
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("verified.csv")


class Check(NamedTuple):
    """A verified fact.

    Attributes:
        item: A key of `items`, or of a paper for what concerns all its items.
        what: What is verified.
        test: FOLDER_OR_FILE::FUNCTION, or how the name of the function begins.
    """

    item: str
    what: str
    test: str


@cache
def read_checks() -> tuple[Check, ...]:
    """Read the list."""
    with FILE.open(newline="", encoding="utf-8") as file:
        return tuple(Check(**row) for row in csv.DictReader(file))


def list_checks(keys: Collection[str]) -> list[Check]:
    """List what is verified of papers and items."""
    return [check for check in read_checks() if check.item in keys]
