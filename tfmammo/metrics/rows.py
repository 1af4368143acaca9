"""Numbers as rows: what every evaluation writes as rows.csv, one number a line."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tfmammo.errors import DataError
from tfmammo.filesystem import write_atomically


@dataclass(frozen=True)
class Fact:
    """One number, with what it is of and how sure it is.

    Attributes:
        table: The question, a short key in snake_case: "means", "differences", "groups", "froc".
        subset: Which part of the data, "key=value;key=value"; "" for all of it.
        model: The name that the config gave it.
        against: The other model of a difference, model - against; "" for a level.
        measure: Its key: dice, kid, tpr@0.5.
        unit: Of value, low and high: "%", "px", "s"; "" for none.
        value: NaN where it is unknown; `low` and `high` bound its interval, NaN where there is
            none.
        patients: How many are behind it, as `images`; None where that is not known.
        test: How interval and p were made, in a few words.
        p: NaN where nothing was tested; `p_corrected` is for the number of comparisons.
    """

    table: str
    subset: str
    model: str
    against: str
    measure: str
    unit: str
    value: float
    low: float = math.nan
    high: float = math.nan
    patients: int | None = None
    images: int | None = None
    test: str = ""
    p: float = math.nan
    p_corrected: float = math.nan

    def reverse(self) -> Fact:
        """Return a difference as seen from its other model."""
        return replace(
            self,
            model=self.against,
            against=self.model,
            value=-self.value,
            low=-self.high,
            high=-self.low,
        )


COLUMNS = tuple(field.name for field in fields(Fact))
_NUMBERS = {"value", "low", "high", "p", "p_corrected"}
_COUNTS = {"patients", "images"}


def join_subset(*parts: str) -> str:
    """Join the parts of a fact's subset that are not empty."""
    return ";".join(filter(None, parts))


def write_facts(path: Path, facts: Iterable[Fact]) -> None:
    """Write facts as CSV, numbers with up to six significant digits."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_format(value) for value in astuple(fact)] for fact in facts)
    write_atomically(path, file.getvalue())


def read_facts(path: Path) -> list[Fact]:
    """Read what `write_facts` wrote.

    Raises:
        DataError: The file can't be read, or it has other columns.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            if tuple(next(reader, ())) != COLUMNS:
                raise DataError(f"{path}: its columns are not {', '.join(COLUMNS)}")
            return [
                Fact(*(_parse(key, cell) for key, cell in zip(COLUMNS, row, strict=True)))
                for row in reader
            ]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: can't be read as rows of numbers: {error}") from error


def _format(value: str | float | int | None) -> str:
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return ""
    return f"{value:d}" if isinstance(value, int) else f"{value + 0.0:.6g}"  # -0.0 becomes 0.0


def _parse(key: str, cell: str) -> Any:
    if key in _NUMBERS:
        return float(cell) if cell else math.nan
    if key in _COUNTS:
        return int(cell) if cell else None
    return cell
