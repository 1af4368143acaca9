"""CMMD, the Chinese Mammography Database: 1,775 patients whose findings were biopsied.

The folder D1-0001 names the patient, the header side and view. The table has a row for each breast.
Nothing says where a finding is, so each image counts as one that lost lesions of its breast's
abnormality ("both": a mass and a calcification).

docs/archives/cmmd.md has the choices.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tfmammo.archives.findings import find_word, parse_pathology, worst_pathology
from tfmammo.archives.notes import Notes
from tfmammo.archives.tables import Row, read_table
from tfmammo.archives.views import parse_side
from tfmammo.mammogram import Lost, Mammogram, Skipped, hash_id, hash_patient

TABLES = tuple(f"cmmd_clinicaldata_revision.{ending}" for ending in ("xlsx", "csv", "xls"))
_COLUMNS = ("id1", "leftright", "abnormality", "classification")
_PATIENT = re.compile(r"D[0-9]+-[0-9]+", re.IGNORECASE)

_Breast = tuple[str, str | None]  # patient, side


def read(root: Path, skipped: Skipped | None = None) -> list[Mammogram]:
    """Read the table and the DICOM headers, in the order of the files' paths."""
    notes = Notes(root, skipped, "CMMD")
    paths, (path,) = notes.find((".dcm",), TABLES)
    rows: dict[_Breast, list[Row]] = defaultdict(list)
    for _, row in read_table(path, _COLUMNS):
        rows[row["id1"].upper(), parse_side(row["leftright"])].append(row)
    return notes.finish(_read_images(notes, path, paths, rows))


def _read_images(
    notes: Notes, table: Path, paths: list[Path], rows: dict[_Breast, list[Row]]
) -> Iterator[Mammogram]:
    seen = set()
    for path in sorted(paths):
        parents = path.relative_to(notes.root).parts[:-1]
        patient = next((part.upper() for part in parents if _PATIENT.fullmatch(part)), None)
        if patient is None:
            notes.count(table, "DICOM files are in no patient's folder (D1-0001)")
            continue
        facts = notes.read_dicom(path, table)
        if facts is None:
            continue
        breast = rows.get((patient, facts["laterality"]), [])
        seen.add((patient, facts["laterality"]))
        yield Mammogram(
            archive="cmmd",
            patient_id=hash_patient("cmmd", patient),
            image_id=hash_id("cmmd", path.relative_to(notes.root).as_posix()),
            pathology=worst_pathology(parse_pathology(row["classification"]) for row in breast),
            lost=tuple(lost for row in breast for lost in _list_lost(row)) or (Lost(),),
            **facts,
        )
    notes.count(table, "of its breasts have no image here", len(rows.keys() - seen))


def _list_lost(row: Row) -> tuple[Lost, ...]:
    if row["abnormality"].lower() == "both":
        return Lost("mass"), Lost("calcification")
    finding = find_word(row["abnormality"])
    return (Lost(finding.kind if finding and finding.is_certain else None),)
