"""Write mammograms as INbreast is distributed: AllDICOMs, AllXML, INbreast.csv and .xls."""

import plistlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.archives.writers.pixels import write_mammogram
from tests.archives.writers.tables import write_csv
from tfmammo.mammogram import Mammogram

_NAMES = {
    "mass": "Mass",
    "calcification": "Cluster",
    "asymmetry": "Asymmetry",
    "distortion": "Distortion",
}
_MARKS = {
    "Mass ": "mass",
    "Micros": "calcification",
    "Distortion": "distortion",
    "Asymmetry": "asymmetry",
}


def write(mammograms: Iterable[Mammogram], root: Path, *, xls: bool = False) -> list[Path]:
    """Write mammograms of 14 bits."""
    table: list[dict[str, Any]] = []
    paths: list[Path] = []
    for folder in ("AllDICOMs", "AllXML"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, mammogram in enumerate(mammograms, start=20_000_001):
        view = "ML" if mammogram.view == "MLO" else mammogram.view
        name = f"{number}_{mammogram.patient_id}_MG_{mammogram.laterality}_{view}_ANON.dcm"
        paths.append(root / "AllDICOMs" / name)
        write_mammogram(paths[-1], mammogram, 14)
        if mammogram.lesions:
            _write_plist(root / "AllXML" / f"{number}.xml", mammogram)
        kinds = {lesion.kind for lesion in mammogram.lesions}
        table.append(
            {
                "Patient ID": "removed",
                "Laterality": mammogram.laterality,
                "View": mammogram.view,
                "File Name": number,
                "ACR": mammogram.density or "    ",
                "Bi-Rads": mammogram.birads or "",
                **{column: "X" if kind in kinds else "" for column, kind in _MARKS.items()},
            }
        )
    plain = [{name: row[name] for name in row if name not in _MARKS} for row in table]
    write_csv(root / "INbreast.csv", plain, separator=";")
    if xls:
        _write_xls(root / "INbreast.xls", table)
    return paths


def _write_plist(path: Path, mammogram: Mammogram) -> None:
    regions = [
        {
            "Name": _NAMES[lesion.kind],
            "NumberOfPoints": len(outline),
            "Point_px": [f"({col:.6f}, {row:.6f})" for row, col in outline.tolist()],
            "Type": 15,
        }
        for lesion in mammogram.lesions
        for outline in lesion.outlines
    ]
    images = [{"ImageIndex": 0, "NumberOfROIs": len(regions), "ROIs": regions}]
    path.write_bytes(plistlib.dumps({"Images": images}))


def _write_xls(path: Path, table: list[dict[str, Any]]) -> None:
    import xlwt  # old Excel's format is written by tests alone

    book = xlwt.Workbook()
    sheet = book.add_sheet("Folha1")
    columns = list(table[0])
    # two rows of junk at the end
    rows = [dict(zip(columns, columns, strict=True)), *table, {}, {"Patient ID": "Total"}]
    for index, row in enumerate(rows):
        for column, value in row.items():
            is_number = column == "File Name" and index
            sheet.write(index, columns.index(column), float(value) if is_number else value)
    book.save(str(path))
