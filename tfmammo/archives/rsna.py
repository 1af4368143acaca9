"""RSNA Screening Mammography Breast Cancer Detection (2022): breasts with and without cancer.

54,706 digital mammograms of 11,913 women of two sites. Nothing says where a finding is, so there
are no lesions, and an image that is not normal counts as one that lost a lesion.

docs/archives/rsna.md has the choices.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfmammo.archives.notes import Notes
from tfmammo.archives.tables import Row, read_table
from tfmammo.archives.views import parse_side, parse_view
from tfmammo.mammogram import (
    Lost,
    Mammogram,
    Pathology,
    Skipped,
    hash_id,
    hash_patient,
    normalize_patient,
)

TABLE = "train.csv"
_COLUMNS = ("patient_id", "image_id", "laterality", "view", "cancer", "biopsy", "birads", "density")


def read(root: Path, skipped: Skipped | None = None) -> list[Mammogram]:
    """Read the table and the DICOM headers, in the table's order."""
    notes = Notes(root, skipped, "RSNA")
    return notes.finish(_read_rows(notes))


def _read_rows(notes: Notes) -> Iterator[Mammogram]:
    paths, (table,) = notes.find((".dcm",), [TABLE])
    files = {(path.parent.name, path.stem): path for path in reversed(paths)}
    for number, row in read_table(table, _COLUMNS):
        try:
            patient, image = (normalize_patient(row[name]) for name in ("patient_id", "image_id"))
        except ValueError as error:
            notes.count(table, f"patient_id or image_id {error}", line=number)
            continue
        path = files.pop((patient, image), None)
        if not patient or path is None:
            notes.count(table, "of its images are not here as <patient_id>/<image_id>.dcm")
            continue
        if facts := notes.read_dicom(path, table):
            yield _make_mammogram(path, patient, row, facts)
    notes.count(table, "DICOM files are not in it", len(files))


def _make_mammogram(path: Path, patient: str, row: Row, facts: dict[str, Any]) -> Mammogram:
    pathology = _find_pathology(row)
    facts["laterality"] = parse_side(row["laterality"]) or facts["laterality"]
    facts["view"] = parse_view(row["view"])[1] or facts["view"]
    return Mammogram(
        archive="rsna",
        patient_id=hash_patient("rsna", patient),
        image_id=hash_id("rsna", f"{patient}/{path.stem}"),
        pathology=pathology,
        lost=() if pathology == "normal" else (Lost(),),
        birads=_number(row["birads"]) or None,
        density=row["density"].upper() or None,
        **facts,
    )


def _find_pathology(row: Row) -> Pathology | None:
    cancer, biopsy, birads = (_number(row[name]) for name in ("cancer", "biopsy", "birads"))
    is_difficult = row.get("difficult_negative_case", "").lower() in ("true", "1")
    if cancer == "1":
        return "malignant"
    if cancer == "0" and biopsy == "1":
        return "benign"
    is_normal = (cancer, biopsy, birads) == ("0", "0", "1") and not is_difficult
    return "normal" if is_normal else None


def _number(cell: str) -> str:
    return cell.removesuffix(".0")  # pandas, of a column with blanks
