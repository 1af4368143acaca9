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

_REGION_HEADER = (
    "#filename",
    "file_size",
    "file_attributes",
    "region_count",
    "region_id",
    "region_shape_attributes",
    "region_attributes",
)
_CLINICAL_HEADER = (
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
        root: A folder, made where missing.

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
        outlines = [outline for lesion in mammogram.lesions for outline in lesion.outlines]
        for index, outline in enumerate(outlines):
            points = {
                "all_points_x": np.rint(outline[:, 1]).astype(int).tolist(),
                "all_points_y": np.rint(outline[:, 0]).astype(int).tolist(),
            }
            regions.append(
                (
                    f"{name}.jpg",
                    1,
                    "{}",
                    len(outlines),
                    index,
                    json.dumps({"name": "polygon", **points}),
                    "{}",
                )
            )
        findings = (
            "$".join(dict.fromkeys(_FINDINGS[lesion.kind] for lesion in mammogram.lesions))
            or "Normal"
        )
        facts = (
            mammogram.density or "_",
            mammogram.birads or "",
            findings,
            mammogram.view,
            "",
            1,
            (mammogram.pathology or "").title(),
        )
        clinical.append((f"{name} ", number, mammogram.laterality, "DM", 50, *facts))
    for file, rows in (
        (REGIONS, [_REGION_HEADER, *regions]),
        (CLINICAL, [_CLINICAL_HEADER, *clinical]),
    ):
        with (root / file).open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows(rows)
    return paths
