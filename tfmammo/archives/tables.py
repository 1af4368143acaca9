"""Tables of all archives: CSV of any separator, or old Excel -> rows of text."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterable
from pathlib import Path

import xlrd

from tfmammo.errors import ArchiveError
from tfmammo.mammogram import normalize_spelling

Row = dict[str, str]  # column's name in lower case, _ for blanks -> text

_BLANK = ("nan", "none", "null", "n/a", "na", "<na>", "nat", "-", "?")


def read_table(
    path: Path, columns: Iterable[str] = (), strict: bool = False
) -> list[tuple[int, Row]]:
    """Read a table.

    Cells are stripped and in one spelling; what programs write for nothing (nan, None) is blank.

    Args:
        path: A .csv or .xls file.
        columns: Names that must be there.
        strict: Refuse bytes that are no text, rows of another length than the first, and columns of
            one name.

    Returns:
        The rows that are not blank, each with the number that a spreadsheet shows.

    Raises:
        ArchiveError: It can't be read, or a column is missing.
    """
    lines = _read_lines(path, strict)
    header = [name.strip().lower().replace(" ", "_") for name in lines[0]] if lines else []
    if missing := [name for name in columns if name not in header]:
        raise ArchiveError(f"{path}: has no column {', '.join(missing)}")
    if strict and len(set(filter(None, header))) < len(list(filter(None, header))):
        raise ArchiveError(f"{path}: its first line must name every column once")
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if strict and len(cells) != len(header):
            raise ArchiveError(
                f"{path}: row {number} has {len(cells)} cells, the first line {len(header)}"
            )
        cells += [""] * (len(header) - len(cells))
        rows.append((number, dict(zip(header, map(_clean, cells), strict=False))))
    return rows


def _clean(cell: str) -> str:
    text = normalize_spelling(cell).strip()
    return "" if text.lower() in _BLANK else text


def _read_lines(path: Path, strict: bool) -> list[list[str]]:
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".xls":
            return _read_sheet(content)
        is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode(
            "utf-16" if is_wide else "utf-8-sig", errors="strict" if strict else "replace"
        )
        head = text.partition("\n")[0]
        separator = max(",;\t", key=head.count)
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=strict))
    except Exception as error:  # xlrd answers damaged files with exceptions of any class
        form = "an Excel sheet" if path.suffix.lower() == ".xls" else "CSV in UTF-8"
        raise ArchiveError(
            f"{path}: can't be read as {form} ({error.__class__.__name__})"
        ) from None


def _read_sheet(content: bytes) -> list[list[str]]:
    sheet = xlrd.open_workbook(file_contents=content, logfile=io.StringIO()).sheet_by_index(0)
    return [
        # old Excel knows no integers
        [f"{cell:.15g}" if isinstance(cell, float) else str(cell) for cell in sheet.row_values(row)]
        for row in range(sheet.nrows)
    ]
