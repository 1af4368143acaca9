"""Write mammograms as VinDr-Mammo is distributed: images and three tables.

Images lie at images/<study_id>/<image_id>.dicom.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID, ExplicitVRLittleEndian

from tests.archives.writers.pixels import quantize
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.mammogram import Mammogram

_CATEGORIES = {
    "mass": "Mass",
    "calcification": "Suspicious Calcification",
    "asymmetry": "Focal Asymmetry",
    "distortion": "Architectural Distortion",
}
_PLACE = ("study_id", "series_id", "image_id", "laterality", "view_position", "height", "width")
_IMAGE_COLUMNS = (*_PLACE, "breast_birads", "breast_density", "split")
_BOX = ("xmin", "ymin", "xmax", "ymax")
_FINDING_COLUMNS = (*_IMAGE_COLUMNS[:-1], "finding_categories", "finding_birads", *_BOX, "split")
_HEADER_COLUMNS = ("SOP Instance UID", "Patient's Age", "Imager Pixel Spacing")


def write(
    mammograms: Iterable[Mammogram],
    root: Path,
    *,
    bits: int = 12,
    monochrome1: bool = False,
    padding: int = 0,
    windows: int = 2,
    upper_case: bool = False,
    byte_order_mark: bool = False,
    syntax: UID = ExplicitVRLittleEndian,
) -> list[Path]:
    """Write mammograms as VinDr-Mammo distributes its own.

    A patient becomes a study and a lesion a box; outlines are lost.

    Args:
        bits: BitsStored, 8 to 16; pixels are rint(value * (2^bits - 1)).
        monochrome1: Store them inverted, as some of the archive's scanners do.
        padding: So many columns at the far side of the breast are marked by PixelPaddingValue,
            where the pixels are black.
        windows: So many, the first of which is the range of the bits.
        upper_case: Names of images in capitals.
        byte_order_mark: At the beginning of the tables, as Excel saves them.
        syntax: Transfer syntax of the DICOM.
    """
    images: list[dict[str, Any]] = []
    findings: list[dict[str, Any]] = []
    headers: list[dict[str, Any]] = []
    paths: list[Path] = []
    for mammogram in mammograms:
        facts = _facts(mammogram)
        name = f"{facts['image_id']}.dicom"
        paths.append(root / "images" / facts["study_id"] / (name.upper() if upper_case else name))
        stored, elements = _stored(mammogram, bits, monochrome1, padding)
        elements |= _windows(bits, windows) | {
            "ImagerPixelSpacing": list(mammogram.spacing) if mammogram.spacing else None
        }
        write_dicom(paths[-1], stored, bits, syntax=syntax, **elements)
        images.append(facts)
        findings.extend(_findings(mammogram, facts))
        headers.append(_header(mammogram, facts))
    encoding = "utf-8-sig" if byte_order_mark else "utf-8"
    _write_table(root / "breast-level_annotations.csv", _IMAGE_COLUMNS, images, encoding)
    _write_table(root / "finding_annotations.csv", _FINDING_COLUMNS, findings, encoding)
    _write_table(root / "metadata.csv", _HEADER_COLUMNS, headers, encoding)
    return paths


def _facts(mammogram: Mammogram) -> dict[str, Any]:
    """Return an image's row; all identifiers are 32 hexadecimal digits."""
    study, image = (
        hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()
        for name in (mammogram.patient_id, mammogram.image_id)
    )
    values = (
        study,
        study[::-1],
        image,
        mammogram.laterality,
        mammogram.view,
        mammogram.rows,
        mammogram.cols,
    )
    assessed = (f"BI-RADS {mammogram.birads or 1}", f"DENSITY {_density(mammogram.density)}")
    split = "test" if mammogram.official_split == "test" else "training"
    return dict(zip(_IMAGE_COLUMNS, (*values, *assessed, split), strict=True))


def _density(word: str | None) -> str:
    return "ABCD"[int(word) - 1] if word in ("1", "2", "3", "4") else word or "C"


def _stored(
    mammogram: Mammogram, bits: int, monochrome1: bool, padding: int
) -> tuple[NDArray[np.uint16], dict[str, Any]]:
    most = 2**bits - 1
    stored = quantize(mammogram, bits)
    if monochrome1:
        stored = (most - stored).astype(np.uint16)
    elements: dict[str, Any] = {
        "PhotometricInterpretation": "MONOCHROME1" if monochrome1 else "MONOCHROME2"
    }
    if padding:
        # As scanners do: a value that no tissue has, here the one that would be brightest, so that
        # it shows if it is kept.
        value = 0 if monochrome1 else most
        stored[stored == value] = value + 1 if monochrome1 else value - 1
        stored[:, slice(-padding, None) if mammogram.laterality == "L" else slice(padding)] = value
        elements["PixelPaddingValue"] = value
    return stored, elements


def _windows(bits: int, count: int) -> dict[str, Any]:
    """Return windows of which the first gives back every stored value.

    Its center - 0.5 -+ (width - 1) / 2 are 0 and 2^bits - 1.
    """
    if count == 0:
        return {}
    others = range(1, count)
    return {
        "WindowCenter": [2 ** (bits - 1), *(100 * number for number in others)],
        "WindowWidth": [2**bits, *(50 * number for number in others)],
        "VOILUTFunction": "LINEAR",
    }


def _findings(mammogram: Mammogram, facts: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for lesion in mammogram.lesions:
        top, left, bottom, right = lesion.box
        corners = dict(zip(_BOX, map(float, (left, top, right, bottom)), strict=True))
        rows.append(
            facts
            | corners
            | {
                "finding_categories": f"['{_CATEGORIES[lesion.kind]}']",
                "finding_birads": "BI-RADS 4",
            }
        )
    return rows or [facts | {"finding_categories": "['No Finding']"}]


def _header(mammogram: Mammogram, facts: dict[str, Any]) -> dict[str, Any]:
    spacing = f"[{mammogram.spacing[0]}, {mammogram.spacing[1]}]" if mammogram.spacing else ""
    return dict(zip(_HEADER_COLUMNS, (facts["image_id"], "053Y", spacing), strict=True))


def _write_table(
    path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]], encoding: str
) -> None:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
