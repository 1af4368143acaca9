"""Write mammograms as OMI-DB is distributed: data and images.

Data are imagedb, nbss and DICOM headers as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pydicom

from tests.archives.writers.pixels import quantize
from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.mammogram import Lesion, Mammogram

_FLAGS = {
    "mass": "Mass",
    "calcification": "SuspiciousCalcifications",
    "asymmetry": "FocalAsymmetry",
    "distortion": "ArchitecturalDistortion",
}
_OTHER_FLAGS = (
    "Dystrophic",
    "FatNecrosis",
    "MilkOfCalcium",
    "OtherBenignCluster",
    "PlasmaCellMastitis",
    "Skin",
)
_MORE_FLAGS = ("SutureCalcification", "Vascular", "WithCalcification")
_MARGINS = {
    "circumscribed": "well_defined",
    "indistinct": "ill_defined",
    "spiculated": "spiculated",
}
_SIDES = {"L": "left_opinion", "R": "right_opinion"}
_OPINIONS = {"normal": ("ON", "B1"), "benign": ("OB", "B2"), "malignant": ("OM", "B5")}
_DATE = "2015-03-02"
_OTHER_DATE = "2011-05-06"


def write(
    mammograms: Iterable[Mammogram],
    root: Path,
    *,
    bits: int = 12,
    upper: bool = False,
    dcm_json: bool = False,
) -> list[Path]:
    """Write mammograms as OMI-DB distributes its own; a patient is a client with one episode.

    Images of unknown pathology stand in a study without an episode. Lesions are written as boxes,
    outlines are lost.

    Args:
        bits: BitsStored, 8 to 16; pixels are rint(value * (2^bits - 1)).
        upper: DATA, IMAGES, IMAGEDB_ and NBSS_.
        dcm_json: Headers are called <image>.dcm.json, not <image>.json.
    """
    data, images, imagedb, nbss = (
        name.upper() if upper else name for name in ("data", "images", "imagedb", "nbss")
    )
    paths: list[Path] = []
    clients: dict[str, list[tuple[Mammogram, str, str]]] = {}
    for number, mammogram in enumerate(mammograms, start=1):
        of_client = clients.setdefault(mammogram.patient_id, [])
        place = list(clients).index(mammogram.patient_id) + 1
        client = f"optm{place}"
        study = f"1.2.826.0.1.{place}.{2 if mammogram.pathology is None else 1}"
        image = f"{study}.{number}"
        of_client.append((mammogram, study, image))
        paths.append(root / images / client / study / f"{image}.dcm")
        _write_image(paths[-1], mammogram, image, bits)
        header = root / data / client / study / f"{image}{'.dcm' * dcm_json}.json"
        _write_json(header, pydicom.dcmread(paths[-1], stop_before_pixels=True).to_json_dict())
    for number, content in enumerate(clients.values(), start=1):
        folder = root / data / f"optm{number}"
        studies, episode = _records(content)
        _write_json(
            folder / f"{imagedb}_{folder.name}.json",
            {"ClientID": folder.name, "Site": "stge", "STUDIES": studies},
        )
        _write_json(
            folder / f"{nbss}_{folder.name}.json",
            {"ClientID": folder.name, "Classification": "M", "1": episode},
        )
    return paths


def _write_image(path: Path, mammogram: Mammogram, image: str, bits: int) -> None:
    write_dicom(
        path,
        quantize(mammogram, bits),
        bits,
        SOPInstanceUID=image,
        PresentationIntentType="FOR PRESENTATION",
        ImageLaterality=mammogram.laterality,
        ViewPosition=mammogram.view,
        ImagerPixelSpacing=list(mammogram.spacing) if mammogram.spacing else None,
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _records(content: list[tuple[Mammogram, str, str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return imagedb's studies and nbss's one episode of one client."""
    studies: dict[str, Any] = {}
    screening: dict[str, Any] = {"L": {"DateTaken": _DATE}, "R": {"DateTaken": _DATE}}
    biopsy: dict[str, Any] = {"L": {}, "R": {}}
    findings: dict[str, Any] = {"L": {}, "R": {}}
    for mammogram, study, image in content:
        date = _OTHER_DATE if mammogram.pathology is None else _DATE
        entry: dict[str, Any] = studies.setdefault(
            study, {"EpisodeID": "1" if mammogram.pathology else None, "StudyDate": date}
        )
        marks: dict[str, Any] = {}
        entry.setdefault(f"{image}.1", {})[image] = marks
        side = mammogram.laterality or "L"
        for lesion in mammogram.lesions:
            number = str(sum(map(len, findings.values())) + 1)
            if mammogram.pathology and lesion.pathology:
                findings[side][number] = {"LesionDescription": None}
                biopsy[side][number] = {
                    "DatePerformed": _DATE,
                    "Opinion": _OPINIONS[lesion.pathology][1],
                }
            marks[str(10_000 + len(marks))] = _mark(
                lesion, 10_000 + len(marks), number if number in findings[side] else None
            )
        if mammogram.pathology == "normal":
            screening.setdefault(_SIDES[side], "ON")
        elif mammogram.pathology and biopsy.get(_SIDES[side]) != "OM":  # the breast's worst
            biopsy[_SIDES[side]] = _OPINIONS[mammogram.pathology][0]
    episode: dict[str, Any] = {
        "EpisodeType": "F",
        "EpisodeOpenedDate": _DATE,
        "EpisodeIsClosed": "Y",
        "SCREENING": screening,
    }
    if any(name in biopsy for name in _SIDES.values()):
        episode |= {"BIOPSYWIDE": biopsy, "LESION": findings}
    return studies, episode


def _mark(lesion: Lesion, number: int, linked: str | None) -> dict[str, Any]:
    top, left, bottom, right = lesion.box
    flags: dict[str, Any] = dict.fromkeys(_FLAGS.values())
    flag = _FLAGS[lesion.kind]
    flags[flag] = 1 if flag == "Mass" else flag
    return {
        **flags,
        **dict.fromkeys((*_OTHER_FLAGS, *_MORE_FLAGS)),
        "BenignClassification": None,
        "Conspicuity": "Obvious",
        "Height": str(bottom - top),
        "LesionID": number,
        "LinkedNBSSLesionNumber": linked,
        "MarkID": number,
        "MassClassification": _MARGINS.get(lesion.margin or "") if lesion.kind == "mass" else None,
        "Width": str(right - left),
        "X1": str(left),
        "X2": str(right),
        "Y1": str(top),
        "Y2": str(bottom),
    }
