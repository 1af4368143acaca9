"""EMBED, the Emory Breast Imaging Dataset (open data): boxes, findings and biopsies.

480,323 files of 22,382 patients. A file is found by its name, whatever precedes it in
anon_dicom_path. ROI_coords are boxes (row_min, col_min, row_max, col_max). Findings are those of
the exam on the image's side, on both (B) or on none stated. bside, where it is stated, is the side
of the pathology. The words of massshape, massmargin and asses are those of the archive's own legend
and sample notebook.

docs/archives/embed.md has the choices.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from tfmammo.archives.findings import worst_pathology
from tfmammo.archives.notes import Notes
from tfmammo.archives.tables import Row, read_table
from tfmammo.archives.views import parse_side, parse_view
from tfmammo.mammogram import (
    Found,
    Lesion,
    LesionKind,
    Lost,
    Mammogram,
    Pathology,
    Skipped,
    cut_box,
    hash_id,
    hash_patient,
    sort_found,
)

METADATA = ("embed_opendata_metadata.csv", "embed_opendata_metadata_reduced.csv")
CLINICAL = ("embed_opendata_clinical.csv", "embed_opendata_clinical_reduced.csv")
_FILE_COLUMNS = (
    "anon_dicom_path",
    "empi_anon",
    "acc_anon",
    "finalimagetype",
    "imagelateralityfinal",
    "viewposition",
    "num_roi",
    "roi_coords",
)
_FINDING_COLUMNS = ("acc_anon", "side", "asses", "path_severity", "massshape")
_SHAPE_KINDS: dict[str, LesionKind] = {
    **dict.fromkeys("GROXNYDL", "mass"),
    **dict.fromkeys("TBSFV", "asymmetry"),
    **dict.fromkeys("QA", "distortion"),
}
_SHAPES = {"R": "round", "O": "oval", "X": "irregular"}
_MARGINS = {
    "D": "circumscribed",
    "U": "obscured",
    "M": "microlobulated",
    "I": "indistinct",
    "S": "spiculated",
}
_BIRADS = dict(zip("ANBPSMK", "0123456", strict=True))
_PATHOLOGIES: dict[str, Pathology] = {
    **dict.fromkeys("01", "malignant"),
    **dict.fromkeys("2345", "benign"),
}
_BOX = re.compile(r"[(\[]\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*[)\]]")


def read(root: Path, skipped: Skipped | None = None) -> list[Mammogram]:
    """Read both tables and the DICOM headers, in the order of the table of files."""
    notes = Notes(root, skipped, "EMBED")
    paths, (metadata, clinical) = notes.find((".dcm",), METADATA, CLINICAL)
    exams: dict[str, list[Row]] = defaultdict(list)
    for _, row in read_table(clinical, _FINDING_COLUMNS):
        exams[row["acc_anon"].removesuffix(".0")].append(row)
    files = {path.name: path for path in reversed(paths)}
    return notes.finish(_read_files(notes, metadata, files, exams))


def _read_files(
    notes: Notes, table: Path, files: dict[str, Path], exams: dict[str, list[Row]]
) -> Iterator[Mammogram]:
    for number, row in read_table(table, _FILE_COLUMNS):
        name = PurePosixPath(row["anon_dicom_path"].replace("\\", "/")).name
        path = files.pop(name, None)
        if path is None:
            notes.count(table, "of its files are not here")
        elif row["finalimagetype"].upper() != "2D":
            notes.count(table, "C-views or screen saves, which are no mammograms")
        elif row.get("spot_mag", "").startswith("1"):
            notes.count(table, "spot or magnification views")
        elif not row["empi_anon"]:
            notes.count(table, "no patient is named", line=number)
        elif facts := notes.read_dicom(path, table):
            try:
                yield _make_mammogram(notes, path, row, exams, facts)
            except ValueError as error:  # a patient's number without its last digits
                notes.note(path, error)
    notes.count(table, "DICOM files are not in it, or a second time", len(files))


def _make_mammogram(
    notes: Notes, path: Path, row: Row, exams: dict[str, list[Row]], facts: dict[str, Any]
) -> Mammogram:
    side = parse_side(row["imagelateralityfinal"]) or facts["laterality"]
    facts["laterality"] = side
    facts["view"] = parse_view(row["viewposition"])[1] or facts["view"]
    exam = exams.get(row["acc_anon"].removesuffix(".0"), [])
    rows = [each for each in exam if each["side"].upper() in (side, "B", "")]
    findings = [
        each
        for each in rows
        if each["asses"].upper() != "N" or _list_kinds(each) or _find_severity(each, side)
    ]
    pathology = worst_pathology(_PATHOLOGIES.get(_find_severity(each, side)) for each in findings)
    count = row["num_roi"].removesuffix(".0")
    boxes = _BOX.findall(row["roi_coords"])
    if rows and not findings and not boxes and count in ("", "0"):
        pathology = "normal"
    found = list(_make_lesions(notes, path, boxes, findings, pathology, facts))
    if pathology != "normal" and (
        not boxes or len(findings) > len(boxes) or count not in ("", str(len(boxes)))
    ):
        found.append(Lost())
    birads = {_BIRADS[word] for each in rows if (word := each["asses"].upper()) in _BIRADS}
    density = {each.get("tissueden", "")[:1] for each in exam} & set("1234")
    return Mammogram(
        archive="embed",
        patient_id=hash_patient("embed", row["empi_anon"]),
        image_id=hash_id("embed", path.stem),
        pathology=pathology,
        **sort_found(found),
        birads=birads.pop() if len(birads) == 1 else None,
        density=density.pop() if len(density) == 1 else None,
        **facts,
    )


def _list_kinds(row: Row) -> list[LesionKind]:
    """List what a row of the table of findings describes."""
    kinds = [_SHAPE_KINDS[shape]] if (shape := row["massshape"].upper()) in _SHAPE_KINDS else []
    if not kinds and (row.get("massmargin") or row.get("massdens")):
        kinds = ["mass"]
    if row.get("calcfind") or row.get("calcdistri"):
        kinds.append("calcification")
    return kinds


def _find_severity(row: Row, side: str | None) -> str:
    is_here = row.get("bside", "").upper() in (side, "B", "")
    return row["path_severity"].removesuffix(".0") if is_here else ""


def _make_lesions(
    notes: Notes,
    path: Path,
    boxes: list[tuple[str, ...]],
    findings: list[Row],
    pathology: Pathology | None,
    facts: dict[str, Any],
) -> Iterator[Found]:
    kinds = [kind for row in findings for kind in _list_kinds(row)]
    certain = len(set(kinds)) == 1 and all(map(_list_kinds, findings))
    kind: LesionKind = "mass" if "mass" in kinds or not kinds else kinds[0]
    details: dict[str, Any] = {"kind_is_certain": certain}
    if len(findings) == 1 or pathology == "benign":
        details["pathology"] = pathology
    if len(findings) == 1 and certain and kind == "mass":
        details["shape"] = _SHAPES.get(findings[0]["massshape"].upper())
        details["margin"] = _MARGINS.get(findings[0].get("massmargin", "").upper())
    for box in boxes:
        top, left, bottom, right = map(int, box)
        try:
            inside = cut_box((top, left, bottom, right), facts["rows"], facts["cols"])
        except ValueError as error:
            notes.note(path, error)
            yield Lost(kind if certain else None)
        else:
            yield Lesion(kind, inside, **details)
