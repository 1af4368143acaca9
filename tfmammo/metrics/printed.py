"""What the five papers print, from printed.json, where each number of theirs is kept once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tfmammo.config import Frozen

FILE = Path(__file__).with_name("printed.json")


class PrintedItem(Frozen):
    """A table or figure of a paper."""

    label: str
    """What the paper calls it."""
    shows: str
    """What it shows, in a sentence."""
    values: dict[str, dict[str, int | float]]
    """Row -> column -> the number as printed: 10 and 10.0 are rounded differently."""


class Paper(Frozen):
    """A paper."""

    title: str
    authors: str
    name: str
    """What this package calls its system."""
    claim: str
    """What it claims, in a sentence."""
    items: dict[str, PrintedItem]
    """Key -> table or figure, in the paper's order."""


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
    return {
        row: {column: round(value * scale, 9) for column, value in columns.items()}
        for row, columns in read_papers()[paper].items[item].values.items()
    }


@dataclass(frozen=True)
class Published:
    """What a paper prints of a model, and on which patches.

    Attributes:
        values: Measure -> number, as a fraction where the measure's unit is "%".
        archive: A name of tfmammo.archives.
        leaky: Whether copies of one lesion were on both sides of the paper's split; None where
            the paper does not say how it split.
        frame: The crop mode of the paper's patches, for which alone the values are shown; None:
            for any.
    """

    values: Mapping[str, float]
    archive: str
    leaky: bool | None = None
    frame: str | None = None

    def label(self, model: str, archive: str, is_leaky: bool) -> str:
        """Name the line of the model's values, and how the paper's archive and split differ."""
        differences = []
        if archive != self.archive:
            differences.append(f"on {self.archive}")
        if self.leaky is None:
            differences.append("a split of its own")
        elif self.leaky != is_leaky:
            differences.append("a split that leaks" if self.leaky else "unseen patients")
        return f"{model}, as printed" + (f" ({', '.join(differences)})" if differences else "")
