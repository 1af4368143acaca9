"""Write mammograms as mini-MIAS is distributed: mdb001.pgm ... and Info.txt."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.mammogram import Lesion, Mammogram

_SIZE = 1024
_PROSE = """MAMMOGRAPHIC IMAGE ANALYSIS SOCIETY
1st column: MIAS database reference number.
3rd column: Class of abnormality present: CALC, CIRC, SPIC, MISC, ARCH, ASYM, NORM
3) Coordinate system origin is the bottom-left corner.

"""
_CLASSES = {"calcification": "CALC", "asymmetry": "ASYM", "distortion": "ARCH"}
_MASSES = {"circumscribed": "CIRC", "spiculated": "SPIC"}
_DENSITIES = {"fatty": "F", "dense-glandular": "D"}


def write(
    mammograms: Iterable[Mammogram],
    root: Path,
    *,
    folder: str = ".",
    upper_case: bool = False,
    comment: bool = False,
) -> list[Path]:
    """Write mammograms with laterality; of an outline the circle around it is kept.

    Images of another size are centred in the square, padded with black or cut, as the archive did;
    circles move along. The left and the right film of a patient become a pair; who has several of
    one side gets several pairs, and is read back as several patients.
    """
    seen: Counter[tuple[str, int]] = Counter()
    pairs: dict[tuple[str, int], int] = {}
    paths: list[Path] = []
    rows: dict[str, list[str]] = {}
    (root / folder).mkdir(parents=True, exist_ok=True)
    for mammogram in mammograms:
        side = 1 if mammogram.laterality == "L" else 2  # odd is left
        place = (mammogram.patient_id, seen[mammogram.patient_id, side])
        seen[mammogram.patient_id, side] += 1
        name = f"mdb{2 * pairs.setdefault(place, len(pairs)) + side:03d}"
        paths.append(root / folder / (f"{name}.pgm".upper() if upper_case else f"{name}.pgm"))
        grey = np.rint(_centred(mammogram.pixels()[..., 0]).astype(np.float64) * 255)
        remark = b"# CREATOR: XV Version 3.10a\n" if comment else b""
        head = b"P5\n" + remark + b"%d %d\n255\n" % (_SIZE, _SIZE)
        paths[-1].write_bytes(head + grey.astype(np.uint8).tobytes())
        rows[name] = _rows(name, mammogram)
    table = "\n".join(row for name in sorted(rows) for row in rows[name])
    path = root / ("INFO.TXT" if upper_case else "Info.txt")
    path.write_text(_PROSE + table + "\n", encoding="ascii")
    return paths


def _centred(image: NDArray[np.float32]) -> NDArray[np.float32]:
    canvas = np.zeros((_SIZE, _SIZE), np.float32)
    (to_row, from_row), (to_col, from_col) = (_shift(length) for length in image.shape)
    part = image[from_row : from_row + _SIZE, from_col : from_col + _SIZE]
    canvas[to_row : to_row + part.shape[0], to_col : to_col + part.shape[1]] = part
    return canvas


def _shift(length: int) -> tuple[int, int]:
    """How many pixels are put before an image of this length, and how many are cut off."""
    return max(_SIZE - length, 0) // 2, max(length - _SIZE, 0) // 2


def _rows(name: str, mammogram: Mammogram) -> list[str]:
    start = f"{name} {_DENSITIES.get(mammogram.density or '', 'G')}"
    rows = []
    for lesion in mammogram.lesions:
        finding = _CLASSES.get(lesion.kind) or _MASSES.get(lesion.margin or "", "MISC")
        severity = "M" if lesion.pathology == "malignant" else "B"
        rows.append(f"{start} {finding} {severity} {_circle(lesion, mammogram)}")
    return rows or [f"{start} NORM"]


def _circle(lesion: Lesion, mammogram: Mammogram) -> str:
    (row, col), radius = cv2.minEnclosingCircle(np.concatenate(lesion.outlines))
    (down, up), (right, left) = _shift(mammogram.rows), _shift(mammogram.cols)
    x, y = np.rint([col + right - left, _SIZE - (row + down - up)]).astype(int)
    return f"{x} {y} {max(round(radius), 1)}"
