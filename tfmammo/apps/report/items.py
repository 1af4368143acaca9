"""The five papers, and the tables and figures of them that the report decides and shows.

metrics/printed.json has every number that the papers print, items.yaml what is made of them, and
verified.csv what tests verify of the implementation, whatever the runs say. All are read without
TensorFlow.
"""

from __future__ import annotations

import csv
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field

from tfmammo.apps.report.verdicts import Difference, Level, Trivial
from tfmammo.config import Frozen, read_yaml
from tfmammo.metrics.printed import PrintedItem, read_papers

HERE = Path(__file__).parent


class Check(NamedTuple):
    """A fact that a test verifies."""

    item: str  # the key of an item, or of a paper for what concerns all its items
    what: str
    test: str  # FOLDER_OR_FILE::FUNCTION, or how the function's name begins


@cache
def read_checks() -> tuple[Check, ...]:
    """Read what is verified about the implementation."""
    with (HERE / "verified.csv").open(newline="", encoding="utf-8") as file:
        return tuple(Check(**row) for row in csv.DictReader(file))


def list_checks(keys: Collection[str]) -> list[Check]:
    """List what is verified of papers and items."""
    return [check for check in read_checks() if check.item in keys]


def _pair(value: Any) -> Any:
    """Complete a model's name by the subset of all data."""
    return (value, "") if isinstance(value, str) else value


class Shown(Frozen):
    """The rows that a page shows as a table."""

    models: tuple[Annotated[tuple[str, str], BeforeValidator(_pair)], ...] = Field(max_length=8)
    """The lines: a model, or a model and a subset of the data."""
    measures: tuple[str, ...]
    """One column each."""
    table: str = "means"
    """The table of the rows."""
    labels: dict[str, str] = {}
    """Model -> what the page and the paper call it."""
    printed: dict[str, str] = {}
    """Measure -> the paper's column, printed beside ours."""


class Item(Frozen):
    """A table or figure of a paper, or a study of our own."""

    name: str
    """Its key in the paper, or that of the study."""
    paper: str
    """The key of the paper on whose page it is."""
    study: str = ""
    """The heading of a study of our own; "": it is the paper's."""
    shows: str = ""
    """What a study asks."""
    reason: str = ""
    """Why no command makes it; "" where one does."""
    sources: tuple[str, ...] = ()
    """The commands of configs/report.yaml whose rows are its facts."""
    facts: tuple[str, ...] = ()
    """The items whose facts it takes, those on the paper's data first; (): its own."""
    trivial: Trivial | None = None
    """The trivial baseline of its models."""
    is_sized: bool = False
    """Whether it depends on the pixels of a patch, so that the paper's size decides it."""
    claims: tuple[Difference | Level, ...] = ()
    """What the paper finds, in a form that rows can decide."""
    is_ours: bool = False
    """Whether the claims are tests of ours, of pictures that the paper shows."""
    shown: Shown | None = None
    """The table of its page."""
    text: str = ""
    """The paragraph below, with rows as {rows:MODEL|MEASURE}; not shown where one is missing."""

    @property
    def key(self) -> str:
        """The name of its facts: "can_table1"."""
        return self.name if self.study else f"{self.paper}_{self.name}"

    @property
    def printed(self) -> PrintedItem:
        """Label, caption and printed numbers; of a study its heading and question."""
        if self.study:
            return PrintedItem(label=self.study, shows=self.shows, values={})
        return read_papers()[self.paper].items[self.name]

    @property
    def fact_keys(self) -> tuple[str, ...]:
        """The items whose facts it takes."""
        return self.facts or (self.key,)


class _Items(Frozen):
    items: tuple[Item, ...]


ITEMS = _Items.model_validate(read_yaml(HERE / "items.yaml")).items
# train scripts of networks whose own papers start them from ImageNet's weights
FROM_IMAGENET = {getattr(claim, "imagenet", "") for item in ITEMS for claim in item.claims} - {""}
FACT_KEYS = tuple(dict.fromkeys(key for item in ITEMS for key in item.fact_keys))


def find_item(key: str) -> Item:
    """Return an item by its key, as "can_table1"."""
    return next(item for item in ITEMS if item.key == key)
