"""Read DDSM's pixels: lossless JPEG or decoded files -> grey levels -> density -> image.

Lossless JPEG. DDSM was compressed by the PVRG codec of Stanford (1993). After the first pixel of
the first line this codec takes the predictor of the whole scan, with an imagined line of half the
range above, where the standard (ITU-T T.81, H.1.2.1) predicts that line from the left alone (PVRG's
JpegLosslessEncodeScan and JpegLosslessDecodeScan). For predictors 1, 4 and 5 both give the same;
for 2, 3, 6 and 7, DDSM's, every conforming decoder returns an image that is wrong nearly everywhere
and says nothing: thorfdbg/libjpeg#63, pydicom/pylibjpeg-libjpeg#33, cgohlke/imagecodecs#61. Here
eight lines of half the range are put before the scan, which then conforms to the standard whatever
its predictor; the maintained decoder decodes it, and the eight lines are dropped. Precision is 16
even for 12-bit scanners, and some headers exchange width and height: the values are then a raster
of the .ics's lines all the same.

Optical density. DDSM calibrated each scanner with a step wedge ("Mapping Grey Levels to Optical
Density for the ... Scanner"). M. Heath's MammoView, C. Rose's ddsmraw2pnm and the pyddsm converter
hold the same constants, except that MammoView rounds LUMISYS otherwise (by less than 0.001) and has
another line for DBA: on the page's measured wedge it is up to 0.23 off within the range used here,
the page's own up to 0.08, so the page's is taken. A grey level of 0, of which DBA's formula can't
take the logarithm, counts as 1: both lie beyond the range. Densities are clipped to 0.05 - 3.0,
Heath's bounds against noise; the densest film is black.
"""

from __future__ import annotations

import functools
import gzip
import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

import libjpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tfmammo.errors import ArchiveError, summarize

Scanner = Literal["dba", "howtek_mgh", "howtek_ismd", "lumisys"]

# what becomes 1 (white) and 0 (black)
MIN_DENSITY = 0.05
MAX_DENSITY = 3.0

_DBA = (4.80662, 1.07553)  # log10(grey) = 4.80662 - 1.07553 density
_LINEAR: dict[Scanner, tuple[float, float]] = {  # density = first - second * grey
    "howtek_mgh": (3.789, 0.00094568),
    "howtek_ismd": (3.96604095240593, 0.00099055807612),
    "lumisys": (4096.99 / 1009.01, 1 / 1009.01),
}
_MARKER = re.compile(rb"\xff+([^\x00\xff])")  # within a scan, 0xff is followed by 0
_LINES_BEFORE = 8  # that many codes fill whole bytes, however long the code is


class _Header(NamedTuple):
    """The segments before the scan."""

    rows: int
    cols: int
    lines_at: int  # where the SOF segment holds the number of lines
    scan: int  # where the scan begins
    zero: str  # the Huffman code of the difference 0, as 0s and 1s


def read_pixels(path: Path, scanner: Scanner, rows: int, cols: int) -> NDArray[np.float32]:
    """Read the image of one file: bright tissue, black background.

    Args:
        path: .LJPEG, .LJPEG.gz, .LJPEG.1, or a 16-bit .png, .tif or .tiff of the scanner's grey
            levels.
        rows: Rows that the .ics states.
        cols: Columns that the .ics states.

    Returns:
        float32 [rows, cols, 1]: 1 - (density - 0.05) / (3.0 - 0.05), clipped to [0, 1].

    Raises:
        ArchiveError: The file can't be read, or doesn't hold rows x cols grey levels.
    """
    try:
        return _grey_table(scanner)[_read_grey(path, scanner, rows, cols)][..., np.newaxis]
    except ArchiveError:
        raise
    except ValueError as error:
        raise ArchiveError(f"{path}: {error}") from None


@functools.cache
def _grey_table(scanner: Scanner) -> NDArray[np.float32]:
    density = optical_density(np.arange(65536), scanner)
    return (1 - np.clip((density - MIN_DENSITY) / (MAX_DENSITY - MIN_DENSITY), 0, 1)).astype(
        np.float32
    )


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a file of at most `limit` bytes, unpacked where its name ends in .gz."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ArchiveError(f"{path}: can't be read ({error.__class__.__name__})") from None
    if len(content) > limit:
        raise ArchiveError(f"{path}: is too large, more than {limit} bytes")
    return content


def _read_grey(path: Path, scanner: Scanner, rows: int, cols: int) -> NDArray[np.uint16]:
    """Read the scanner's grey levels, uint16 [rows, cols]."""
    form = path.suffix.lower()
    if form in (".ljpeg", ".gz"):
        # a value takes at most 4 bytes, 8 if all are 0xff
        return decode(read_bytes(path, 8 * rows * cols + 2**16), rows, cols)
    if form != ".1":
        return _read_picture(path, scanner, rows, cols)
    content = read_bytes(path, 2 * rows * cols)
    if len(content) != 2 * rows * cols:
        raise ValueError(
            f"has {len(content)} bytes where {rows} x {cols} values of 16 bits need "
            f"{2 * rows * cols}"
        )
    return np.frombuffer(content, ">u2").astype(np.uint16).reshape(rows, cols)


def _read_picture(path: Path, scanner: Scanner, rows: int, cols: int) -> NDArray[np.uint16]:
    grey = None
    try:
        with warnings.catch_warnings():
            # of odd tags, and of large images: the size is checked here
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG", "TIFF")) as image:
                size = image.size
                mode = image.mode
                if size == (cols, rows) and mode.startswith("I;16"):
                    grey = np.asarray(image).astype(np.uint16)
    except Exception as error:  # Pillow answers damaged files with exceptions of many classes
        raise ValueError(f"can't be decoded ({error.__class__.__name__})") from None
    if grey is None:
        raise ValueError(
            f"is {size[1]} x {size[0]} of mode {mode}, not {rows} x {cols} 16-bit pixels"
        )
    if scanner != "dba" and grey.max() > 4095:
        raise ValueError(f"holds values up to {grey.max()}, which a scanner of 12 bits never gave")
    return grey


def optical_density(grey: NDArray, scanner: Scanner) -> NDArray[np.float64]:
    """Return the film's optical density, float64, of grey levels up to 65535 (DBA) or 4095."""
    if scanner == "dba":
        return (_DBA[0] - np.log10(np.maximum(grey, 1))) / _DBA[1]
    zero, slope = _LINEAR[scanner]
    return zero - slope * np.asarray(grey, np.float64)


def decode(data: bytes, rows: int, cols: int) -> NDArray[np.uint16]:
    """Decode the grey levels of one .LJPEG file: uint16 [rows, cols], as the .ics states them.

    Raises:
        ValueError: No lossless JPEG, not of rows * cols values (which it may exchange), cut off, or
            of a form that PVRG's default never has.
    """
    header = _read_header(data)
    if header.rows * header.cols != rows * cols:
        raise ValueError(
            f"has {header.rows} x {header.cols} values where the .ics says {rows} x {cols}"
        )
    end = _MARKER.search(data, header.scan)
    # a value takes a bit at least
    if end is None or end[1] != b"\xd9" or 8 * (end.start() - header.scan) < rows * cols:
        raise ValueError("the scan is cut off or damaged")
    line = int(_LINES_BEFORE * header.zero, 2).to_bytes(len(header.zero), "big")
    lines = line * header.cols
    patched = b"".join(
        (
            data[: header.lines_at],
            struct.pack(">H", header.rows + _LINES_BEFORE),
            data[header.lines_at + 2 : header.scan],
            lines.replace(b"\xff", b"\xff\0"),
            data[header.scan : end.end()],
        )
    )
    try:
        decoded = libjpeg.decode(patched)
    except RuntimeError as error:
        raise ValueError(f"the JPEG can't be decoded ({summarize(error)[:200]})") from None
    return decoded[_LINES_BEFORE:].astype(np.uint16).reshape(rows, cols)


def _read_header(data: bytes) -> _Header:
    """Walk the segments up to the scan; raise ValueError where this is no file of PVRG's."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("is no JPEG")
    place = 2
    frame = None
    tables: dict[int, str] = {}
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        segment = data[place + 4 : place + 2 + length]
        if length < 2 or len(segment) != length - 2:
            break
        if marker == 0xC4:
            tables |= _find_zero_codes(segment)
        elif marker == 0xC3:
            frame = (*_unpack(">BHHB", segment), place + 5)
        elif marker in range(0xC0, 0xD0):
            raise ValueError("is a JPEG, but not a lossless one with Huffman codes")
        elif marker == 0xDD and any(segment):
            raise ValueError("has restart intervals, which DDSM's files never have")
        elif marker == 0xDA:
            return _check_header(frame, tables, segment, place + 2 + length)
        place += 2 + length
    raise ValueError("the JPEG's header is cut off or damaged")


def _check_header(
    frame: tuple[int, ...] | None, tables: dict[int, str], scan: bytes, begin: int
) -> _Header:
    count, _, selectors, predictor, _, shift = _unpack(">BBBBBB", scan)
    if frame is None:
        raise ValueError("the JPEG has a scan before its frame")
    precision, rows, cols, components, lines_at = frame
    if (
        (count, components, shift) != (1, 1, 0)
        or not 2 <= precision <= 16
        or not 1 <= predictor <= 7
        or 0 in (rows, cols)
    ):
        raise ValueError("the JPEG is not one grey image as DDSM's are")
    if rows + _LINES_BEFORE > 65535:
        raise ValueError(f"the JPEG claims {rows} lines")
    if not tables.get(selectors >> 4):
        raise ValueError("the JPEG has no Huffman code for a difference of 0")
    return _Header(rows, cols, lines_at, begin, tables[selectors >> 4])


def _unpack(form: str, segment: bytes) -> tuple[int, ...]:
    if len(segment) < struct.calcsize(form):
        raise ValueError("the JPEG's header is cut off or damaged")
    return struct.unpack_from(form, segment)


def _find_zero_codes(segment: bytes) -> dict[int, str]:
    """Find the code of category 0 ("" if none) in each table of one DHT segment, by its number."""
    codes: dict[int, str] = {}
    while len(segment) >= 17:
        number = segment[0] & 15
        counts = segment[1:17]
        code = 0
        symbols = segment[17 : 17 + sum(counts)]
        segment = segment[17 + sum(counts) :]
        codes[number] = ""
        # T.81, C.2: codes of a length are consecutive
        for length, count in enumerate(counts, start=1):
            here = symbols[:count]
            symbols = symbols[count:]
            if 0 in here:
                codes[number] = f"{code + here.index(0):0{length}b}"[-length:]
            code = (code + count) << 1
    return codes
