"""mini-MIAS: 322 film mammograms of 161 women, 1024 x 1024 px of 0.2 mm, and one table of circles.

Case does not matter in names. The table's prose and whatever else is no row are skipped. The origin
of X and Y is the bottom left: row = 1024 - Y, col = X. Odd numbers are left films, even ones right,
although the README says the opposite.

docs/archives/mini_mias.md has the choices.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tfmammo.archives.notes import Notes
from tfmammo.archives.pictures import read_facts
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import (
    Found,
    Lesion,
    LesionKind,
    Lost,
    Mammogram,
    Pathology,
    Skipped,
    hash_id,
    sort_found,
)

SIZE = 1024  # px
SPACING = 0.2  # mm per px
TABLE = "info.txt"

_FILE = re.compile(r"mdb(\d{3,6})\.pgm", re.IGNORECASE | re.ASCII)
_ROW = re.compile(
    r"mdb(\d{3,6})[ \t]+([FGD])[ \t]+(CALC|CIRC|SPIC|MISC|ARCH|ASYM|NORM)(?:[ \t]+([BM]))?(?:[ "
    r"\t]+(\S.*))?",
    re.IGNORECASE | re.ASCII,
)
_CIRCLE = re.compile(r"(\d{1,6})[ \t]+(\d{1,6})[ \t]+(\d{1,6})")
# kind and margin
_CLASSES: dict[str, tuple[LesionKind, str | None]] = {
    "CALC": ("calcification", None),
    "CIRC": ("mass", "circumscribed"),
    "SPIC": ("mass", "spiculated"),
    "MISC": ("mass", "ill-defined"),
    "ARCH": ("distortion", None),
    "ASYM": ("asymmetry", None),
}
_PATHOLOGIES: dict[str, Pathology] = {"B": "benign", "M": "malignant"}
_DENSITIES = {"F": "fatty", "G": "fatty-glandular", "D": "dense-glandular"}


class _Row(NamedTuple):
    density: str
    finding: str
    severity: str
    circle: tuple[int, int, int] | None  # x, y, radius; None where the archive gives none


_Table = dict[int, list[_Row]]  # film number -> its rows


def read(root: Path, skipped: Skipped | None = None) -> list[Mammogram]:
    """Read the table and the headers of the images, in the order of their numbers."""
    notes = Notes(root, skipped, "mini-MIAS")
    paths, _ = notes.find((".txt", ".pgm"))
    images: dict[int, Path] = {}
    for path in paths:
        name = _FILE.fullmatch(path.name)
        if name and images.setdefault(int(name[1]), path) is not path:
            notes.note(path, "is a second file of the same number")
    if not images:
        raise notes.fail("there is no mdb<number>.pgm")
    table = _choose_table(notes, [path for path in paths if path.name.lower() == TABLE])
    mammograms = []
    for number, path in sorted(images.items()):
        with notes.leaving_out(path):
            mammograms.append(_make_mammogram(notes, number, path, table.get(number)))
    missing = len(table.keys() - images.keys())
    notes.count("Info.txt", f"of its {len(table)} images are missing", missing)
    return notes.finish(mammograms)


def _choose_table(notes: Notes, paths: list[Path]) -> _Table:
    """Choose the first table that has rows; note others where they differ from it."""
    table: _Table = {}
    for path in paths:
        parsed, fault = _parse_rows(path)
        if parsed and not table:
            table = parsed
            if fault:
                notes.note(path, fault)
        elif not parsed:
            notes.note(path, "has no row of the form of mini-MIAS")
        elif parsed != table:
            notes.note(path, "is another table, and was not used")
    if not table:
        raise notes.fail("there is no Info.txt with rows like 'mdb001 G CIRC B 535 425 197'")
    return table


def _parse_rows(path: Path) -> tuple[_Table, str]:
    """Parse a table's rows; return one sentence for those that only begin like a row."""
    table: _Table = defaultdict(list)
    wrong = []
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        return {}, f"can't be read ({error.strerror})"
    for number, line in enumerate(lines, start=1):
        row = _ROW.fullmatch(line.strip())
        circle = row and _parse_circle(row[5] or "")
        if row and circle is not None and (row[4] or row[3].upper() == "NORM"):
            words = (row[2].upper(), row[3].upper(), (row[4] or "").upper())
            table[int(row[1])].append(_Row(*words, circle or None))
        elif re.match(r"\s*mdb\d", line, re.IGNORECASE):
            wrong.append(number)
    fault = f"{len(wrong)} rows are not of its form, the first is line {wrong[0]}" if wrong else ""
    return dict(table), fault


def _parse_circle(text: str) -> tuple[int, int, int] | tuple[()] | None:
    """Parse a row's circle: () where there is none, None where the row says something else."""
    if not text or "NOTE" in text.upper():
        return ()
    circle = _CIRCLE.fullmatch(text)
    return (int(circle[1]), int(circle[2]), int(circle[3])) if circle else None


def _make_mammogram(notes: Notes, number: int, path: Path, rows: list[_Row] | None) -> Mammogram:
    if rows is None:
        raise ArchiveError(f"{path}: Info.txt does not name it")
    facts = read_facts(path, None, is_listed=False)
    if (facts["rows"], facts["cols"]) != (SIZE, SIZE):
        size = f"{facts['rows']} x {facts['cols']} px"
        raise ArchiveError(
            f"{path}: is {size}, but Info.txt's circles are in those of {SIZE} x {SIZE}"
        )
    severities = {row.severity for row in rows if row.finding != "NORM"}
    if severities and any(row.finding == "NORM" for row in rows):
        notes.note(path, "Info.txt calls it normal and names findings, which were kept")
    pathology: Pathology = "normal"
    if severities:
        pathology = _PATHOLOGIES["M" if "M" in severities else "B"]
    return Mammogram(
        archive="mini_mias",
        patient_id=hash_id("mini_mias", f"pair {(number + 1) // 2}"),
        image_id=f"mdb{number:03d}",
        laterality="L" if number % 2 else "R",
        view="MLO",
        pathology=pathology,
        **sort_found(_make_found(notes, path, row) for row in rows if row.finding != "NORM"),
        spacing=(SPACING, SPACING),
        density=_DENSITIES[rows[0].density],
        **facts,
    )


def _make_found(notes: Notes, path: Path, row: _Row) -> Found:
    kind, margin = _CLASSES[row.finding]
    if row.circle is None:
        notes.note(path, f"a finding {row.finding} without a circle became no lesion")
        return Lost(kind)
    details = {"pathology": _PATHOLOGIES[row.severity], "margin": margin}
    try:
        return Lesion.from_outline(kind, _draw_circle(*row.circle), SIZE, SIZE, **details)
    except ValueError as error:
        notes.note(path, f"the circle {' '.join(map(str, row.circle))} skipped: {error}")
        return Lost(kind)


def _draw_circle(x: int, y: int, radius: int) -> NDArray[np.float32]:
    if not 0 < radius < SIZE:
        size = "more than the image" if radius else "nothing"
        raise ValueError(f"a radius of {radius} encloses {size}")
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    return np.stack([SIZE - y + radius * np.sin(angle), x + radius * np.cos(angle)], axis=1).astype(
        np.float32
    )
