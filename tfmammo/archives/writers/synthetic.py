"""Write synthetic mammograms as DICOM or PNG, and a set of them as a folder.

The archive `folder` reads that folder.

    images/NAME.dcm or .png    lesion_masks/NAME_1.png ...    annotations.json (COCO)
    metadata.csv

The DICOM is built from pixels, facts of the record and the few numbers by which values become
greys. Nothing of the source's header is copied that could name anybody, no UID, date or device.
Where laterality, view and spacing are known, it is a digital mammography image for presentation,
which must state them; else it is a secondary capture. SyntheticData, ImageType, PatientName,
SeriesDescription, ImageComments, DerivationDescription, Manufacturer, and ConversionType of a
secondary capture say that it is synthetic. Its UIDs follow from `key`, so that the same content is
the same file. Images of one patient are one study, of which each view is a series; a mammogram that
is used again belongs to a further study.

PatientIdentityRemoved is YES for public archives, which were given out without names. For
somebody's own folder it is NO, unless TFMAMMO_ID_KEY is set (whoever has a list of the hospital's
numbers can hash them and compare) and the source says that its pixels show no annotation.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pydicom.valuerep import DSfloat

from tfmammo import __version__
from tfmammo.archives import ARCHIVES
from tfmammo.archives.findings import CATEGORIES
from tfmammo.archives.stored import Stored
from tfmammo.archives.writers.dicom import MAMMOGRAPHY, SECONDARY_CAPTURE, write_dicom
from tfmammo.mammogram import Box, LesionKind, Mammogram, is_keyed

MARK = "SYNTHETIC: lesions were inserted by software; not for diagnosis"
_VIEWS = {"CC": ("399162004", "cranio-caudal"), "MLO": ("399368009", "medio-lateral oblique")}
# Where columns run to, as mammograms are shown: lateral or axilla at the top.
_DOWNWARDS = {("L", "CC"): "R", ("R", "CC"): "L", ("L", "MLO"): "FR", ("R", "MLO"): "FL"}
# what the standard wants stated even when it is unknown
_EMPTY = (
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
# the order in which viewers list the series of a study
_SERIES = {("R", "CC"): 1, ("L", "CC"): 2, ("R", "MLO"): 3, ("L", "MLO"): 4}
# a third larger than the default on a mammogram's noise, ten times as fast
_FAST = (cv2.IMWRITE_PNG_COMPRESSION, 1)


def write_dicom_of_mammogram(
    path: Path, stored: Stored, mammogram: Mammogram, key: str, repeat: int = 0
) -> None:
    """Write one DICOM file, with the source's bits, sign and rendition.

    Args:
        path: The file.
        stored: Values with the inserted lesions.
        mammogram: The source; its pseudonym becomes the PatientID.
        key: What the UIDs follow from.
        repeat: How many images of the same mammogram were written before.
    """
    rendition = _rendition(stored)
    spacing = list(mammogram.spacing) if mammogram.spacing else None
    if stored.elements is None:
        rendition["ImagerPixelSpacing"] = spacing
    shown = (mammogram.laterality, mammogram.view)
    full = bool(shown in _DOWNWARDS and rendition.get("ImagerPixelSpacing"))
    capture = {
        "ImageType": ["DERIVED", "SECONDARY", "", "SYNTHETIC"],
        "ConversionType": "SYN",
        "ViewPosition": mammogram.view,
    }
    elements = (
        _identity(mammogram, key, rendition.get("BurnedInAnnotation", "YES"), repeat)
        | (_mammography(mammogram, rendition) if full else capture)
        | rendition
    )
    elements["LossyImageCompression"] = "01" if mammogram.is_lossy else "00"
    sop_class = MAMMOGRAPHY if full else SECONDARY_CAPTURE
    write_dicom(path, stored.values, stored.bits, sop_class=sop_class, **elements)


def write_png(path: Path, stored: Stored) -> None:
    """Write one PNG of 8 or 16 bits: values as stored, those of DICOM as greys of equal depth."""
    path.write_bytes(encode_png(stored.full_scale()))


def encode_png(picture: NDArray[np.integer]) -> bytes:
    """Encode uint8 or uint16 [rows, cols] as PNG."""
    return cv2.imencode(".png", picture, _FAST)[1].tobytes()


def encode_mask_png(mask: NDArray[np.uint8]) -> bytes:
    """Encode uint8 [rows, cols], 0 or 1, as a PNG of one bit a pixel, read as 0 and 255."""
    options = (*_FAST, cv2.IMWRITE_PNG_BILEVEL, 1)
    return cv2.imencode(".png", mask * np.uint8(255), options)[1].tobytes()


def format_coco(
    images: Iterable[dict[str, Any]], annotations: Iterable[dict[str, Any]], about: str
) -> dict[str, Any]:
    """Return a COCO file's content, from images and what `coco_annotation` gives, numbered here."""
    return {
        "info": {"description": f"{MARK}. {about}", "version": __version__},
        "licenses": [],
        "images": list(images),
        "annotations": [
            {"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)
        ],
        "categories": [
            {"id": number, "name": kind, "supercategory": "lesion"}
            for kind, number in CATEGORIES.items()
        ],
    }


def coco_annotation(
    image: int,
    kind: LesionKind,
    box: Box,
    area: int,
    region: dict[str, Any] | None,
    synthetic: bool = True,
) -> dict[str, Any]:
    """Return the annotation of one lesion on the image of an id; area and box in native px.

    `region` comes from `archives.coco.encode`, or is None where only the box is known.
    """
    top, left, bottom, right = box
    facts = {
        "image_id": image,
        "category_id": CATEGORIES[kind],
        "bbox": [left, top, right - left, bottom - top],
        "area": area,
        "iscrowd": 0,  # 1 would make evaluations ignore it, though old readers expect it of an RLE
        "synthetic": synthetic,
    }
    return facts | ({"segmentation": region} if region else {})


def format_metadata(rows: Sequence[dict[str, Any]]) -> str:
    """Return the content of metadata.csv; rows hold its columns as far as they are known."""
    text = io.StringIO()
    further = ["lesion_patient"] if rows and "lesion_patient" in rows[0] else []
    facts = ("laterality", "view", "pathology", "density", "spacing", "split", "bits")
    table = csv.DictWriter(text, ("file", "patient", *facts, *further), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _rendition(stored: Stored) -> dict[str, Any]:
    elements = dict(stored.elements or {})
    if "ModalityLUTSequence" not in elements:
        slope, intercept = (
            float(elements.setdefault(key, default))
            for key, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
        )
        elements["RescaleType"] = "US"
        # one of them must be there: the whole range
        if "VOILUTSequence" not in elements and "WindowCenter" not in elements:
            last = stored.first + len(stored.greys) - 1
            ends = [slope * value + intercept for value in (stored.first, last)]
            # rounded to the 16 characters that a decimal string may have
            elements["WindowCenter"] = DSfloat((sum(ends) + 1) / 2, auto_format=True)
            elements["WindowWidth"] = DSfloat(abs(ends[1] - ends[0]) + 1, auto_format=True)
    is_inverse = elements.get("PhotometricInterpretation") == "MONOCHROME1"
    return elements | {"PresentationLUTShape": "INVERSE" if is_inverse else "IDENTITY"}


def _identity(mammogram: Mammogram, key: str, burned_in: str, repeat: int) -> dict[str, Any]:
    """Return patient, study and the marks of a synthetic image."""
    # Archives are given out without names. Of one's own folder, an unkeyed hash of a hospital's
    # number can be reversed, and pixels may hold a name.
    is_published = mammogram.archive in ARCHIVES and mammogram.archive != "folder"
    is_removed = is_published or (is_keyed() and burned_in == "NO")
    method = "written anew from pixels; the PatientID is a pseudonym"
    study = f"{mammogram.patient_id} {repeat}" if repeat else mammogram.patient_id
    uids = {
        name: generate_uid(entropy_srcs=["tfmammo", name, of])
        for name, of in (("study", study), ("series", key), ("instance", key))
    }
    shown = (mammogram.laterality or "", mammogram.view or "")
    return {
        **dict.fromkeys(_EMPTY, ""),
        "PatientName": "SYNTHETIC^MAMMOGRAM",
        "PatientID": mammogram.patient_id,
        "PatientIdentityRemoved": "YES" if is_removed else "NO",
        "DeidentificationMethod": method if is_removed else None,
        "StudyInstanceUID": uids["study"],
        "SeriesInstanceUID": uids["series"],
        "SOPInstanceUID": uids["instance"],
        "SeriesNumber": _SERIES.get(shown, len(_SERIES) + 1),
        "InstanceNumber": 1,
        "SyntheticData": "YES",
        "SeriesDescription": "SYNTHETIC, not for diagnosis",
        "ImageComments": MARK,
        "DerivationDescription": MARK,
        "Manufacturer": "tfmammo (SYNTHETIC)",
        "ManufacturerModelName": "tfmammo.synthesis",
        "SoftwareVersions": __version__,
        "BurnedInAnnotation": "YES",  # unless the source says otherwise: scanned films have labels
        "ImageLaterality": mammogram.laterality,
        "PatientOrientation": "",
    }


def _mammography(mammogram: Mammogram, rendition: dict[str, Any]) -> dict[str, Any]:
    """Return what a digital mammography image must state besides pixels and spacing."""
    assert mammogram.view and mammogram.laterality
    code, meaning = _VIEWS[mammogram.view]
    view = _coded(code, "SCT", meaning)
    view.ViewModifierCodeSequence = []
    return {
        "ImageType": ["DERIVED", "PRIMARY", "", "SYNTHETIC"],
        "PresentationIntentType": "FOR PRESENTATION",
        "ViewPosition": mammogram.view,
        "ViewCodeSequence": [view],
        "BodyPartExamined": "BREAST",
        "OrganExposed": "BREAST",
        "AnatomicRegionSequence": [_coded("76752008", "SCT", "Breast")],
        "PositionerType": "NONE",
        "DetectorType": "",
        "AcquisitionContextSequence": [],
        # rows run from the chest wall to the front where that is at the left
        "PatientOrientation": [
            "A" if mammogram.wall_side == "L" else "P",
            _DOWNWARDS[mammogram.laterality, mammogram.view],
        ],
        "PixelIntensityRelationship": "LOG",
        "PixelIntensityRelationshipSign": 1
        if rendition["PresentationLUTShape"] == "INVERSE"
        else -1,
    }


def _coded(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = scheme
    item.CodeMeaning = meaning
    return item
