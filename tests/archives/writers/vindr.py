"""Write mammograms as VinDr-Mammo is distributed: images/<study_id>/<image_id>.dicom, tables."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.archives.writers.pixels import quantize
from tests.archives.writers.tables import write_csv
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.mammogram import Mammogram

_CATEGORIES = {
    "mass": "Mass",
    "calcification": "Suspicious Calcification",
    "asymmetry": "Focal Asymmetry",
    "distortion": "Architectural Distortion",
}


def write(
    mammograms: Iterable[Mammogram],
    root: Path,
    *,
    bits: int = 12,
    monochrome1: bool = False,
    padding: int = 0,
    windows: int = 2,
    upper_case: bool = False,
) -> list[Path]:
    """Write mammograms; a patient becomes a study and a lesion a box.

    Args:
        bits: BitsStored, 8 to 16; pixels are rint(value * (2^bits - 1)).
        monochrome1: Store them inverted, as some of the archive's scanners do.
        padding: So many columns at the far side of the breast are marked by PixelPaddingValue,
            where the pixels are black.
        windows: So many, the first of which is the range of the bits.
        upper_case: Names of images in capitals.
    """
    images: list[dict[str, Any]] = []
    findings: list[dict[str, Any]] = []
    paths: list[Path] = []
    for mammogram in mammograms:
        facts = _facts(mammogram)
        name = f"{facts['image_id']}.dicom"
        paths.append(root / "images" / facts["study_id"] / (name.upper() if upper_case else name))
        stored, elements = _stored(mammogram, bits, monochrome1, padding)
        if windows:
            # the first gives back every stored value: center - 0.5 -+ (width - 1) / 2 are its ends
            others = range(1, windows)
            elements["WindowCenter"] = [2 ** (bits - 1), *(100 * number for number in others)]
            elements["WindowWidth"] = [2**bits, *(50 * number for number in others)]
        elements["ImagerPixelSpacing"] = list(mammogram.spacing) if mammogram.spacing else None
        write_dicom(paths[-1], stored, bits, **elements)
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


def _stored(
    mammogram: Mammogram, bits: int, monochrome1: bool, padding: int
) -> tuple[NDArray[np.uint16], dict[str, Any]]:
    most = 2**bits - 1
    stored = quantize(mammogram, bits)
    if monochrome1:
        stored = (most - stored).astype(np.uint16)
    form = "MONOCHROME1" if monochrome1 else "MONOCHROME2"
    elements: dict[str, Any] = {"PhotometricInterpretation": form}
    if padding:
        # As scanners do: a value that no tissue has, here the one that would be brightest, so that
        # it shows if it is kept.
        value = 0 if monochrome1 else most
        stored[stored == value] = value + 1 if monochrome1 else value - 1
        stored[:, slice(-padding, None) if mammogram.laterality == "L" else slice(padding)] = value
        elements["PixelPaddingValue"] = value
    return stored, elements


def _findings(mammogram: Mammogram, facts: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for lesion in mammogram.lesions:
        top, left, bottom, right = map(float, lesion.box)
        corners = {"xmin": left, "ymin": top, "xmax": right, "ymax": bottom}
        named = f"['{_CATEGORIES[lesion.kind]}']"
        rows.append(facts | {"finding_categories": named} | corners)
    blank = dict.fromkeys(("xmin", "ymin", "xmax", "ymax"), "")
    return rows or [facts | {"finding_categories": "['No Finding']"} | blank]
