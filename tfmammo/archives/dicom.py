"""One DICOM mammogram -> float32 pixels in [0, 1], and the facts its header states.

`grayscale` maps stored values to grey. Raw images ("for processing") are read like any other and
marked in the header; they look unlike those made for the eye.

Privacy: pydicom quotes element values, any of which may name the patient, in its exceptions,
warnings and log lines. So of an exception raised while elements are read only the class is told,
and warnings and log lines are dropped. What this file says itself quotes numbers and the standard's
own words alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from tfmammo.archives import grayscale
from tfmammo.archives.elements import Fault, items, rendition
from tfmammo.archives.headers import Header, check_header, parse_header
from tfmammo.archives.named_files import is_dicom_head
from tfmammo.archives.silence import silence
from tfmammo.archives.stored import Stored, look_up
from tfmammo.errors import ArchiveError, summarize

_LONGEST_SEQUENCE = 2**20  # bytes; those that are read have some hundreds
_UNDEFINED = 2**32 - 1  # the length of compressed pixels
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_SEQUENCES = (*_GROUPS, "AnatomicRegionSequence", "ViewCodeSequence")
# start of frame: JPEG of all kinds, JPEG-LS
_JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def read_header(path: Path) -> Header:
    """Read the header of one mammogram: everything before the pixels, nothing after them.

    Raises:
        ArchiveError: Not a DICOM mammogram of one grey frame, no pixel data, or it ends too early.
    """
    with reading(path), path.open("rb") as file, silence():
        dataset = _read_header(path, file)
        _seek_pixels(file, dataset)  # for its complaints
        return parse_header(dataset)


def read_pixels(path: Path, window: bool = True) -> NDArray[np.float32]:
    """Read the image of one mammogram, dark background, bright tissue.

    Args:
        path: A DICOM file, of any transfer syntax that pydicom's installed plugins decode.
        window: Apply the first VOI LUT, else the first window, if there is one; False keeps the
            whole range that the bits can store.

    Returns:
        float32 [rows, cols, 1] in [0, 1], native px; padding pixels are 0.

    Raises:
        ArchiveError: What `read_header` raises, or the pixels can't be decoded.
    """
    _, codes, grey = _decode_file(path, window)
    return look_up(grey, codes)


def read_facts(path: Path, window: bool = True) -> dict[str, Any] | None:
    """Read a header as fields of Mammogram; None of a raw image ("for processing")."""
    header = read_header(path)
    if header.for_processing:
        return None
    names = ("rows", "cols", "laterality", "view", "spacing", "chest_wall")
    return {name: getattr(header, name) for name in names} | pixel_source(path, window)


def pixel_source(path: Path, window: bool = True) -> dict[str, Any]:
    """Return the fields of a Mammogram that say where its pixels come from; nothing is read."""
    return {
        "read": partial(read_pixels, path, window=window),
        "file": path,
        "read_stored": partial(read_stored, path, window=window),
    }


def read_stored(path: Path, window: bool = True) -> Stored:
    """Read the stored values of one mammogram, and what they mean, as `read_pixels` does.

    Its elements are those by which a reader comes to these greys, and the stated spacing: numbers
    and words of the standard alone. Of several windows they hold the first.
    """
    dataset, codes, grey = _decode_file(path, window)
    with reading(path), silence():
        elements = rendition(dataset, grayscale.choose_window(dataset, window))
    bits = dataset.BitsStored
    sign = 2 ** (dataset.BitsStored - 1) if dataset.PixelRepresentation else 0
    values: NDArray[np.integer] = codes.view(codes.dtype.str.replace("u", "i")) if sign else codes
    if values.min() < -sign or values.max() >= 2**bits - sign:
        # Bits above BitsStored may hold anything; a negative value is its lower bits less 2^bits.
        values = (((codes.astype(np.int32) & (2**bits - 1)) ^ sign) - sign).astype(values.dtype)
    possible = np.arange(-sign, 2**bits - sign)
    padding = grayscale.find_padding(dataset, possible)
    return Stored(values, bits, grey[possible % len(grey)], -sign, padding, elements)


def read_dataset(path: Path) -> FileDataset:
    """Read all elements before the pixels, the patient's too, for files that must refer to it."""
    with reading(path), path.open("rb") as file, silence():
        return _read_header(path, file)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever pydicom raises into an ArchiveError without its text."""
    try:
        yield
    except Fault as fault:
        raise ArchiveError(f"{path}: {fault}") from None
    except FileNotFoundError:
        raise ArchiveError(f"{path}: no such file") from None
    except InvalidDicomError:
        raise ArchiveError(f"{path}: is not a DICOM file") from None
    except Exception as error:  # pydicom answers damaged files with exceptions of any class
        reason = error.strerror if isinstance(error, OSError) else None
        raise ArchiveError(f"{path}: can't be read ({reason or type(error).__name__})") from None


def read_meta(path: Path) -> FileMetaDataset:
    """Read how a file is written; damaged files raise exceptions of any class."""
    try:
        return read_file_meta_info(path)
    except InvalidDicomError:
        with path.open("rb") as file:
            if not is_dicom_head(file.read(132)):
                raise
        return FileMetaDataset()  # without the head of Part 10 nothing is known


def _decode_file(
    path: Path, window: bool
) -> tuple[FileDataset, NDArray[np.unsignedinteger], NDArray[np.float32]]:
    """Read everything but the pixels, the bits of every pixel, and the grey of each bit pattern."""
    with reading(path), path.open("rb") as file, silence():
        dataset = _read_header(path, file)
        kind, length = _seek_pixels(file, dataset)
        grey = grayscale.map_codes(dataset, window)
        return dataset, _decode_codes(dataset, file.read(length), kind), grey


def _read_header(path: Path, file: BinaryIO) -> FileDataset:
    """Read and check everything before the pixels."""
    if read_meta(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise Fault("is deflated, which is not read here")  # pydicom would inflate it to any size
    dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta and not dataset.preamble:
        # pydicom sees how the first element of a file without a head is written
        is_implicit, is_little = dataset.original_encoding
        plain = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else plain
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None or syntax.is_private or not syntax.is_transfer_syntax:
        raise Fault("its transfer syntax is missing or unknown")
    for key in _SEQUENCES:
        element = dataset.get_item(key) if key in dataset else None
        if isinstance(element, RawDataElement) and element.length > _LONGEST_SEQUENCE:
            raise Fault(f"its {key} is longer than any mammogram's")
    check_header(dataset)
    for key in _GROUPS:
        # an enhanced image states here what all others state at the top
        for group in items(dataset, key):
            for macro in (element for element in group if element.VR == "SQ" and element.value):
                for element in macro.value[0]:
                    if element.tag not in dataset:
                        dataset.add(element)
    return dataset


def _seek_pixels(file: BinaryIO, dataset: FileDataset) -> tuple[str, int]:
    """Go to the first byte of the pixels; return their type, and their length or -1 (the rest)."""
    syntax = dataset.file_meta.TransferSyntaxUID
    order: Literal["little", "big"] = "little" if syntax.is_little_endian else "big"
    head = file.read(8 if syntax.is_implicit_VR else 12)  # tag, type where explicit, length
    tag = [int.from_bytes(head[at : at + 2], order) for at in (0, 2)]
    length = int.from_bytes(head[-4:], order)
    kind = "OW" if syntax.is_implicit_VR else head[4:6].decode("latin-1")
    if tag != [0x7FE0, 0x0010] or kind not in ("OB", "OW", "UN"):
        raise Fault("has no pixel data")
    start = file.tell()
    rest = file.seek(0, 2) - start
    file.seek(start)
    if min(rest, length) == 0:
        raise Fault("has no pixel data")
    if syntax.is_encapsulated:
        return kind, -1 if length == _UNDEFINED else length
    needed = _count_bytes(dataset)
    if length == _UNDEFINED:
        raise Fault("its pixels are compressed, though its transfer syntax says that they are not")
    if min(rest, length) < needed:
        raise Fault(f"the file ends early, {min(rest, length)} of {needed} bytes of pixels exist")
    return kind, needed + needed % 2


def _count_bytes(dataset: FileDataset) -> int:
    return int(-(-dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8))


def _decode_codes(dataset: FileDataset, data: bytes, kind: str) -> NDArray[np.unsignedinteger]:
    """Decompress the bits of every pixel: uint8 or uint16 [rows, cols]; negative values wrap."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        _check_stream(_join_fragments(data), dataset)
    options: dict[str, Any] = {
        "rows": dataset.Rows,
        "columns": dataset.Columns,
        "samples_per_pixel": 1,
        "number_of_frames": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": dataset.BitsAllocated,
        "bits_stored": dataset.BitsStored,
        "pixel_representation": dataset.PixelRepresentation,
        "pixel_keyword": "PixelData",
        "pixel_vr": kind,
        "view_only": dataset.BitsAllocated == 16,  # no copy where none is needed
        "correct_unused_bits": False,  # left to grayscale.map_codes
    }
    try:
        codes, _ = get_decoder(syntax).as_array(data, index=0, raw=True, **options)
    except Exception as error:
        # decoders are given pixels and numbers alone, so what they say can be told
        reason = summarize(error)[:200].rstrip(".")
        raise Fault(f"its pixels can't be decoded ({type(error).__name__}: {reason})") from None
    return codes.view(codes.dtype.str.replace("i", "u"))


def _join_fragments(data: bytes) -> bytes:
    """Return the compressed pixels; decoders make black areas of those that break off."""
    at = 0
    while data[at : at + 4] == b"\xfe\xff\x00\xe0":  # an item: the table of offsets, then fragments
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    if data[at : at + 4] != b"\xfe\xff\xdd\xe0":
        raise Fault("the file ends early, its compressed pixels break off")
    return get_frame(data, 0, number_of_frames=1)


def _check_stream(stream: bytes, dataset: FileDataset) -> None:
    """Raise unless compressed pixels are one grey image of the header's size.

    A small file may claim any size, and decoders believe it: libjpeg takes 16 GB even to tell it.
    """
    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        # the worst encoder takes two bytes for one
        if len(stream) > 2 * _count_bytes(dataset) + 2**16:
            raise Fault("its RLE segments are far longer than its pixels")
        return
    found = _find_size(stream)
    if found is None:
        raise Fault("its compressed pixels do not say how many they are")
    rows, cols, channels = found
    if found != (dataset.Rows, dataset.Columns, 1):
        size = f"{rows} x {cols}" + (f" in {channels} channels" if channels != 1 else "")
        raise Fault(
            f"its compressed pixels are {size}, its header says {dataset.Rows} x {dataset.Columns}"
        )


def _find_size(stream: bytes) -> tuple[int, int, int] | None:
    """Find (rows, cols, channels) in JPEG 2000's SIZ segment or a JPEG's start of frame."""
    # some systems leave JPEG 2000's file format around it, which the standard forbids
    at = stream.find(b"\xff\x4f\xff\x51", 0, 2**12)
    if at >= 0 and len(stream) >= at + 42:
        right, bottom, left, top = struct.unpack_from(">4I", stream, at + 8)
        return bottom - top, right - left, int.from_bytes(stream[at + 40 : at + 42], "big")
    at = 2
    while stream[at : at + 1] == b"\xff" and at + 10 <= len(stream):
        marker, length, rows, cols, channels = struct.unpack_from(">xBHxHHB", stream, at)
        if marker in _JPEG_FRAMES:
            return rows, cols, channels
        at += 2 + length
    return None
