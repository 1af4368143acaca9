"""Regions that DICOM files draw on mammograms: SEG, SR (TID 1500) and RTSTRUCT -> lesions.

    SEG         binary; fractional, cut at half of its maximum; label map
    SR          see `reports`
    RTSTRUCT    closed planar contours, where the image states its position in space

If SEG and SR have the same lesion, by its tracking UID, the SEG's region counts.

Each names the image that it is drawn on by its SOP Instance UID. What it states of that image's
size, orientation, spacing and frame of reference must hold, or the region is not used. pydicom
reads them: highdicom's reader refuses files that stray from the standard, as those of viewers do,
and fails on frames of one bit that begin within a byte.

The kind comes from the coded finding (see `findings`). Where the code is general (lesion, tissue),
or there is none, the label or the name of the structure decides. Findings of other sorts are no
lesions. What is not known is a lost lesion of its image, which is then never background.

Privacy: labels and names may be a patient's. They are compared with known words and never quoted.

Source: DICOM PS3.3 A.51 (segmentation), C.8.8.6 (ROI contours); PS3.16 CID 6014 and 6016
(mammographic findings).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import pixel_array
from pydicom.uid import RLELossless

from tfmammo.archives import coco, dicom
from tfmammo.archives.elements import Fault, integer, items, numbers, text
from tfmammo.archives.findings import find_coded
from tfmammo.archives.region_types import (
    Image,
    Region,
    count_unusable,
    enclose,
    list_codes,
    list_references,
)
from tfmammo.archives.reports import list_findings, list_marks
from tfmammo.archives.silence import silence
from tfmammo.errors import ArchiveError, EmptyMask
from tfmammo.mammogram import Lesion, LesionKind, MaskedLesion

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
REPORTS = tuple(f"1.2.840.10008.5.1.4.1.1.88.{number}" for number in (22, 33, 34))
CAD_REPORT = "1.2.840.10008.5.1.4.1.1.88.50"
CLASSES = (SEGMENTATION, LABEL_MAP, STRUCTURE_SET, CAD_REPORT, *REPORTS)

_LARGEST = 2**28  # bytes of a file without pixels
_MOST_REGIONS = 4096  # of a file
_OFF_PLANE = 0.5  # mm that a contour may be off the image's plane


def is_region_file(path: Path) -> bool:
    """Whether a file says at its beginning that it is a SEG, an SR or an RTSTRUCT."""
    try:
        with silence():
            return text(dicom.read_meta(path), "MediaStorageSOPClassUID") in CLASSES
    except Exception:  # damaged files raise exceptions of any class
        return False


def read_regions(
    paths: Iterable[Path], note: Callable[[Path, object], None]
) -> dict[str, list[Region]]:
    """Read the regions of SEG, SR and RTSTRUCT files by the SOP Instance UIDs of their images.

    No pixel is read. `note` takes what can't be used: the file, and one sentence.
    """
    regions: dict[str, list[Region]] = {}
    for path in paths:
        unusable: Counter[str] = Counter()
        try:
            for region in _read_file(path, unusable):
                regions.setdefault(region.image, []).append(region)
        except ArchiveError as error:
            note(path, error)
        for reason, count in unusable.items():
            note(path, f"{count} of its regions {reason}")
    for image, listed in regions.items():  # what a report draws where a SEG has the same lesion
        segments = {region.tracking for region in listed if region.is_segment} - {""}
        regions[image] = [one for one in listed if one.is_segment or one.tracking not in segments]
    return regions


def read_image(path: Path) -> tuple[str, Image]:
    """Read what regions refer to: the SOP Instance UID, and what they are checked against."""
    dataset = dicom.read_dataset(path)
    with dicom.reading(path), silence():
        return text(dataset, "SOPInstanceUID"), Image.of(dataset, dataset, dataset)


def _read_file(path: Path, unusable: Counter[str]) -> list[Region]:
    with dicom.reading(path), silence():
        meta = dicom.read_meta(path)
        kind = text(meta, "MediaStorageSOPClassUID")
        if kind not in CLASSES:
            raise Fault("is not a SEG, an RTSTRUCT or an SR of findings")
        if meta.TransferSyntaxUID.is_deflated:  # it would be inflated to whatever size it has
            raise Fault("is deflated, which is not read here")
        if kind not in (SEGMENTATION, LABEL_MAP) and path.stat().st_size > _LARGEST:
            raise Fault("is larger than any file of regions")
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        readers: dict[str, Callable[[Path, Dataset, Counter[str]], Iterator[Region]]] = {
            SEGMENTATION: _list_segments,
            LABEL_MAP: _list_segments,
            STRUCTURE_SET: _list_contours,
            CAD_REPORT: list_marks,
        }
        regions = readers.get(kind, list_findings)(path, dataset, unusable)
        listed = list(islice(regions, _MOST_REGIONS + 1))
        if len(listed) > _MOST_REGIONS:
            raise Fault(f"draws more than {_MOST_REGIONS} regions")
        if not listed and not unusable:
            raise Fault("draws no region")
        return listed


# SEG


def _list_segments(path: Path, dataset: Dataset, unusable: Counter[str]) -> Iterator[Region]:
    """List the segments, one region for each image that frames of it are on."""
    form = text(dataset, "SegmentationType").upper()
    if form not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise Fault("is a segmentation that is neither binary, fractional nor a label map")
    segments = {
        integer(item, "SegmentNumber", 0): item for item in items(dataset, "SegmentSequence")
    }
    shared = (items(dataset, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
    groups = items(dataset, "PerFrameFunctionalGroupsSequence")
    if len(groups) != integer(dataset, "NumberOfFrames", 1):
        raise Fault("does not describe each of its frames")
    maximum = integer(dataset, "MaximumFractionalValue", 255) if form == "FRACTIONAL" else 1
    if maximum < 1:
        raise Fault("has a maximal fraction below 1")
    frames: dict[tuple[int, str], list[int]] = {}
    for number, group in enumerate(groups):
        if form == "LABELMAP":  # a frame shows several segments, by their numbers
            shown = [value for value in np.unique(_read_frame(path, number)).tolist() if value]
        else:
            place = _first(group, shared, "SegmentIdentificationSequence")
            shown = [integer(place, "ReferencedSegmentNumber", 0)]
        image = _find_source(dataset, group, shared)
        for segment in shown:
            if segment not in segments:
                unusable["are of no segment that it describes"] += 1
            elif image is None:
                unusable["name no image, or several"] += 1
            else:
                frames.setdefault((segment, image), []).append(number)
    for (segment, image), members in sorted(frames.items()):
        item = segments[segment]
        words = f"{text(item, 'SegmentLabel')} {text(item, 'SegmentDescription')}"
        finding = find_coded(list_codes(item, "SegmentedPropertyTypeCodeSequence"), words)
        if count_unusable(finding, unusable):
            continue
        keys = ("PixelMeasuresSequence", "PlaneOrientationSequence")
        stated = Image.of(dataset, *(_first(groups[members[0]], shared, key) for key in keys))
        is_moved = any(
            text(source, "SpatialLocationsPreserved").upper() not in ("", "YES")
            for group in (*(groups[number] for number in members), shared)
            for derivation in items(group, "DerivationImageSequence")
            for source in items(derivation, "SourceImageSequence")
        )
        label = segment if form == "LABELMAP" else None
        read = partial(_read_segment, path, tuple(members), maximum, label)
        draw = partial(_draw_segment, path, read, stated, is_moved)
        yield Region(path, image, finding, draw, text(item, "TrackingUID"), is_segment=True)


def _draw_segment(
    path: Path,
    read: Callable[[int, int], NDArray[np.uint8]],
    stated: Image,
    is_moved: bool,
    image: Image,
    kind: LesionKind,
    details: dict[str, Any],
) -> Lesion:
    sizes = [f"{one.rows} x {one.cols}" for one in (stated, image)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"have {sizes[0]} px, their image {sizes[1]}")
    if is_moved:
        raise ValueError("are not on the image's own pixels")
    _check_frame_of_reference(stated.frame_of_reference, image)
    words = {stated.patient_orientation, image.patient_orientation} - {()}
    if not _agree(stated.orientation, image.orientation, 1e-3) or len(words) > 1:
        raise ValueError("are turned against their image")
    if not _agree(stated.spacing, image.spacing, 0.01 * min(image.spacing, default=0)):
        raise ValueError("have another spacing than their image")
    return MaskedLesion(kind, partial(read, image.rows, image.cols), (path,), **details)


def _agree(stated: tuple[float, ...], expected: tuple[float, ...], tolerance: float) -> bool:
    return not (stated and expected) or np.allclose(stated, expected, rtol=0, atol=tolerance)


def _read_segment(
    path: Path, frames: tuple[int, ...], maximum: int, label: int | None, rows: int, cols: int
) -> NDArray[np.uint8]:
    """Read a segment, uint8 [rows, cols]: the label, or half of the maximum and more."""
    region = np.zeros((rows, cols), np.bool_)
    for number in frames:
        values = _read_frame(path, number).astype(np.int32)
        if values.shape != region.shape:
            raise ArchiveError(f"{path}: was changed while it was read")
        region |= values == label if label is not None else 2 * values >= maximum
    if not region.any():
        raise EmptyMask(f"{path}: a segment marks nothing")
    return region.astype(np.uint8)


def _read_frame(path: Path, number: int) -> NDArray[np.unsignedinteger]:
    """Read the stored values of one frame: [rows, cols]."""
    with dicom.reading(path), silence():
        if pydicom.dcmread(path, stop_before_pixels=True).BitsAllocated != 1:
            return np.asarray(pixel_array(path, index=number, raw=True))
        dataset = pydicom.dcmread(path)
        rows, cols = (integer(dataset, key, 1) for key in ("Rows", "Columns"))
        count = integer(dataset, "NumberOfFrames", 1)
        if dataset.file_meta.TransferSyntaxUID == RLELossless:
            # pydicom knows no such bits, which OHIF writes: one run of bytes behind 64 of a head
            frame = get_frame(dataset.PixelData, number, number_of_frames=count)
            size = (-(-rows * cols // 8), 1)
            packed = np.asarray(PIL.Image.frombytes("L", size, frame[64:], "packbits", "L"))
            bits = np.unpackbits(packed, count=rows * cols, bitorder="little")
            return np.asarray(bits.reshape(rows, cols))
        # pydicom reads no single frame of bits that begins within a byte
        is_plain = not dataset.file_meta.TransferSyntaxUID.is_encapsulated
        if is_plain and 8 * len(dataset.PixelData) < rows * cols * count:
            raise Fault("the file ends before its pixels do")
        frames = pixel_array(dataset, raw=True)
        return np.asarray(frames if frames.ndim == 2 else frames[number])


def _find_source(dataset: Dataset, group: Dataset, shared: Dataset) -> str | None:
    """Find the image that a frame is on: its own source, or the only one of the whole file."""
    sources = ("DerivationImageSequence", "SourceImageSequence")
    series = ("ReferencedSeriesSequence", "ReferencedInstanceSequence")
    named = list_references(group, *sources) or list_references(shared, *sources)
    named = named or list_references(dataset, *series)
    return named.pop() if len(named) == 1 else None


def _first(group: Dataset, shared: Dataset, key: str) -> Dataset:
    return next(iter(items(group, key) or items(shared, key)), Dataset())


# RTSTRUCT


def _list_contours(path: Path, dataset: Dataset, unusable: Counter[str]) -> Iterator[Region]:
    """List the structures, one region for each image that contours of it are on."""
    described = items(dataset, "StructureSetROISequence")
    structures = {integer(item, "ROINumber", -1): item for item in described}
    for roi in items(dataset, "ROIContourSequence"):
        structure = structures.get(integer(roi, "ReferencedROINumber", -2))
        if structure is None:
            unusable["are of no structure that it describes"] += 1
            continue
        contours: dict[str, list[NDArray[np.float64]]] = {}
        for contour in items(roi, "ContourSequence"):
            named = list_references(contour, "ContourImageSequence")
            values = np.array(numbers(contour, "ContourData"))
            if text(contour, "ContourGeometricType").upper() != "CLOSED_PLANAR":
                unusable["are points or lines, not areas"] += 1
            elif len(named) != 1:
                unusable["name no image, or several"] += 1
            elif len(values) % 3 or len(values) < 9 or not np.isfinite(values).all():
                unusable["have coordinates that are not points"] += 1
            else:
                contours.setdefault(named.pop(), []).append(values.reshape(-1, 3))
        words = f"{text(structure, 'ROIName')} {text(structure, 'ROIDescription')}"
        finding = find_coded(list_codes(structure, "RTROIIdentificationCodeSequence"), words)
        if count_unusable(finding, unusable, len(contours)):
            continue
        frame = text(structure, "ReferencedFrameOfReferenceUID")
        for image, parts in contours.items():
            yield Region(path, image, finding, partial(_draw_contours, parts, frame))


def _draw_contours(
    parts: list[NDArray[np.float64]],
    frame_of_reference: str,
    image: Image,
    kind: LesionKind,
    details: dict[str, Any],
) -> Lesion:
    """Draw points in space, mm, on the plane of their image (PS3.3 C.7.6.2.1.1)."""
    if not (image.position and image.orientation and image.spacing):
        raise ValueError("are in space, where their image states no position")
    if not frame_of_reference or not image.frame_of_reference:
        raise ValueError("share no frame of reference with their image")
    _check_frame_of_reference(frame_of_reference, image)
    along = np.array(image.orientation[:3])  # the direction in which columns count
    down = np.array(image.orientation[3:])
    normal = np.cross(along, down)
    if min(map(np.linalg.norm, (along, down, normal))) < 0.99:
        raise ValueError("are on an image without a valid orientation")
    outlines = []
    for part in parts:
        offset = part - np.array(image.position)
        if np.abs(offset @ normal).max() > _OFF_PLANE:
            raise ValueError("are off the plane of their image")
        places = offset @ np.stack([down, along], axis=1) / image.spacing
        outlines.append(enclose(places, image, kind, details))
    return coco.unite(outlines, details)


def _check_frame_of_reference(stated: str, image: Image) -> None:
    if stated and image.frame_of_reference and stated != image.frame_of_reference:
        raise ValueError("have another frame of reference than their image")
