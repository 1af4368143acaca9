"""Write mammograms as CDD-CESM is distributed: JPEGs, a VIA table, a clinical table."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tfmammo.archives.cdd_cesm import CLINICAL, REGIONS
from tfmammo.mammogram import Mammogram

REGION_HEADER = (
    "#filename",
    "file_size",
    "file_attributes",
    "region_count",
    "region_id",
    "region_shape_attributes",
    "region_attributes",
)
CLINICAL_HEADER = (
    "Image_name",
    "Patient_ID",
    "Side",
    "Type",
    "Age",
    "Breast density (ACR)",
    "BIRADS",
    "Findings",
    "View",
    "Tags",
    "Machine",
    "Pathology Classification/ Follow up",
)
_FINDINGS = {
    "mass": "Mass",
    "calcification": "Pleomorphic calcifications",
    "asymmetry": "Focal asymmetry",
    "distortion": "Distortion",
}


def write(mammograms: Iterable[Mammogram], root: Path) -> list[Path]:
    """Write mammograms, one a patient, side and view; every lesion becomes a polygon.

    Args:
        mammograms: Each with laterality and view.

    Returns:
        The JPEGs, in the order given; JPEG loses what it loses at quality 100, and grey values have
        8 bits.
    """
    folder = root / "Low energy images of CDD-CESM"
    patients = dict[str, int]()
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    regions: list[Sequence[object]] = []
    clinical: list[Sequence[object]] = []
    for mammogram in mammograms:
        number = patients.setdefault(mammogram.patient_id, len(patients) + 1)
        name = f"P{number}_{mammogram.laterality}_DM_{mammogram.view}"
        grey = np.rint(mammogram.pixels()[..., 0] * 255).astype(np.uint8)
        Image.fromarray(grey).convert("RGB").save(
            folder / f"{name}.jpg", quality=100, subsampling=0
        )
        paths.append(folder / f"{name}.jpg")
        regions += _region_rows(f"{name}.jpg", mammogram)
        clinical.append((f"{name} ", number, *_clinical_cells(mammogram)))
    write_tables(root, [REGION_HEADER, *regions], [CLINICAL_HEADER, *clinical])
    return paths


def _region_rows(file: str, mammogram: Mammogram) -> list[Sequence[object]]:
    """Return the rows of a mammogram's outlines in the table of regions."""
    outlines = [outline for lesion in mammogram.lesions for outline in lesion.outlines]
    rows: list[Sequence[object]] = []
    for index, outline in enumerate(outlines):
        polygon = {
            "name": "polygon",
            "all_points_x": np.rint(outline[:, 1]).astype(int).tolist(),
            "all_points_y": np.rint(outline[:, 0]).astype(int).tolist(),
        }
        rows.append((file, 1, "{}", len(outlines), index, json.dumps(polygon), "{}"))
    return rows


def _clinical_cells(mammogram: Mammogram) -> Sequence[object]:
    """Return a mammogram's cells of the clinical table, from Side on."""
    findings = dict.fromkeys(_FINDINGS[lesion.kind] for lesion in mammogram.lesions)
    return (
        mammogram.laterality,
        "DM",
        50,
        mammogram.density or "_",
        mammogram.birads or "",
        "$".join(findings) or "Normal",
        mammogram.view,
        "",
        1,
        (mammogram.pathology or "").title(),
    )


def write_tables(
    root: Path, regions: Sequence[Sequence[object]], clinical: Sequence[Sequence[object]]
) -> None:
    """Write the table of regions and the clinical one, whose first rows are their headers."""
    for name, rows in ((REGIONS, regions), (CLINICAL, clinical)):
        with (root / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
