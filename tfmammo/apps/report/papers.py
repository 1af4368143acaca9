"""The five papers: titles, claims, tables and figures, and every number that these print.

The file is `tfmammo.evaluation.printed`'s. It is read here without the package `evaluation`, which
imports TensorFlow.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from tfmammo.config import Frozen

FILE = Path(__file__).parents[2] / "evaluation" / "printed.json"


class PrintedItem(Frozen):
    """A table or figure of a paper."""

    label: str
    """What the paper calls it."""
    shows: str
    """What it shows, in a sentence."""
    values: dict[str, dict[str, float]]
    """Row -> column -> the number as printed."""


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
