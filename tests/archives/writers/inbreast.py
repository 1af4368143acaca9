"""Write mammograms as INbreast is distributed: AllDICOMs, AllXML, INbreast.csv and .xls."""

from __future__ import annotations

import plistlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import pandas as pd

from tests.archives.writers.pixels import quantize
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.mammogram import Mammogram

_CSV_COLUMNS = [
    "Patient ID",
    "Patient age",
    "Laterality",
    "View",
    "Acquisition date",
    "File Name",
    "ACR",
    "Bi-Rads",
]


def write(
    mammograms: Iterable[Mammogram],
    root: Path,
    *,
    bits: int = 14,
    monochrome1: bool = False,
    xls: bool = False,
) -> list[Path]:
    """Write mammograms as INbreast distributes its own.

    There are AllDICOMs, AllXML (of those with lesions) and INbreast.csv.

    Args:
        bits: BitsStored, 8 to 16; pixels are rint(value * (2^bits - 1)).
        monochrome1: Store them inverted.
        xls: Also write INbreast.xls, which needs the package xlwt.
    """
    table: list[dict[str, Any]] = []
    paths: list[Path] = []
    for folder in ("AllDICOMs", "AllXML"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, mammogram in enumerate(mammograms, start=20_000_001):
        view = "ML" if mammogram.view == "MLO" else mammogram.view
        name = f"{number}_{mammogram.patient_id}_MG_{mammogram.laterality}_{view}_ANON.dcm"
        paths.append(root / "AllDICOMs" / name)
        stored = quantize(mammogram, bits)
        write_dicom(
            paths[-1],
            2**bits - 1 - stored if monochrome1 else stored,
            bits,
            PhotometricInterpretation="MONOCHROME1" if monochrome1 else "MONOCHROME2",
            ImagerPixelSpacing=list(mammogram.spacing) if mammogram.spacing else None,
        )
        if mammogram.lesions:
            _write_plist(root / "AllXML" / f"{number}.xml", mammogram)
        table.append(_row(number, mammogram))
    pd.DataFrame(table, columns=_CSV_COLUMNS).to_csv(root / "INbreast.csv", sep=";", index=False)
    if xls:
        _write_xls(root / "INbreast.xls", table)
    return paths


def _write_plist(path: Path, mammogram: Mammogram) -> None:
    names = {
        "mass": "Mass",
        "calcification": "Cluster",
        "asymmetry": "Asymmetry",
        "distortion": "Distortion",
    }
    regions: list[dict[str, Any]] = []
    for lesion in mammogram.lesions:
        for outline in lesion.outlines:
            points = [f"({col:.6f}, {row:.6f})" for row, col in outline.tolist()]
            row, col = outline.mean(axis=0).tolist()
            regions.append(
                {
                    # cm2
                    "Area": cv2.contourArea(outline)
                    * (mammogram.spacing or (0.07, 0.07))[0] ** 2
                    / 100,
                    "Center": f"({col:.6f}, {row:.6f})",
                    "IndexInImage": len(regions),
                    "Name": names[lesion.kind],
                    "NumberOfPoints": len(points),
                    "Point_mm": ["(0.000000, 0.000000, 0.000000)"] * len(points),
                    "Point_px": points,
                    "Type": 15,
                }
            )
    with path.open("wb") as file:
        plistlib.dump(
            {"Images": [{"ImageIndex": 0, "NumberOfROIs": len(regions), "ROIs": regions}]}, file
        )


def _row(number: int, mammogram: Mammogram) -> dict[str, Any]:
    kinds = {lesion.kind for lesion in mammogram.lesions}
    marks = {
        "Mass ": "mass",
        "Micros": "calcification",
        "Distortion": "distortion",
        "Asymmetry": "asymmetry",
    }
    return {
        "Patient ID": "removed",
        "Patient age": "removed",
        "Laterality": mammogram.laterality,
        "View": mammogram.view,
        "Acquisition date": 201001,
        "File Name": number,
        "Other Notes": "",
        "ACR": mammogram.density or "    ",
        "Bi-Rads": mammogram.birads or "",
        **{column: "X" if kind in kinds else "" for column, kind in marks.items()},
        "Findings Notes (in Portuguese)": "",
        "Lesion Annotation Status": "" if kinds else "No annotation (normal)",
        "Pectoral Muscle Annotation": "",
        "Other Annotations": "",
    }


def _write_xls(path: Path, table: list[dict[str, Any]]) -> None:
    import xlwt  # old Excel's format is written by tests alone

    book = xlwt.Workbook()
    sheet = book.add_sheet("Folha1")
    columns = list(table[0]) if table else ["File Name"]
    counts = {
        column: sum(row[column] == "X" for row in table) for column in ("Mass ", "Micros") if table
    }
    # two rows of junk at the end
    rows = [dict(zip(columns, columns, strict=True)), *table, {}, {"Patient ID": "Total", **counts}]
    for index, row in enumerate(rows):
        for column, value in row.items():
            sheet.write(
                index,
                columns.index(column),
                float(value) if column == "File Name" and index else value,
            )
    book.save(str(path))
