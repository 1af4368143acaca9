"""Write mammograms as OMI-DB is distributed: imagedb, nbss, DICOM, and its headers as JSON."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.archives.writers.pixels import write_mammogram
from tfmammo.mammogram import Lesion, Mammogram

_FLAGS = {
    "mass": "Mass",
    "calcification": "SuspiciousCalcifications",
    "asymmetry": "FocalAsymmetry",
    "distortion": "ArchitecturalDistortion",
}
_MORE_FLAGS = (
    "Dystrophic FatNecrosis MilkOfCalcium OtherBenignCluster PlasmaCellMastitis Skin "
    "SutureCalcification Vascular WithCalcification BenignClassification"
)
_MARGINS = {
    "circumscribed": "well_defined",
    "indistinct": "ill_defined",
    "spiculated": "spiculated",
}
_SIDES = {"L": "left_opinion", "R": "right_opinion"}
_OPINIONS = {"normal": ("ON", "B1"), "benign": ("OB", "B2"), "malignant": ("OM", "B5")}
_DATE = "2015-03-02"


def write(
    mammograms: Iterable[Mammogram], root: Path, *, upper: bool = False, dcm_json: bool = False
) -> list[Path]:
    """Write mammograms in 12 bits; a patient is a client with one episode, lesions are boxes.

    Images of unknown pathology are in a study without an episode.

    Args:
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
        study = f"1.2.826.0.1.{place}.{2 if mammogram.pathology is None else 1}"
        image = f"{study}.{number}"
        of_client.append((mammogram, study, image))
        paths.append(root / images / f"optm{place}" / study / f"{image}.dcm")
        shown = {"ImageLaterality": mammogram.laterality, "ViewPosition": mammogram.view}
        stated = {"SOPInstanceUID": image, "PresentationIntentType": "FOR PRESENTATION"}
        write_mammogram(paths[-1], mammogram, 12, **stated, **shown)
        header = root / data / f"optm{place}" / study / f"{image}{'.dcm' * dcm_json}.json"
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_bytes(b"{")  # not needed, so that it may be damaged
    for number, content in enumerate(clients.values(), start=1):
        folder = root / data / f"optm{number}"
        studies, episode = _records(content)
        records = {imagedb: {"STUDIES": studies}, nbss: {"Classification": "M", "1": episode}}
        for name, record in records.items():
            path = folder / f"{name}_{folder.name}.json"
            path.write_text(json.dumps({"ClientID": folder.name} | record), encoding="utf-8")
    return paths


def _records(content: list[tuple[Mammogram, str, str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return imagedb's studies and nbss's one episode of one client."""
    studies: dict[str, Any] = {}
    screening: dict[str, Any] = {"L": {"DateTaken": _DATE}, "R": {"DateTaken": _DATE}}
    biopsy: dict[str, Any] = {"L": {}, "R": {}}
    findings: dict[str, Any] = {"L": {}, "R": {}}
    for mammogram, study, image in content:
        date = "2011-05-06" if mammogram.pathology is None else _DATE
        known = {"EpisodeID": "1" if mammogram.pathology else None, "StudyDate": date}
        marks = studies.setdefault(study, known).setdefault(f"{image}.1", {}).setdefault(image, {})
        side = mammogram.laterality or "L"
        for lesion in mammogram.lesions:
            number = str(sum(map(len, findings.values())) + 1)
            if mammogram.pathology and lesion.pathology:
                findings[side][number] = {"LesionDescription": None}
                opinion = _OPINIONS[lesion.pathology][1]
                biopsy[side][number] = {"DatePerformed": _DATE, "Opinion": opinion}
            linked = number if number in findings[side] else None
            marks[str(10_000 + len(marks))] = _mark(lesion, 10_000 + len(marks), linked)
        if mammogram.pathology == "normal":
            screening.setdefault(_SIDES[side], "ON")
        elif mammogram.pathology and biopsy.get(_SIDES[side]) != "OM":  # the breast's worst
            biopsy[_SIDES[side]] = _OPINIONS[mammogram.pathology][0]
    episode = {"EpisodeType": "F", "EpisodeOpenedDate": _DATE, "SCREENING": screening}
    if any(name in biopsy for name in _SIDES.values()):
        episode |= {"BIOPSYWIDE": biopsy, "LESION": findings}
    return studies, episode


def _mark(lesion: Lesion, number: int, linked: str | None) -> dict[str, Any]:
    top, left, bottom, right = lesion.box
    flag = _FLAGS[lesion.kind]
    return {
        **dict.fromkeys((*_FLAGS.values(), *_MORE_FLAGS.split())),
        flag: 1 if flag == "Mass" else flag,
        "Conspicuity": "Obvious",
        "LesionID": number,
        "LinkedNBSSLesionNumber": linked,
        "MarkID": number,
        "MassClassification": _MARGINS.get(lesion.margin or "") if lesion.kind == "mass" else None,
        **{"X1": str(left), "X2": str(right), "Y1": str(top), "Y2": str(bottom)},
    }
