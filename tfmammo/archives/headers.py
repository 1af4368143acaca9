"""What a DICOM header states of its image: whether it is a mammogram, and facts of it.

Spacing is that in the breast: PixelSpacing where it is calibrated (its calibration type says so, it
differs from ImagerPixelSpacing, or nothing else is stated); else ImagerPixelSpacing, measured at
the detector, over the estimated magnification; else NominalScannedPixelSpacing of a scanned film.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import FileDataset

from tfmammo.archives import views
from tfmammo.archives.elements import Fault, integer, items, numbers, text, value
from tfmammo.mammogram import MOST_PIXELS, Laterality, View

# SOP classes: computed and digital radiography (.1.2 is mammography), secondary captures (film
# scans, .7.1 to .7.4 with frames), tomosynthesis with a generated 2D image
_XRAY = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(1|7|13\.1)(\.[0-9]+)*")
# breast tomosynthesis, and its projections
_TOMOSYNTHESIS = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.13\.1\.[345]")
_NEEDS_NO_MODALITY = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(1\.2|7)(\.[0-9]+)*")
_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.2.1"


@dataclass(frozen=True)
class Header:
    """What a header states about its image."""

    rows: int
    cols: int
    spacing: tuple[float, float] | None  # (row, col), mm per px in the breast
    laterality: Laterality | None
    view: View | None
    series_description: str | None  # free text, which must not reach a record
    for_processing: bool  # raw detector values, not yet made fit for the eye
    chest_wall: Laterality | None = None  # side of the image, by PatientOrientation


def parse_header(dataset: FileDataset) -> Header:
    """Read the facts of a checked header."""
    codes = [text(item, "CodeValue") for item in items(dataset, "ViewCodeSequence")]
    words = value(dataset, "PatientOrientation") or ""
    return Header(
        rows=dataset.Rows,
        cols=dataset.Columns,
        spacing=_find_spacing(dataset),
        laterality=_find_laterality(dataset),
        view=views.parse_view(text(dataset, "ViewPosition"))[1] or views.find_view(codes),
        chest_wall=views.parse_chest_wall(words if isinstance(words, str) else str(words[0])),
        series_description=text(dataset, "SeriesDescription") or None,
        for_processing=text(dataset, "PresentationIntentType").upper() == "FOR PROCESSING"
        or text(dataset, "SOPClassUID") == _FOR_PROCESSING,
    )


def check_header(dataset: FileDataset) -> None:
    """Raise unless this is one grey image of a breast; leave its numbers as int."""
    frames = integer(dataset, "NumberOfFrames", 1)
    _check_kind(dataset, frames)
    photometric = text(dataset, "PhotometricInterpretation")
    rows = integer(dataset, "Rows", 0)
    cols = integer(dataset, "Columns", 0)
    if not rows or not cols:
        raise Fault("has no image, its header gives no rows or columns")
    if rows * cols > MOST_PIXELS:  # a damaged header may claim 2**32
        raise Fault(f"no mammogram has {rows} x {cols} pixels")
    if frames > 1:
        raise Fault(f"has {frames} frames, not one image")
    is_grey = photometric in ("MONOCHROME1", "MONOCHROME2")
    if integer(dataset, "SamplesPerPixel", 1) != 1 or not is_grey:
        raise Fault("is not a grey image")  # quotes no word: a damaged header can hold anything
    allocated = integer(dataset, "BitsAllocated", 0)
    bits = integer(dataset, "BitsStored", 0)
    if allocated not in (1, 8, 16) or not 1 <= bits <= allocated:
        raise Fault(f"{bits} bits stored in {allocated} are not those of a mammogram")
    if (high_bit := integer(dataset, "HighBit", bits - 1)) != bits - 1:
        raise Fault(f"high bit {high_bit} does not fit {bits} stored bits")
    dataset.Rows = rows
    dataset.Columns = cols
    dataset.BitsAllocated = allocated
    dataset.BitsStored = bits
    dataset.PixelRepresentation = integer(dataset, "PixelRepresentation", 0)


def _check_kind(dataset: FileDataset, frames: int) -> None:
    """Raise unless modality, SOP class, body part and image type are a mammogram's."""
    modality = text(dataset, "Modality").upper()
    # RSNA's files state it in their meta information alone
    kind = text(dataset, "SOPClassUID") or text(dataset.file_meta, "MediaStorageSOPClassUID")
    part = text(dataset, "BodyPartExamined").upper()
    words = text(dataset, "ImageType").upper()
    is_tomosynthesis = (
        "TOMO" in words
        or text(dataset, "TomoClass").upper() == "TOMOSYNTHESIS"
        or bool(_TOMOSYNTHESIS.fullmatch(kind))
    )
    if is_tomosynthesis and "GENERATED_2D" not in words:
        what = f"a tomosynthesis of {frames} images" if frames > 1 else "part of a tomosynthesis"
        raise Fault(f"is not a mammogram but {what}")
    if modality not in ("MG", ""):
        raise Fault("is not a mammogram: its modality is not MG")
    if part and "BREAST" not in part:
        raise Fault("is not a mammogram: its body part is not the breast")
    if kind.startswith("1.2.840.10008.") and not _XRAY.fullmatch(kind):
        raise Fault("is not a mammogram: its SOP class is neither X-ray's nor secondary capture's")
    # without a modality, what is general X-ray must name the breast
    if not modality and not part and not _NEEDS_NO_MODALITY.fullmatch(kind):
        raise Fault("is not a mammogram: its modality is not stated")


def _find_spacing(dataset: FileDataset) -> tuple[float, float] | None:
    stated = _parse_pair(dataset, "PixelSpacing")
    imager = _parse_pair(dataset, "ImagerPixelSpacing")
    if stated and (stated != imager or text(dataset, "PixelSpacingCalibrationType")):
        return stated
    if imager:
        (factor,) = numbers(dataset, "EstimatedRadiographicMagnificationFactor")[:1] or [1.0]
        # The breast is between source and detector, so that a factor below 1 can only be a
        # mistake.
        return (imager[0] / factor, imager[1] / factor) if 1 <= factor < np.inf else imager
    return _parse_pair(dataset, "NominalScannedPixelSpacing")


def _parse_pair(dataset: FileDataset, key: str) -> tuple[float, float] | None:
    values = numbers(dataset, key)
    if len(values) == 2 and all(0 < value < np.inf for value in values):
        return values[0], values[1]
    return None


def _find_laterality(dataset: FileDataset) -> Laterality | None:
    for key in ("ImageLaterality", "Laterality", "FrameLaterality"):
        if side := views.parse_side(text(dataset, key)):
            return side
    for region in items(dataset, "AnatomicRegionSequence"):
        parts = (region, *items(region, "AnatomicRegionModifierSequence"))
        if side := views.find_side(text(part, "CodeValue") for part in parts):
            return side
    return views.parse_view(text(dataset, "ViewPosition"))[0]
