"""VinDr-Mammo 1.0.0: 20,000 full-field digital mammograms of 5,000 four-view exams.

Findings have boxes. Columns are found by name; case does not matter in names of files. A finding's
own BI-RADS has no place in a Lesion and is skipped.

docs/archives/vindr.md has the choices.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfmammo.archives.findings import Finding, find_word
from tfmammo.archives.notes import Notes
from tfmammo.archives.tables import Row, read_table
from tfmammo.archives.views import parse_side, parse_view
from tfmammo.mammogram import (
    Box,
    Found,
    Lesion,
    Lost,
    Mammogram,
    Skipped,
    Split,
    hash_id,
    normalize_spelling,
    sort_found,
)

IMAGES = "breast-level_annotations.csv"
FINDINGS = "finding_annotations.csv"

Corners = tuple[float, float, float, float]  # xmin, ymin, xmax, ymax

_IMAGE_COLUMNS = (
    "study_id",
    "image_id",
    "laterality",
    "view_position",
    "height",
    "width",
    "breast_birads",
    "breast_density",
    "split",
)
_FINDING_COLUMNS = ("image_id", "finding_categories", "xmin", "ymin", "xmax", "ymax")
_QUOTED = r"""(?:'[^'\]]*'|"[^"\]]*")"""
# Python's list of strings; never evaluated
_LIST = re.compile(rf"\[\s*{_QUOTED}\s*(?:,\s*{_QUOTED}\s*)*\]")
_SPLITS: dict[str, Split] = {"training": "train", "test": "test"}


@dataclass
class _Findings:
    """What the table marks in one image; a box has its line, findings and corners."""

    boxes: list[tuple[int, list[Finding | None], Corners]] = field(default_factory=list)
    is_marked: bool = False
    lost: int = 0  # findings that can't be read


def read(root: Path, skipped: Skipped | None = None) -> list[Mammogram]:
    """Read the tables and the headers, in the table's order."""
    notes = Notes(root, skipped, "VinDr-Mammo")
    paths, (images, findings) = notes.find((".dicom", ".dcm"), [IMAGES], [FINDINGS])
    dicoms: dict[tuple[str, str], Path] = {}
    for path in paths:
        key = (_make_key(path.parent.name), _make_key(path.stem))
        if dicoms.setdefault(key, path) is not path:
            notes.note(path, "is a second file of the same study and image")
    marks = _read_findings(notes, findings)
    return notes.finish(_read_images(notes, images, findings, dicoms, marks))


def _make_key(name: str) -> str:
    """Return the name of a study or an image in one spelling."""
    return normalize_spelling(name).strip().lower()


def _read_findings(notes: Notes, path: Path) -> dict[str, _Findings]:
    by_image: dict[str, _Findings] = defaultdict(_Findings)
    for line, row in read_table(path, _FINDING_COLUMNS):
        findings = by_image[_make_key(row["image_id"])]
        readable = _LIST.fullmatch(row["finding_categories"])
        names = re.findall(_QUOTED, row["finding_categories"]) if readable else []
        names = [name[1:-1].strip().lower() for name in names]
        if names == ["no finding"]:
            continue
        findings.is_marked = True
        known = [find_word(name) for name in names]
        for name, finding in zip(names, known, strict=True):
            if finding and not finding.kind:
                notes.count(path, f"{name[:40]!r} is no lesion of ours", line=line)
        corners = _parse_corners(row)
        reason = ""
        if not readable:
            reason = "finding_categories is no list of names"
        elif None in known:
            reason = "an unknown category"
        elif corners is None and any(finding and finding.kind for finding in known):
            reason = "the box has a corner that is no number"
        if reason:
            notes.count(path, reason, line=line)
            findings.lost += 1
        if corners:
            findings.boxes.append((line, known, corners))
    return by_image


def _parse_corners(row: Row) -> Corners | None:
    try:
        xmin, ymin, xmax, ymax = (float(row[column]) for column in _FINDING_COLUMNS[2:])
    except ValueError:
        return None
    return (xmin, ymin, xmax, ymax) if all(map(math.isfinite, (xmin, ymin, xmax, ymax))) else None


def _read_images(
    notes: Notes,
    table: Path,
    findings_table: Path,
    dicoms: Mapping[tuple[str, str], Path],
    findings: Mapping[str, _Findings],
) -> Iterator[Mammogram]:
    named = set()
    used = set()
    missing = 0
    for line, row in read_table(table, _IMAGE_COLUMNS):
        image = _make_key(row["image_id"])
        key = (_make_key(row["study_id"]), image)
        path = dicoms.get(key)
        sizes = [row[name] for name in ("height", "width")]
        if image in named:
            notes.count(table, "names an image a second time", line=line)
        elif path is None:
            missing += 1
        elif not all(re.fullmatch(r"[1-9]\d{0,4}", size) for size in sizes):
            notes.note(path, f"{IMAGES} gives no height and width for it")
        elif facts := notes.read_dicom(path, table):
            facts |= {"rows": int(sizes[0]), "cols": int(sizes[1])}
            # without a row it is not known to be free of findings
            marks = findings.get(image) or _Findings(is_marked=True)
            found = list(_make_lesions(notes, findings_table, marks, facts))
            yield _make_mammogram(key, row, facts, marks.is_marked, found)
        named.add(image)
        used.add(key)
    files = "images are not on disk as <study_id>/<image_id>.dicom"
    notes.count(table, f"of its {len(named)} {files}", missing)
    notes.count(table, "DICOM files are not in it", len(dicoms.keys() - used))
    notes.count(findings_table, f"images are not in {IMAGES}", len(findings.keys() - named))


def _make_mammogram(
    key: tuple[str, str], row: Row, facts: dict[str, Any], is_marked: bool, found: list[Found]
) -> Mammogram:
    birads = re.fullmatch(r"(?:BI-RADS\s*)?([0-6][ABC]?)", row["breast_birads"], re.IGNORECASE)
    density = re.fullmatch(r"(?:DENSITY\s*)?([A-D])", row["breast_density"], re.IGNORECASE)
    facts["laterality"] = parse_side(row["laterality"])
    facts["view"] = parse_view(row["view_position"])[1]
    return Mammogram(
        archive="vindr",
        patient_id=hash_id("vindr", key[0]),
        image_id=key[1],
        pathology="normal" if birads and birads[1] == "1" and not is_marked else None,
        **sort_found(found),
        birads=birads[1].upper() if birads else None,
        density=density[1].upper() if density else None,
        official_split=_SPLITS.get(row["split"].lower()),
        **facts,
    )


def _make_lesions(
    notes: Notes, table: Path, findings: _Findings, facts: Mapping[str, Any]
) -> Iterator[Found]:
    yield from [Lost()] * findings.lost
    for line, known, corners in findings.boxes:
        kinds = list(dict.fromkeys(each.kind for each in known if each and each.kind))
        certain = len(kinds) == 1 and all(each and each.kind for each in known)
        box = _round_box(corners, facts["rows"], facts["cols"])
        if box:
            yield from (Lesion(kind, box, kind_is_certain=certain) for kind in kinds)
        elif kinds:
            notes.count(table, "the box is empty, or outside the image", line=line)
            yield Lost(kinds[0] if certain else None)


def _round_box(corners: Corners, rows: int, cols: int) -> Box | None:
    """Return every pixel that (xmin, ymin, xmax, ymax) touches, within the image; None if none."""
    xmin, ymin, xmax, ymax = corners
    top, left = math.floor(max(ymin, 0)), math.floor(max(xmin, 0))
    bottom, right = math.ceil(min(ymax, rows)), math.ceil(min(xmax, cols))
    is_box = ymin < ymax and xmin < xmax and top < bottom and left < right
    return (top, left, bottom, right) if is_box else None
