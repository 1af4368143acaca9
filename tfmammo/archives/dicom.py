"""One DICOM mammogram -> float32 pixels in [0, 1], and the facts its header states.

The grayscale pipeline of DICOM PS3.3 and PS3.4 (annex N.2), in its order: stored bits -> modality LUT or rescale -> VOI
LUT or the first window -> [0, 1] -> inversion of MONOCHROME1 -> padding to 0. The scale is always the range that a stage
can put out, never the extremes of the image at hand, so that equal tissue stays equal between images.

Departure: the tables and windows are applied here and not by pydicom.pixels, because pydicom 3.0 wraps 12-bit pixels in
an 8-bit VOI LUT, refuses modality LUTs of 10 to 14 bits and inverts a window after a negative slope.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError

from tfmammo.record import ArchiveError, Laterality, View

logger = logging.getLogger(__name__)

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # the class, and the stem of its multi-frame kin
_DEFLATED = "1.2.840.10008.1.2.1.99"
_LATERALITIES: dict[str, Laterality] = {"L": "L", "R": "R"}
_VIEWS: dict[str, View] = {
    "CC": "CC",
    "MLO": "MLO",
    "R-10242": "CC",  # SNOMED RT and CT codes of ViewCodeSequence
    "R-10226": "MLO",
    "399162004": "CC",
    "399368009": "MLO",
}


@dataclass(frozen=True)
class Header:
    """What a header states about its image, no pixel read.

    rows, cols: native size, px. spacing: (row, col) in mm per px, None where absent; unequal values stay as they are.
    laterality, view: None where absent or neither L nor R, neither CC nor MLO.
    """

    rows: int
    cols: int
    spacing: tuple[float, float] | None
    laterality: Laterality | None
    view: View | None


def read_header(path: Path) -> Header:
    """The header of one mammogram; everything before the pixels is read, nothing behind.

    Args:     path: a DICOM file.
    Returns:  its facts.
    Raises:   ArchiveError: no file, no DICOM, no mammogram, not one grey frame, no pixel data, or the file ends too early.
    """
    with _reading(path), path.open("rb") as file:
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
        _check(dataset, path)
        position = file.tell()
        _check_length(dataset, path, file.seek(0, 2) - position)
        return Header(int(dataset.Rows), int(dataset.Columns), _spacing(dataset), _laterality(dataset), _view(dataset))


def read_pixels(path: Path, window: bool = True) -> NDArray[np.float32]:
    """The image of one mammogram, dark background, bright tissue.

    Args:     path: a DICOM file, of any transfer syntax that pydicom's installed plugins decode.
              window: apply the VOI LUT, or the first window where there is no VOI LUT; without it the image keeps the whole
              range that its bits can store.
    Returns:  float32 [rows, cols, 1] in [0, 1], native px; padding pixels are 0.
    Raises:   ArchiveError: as `read_header`, or the pixels can't be decoded.
    Source:   DICOM PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT), C.7.5.1.1.2 (pixel padding).
    """
    read_header(path)  # refuses what it refuses in the same words
    with _reading(path):
        dataset = pydicom.dcmread(path)
        if "PixelData" not in dataset:
            raise ArchiveError(f"{path}: has no pixel data")
        stored = dataset.pixel_array  # bits above BitsStored are cut off and the sign is extended
        image = _grayscale(dataset, stored, window)
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            image = 1 - image
        image[_padding(dataset, stored)] = 0
        return image[..., np.newaxis]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever pydicom raises into an ArchiveError, and what it warns of into log lines."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except ArchiveError:
            raise
        except FileNotFoundError:
            raise ArchiveError(f"{path}: no such file") from None
        except InvalidDicomError:
            raise ArchiveError(f"{path}: is not a DICOM file") from None
        except Exception as error:  # pydicom and its decoders answer damaged files with exceptions of any class
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise ArchiveError(f"{path}: can't be read ({error.__class__.__name__}: {reason})") from error
    for warning in caught:
        # Values against the standard are common in headers; those that matter here are checked where they are used.
        logger.debug("%s: %s", path, " ".join(str(warning.message).split()))


def _check(dataset: FileDataset, path: Path) -> None:
    modality = dataset.get("Modality") or "not stated"
    photometric = dataset.get("PhotometricInterpretation") or "not stated"
    if modality != "MG" and not str(dataset.get("SOPClassUID", "")).startswith(_SECONDARY_CAPTURE):
        raise ArchiveError(f"{path}: is no mammogram, its modality is {modality}")
    if not dataset.get("Rows") or not dataset.get("Columns"):
        raise ArchiveError(f"{path}: has no image, its header gives no rows or columns")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise ArchiveError(f"{path}: holds {dataset.NumberOfFrames} frames, not one image")
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ArchiveError(f"{path}: is no grey image, its photometric interpretation is {photometric}")
    if int(dataset.get("HighBit", dataset.BitsStored - 1)) != dataset.BitsStored - 1:
        raise ArchiveError(f"{path}: high bit {dataset.HighBit} does not fit {dataset.BitsStored} stored bits")


def _check_length(dataset: FileDataset, path: Path, rest: int) -> None:
    """Raise when `rest` bytes behind the header can't hold the pixels; compressed pixels may have any length but none."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == _DEFLATED:
        return
    rest -= 8 if syntax.is_implicit_VR else 12  # the tag, type and length of PixelData
    if rest <= 0:
        raise ArchiveError(f"{path}: has no pixel data")
    needed = dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
    if not syntax.is_compressed and rest < needed:
        raise ArchiveError(f"{path}: the file ends early, {rest} of {needed} bytes of pixels are there")


def _grayscale(dataset: FileDataset, stored: NDArray, window: bool) -> NDArray[np.float32]:
    """Stored values -> float32 [rows, cols] in [0, 1], photometric interpretation and padding not yet applied."""
    bits, values = int(dataset.BitsStored), stored
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0.0, 2.0**bits - 1)
    if dataset.get("ModalityLUTSequence"):
        values, low, high = _look_up(dataset, values, dataset.ModalityLUTSequence[0])
    elif dataset.get("RescaleSlope") is not None and dataset.get("RescaleIntercept") is not None:
        slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
        values = values.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        low, high = sorted((low * slope + intercept, high * slope + intercept))
    if window and dataset.get("VOILUTSequence"):
        values, low, high = _look_up(dataset, values, dataset.VOILUTSequence[0])
    elif window and dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        values, low, high = _window(dataset, values), 0.0, 1.0
    if not low < high:
        raise ValueError(f"the pixel range {low} to {high} is empty")
    return np.clip((values.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)


def _look_up(dataset: FileDataset, values: NDArray, item: Dataset) -> tuple[NDArray, float, float]:
    """Values through one LUT, and the LUT's output range. Values outside the table take its first or last entry."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries % 2**16 or 2**16  # 0 stands for 65536, and a signed reading of the descriptor wraps
    table: Any = item.LUTData
    if isinstance(table, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        table = np.frombuffer(table, np.uint8 if len(table) < 2 * entries else f"{order}u2")
    table = np.atleast_1d(table)[:entries]
    index = np.rint(values).astype(np.int32) - first
    return table[np.clip(index, 0, len(table) - 1)], 0.0, 2.0**bits - 1


def _window(dataset: FileDataset, values: NDArray) -> NDArray[np.float32]:
    """Values through the first window: 0 at its lower end and below, 1 at its upper end and above."""
    center, width = (float(np.atleast_1d(dataset[key].value)[0]) for key in ("WindowCenter", "WindowWidth"))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if width < (1 if function == "LINEAR" else np.finfo(np.float32).tiny):
        raise ValueError(f"a window of width {width:g} is empty")
    values = values.astype(np.float32)
    if function == "LINEAR":  # C.11.2.1.2.1; a window of width 1 is a step
        return (values - np.float32(center - 0.5)) / np.float32(max(width - 1, 1e-6)) + np.float32(0.5)
    if function == "LINEAR_EXACT":  # C.11.2.1.3.2
        return (values - np.float32(center)) / np.float32(width) + np.float32(0.5)
    if function == "SIGMOID":  # C.11.2.1.3.1
        return 1 / (1 + np.exp(np.clip(-4 * (values - np.float32(center)) / np.float32(width), -80, 80)))
    raise ValueError(f"the VOI LUT function {function} is unknown")


def _padding(dataset: FileDataset, stored: NDArray) -> NDArray[np.bool_]:
    """Where the image was padded to a rectangle; without this a MONOCHROME1 background would turn bright."""
    if dataset.get("PixelPaddingValue") is None:
        return np.zeros(stored.shape, bool)
    one = int(dataset.PixelPaddingValue)
    other = int(dataset.get("PixelPaddingRangeLimit", one))
    return (stored >= min(one, other)) & (stored <= max(one, other))


def _spacing(dataset: FileDataset) -> tuple[float, float] | None:
    # PixelSpacing is corrected for the magnification between breast and detector, ImagerPixelSpacing is what the
    # detector measures, some per cent too wide for anything in the breast.
    for key in ("PixelSpacing", "ImagerPixelSpacing"):
        values = np.atleast_1d(dataset.get(key) or ()).astype(float)
        if len(values) == 2 and np.isfinite(values).all() and (values > 0).all():
            return float(values[0]), float(values[1])
    return None


def _laterality(dataset: FileDataset) -> Laterality | None:
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    anatomy = (shared.get("FrameAnatomySequence") or [Dataset()])[0]
    words = [dataset.get(key) for key in ("ImageLaterality", "Laterality", "FrameLaterality")]
    return next((_LATERALITIES[word] for word in (*words, anatomy.get("FrameLaterality")) if word in _LATERALITIES), None)


def _view(dataset: FileDataset) -> View | None:
    code = (dataset.get("ViewCodeSequence") or [Dataset()])[0].get("CodeValue")
    return next((_VIEWS[word] for word in (dataset.get("ViewPosition"), code) if word in _VIEWS), None)
