"""Write mammograms as DDSM is distributed: case folders with .ics, .OVERLAY, lossless JPEG.

The JPEG is as the PVRG codec writes it.
"""

import struct
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.archives import ljpeg
from tfmammo.mammogram import Lesion, Mammogram

_SITES: dict[ljpeg.Scanner, tuple[str, str, int]] = {  # letter of the case, DIGITIZER, bits
    "dba": ("A", "DBA 21", 16),
    "lumisys": ("B", "LUMISYS LASER", 12),
}
_STEPS = [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]  # row, col
# of the Huffman codes, the most frequent category first
_LENGTHS = (2, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12)


def write(
    mammograms: Iterable[Mammogram],
    root: Path,
    *,
    scanner: ljpeg.Scanner = "lumisys",
    transposed: bool = False,
) -> list[Path]:
    """Write mammograms to root/cases/<kind>s/<kind>_01/case0001/..., a patient's no two alike.

    Args:
        scanner: Whose calibration maps densities to grey levels.
        transposed: Exchange width and height in the JPEG's header.
    """
    letter, digitizer, bits = _SITES[scanner]
    patients: dict[str, list[Mammogram]] = defaultdict(list)
    paths: dict[int, Path] = {}
    for mammogram in (order := list(mammograms)):
        patients[mammogram.patient_id].append(mammogram)
    for number, images in enumerate(patients.values(), start=1):
        kind = _kind(images)
        folder = root / "cases" / f"{kind}s" / f"{kind}_01" / f"case{number:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            f"filename {letter}-{number:04d}-1",
            "DATE_OF_STUDY 2 7 1995",
            "PATIENT_AGE 42",
            "FILM ",
            f"DENSITY {images[0].density or 0}",
            f"DIGITIZER {digitizer}",
            "SEQUENCE",
            *(_view_line(mammogram, bits) for mammogram in images),
        ]
        path = folder / f"{letter}-{number:04d}-1.ics"
        path.write_text("\n".join(lines) + "\n", encoding="ascii")
        for mammogram in images:
            stem = f"{letter}_{number:04d}_1.{_name(mammogram)}"
            paths[id(mammogram)] = folder / f"{stem}.LJPEG"
            grey = grey_level(3 - 2.95 * mammogram.pixels()[..., 0].astype(np.float64), scanner)
            grey = grey.reshape(grey.shape[::-1]) if transposed else grey
            paths[id(mammogram)].write_bytes(encode(grey))
            if mammogram.lesions:
                (folder / f"{stem}.OVERLAY").write_text(_overlay(mammogram), encoding="ascii")
    return [paths[id(mammogram)] for mammogram in order]


def grey_level(density: NDArray, scanner: ljpeg.Scanner) -> NDArray[np.uint16]:
    """Return the nearest grey level of an optical density."""
    if scanner == "dba":
        grey = 10 ** (4.80662 - 1.07553 * density)
    else:
        zero, one = ljpeg.optical_density(np.array([0, 1]), scanner)
        grey = (zero - density) / (zero - one)
    return np.clip(np.rint(grey), 0, 65535 if scanner == "dba" else 4095).astype(np.uint16)


def _kind(images: list[Mammogram]) -> str:
    pathologies = {mammogram.pathology for mammogram in images}
    if "malignant" in pathologies:
        return "cancer"
    is_marked = any(mammogram.lesions for mammogram in images)
    return "benign" if "benign" in pathologies or is_marked else "normal"


def _name(mammogram: Mammogram) -> str:
    return f"{'LEFT' if mammogram.laterality == 'L' else 'RIGHT'}_{mammogram.view}"


def _view_line(mammogram: Mammogram, bits: int) -> str:
    spacing = mammogram.spacing[0] if mammogram.spacing else 0.05
    size = (
        f"LINES {mammogram.rows} PIXELS_PER_LINE {mammogram.cols} BITS_PER_PIXEL {bits} "
        f"RESOLUTION {1000 * spacing:g}"
    )
    return f"{_name(mammogram)} {size} {'OVERLAY' if mammogram.lesions else 'NON_OVERLAY'}"


def _overlay(mammogram: Mammogram) -> str:
    """Make each connected part of each lesion's mask one abnormality, traced along its border."""
    parts = [
        (lesion, contour[:, 0])
        for lesion in mammogram.lesions
        for contour in cv2.findContours(
            lesion.mask(mammogram.rows, mammogram.cols), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )[0]
    ]
    lines = [f"TOTAL_ABNORMALITIES {len(parts)}"]
    for number, (lesion, contour) in enumerate(parts, start=1):
        lines += [
            f"ABNORMALITY {number}",
            f"LESION_TYPE {_lesion_type(lesion)}",
            f"ASSESSMENT {(mammogram.birads or '0')[0]}",
            "SUBTLETY 3",
            f"PATHOLOGY {(lesion.pathology or 'unproven').upper()}",
            "TOTAL_OUTLINES 1",
            "BOUNDARY",
            _chain(contour),
            "",
        ]
    return "\n".join(lines)


def _lesion_type(lesion: Lesion) -> str:
    shape = (lesion.shape or "N/A").upper()
    margin = (lesion.margin or "N/A").upper()
    if lesion.kind == "calcification":
        return f"CALCIFICATION TYPE {shape} DISTRIBUTION N/A"
    if lesion.kind == "mass":
        return f"MASS SHAPE {shape} MARGINS {margin}"
    return f"OTHER {'ASYMMETRY' if lesion.kind == 'asymmetry' else 'ARCHITECTURAL DISTORTION'}"


def _chain(contour: NDArray) -> str:
    """Encode a closed border of 8-connected pixels, int [points, 2] of (col, row), as a chain."""
    steps = np.diff(contour, axis=0, append=contour[:1])
    # a single pixel has no step
    codes = [str(_STEPS.index((row, col))) for col, row in steps.tolist() if row or col]
    return " ".join([*map(str, contour[0].tolist()), *codes, "#"])


def encode(
    grey: NDArray[np.uint16], predictor: int = 7, precision: int = 16, conforming: bool = False
) -> bytes:
    """Encode uint16 [rows, cols] as lossless JPEG (ITU-T T.81, annex H), as PVRG writes it.

    `conforming` predicts the first line from the left, as the standard wants it and PVRG doesn't.
    """
    values = _differences(grey, predictor, precision, conforming).ravel()
    sizes = np.ceil(np.log2(np.abs(values) + 1.0)).astype(np.int64)
    categories = np.argsort(-np.bincount(sizes, minlength=17), kind="stable")
    codes = np.zeros(17, np.int64)
    lengths = np.zeros(17, np.int64)
    code = 0
    for category, length, last in zip(categories, _LENGTHS, (2, *_LENGTHS), strict=False):
        code <<= length - last
        codes[category] = code
        lengths[category] = length
        code += 1
    extra = np.where(sizes == 16, 0, sizes)  # a difference of 32768 needs no further bits
    bits = (codes[sizes] << extra) | (np.where(values < 0, values - 1, values) & ((1 << extra) - 1))
    scan = _pack(bits, lengths[sizes] + extra).replace(b"\xff", b"\xff\0")
    frame = struct.pack(">HBHHBBBB", 11, precision, *grey.shape, 1, 1, 0x11, 0)
    table = (
        struct.pack(">HB", 36, 0)
        + bytes(_LENGTHS.count(length) for length in range(1, 17))
        + bytes(categories.tolist())
    )
    start = struct.pack(">HBBBBBB", 8, 1, 1, 0, predictor, 0, 0)
    return b"".join(
        (b"\xff\xd8\xff\xc3", frame, b"\xff\xc4", table, b"\xff\xda", start, scan, b"\xff\xd9")
    )


def _differences(
    grey: NDArray[np.uint16], predictor: int, precision: int, conforming: bool
) -> NDArray[np.int64]:
    """Return value - prediction modulo 2^16, from -32767 to 32768."""
    padded = np.pad(grey.astype(np.int64), ((1, 0), (1, 0)), constant_values=1 << (precision - 1))
    left = padded[1:, :-1]
    above = padded[:-1, 1:]
    corner = padded[:-1, :-1]
    predicted = {
        1: left,
        2: above,
        3: corner,
        4: left + above - corner,
        5: left + ((above - corner) >> 1),
        6: above + ((left - corner) >> 1),
        7: (left + above) >> 1,
    }[predictor].copy()
    predicted[:, 0] = above[:, 0]
    if conforming:
        predicted[0] = left[0]
    return 32768 - (32768 - (grey - predicted)) % 65536


def _pack(bits: NDArray[np.int64], lengths: NDArray[np.int64]) -> bytes:
    """Pack the lowest lengths[i] bits of each bits[i], the highest first.

    The last byte is filled up with 1s.
    """
    begins = np.cumsum(lengths) - lengths
    stream = np.ones(-(-int(lengths.sum()) // 8) * 8, np.uint8)
    for place in range(int(lengths.max())):
        inside = lengths > place
        stream[begins[inside] + place] = (bits[inside] >> (lengths[inside] - 1 - place)) & 1
    return np.packbits(stream).tobytes()
