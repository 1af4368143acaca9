"""INbreast: 410 full-field digital mammograms of 115 cases, DICOM with OsiriX outlines.

Case does not matter in names of folders and tables. A mammogram without an XML has no findings, so
it is kept without lesions; it is noted only where the tables say that something should have been
outlined. Everything else that is skipped is noted in `Skipped` with its file and reason.

docs/archives/inbreast.md has the choices.
"""

from __future__ import annotations

import plistlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import numpy as np

from tfmammo.archives.dicom import read_facts
from tfmammo.archives.files import list_regular_files
from tfmammo.archives.findings import find_word
from tfmammo.archives.notes import Notes
from tfmammo.archives.tables import Row, read_table
from tfmammo.archives.views import parse_side
from tfmammo.errors import ArchiveError, summarize
from tfmammo.mammogram import Found, Lesion, Lost, Mammogram, Skipped, View, hash_id, sort_found

_NAME = re.compile(
    r"(?P<id>\d+)_(?P<patient>[0-9a-z]+)_MG_(?P<laterality>[LR])_(?P<view>[A-Z]+)_ANON\.dcm",
    re.IGNORECASE | re.ASCII,
)
_NUMBER = r"\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)\s*"
_POINT = re.compile(rf"\s*\({_NUMBER},{_NUMBER}\)\s*", re.ASCII)
_LONGEST = 200  # characters of a point; longer ones would keep the pattern busy
# ML is the archive's word for oblique; one case is seen from below
_VIEWS: dict[str, View] = {"CC": "CC", "ML": "MLO", "MLO": "MLO", "FB": "FB"}
_FINDINGS = ("mass", "micros", "distortion", "asymmetry")  # columns of the xls, marked by an X


def read(root: Path, skipped: Skipped | None = None) -> list[Mammogram]:
    """Read tables, outlines and DICOM headers, in the order of the file numbers."""
    notes = Notes(root, skipped, "INbreast")
    dicoms: list[Path] = []
    outlines: dict[str, Path] = {}
    rows: dict[str, Row] = defaultdict(dict)
    for path in sorted(list_regular_files(notes.root)):
        name = path.name.lower()
        folder = path.parent.name.lower()
        if folder == "alldicoms" and name.endswith(".dcm"):
            dicoms.append(path)
        elif folder == "allxml" and name.endswith(".xml"):
            outlines.setdefault(path.stem, path)
        elif name in ("inbreast.csv", "inbreast.xls"):
            _read_rows(notes, path, rows)
    if not dicoms:
        raise notes.fail("there is no folder AllDICOMs with DICOM files")
    mammograms = []
    for path in dicoms:
        with notes.leaving_out(path):
            mammograms.append(_make_mammogram(notes, path, outlines, rows))
    return sorted(notes.finish(mammograms), key=lambda mammogram: int(mammogram.image_id))


def _read_rows(notes: Notes, path: Path, rows: dict[str, Row]) -> None:
    """Add one table's rows by file number; note a table that can't be read."""
    with notes.leaving_out(path):
        for _, row in read_table(path, ["file_name"]):
            if row["file_name"].isdigit():  # else a sum at the table's end
                known = rows[row["file_name"]]
                known |= {name: text for name, text in row.items() if text or name not in known}


def _make_mammogram(
    notes: Notes, path: Path, outlines: Mapping[str, Path], rows: Mapping[str, Row]
) -> Mammogram:
    match = _NAME.fullmatch(path.name)
    if match is None:
        form = "id_patient_MG_laterality_view_ANON.dcm"
        raise ArchiveError(f"{path}: the name is not of the form {form}")
    number = match["id"]
    laterality = parse_side(match["laterality"])
    view = _VIEWS.get(match["view"].upper())
    facts = read_facts(path, window=False)
    if facts is None:
        raise ArchiveError(f"{path}: is a raw image ('for processing')")
    row = rows.get(number, {})
    shown = _VIEWS.get(row.get("view", match["view"]).upper())
    if (row.get("laterality", laterality), shown) != (laterality, view):
        named = f"{laterality} {match['view']}"
        stated = f"{row.get('laterality')} {row.get('view')}"
        notes.note(path, f"kept without its table row: the name says {named}, the table {stated}")
        row = {}
    birads = row.get("bi-rads") or None
    found: list[Found] = []
    if number in outlines:
        found = _read_outlines(notes, outlines[number], facts["rows"], facts["cols"])
    elif _should_have_outlines(row):
        reason = f"no XML for {number}, though its BI-RADS is {birads or 'unknown'}"
        notes.note(path, f"kept without lesions: {reason}")
        found = [Lost()]
    return Mammogram(
        archive="inbreast",
        patient_id=hash_id("inbreast", match["patient"].lower()),
        image_id=number,
        pathology="normal" if birads == "1" and not found else None,
        **sort_found(found),
        birads=birads,
        density=row.get("acr") or None,
        **facts | {"laterality": laterality, "view": view},
    )


def _should_have_outlines(row: Row) -> bool:
    """Whether the tables let one expect outlines; only the xls says which findings there are."""
    is_listed = any(row.get(column, "").upper() == "X" for column in _FINDINGS)
    return row.get("bi-rads") != "1" and ("mass" not in row or is_listed)


def _read_outlines(notes: Notes, path: Path, rows: int, cols: int) -> list[Found]:
    """Read the outlined findings of one XML; note what gives none by its name and reason."""
    try:
        with path.open("rb") as file:
            plist = plistlib.load(file, fmt=plistlib.FMT_XML)  # refuses entity declarations
        regions = plist["Images"][0]["ROIs"]
        if not isinstance(regions, list) or not all(isinstance(each, Mapping) for each in regions):
            raise ValueError("ROIs is no list of regions")
    except (OSError, ValueError, LookupError, AttributeError, TypeError, ExpatError) as error:
        reason = f"not an OsiriX plist ({summarize(error)[:200]})"
        notes.note(path, f"its mammogram is kept without lesions: {reason}")
        return [Lost()]
    found: list[Found] = []
    faults: dict[tuple[str, str], list[str]] = defaultdict(list)
    for number, region in enumerate(regions, start=1):
        name = " ".join(str(region.get("Name") or "").split())
        try:
            found += _make_lesion(name, region, rows, cols)
        except ValueError as error:
            faults[name, str(error)].append(str(number))
            found += _note_lost(name, region)
    for (name, reason), numbers in faults.items():
        notes.note(path, f"ROI {', '.join(numbers)} '{name}' skipped: {reason}")
    return found


def _note_lost(name: str, region: Mapping[str, Any]) -> list[Lost]:
    """Tell what an unreadable region is; points without a name mark calcifications."""
    if finding := find_word(name):
        return [Lost(finding.certain_kind)] if finding.kind else []
    points = region.get("Point_px")
    is_point = isinstance(points, list) and len(points) < 3
    return [Lost("calcification" if is_point else None)]


def _make_lesion(name: str, region: Mapping[str, Any], rows: int, cols: int) -> Iterator[Lesion]:
    """Make one region's lesion, none of a pectoral muscle."""
    points = region.get("Point_px")
    if not isinstance(points, list) or not all(isinstance(point, str) for point in points):
        raise ValueError("it has no list Point_px")
    if points and points[0].strip().startswith("{"):
        return  # the form of the pectoral files; no finding
    if region.get("Type") == 19 or len(points) == 1:
        raise ValueError("a single point")
    if len(points) < 3:
        raise ValueError(f"{len(points)} points enclose nothing")
    finding = find_word(name)
    if finding is None or finding.kind is None:
        raise ValueError("the name is unknown")
    margin = "spiculated" if name.lower().endswith("spiculated region") else None
    details = {"margin": margin, "kind_is_certain": finding.is_certain}
    outline = np.array([_parse_point(point) for point in points], np.float64)
    yield Lesion.from_outline(finding.kind, outline, rows, cols, **details)


def _parse_point(point: str) -> tuple[float, float]:
    """Parse OsiriX's "(x, y)", x to the right and y down, as (row, col)."""
    match = _POINT.fullmatch(point) if len(point) <= _LONGEST else None
    if match is None:
        raise ValueError(f"the point '{' '.join(point.split())[:40]}' is not of the form (x, y)")
    return float(match[2]), float(match[1])
