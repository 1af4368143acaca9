"""Check the directories of TIFF and EXIF before Pillow reads them.

Pillow loads the value of every entry. Entries may share their bytes, so that a small file can state
gigabytes; and pages follow each other, so that counting them takes long. Here the sizes that the
entries state are added up, and nothing is loaded.
"""

from __future__ import annotations

import struct
from io import BytesIO
from typing import BinaryIO

from tfmammo.archives.elements import Fault

EXIF = b"Exif\0\0"  # what EXIF begins with in a JPEG
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
# bytes of a value by its type
_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


def check_tiff(file: BinaryIO, size: int) -> None:
    """Check the directory of a TIFF file.

    Args:
        file: At its beginning.
        size: Its bytes.

    Raises:
        Fault: It is none of the classic form, has several pages, or is made to fill memory.
    """
    if _check_directory(file, size):
        raise Fault("holds several pages, not one image")


def check_exif(block: bytes) -> None:
    """Check a block of EXIF.

    Args:
        block: Without the beginning `EXIF`.

    Raises:
        Fault: It is none, or is made to fill memory.
    """
    _check_directory(BytesIO(block), len(block))


def check_jpeg(stream: bytes) -> None:
    """Check the EXIF of a JPEG. Pillow joins its blocks, so more than one is refused.

    Raises:
        Fault: There are several, or one is made to fill memory.
    """
    count = stream.count(EXIF)
    if count > 1:
        raise Fault("has several blocks of EXIF")
    if count:
        start = stream.index(EXIF) + len(EXIF)
        check_exif(stream[start : start + 2**16])  # no segment of a JPEG is longer


def _check_directory(file: BinaryIO, size: int) -> int:
    """Check the first directory, and return where the next one is, 0 for none."""
    head = file.read(8)
    order = _ORDERS.get(head[:4])
    if order is None or len(head) < 8:
        raise Fault("has a directory of no known form (a BigTIFF, say)")
    file.seek(struct.unpack(f"{order}I", head[4:])[0])
    (count,) = struct.unpack(f"{order}H", _read(file, 2))
    entries = struct.iter_unpack(f"{order}HHII", _read(file, 12 * count))
    if sum(number * _WIDTHS.get(kind, 1) for _, kind, number, _ in entries) > size:
        raise Fault("states more in its directory than it holds")
    following = file.read(4)
    return int(struct.unpack(f"{order}I", following)[0]) if len(following) == 4 else 0


def _read(file: BinaryIO, count: int) -> bytes:
    content = file.read(count)
    if len(content) < count:
        raise Fault("ends within its directory")
    return content
