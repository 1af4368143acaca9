"""Check a DICOM file's compressed pixels before they are decoded.

A small file may claim any size, and decoders believe it.
"""

from __future__ import annotations

import struct

from pydicom.encaps import get_frame

from tfmammo.archives.elements import Fault

# start of frame: JPEG of all kinds, JPEG-LS
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_SCAN = 0xDA
_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xDA), 0xFF}


def frame(data: bytes) -> bytes:
    """Return the compressed pixels without their wrapping. Raises when they break off."""
    at = 0
    while data[at : at + 4] == b"\xfe\xff\x00\xe0":  # an item: the table of offsets, then fragments
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    if data[at : at + 4] != b"\xfe\xff\xdd\xe0":
        raise Fault("the file ends early, its compressed pixels break off")
    return get_frame(data, 0, number_of_frames=1)


def check_stream(stream: bytes, rows: int, cols: int) -> None:
    """Raise unless compressed pixels are one grey image of the header's size.

    Another image might need any memory.
    """
    size_and_channels = _find_size(stream)
    if size_and_channels is None:
        raise Fault("its compressed pixels do not say how many they are")
    if size_and_channels != (rows, cols, 1):
        size = f"{size_and_channels[0]} x {size_and_channels[1]}"
        channels = f" in {size_and_channels[2]} channels" if size_and_channels[2] != 1 else ""
        raise Fault(f"its compressed pixels are {size}{channels}, its header says {rows} x {cols}")


def _find_size(stream: bytes) -> tuple[int, int, int] | None:
    """Find (rows, cols, channels) in a JPEG's start of frame or a JPEG 2000's SIZ segment.

    Returns:
        None where there is neither.
    """
    stream = _find_codestream(stream)
    if stream[:4] == b"\xff\x4f\xff\x51" and len(stream) >= 42:
        right, bottom, left, top = struct.unpack(">4I", stream[8:24])
        return bottom - top, right - left, int.from_bytes(stream[40:42], "big")
    found = None
    at = 2
    while stream[:2] == b"\xff\xd8" and stream[at : at + 1] == b"\xff" and at + 10 <= len(stream):
        marker, length, rows, cols, channels = struct.unpack(">xBHxHHB", stream[at : at + 10])
        if marker == _SCAN:
            return found
        # Decoders go on differently after a marker without a length, and after a second frame.
        if marker in _WITHOUT_LENGTH or length < 2 or (found and marker in _FRAME_MARKERS):
            return None
        if marker in _FRAME_MARKERS:
            found = rows, cols, channels
        at += 2 + length
    return None


def _find_codestream(stream: bytes) -> bytes:
    """Find a JPEG 2000 codestream within the file format around it.

    The standard forbids that format in DICOM, and some systems write it.
    """
    at = 0
    while stream[4:8] == b"jP  " and at + 8 <= len(stream):
        length = int.from_bytes(stream[at : at + 4], "big")
        kind = stream[at + 4 : at + 8]
        if kind == b"jp2c":
            return stream[at + 8 :]
        if length < 8:
            break
        at += length
    return stream
