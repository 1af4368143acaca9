"""Tables of evaluations, read back from Markdown, and the numbers in their cells."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from tfmammo.document import TableFacts

NUMBER = r"[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?"
DIFFERENCES = "Differences"  # how the titles of such tables begin
FOLDS = "Means in each fold"
_VALUE = re.compile(rf"^({NUMBER})")
_INTERVAL = re.compile(rf"\[({NUMBER}), ({NUMBER})\]")
_P = re.compile(rf"p ([=<]) ({NUMBER})")


@dataclass(frozen=True)
class Cell:
    """The numbers of a cell.

    Attributes:
        text: The cell as written.
        value: Its first number.
        low: Lower bound of its interval; None where it has none.
        high: Upper bound of its interval.
        p: Its p, or the bound below which it lies.
        measure: What it measures, as its column or line is headed; "" where it was not looked up.
    """

    text: str
    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    measure: str = ""


def parse_markdown(text: str) -> list[TableFacts]:
    """Read the tables that `metrics.summary.Table.markdown` wrote.

    Examples:
        >>> lines = "### Dice", "|  | Dice, % |", "| --- | ---: |", "| CAN | 91.7 |"
        >>> table, = parse_markdown("\\n".join(lines))
        >>> table.title, table.body
        ('Dice', (('CAN', '91.7'),))
    """
    tables = []
    for part in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        title, *lines = part.splitlines()
        rows = [_split_row(line) for line in lines if line.startswith("|")]
        notes = tuple(line for line in lines if line and not line.startswith("|"))
        if len(rows) >= 2:
            header, _, *body = rows
            content = {"title": title, "header": header, "body": body, "notes": notes}
            tables.append(TableFacts.model_validate(content))
    return tables


def _split_row(line: str) -> tuple[str, ...]:
    return tuple(
        cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")
    )


def parse_cell(text: str) -> Cell | None:
    """Read the numbers of a cell; None where it begins with no number.

    Examples:
        >>> parse_cell("-6.6 [-9.8, -3.0] p < 0.001").p
        0.001
        >>> parse_cell("-") is None
        True
    """
    value = _VALUE.match(text)
    if not value:
        return None
    interval = _INTERVAL.search(text)
    p = _P.search(text)
    return Cell(
        text,
        _to_float(value[1]),
        _to_float(interval[1]) if interval else None,
        _to_float(interval[2]) if interval else None,
        _to_float(p[2]) if p else None,
    )


def _to_float(text: str) -> float:
    return float(text.replace(",", ""))


def find_cell(tables: Sequence[TableFacts], title: str, row: str, column: str) -> Cell | None:
    """Find a cell with numbers whose table, line and column match patterns of fnmatch.

    Lines and columns may be exchanged: a table with one column a model serves as well. The first
    table that has such a cell counts, because evaluations begin with their main one. In it the last
    line counts, because studies list their arms by size.
    """
    for table in tables:
        cell = None
        if fnmatchcase(table.title, title):
            for name, heading, text in _walk(table):
                found = parse_cell(text)
                if found and fnmatchcase(name, row) and fnmatchcase(heading, column):
                    cell = replace(found, measure=heading)
                elif found and fnmatchcase(name, column) and fnmatchcase(heading, row):
                    cell = replace(found, measure=name)
        if cell:
            return cell
    return None


def find_level(tables: Sequence[TableFacts], row: str, column: str) -> Cell | None:
    """Find a cell as `find_cell`, in no table of differences or of folds."""
    levels = [table for table in tables if not table.title.startswith((DIFFERENCES, FOLDS))]
    return find_cell(levels, "*", row, column)


def find_trainings(tables: Sequence[TableFacts], model: str, column: str) -> tuple[float, ...]:
    """Find a measure's mean in each training of a model; empty where the facts don't tell.

    Args:
        tables: Tables, one of them perhaps with the title "MEASURE of each training".
        model: Name of a model.
        column: A pattern of the measure.

    Examples:
        >>> title = "Dice of each training, %"
        >>> table = TableFacts(title=title, header=("", "mean"), body=[("CAN", "89.1, 89.4")])
        >>> find_trainings([table], "CAN", "Dice*")
        (89.1, 89.4)
    """
    for table in tables:
        if " of each training" in table.title and fnmatchcase(table.title, column):
            for name, values, *_ in table.body:
                if name == model:
                    return tuple(map(float, values.split(", ")))
    return ()


def find_folds(tables: Sequence[TableFacts], model: str, column: str) -> tuple[float, ...]:
    """Find a measure's mean in each fold of a model; empty where the facts don't tell.

    A fold without a mean is NaN.

    Args:
        tables: Tables, one of them perhaps with the title "Means in each fold".
        model: Name of a model.
        column: A pattern of the measure's heading.

    Examples:
        >>> body = [("CRN", "0.080, 0.091, 0.085")]
        >>> table = TableFacts(title="Means in each fold", header=("", "LPIPS"), body=body)
        >>> find_folds([table], "CRN", "LPIPS*")
        (0.08, 0.091, 0.085)
    """
    for table in tables:
        if table.title.startswith(FOLDS):
            for name, heading, text in _walk(table):
                if name == model and fnmatchcase(heading, column):
                    means = text.split(", ")
                    return tuple(math.nan if mean == "-" else float(mean) for mean in means)
    return ()


def _walk(table: TableFacts) -> Iterator[tuple[str, str, str]]:
    for name, *cells in table.body:
        for heading, text in zip(table.header[1:], cells, strict=False):
            yield name, heading, text


def find_difference(
    tables: Sequence[TableFacts], first: str, second: str, column: str
) -> Cell | None:
    """Find how far one model is from another, `first` minus `second`, whichever way it was tested.

    The first table that tests the two counts, as in `find_cell`.

    Args:
        tables: Tables with the titles "Differences from MODEL" or "Differences of every pair".
        first: Name of a model.
        second: Name of the other one.
        column: A pattern of the measure's heading.
    """
    ways = (
        (f"Differences from {second}", first, 1),
        (f"Differences from {first}", second, -1),
        ("Differences of every pair", f"{first} - {second}", 1),
        ("Differences of every pair", f"{second} - {first}", -1),
    )
    for table in tables:
        for title, row, sign in ways:
            cell = find_cell([table], title, row, column)
            if cell:
                return cell if sign == 1 else negate(cell)
    return None


def negate(cell: Cell) -> Cell:
    """Return the difference of the opposite sign."""
    low = None if cell.high is None else -cell.high
    high = None if cell.low is None else -cell.low
    text = f"{-cell.value:+g}"
    if low is not None:
        text += f" [{low:+g}, {high:+g}]"
    if cell.p is not None:
        text += re.sub(r".*( p [=<])", r"\1", cell.text)
    return Cell(text, -cell.value, low, high, cell.p, cell.measure)
