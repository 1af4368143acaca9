"""Write mammograms as CDD-CESM is distributed: JPEGs, a VIA table, a clinical table."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.archives.writers.tables import write_csv
from tfmammo.archives.cdd_cesm import CLINICAL, REGIONS
from tfmammo.mammogram import Mammogram

_FINDINGS = {
    "mass": "Mass",
    "calcification": "Pleomorphic calcifications",
    "asymmetry": "Focal asymmetry",
    "distortion": "Distortion",
}


def write(mammograms: Iterable[Mammogram], root: Path) -> list[Path]:
    """Write mammograms, one a patient, side and view, as JPEGs; every lesion becomes a polygon."""
    folder = root / "Low energy images of CDD-CESM"
    patients = dict[str, int]()
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    regions: list[dict[str, Any]] = []
    clinical: list[dict[str, Any]] = []
    for mammogram in mammograms:
        number = patients.setdefault(mammogram.patient_id, len(patients) + 1)
        name = f"P{number}_{mammogram.laterality}_DM_{mammogram.view}"
        grey = np.rint(mammogram.pixels()[..., 0] * 255).astype(np.uint8)
        paths.append(folder / f"{name}.jpg")
        Image.fromarray(grey).convert("RGB").save(paths[-1], quality=100, subsampling=0)
        shapes = []
        for outline in (each for lesion in mammogram.lesions for each in lesion.outlines):
            rows, cols = np.rint(outline).astype(int).T.tolist()
            shapes.append({"name": "polygon", "all_points_x": cols, "all_points_y": rows})
        regions += list_regions(name, shapes)
        findings = dict.fromkeys(_FINDINGS[lesion.kind] for lesion in mammogram.lesions)
        facts = {"birads": mammogram.birads or "", "density": mammogram.density or "_"}
        pathology = (mammogram.pathology or "").title()
        clinical.append(describe(name, "$".join(findings) or "Normal", pathology, **facts))
    write_tables(root, regions, clinical)
    return paths


def list_regions(name: str, shapes: Sequence[Any]) -> list[dict[str, Any]]:
    """Return an image's rows of the VIA table; a shape may be text."""
    return [
        {
            "#filename": f"{name}.jpg",
            "region_id": number,
            "region_shape_attributes": shape if isinstance(shape, str) else json.dumps(shape),
        }
        for number, shape in enumerate(shapes)
    ]


def describe(
    name: str, findings: str, pathology: str, birads: str = "4", density: str = "B"
) -> dict[str, str]:
    """Return an image's row of the clinical table."""
    return {
        "Image_name": f"{name} ",
        "Age": "50",
        "Breast density (ACR)": density,
        "BIRADS": birads,
        "Findings": findings,
        "Pathology Classification/ Follow up": pathology,
    }


def write_tables(
    root: Path, regions: Sequence[dict[str, Any]], clinical: Sequence[dict[str, str]]
) -> None:
    """Write the table of regions and the clinical one."""
    write_csv(root / REGIONS, regions or [dict.fromkeys(list_regions("", [""])[0], "")])
    write_csv(root / CLINICAL, clinical)
