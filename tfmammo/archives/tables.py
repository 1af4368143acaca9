"""Tables of all archives: CSV of any separator, or Excel, old and new -> rows of text; JSON."""

from __future__ import annotations

import codecs
import csv
import io
import json
import posixpath
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import xlrd

from tfmammo.errors import ArchiveError
from tfmammo.mammogram import normalize_spelling

Row = dict[str, str]  # column's name in lower case, _ for blanks -> text

_LARGEST_PART = 2**28  # bytes of a part of an .xlsx; a packed file can claim any size
_BLANK = ("nan", "none", "null", "n/a", "na", "<na>", "nat", "-", "?")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file, which holds an object."""
    if not path.is_file():
        raise ArchiveError(f"{path}: no such file")
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArchiveError(f"{path}: can't be read as JSON ({error.__class__.__name__})") from None
    if not isinstance(content, dict):
        raise ArchiveError(f"{path}: is not a JSON object")
    return content


def read_table(
    path: Path, columns: Iterable[str] = (), strict: bool = False
) -> list[tuple[int, Row]]:
    """Read a table: the rows that are not blank, each with the number that a spreadsheet shows.

    Cells are stripped and in one spelling; what programs write for nothing (nan, None) is blank.

    Args:
        path: A .csv, .xls or .xlsx file; of a workbook the first sheet is read.
        columns: Names that must be there.
        strict: Refuse bytes that are no text, rows of another length than the first, and columns of
            one name.

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
            counts = f"{len(cells)} cells, the first line {len(header)}"
            raise ArchiveError(f"{path}: row {number} has {counts}")
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
        if path.suffix.lower() == ".xlsx":
            return _read_workbook(content)
        is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode(
            "utf-16" if is_wide else "utf-8-sig", errors="strict" if strict else "replace"
        )
        head = text.partition("\n")[0]
        separator = max(",;\t", key=head.count)
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=strict))
    except Exception as error:  # xlrd answers damaged files with exceptions of any class
        form = "an Excel sheet" if path.suffix.lower() in (".xls", ".xlsx") else "CSV in UTF-8"
        fault = error.__class__.__name__
        raise ArchiveError(f"{path}: can't be read as {form} ({fault})") from None


def _read_sheet(content: bytes) -> list[list[str]]:
    sheet = xlrd.open_workbook(file_contents=content, logfile=io.StringIO()).sheet_by_index(0)
    return [
        # old Excel knows no integers
        [f"{cell:.15g}" if isinstance(cell, float) else str(cell) for cell in sheet.row_values(row)]
        for row in range(sheet.nrows)
    ]


def _read_workbook(content: bytes) -> list[list[str]]:
    """Read the first sheet of an .xlsx file (ECMA-376): numbers and text, no formatting."""
    with zipfile.ZipFile(io.BytesIO(content)) as book:
        words = [
            "".join(text.text or "" for text in item.findall("{*}t") + item.findall("{*}r/{*}t"))
            for item in _parse_part(book, "xl/sharedStrings.xml")
        ]
        rows: list[list[str]] = []
        for row in _parse_part(book, _find_sheet(book)).iterfind("{*}sheetData/{*}row"):
            number = int(row.get("r", len(rows) + 1))
            if number > 2**20:  # Excel has no more
                raise ValueError
            rows += [[] for _ in range(number - 1 - len(rows))]  # blank rows are not there
            cells: list[str] = []
            for cell in row:
                column = 0
                for letter in re.sub("[^A-Z]", "", cell.get("r", "")):
                    column = 26 * column + ord(letter) - 64
                if column > 2**14:  # nor more of these
                    raise ValueError
                cells += [""] * (column - 1 - len(cells)) + [_read_cell(cell, words)]
            rows.append(cells + [""] * (len(rows[0]) - len(cells) if rows else 0))
    return rows


def _find_sheet(book: zipfile.ZipFile) -> str:
    """Find the part of the first tab; the parts' own names keep no order of tabs."""
    parts = {
        each.get("Id"): posixpath.join("/xl", each.get("Target", ""))[1:]
        for each in _parse_part(book, "xl/_rels/workbook.xml.rels")
    }
    for sheet in _parse_part(book, "xl/workbook.xml").iterfind("{*}sheets/{*}sheet"):
        name = next((value for key, value in sheet.items() if key.endswith("}id")), None)
        if parts.get(name, "").startswith("xl/worksheets/"):  # a tab may be a chart
            return parts[name]
    raise ValueError


def _parse_part(book: zipfile.ZipFile, name: str) -> ElementTree.Element:
    if name not in book.namelist():
        return ElementTree.Element("none")
    if book.getinfo(name).file_size > _LARGEST_PART:
        raise ValueError
    return ElementTree.fromstring(book.read(name))  # expat bounds what entities grow to


def _read_cell(cell: ElementTree.Element, words: list[str]) -> str:
    value = cell.findtext("{*}v", "")
    kind = cell.get("t", "n")
    if kind == "s":
        return words[int(value)]
    if kind == "inlineStr":
        return "".join(text.text or "" for text in cell.iterfind(".//{*}t"))
    return f"{float(value):.15g}" if kind == "n" and value else value
