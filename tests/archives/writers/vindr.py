"""Write mammograms as VinDr-Mammo is distributed: images/<study_id>/<image_id>.dicom, tables."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.archives.writers.pixels import write_mammogram
from tests.archives.writers.tables import write_csv
from tfmammo.mammogram import Mammogram

_CATEGORIES = {
    "mass": "Mass",
    "calcification": "Suspicious Calcification",
    "asymmetry": "Focal Asymmetry",
    "distortion": "Architectural Distortion",
}


def write(mammograms: Iterable[Mammogram], root: Path, *, upper_case: bool = False) -> list[Path]:
    """Write mammograms of 12 bits; a patient becomes a study and a lesion a box."""
    images: list[dict[str, Any]] = []
    findings: list[dict[str, Any]] = []
    paths: list[Path] = []
    for mammogram in mammograms:
        facts = _facts(mammogram)
        name = f"{facts['image_id']}.dicom"
        paths.append(root / "images" / facts["study_id"] / (name.upper() if upper_case else name))
        # the first gives back every stored value: center - 0.5 -+ (width - 1) / 2 are its ends
        windows = {"WindowCenter": [2048, 100], "WindowWidth": [4096, 50]}
        write_mammogram(paths[-1], mammogram, 12, **windows)
        images.append(facts)
        findings.extend(_findings(mammogram, facts))
    write_csv(root / "breast-level_annotations.csv", images)
    write_csv(root / "finding_annotations.csv", findings)
    return paths


def _facts(mammogram: Mammogram) -> dict[str, Any]:
    """Return an image's row; all identifiers are 32 hexadecimal digits."""
    study, image = (
        hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()
        for name in (mammogram.patient_id, mammogram.image_id)
    )
    word = mammogram.density
    density = "ABCD"[int(word) - 1] if word in ("1", "2", "3", "4") else word or "C"
    return {
        "study_id": study,
        "series_id": study[::-1],
        "image_id": image,
        "laterality": mammogram.laterality,
        "view_position": mammogram.view,
        "height": mammogram.rows,
        "width": mammogram.cols,
        "breast_birads": f"BI-RADS {mammogram.birads or 1}",
        "breast_density": f"DENSITY {density}",
        "split": "test" if mammogram.official_split == "test" else "training",
    }


def _findings(mammogram: Mammogram, facts: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for lesion in mammogram.lesions:
        top, left, bottom, right = map(float, lesion.box)
        corners = {"xmin": left, "ymin": top, "xmax": right, "ymax": bottom}
        named = f"['{_CATEGORIES[lesion.kind]}']"
        rows.append(facts | {"finding_categories": named} | corners)
    blank = dict.fromkeys(("xmin", "ymin", "xmax", "ymax"), "")
    return rows or [facts | {"finding_categories": "['No Finding']"} | blank]
