"""INbreast: 410 full-field digital mammograms of 115 cases, DICOM with OsiriX outlines.

    <anywhere beneath root>/AllDICOMs/<id>_<patient hash>_MG_<L|R>_<CC|ML>_ANON.dcm
                            AllXML/<id>.xml
                            INbreast.csv and/or INbreast.xls

Case does not matter in names of folders and tables. A mammogram without an XML has no findings, so
it is kept without lesions; it is noted only where the tables say that something should have been
outlined. Everything else that is left out is noted in `Skipped` with its file and reason.
INbreast states no pathology: only BI-RADS 1 (negative) is passed on, as "normal".

Choices: (1) A "Spiculated Region" is the area over which spicules radiate, wider than the mass it
may hold, so it never becomes a mass's mask. BI-RADS calls radiating spicules without a definite
mass, or beside one, an architectural distortion: it is recorded as "distortion" with the margin
"spiculated" and an uncertain kind. (2) Pixels are given as stored, without the window: that of an
OsiriX export may be where its reader left it. (3) Where a table's laterality or view contradicts
the file name, the name holds and the table's row is set aside, because it may belong to another
image. (4) OsiriX does not say whether (0, 0) is the corner or the centre of the first pixel; it is
taken as its centre.
"""

from __future__ import annotations

import plistlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import numpy as np

from tfmammo.archives import dicom
from tfmammo.archives.files import list_regular_files
from tfmammo.archives.findings import find_word
from tfmammo.archives.tables import Row, read_table
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import (
    Found,
    Laterality,
    Lesion,
    Lost,
    Mammogram,
    Skipped,
    View,
    hash_id,
    sort_found,
)

_NAME = re.compile(
    r"(?P<id>\d+)_(?P<patient>[0-9a-z]+)_MG_(?P<laterality>[LR])_(?P<view>[A-Z]+)_ANON\.dcm",
    re.IGNORECASE | re.ASCII,
)
_NUMBER = r"\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)\s*"
_POINT = re.compile(rf"\s*\({_NUMBER},{_NUMBER}\)\s*", re.ASCII)
_LONGEST = 200  # characters of a point; longer ones would keep the pattern busy
# ML is the archive's word for oblique; one case is seen from below
_VIEWS: dict[str, View] = {"CC": "CC", "ML": "MLO", "MLO": "MLO", "FB": "FB"}
_LATERALITIES: dict[str, Laterality] = {"L": "L", "R": "R"}
_FINDINGS = ("mass", "micros", "distortion", "asymmetry")  # columns of the xls, marked by an X


@dataclass
class _Archive:
    """What a root holds."""

    root: Path
    skipped: Skipped
    dicoms: list[Path] = field(default_factory=list)
    outlines: dict[str, Path] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)

    def note(self, path: Path, reason: object) -> None:
        self.skipped.note(self.root, path, reason)


def read(root: Path, skipped: Skipped | None = None) -> list[Mammogram]:
    """Read the mammograms of an INbreast folder, in the order of their file numbers.

    Headers are read, pixels are not.

    Args:
        root: INbreast's folder or any above it.
        skipped: Takes what was left out, and why.

    Returns:
        One record per readable DICOM.

    Raises:
        ArchiveError: `root` is no folder, holds no DICOM in a folder AllDICOMs, or none of them can
            be read.
    """
    archive = _Archive(Path(root), Skipped() if skipped is None else skipped)
    _find_files(archive)
    if not archive.dicoms:
        raise ArchiveError(
            f"{root}: is no INbreast archive, there is no folder AllDICOMs with DICOM files"
        )
    mammograms: dict[str, Mammogram] = {}
    faults: list[ArchiveError] = []
    for path in archive.dicoms:
        try:
            mammogram = _make_mammogram(archive, path)
        except ArchiveError as error:
            archive.note(path, error)
            faults.append(error)
            continue
        if mammogram.image_id in mammograms:
            archive.note(path, "is a second file of the same number")
        mammograms.setdefault(mammogram.image_id, mammogram)
    if not mammograms:
        raise ArchiveError(
            f"{root}: none of its {len(faults)} DICOM files can be read, the first is {faults[0]}"
        )
    return sorted(mammograms.values(), key=lambda mammogram: int(mammogram.image_id))


def _find_files(archive: _Archive) -> None:
    """Fill in the archive's DICOMs, outlines and table rows."""
    for path in sorted(list_regular_files(archive.root)):
        name = path.name.lower()
        folder = path.parent.name.lower()
        if folder == "alldicoms" and name.endswith(".dcm"):
            archive.dicoms.append(path)
        elif folder == "allxml" and name.endswith(".xml"):
            archive.outlines.setdefault(path.stem, path)
        elif name in ("inbreast.csv", "inbreast.xls"):
            for number, row in _read_rows(archive, path).items():
                row_of_number = archive.rows.setdefault(number, {})
                row_of_number.update(
                    {
                        column: text
                        for column, text in row.items()
                        if text or column not in row_of_number
                    }
                )


def _read_rows(archive: _Archive, path: Path) -> dict[str, Row]:
    """Read the rows of one table by file number; note a table that can't be read."""
    try:
        rows = [row for _, row in read_table(path, ["file_name"])]
    except ArchiveError as error:
        archive.note(path, error)
        return {}
    # else a sum at the table's end
    return {row["file_name"]: row for row in rows if row["file_name"].isdigit()}


def _make_mammogram(archive: _Archive, path: Path) -> Mammogram:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ArchiveError(
            f"{path}: the name is not of the form id_patient_MG_laterality_view_ANON.dcm"
        )
    number = match["id"]
    laterality = _LATERALITIES[match["laterality"].upper()]
    view = _VIEWS.get(match["view"].upper())
    header = dicom.read_header(path)
    if header.chest_wall not in (None, laterality):
        archive.note(path, "is stored mirrored: PatientOrientation holds, not the laterality")
    row = archive.rows.get(number, {})
    if (
        row.get("laterality", laterality) != laterality
        or _VIEWS.get(row.get("view", match["view"]).upper()) != view
    ):
        named = f"{laterality} {match['view']}"
        stated = f"{row.get('laterality')} {row.get('view')}"
        archive.note(path, f"kept without its table row: the name says {named}, the table {stated}")
        row = {}
    lesions: tuple[Found, ...] = ()
    birads = row.get("bi-rads") or None
    if number in archive.outlines:
        lesions = _read_lesions(archive, archive.outlines[number], header.rows, header.cols)
    elif _should_have_outlines(row):
        reason = f"no XML for {number}, though its BI-RADS is {row.get('bi-rads', 'unknown')}"
        archive.note(path, f"kept without lesions: {reason}")
        lesions = (Lost(),)
    return Mammogram(
        archive="inbreast",
        patient_id=hash_id("inbreast", match["patient"].lower()),
        image_id=number,
        rows=header.rows,
        cols=header.cols,
        laterality=laterality,
        view=view,
        pathology="normal" if birads == "1" and not lesions else None,
        **sort_found(lesions),
        spacing=header.spacing,
        chest_wall=header.chest_wall,
        birads=birads,
        density=row.get("acr") or None,
        **dicom.pixel_source(path, window=False),
    )


def _should_have_outlines(row: Row) -> bool:
    """Whether the tables let one expect outlines; only the xls says which findings there are."""
    if row.get("bi-rads") == "1":
        return False
    return "mass" not in row or any(row.get(column, "").upper() == "X" for column in _FINDINGS)


def _read_lesions(archive: _Archive, path: Path, rows: int, cols: int) -> tuple[Found, ...]:
    """Read the outlined findings of one XML.

    Regions that give none are noted, those of one name and reason together.
    """
    try:
        regions = _read_regions(path)
    except (OSError, ValueError, LookupError, AttributeError, TypeError, ExpatError) as error:
        reason = f"not an OsiriX plist ({' '.join(str(error).split())[:200]})"
        archive.note(path, f"its mammogram is kept without lesions: {reason}")
        return (Lost(),)
    lesions: list[Found] = []
    faults: dict[tuple[str, str], list[str]] = {}
    for number, region in enumerate(regions, start=1):
        name = " ".join(str(region.get("Name") or "").split())
        try:
            lesion = _make_lesion(name, region, rows, cols)
        except ValueError as error:
            faults.setdefault((name, str(error)), []).append(str(number))
            lesions += _note_lost(name, region)
            continue
        if lesion is not None:
            lesions.append(lesion)
    for (name, reason), numbers in faults.items():
        archive.note(path, f"ROI {', '.join(numbers)} '{name}' left out: {reason}")
    return tuple(lesions)


def _note_lost(name: str, region: Mapping[str, Any]) -> list[Lost]:
    """Tell what an unreadable region is; points without a name mark calcifications, too."""
    finding = find_word(name)
    if finding:
        return [Lost(finding.kind if finding.is_certain else None)] if finding.kind else []
    points = region.get("Point_px")
    is_point = isinstance(points, list) and len(points) < 3
    return [Lost("calcification" if is_point else None)]


def _read_regions(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as file:
        plist = plistlib.load(file, fmt=plistlib.FMT_XML)  # refuses entity declarations
    regions = plist["Images"][0]["ROIs"]
    if not isinstance(regions, list) or not all(isinstance(region, Mapping) for region in regions):
        raise ValueError("ROIs is no list of regions")
    return regions


def _make_lesion(name: str, region: Mapping[str, Any], rows: int, cols: int) -> Lesion | None:
    """Make one region's lesion, None of a pectoral muscle.

    Raises ValueError with the reason why there is neither.
    """
    points = region.get("Point_px")
    if not isinstance(points, list) or not all(isinstance(point, str) for point in points):
        raise ValueError("it has no list Point_px")
    if points and points[0].strip().startswith("{"):
        return None  # the form of the pectoral files; no finding
    if region.get("Type") == 19 or len(points) < 3:
        raise ValueError(
            "a single point"
            if len(points) == 1 or region.get("Type") == 19
            else f"{len(points)} points enclose nothing"
        )
    finding = find_word(name)
    if finding is None or finding.kind is None:
        raise ValueError("the name is unknown")
    spiculated = name.lower().endswith("spiculated region")
    return Lesion.from_outline(
        finding.kind,
        np.array([_parse_point(point) for point in points], np.float64),
        rows,
        cols,
        margin="spiculated" if spiculated else None,
        kind_is_certain=finding.is_certain,
    )


def _parse_point(point: str) -> tuple[float, float]:
    """Parse OsiriX's "(x, y)", x to the right and y down, as (row, col)."""
    match = _POINT.fullmatch(point) if len(point) <= _LONGEST else None
    if match is None:
        raise ValueError(f"the point '{' '.join(point.split())[:40]}' is not of the form (x, y)")
    return float(match[2]), float(match[1])
