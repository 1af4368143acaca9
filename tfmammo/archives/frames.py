"""One frame of a DICOM segmentation, without the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileDataset
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder
from pydicom.uid import RLELossless

from tfmammo.archives import compressed, dicom
from tfmammo.archives.elements import Fault, integer
from tfmammo.archives.silence import silence

_MOST_FRAMES = 2**16


def read_frame(path: Path, number: int, rows: int, cols: int) -> NDArray[np.uint8]:
    """Read one frame of 1 or 8 bits.

    Args:
        path: A DICOM file that is not deflated.
        number: The frame, from 0 on.
        rows: Rows that the file must state.
        cols: Columns that the file must state.

    Returns:
        uint8 [rows, cols], the stored values.

    Raises:
        ArchiveError: The frame can't be read.
    """
    with dicom.reading(path), path.open("rb") as file, silence():
        dataset = pydicom.dcmread(dicom.LimitedReader(file), stop_before_pixels=True)
        bits = integer(dataset, "BitsAllocated", 0)
        frames = integer(dataset, "NumberOfFrames", 1)
        if (integer(dataset, "Rows", 0), integer(dataset, "Columns", 0)) != (rows, cols):
            raise Fault("was changed while it was read")
        if bits not in (1, 8) or not 0 <= number < frames <= _MOST_FRAMES:
            raise Fault("is no segmentation of 1 or 8 bits with that frame")
        if not dataset.file_meta.TransferSyntaxUID.is_little_endian:
            raise Fault("is big-endian, which is not read here")
        start = _find_pixels(file, dataset)
        if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            return _decode(file.read(), dataset, number, frames, rows, cols, bits)
        first = number * rows * cols * bits  # frames follow each other bit by bit
        file.seek(start + first // 8)
        data = file.read(-(-(first % 8 + rows * cols * bits) // 8))
        if 8 * len(data) < first % 8 + rows * cols * bits:
            raise Fault("the file ends before its pixels do")
    values = np.frombuffer(data, np.uint8)
    if bits == 1:
        values = np.unpackbits(values, bitorder="little")[first % 8 : first % 8 + rows * cols]
    return values[: rows * cols].reshape(rows, cols)


def _find_pixels(file: BinaryIO, dataset: FileDataset) -> int:
    """Go to the first byte behind the head of the pixels' element, and return its place."""
    head = file.read(8 if dataset.file_meta.TransferSyntaxUID.is_implicit_VR else 12)
    if head[:4] != b"\xe0\x7f\x10\x00":
        raise Fault("has no pixel data")
    return file.tell()


def _decode(
    data: bytes, dataset: FileDataset, number: int, frames: int, rows: int, cols: int, bits: int
) -> NDArray[np.uint8]:
    syntax = dataset.file_meta.TransferSyntaxUID
    if bits != 8:
        raise Fault("its pixels of 1 bit are compressed, which is not read here")
    frame = get_frame(data, number, number_of_frames=frames)
    if syntax == RLELossless:
        return compressed.unpack(frame, rows, cols, bits).astype(np.uint8)
    compressed.check_stream(frame, rows, cols)
    options: dict[str, Any] = {
        "rows": rows,
        "columns": cols,
        "samples_per_pixel": 1,
        "number_of_frames": frames,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": 8,
        "bits_stored": 8,
        "pixel_representation": 0,
        "pixel_keyword": "PixelData",
        "pixel_vr": "OB",
    }
    values, _ = get_decoder(syntax).as_array(data, index=number, raw=True, **options)
    return np.asarray(values, np.uint8).reshape(rows, cols)
