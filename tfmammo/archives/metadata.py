"""metadata.csv of a folder, and other tools' own tables of images: cells in our own terms.

A cell that names a file, a patient, bits or spacing and can't be read refuses the table: what it
was to say matters too much. Any other unknown word counts as not stated and is counted in a note.
Messages name row and column but no value: it might be a patient's in the wrong place.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tfmammo.archives.findings import find_word, parse_pathology
from tfmammo.archives.named_files import make_key
from tfmammo.archives.tables import read_table
from tfmammo.archives.views import parse_side, parse_view
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Skipped, normalize_patient, normalize_spelling

log = logging.getLogger(__name__)

Row = Mapping[str, Any]  # a column's name -> its value in our own terms; blank cells are absent

_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}


def _parse_spacing(text: str) -> tuple[float, float]:
    try:
        values = [float(number.replace(",", ".")) for number in re.split(r"\s*[x×\s]\s*", text)]
    except ValueError:
        values = []
    if len(values) not in (1, 2) or not all(0 < value < math.inf for value in values):
        raise ValueError("is no spacing in mm like 0.07 or 0.07 x 0.05 (row x column)")
    return values[0], values[-1]


def _parse_bits(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,2}(\.0*)?", text) or not 1 <= float(text) <= 16:
        raise ValueError("is no number of bits from 1 to 16")
    return int(float(text))


def _parse_category(text: str) -> str:
    # pandas writes 2.0 for 2 where other rows have no value
    return re.sub(r"(?<=[0-9])[.,]0+$", "", text)


# what raises refuses the table; None is a word that is not known
_COLUMNS: dict[str, Callable[[str], Any]] = {
    "file": make_key,
    "patient": normalize_patient,
    "laterality": parse_side,
    "view": lambda text: parse_view(text)[1],
    "pathology": parse_pathology,
    "kind": find_word,
    "shape": str.lower,
    "margin": str.lower,
    "birads": _parse_category,
    "density": _parse_category,
    "spacing": _parse_spacing,
    "split": lambda text: _SPLITS.get(text.lower()),
    "bits": _parse_bits,
    "lesion_patient": normalize_patient,
}


def read_metadata(path: Path, skipped: Skipped) -> dict[str, Row]:
    """Read the rows of metadata.csv by file, without its ending unless two differ in it alone."""
    lines = read_table(path, ["file"], strict=True)
    _note_columns(path, list(lines[0][1]) if lines else [], skipped)
    unknown: Counter[str] = Counter()
    by_name: dict[str, dict[str, Row]] = {}  # then by ending
    numbers: dict[tuple[str, str], int] = {}
    for number, cells in lines:
        if not cells["file"]:
            raise ArchiveError(f"{path}: row {number}, file: is blank")
        row = _parse_row(f"{path}: row {number}", cells, unknown)
        ending = PurePosixPath(cells["file"]).suffix.lower()
        first = numbers.setdefault((row["file"], ending), number)
        if first != number:
            raise ArchiveError(f"{path}: rows {first} and {number} are of one file, keep one")
        by_name.setdefault(row["file"], {})[ending] = row
    _note_words(path.name, unknown, skipped)
    _speak_of_leading_zeros(path.parent, [cells.get("patient", "") for _, cells in lines])
    return {
        name + (ending if len(rows) > 1 else ""): row
        for name, rows in by_name.items()
        for ending, row in rows.items()
    }


def parse_cells(
    root: Path, cells: Mapping[str, Mapping[str, str]], skipped: Skipped
) -> dict[str, Row]:
    """Parse what another tool's table says of its images, by image."""
    unknown: Counter[str] = Counter()
    rows: dict[str, Row] = {}
    for image, words in cells.items():
        clean = {name: normalize_spelling(text).strip() for name, text in words.items()}
        clean.pop("file", None)
        rows[image] = {"file": image} | _parse_row(f"{root}: {image}", clean, unknown)
    _note_words("metadata", unknown, skipped)
    _speak_of_leading_zeros(root, [words.get("patient", "") for words in cells.values()])
    return rows


def _parse_row(where: str, cells: Mapping[str, str], unknown: Counter[str]) -> dict[str, Any]:
    row = {}
    for name, text in cells.items():
        if name not in _COLUMNS or not text:
            continue
        try:
            row[name] = _COLUMNS[name](text)
        except ValueError as error:
            raise ArchiveError(f"{where}, {name}: {error}") from None
        if row[name] is None:
            unknown[name] += 1
            if name != "kind":  # of a mask that is something else than we know
                del row[name]
    return row


def _note_columns(path: Path, columns: list[str], skipped: Skipped) -> None:
    # by number, because a name might say who somebody is
    numbered = []
    for name in (name for name in columns if name and name not in _COLUMNS):
        close = difflib.get_close_matches(name, set(_COLUMNS) - set(columns), 1)
        numbered.append(f"{columns.index(name) + 1}{f' ({close[0]}?)' if close else ''}")
    if numbered:
        reason = f"unknown columns are ignored: number {', '.join(numbered)}"
        skipped.add(path.name, f"{reason}; known are {', '.join(_COLUMNS)}")


def _note_words(name: str, unknown: Counter[str], skipped: Skipped) -> None:
    for column, count in unknown.items():
        skipped.add(name, f"{count} words of {column} are not known and count as not stated")


def _speak_of_leading_zeros(root: Path, cells: Iterable[str]) -> None:
    """Say which numbers count as one patient though the table writes them in several ways."""
    number = re.compile(r"\+?([0-9]+)(?:[.,]0*)?")  # 12-A is a name
    digits = {match[1] for cell in cells if (match := number.fullmatch(cell.strip()))}
    spellings = Counter(digit.lstrip("0") for digit in digits)
    if joined := sum(count > 1 for count in spellings.values()):
        log.warning(
            "%s: %d patient numbers are written with and without leading zeros; each counts as "
            "one patient",
            root.name,
            joined,
        )
