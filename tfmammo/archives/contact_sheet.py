"""Draw mammograms side by side with their lesions, to see whether a reader placed them well."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.archives.stored import unused_range
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import LesionKind, Mammogram, Skipped

CELL = (320, 256)  # rows, cols, px; the caption is beneath
CAPTION = 16
COLOURS: dict[LesionKind, tuple[int, int, int]] = {  # red, green, blue
    "mass": (255, 70, 60),
    "calcification": (70, 200, 255),
    "asymmetry": (255, 200, 40),
    "distortion": (120, 255, 120),
}


def draw_contact_sheet(
    mammograms: Iterable[Mammogram], skipped: Skipped, columns: int = 6
) -> NDArray[np.uint8]:
    """Draw mammograms in rows, each scaled to fit its cell: uint8 [rows, cols, 3], RGB.

    Outlines or boxes have the colour of the lesion's kind, which the last line names. Intensities
    are drawn as they are read, 0 black and 1 white, so that a wrong scale is seen. `skipped` takes
    what can't be read; ArchiveError is raised if that is all.
    """
    cells = []
    for mammogram in mammograms:
        try:
            cells.append(_draw_cell(mammogram, skipped))
        except ValueError as error:
            skipped.add(mammogram.image_id, error)
    if not cells:
        raise ArchiveError("none of the mammograms can be read")
    columns = min(columns, len(cells))
    cells += [np.zeros_like(cells[0])] * (-len(cells) % columns)
    legend = np.zeros((CAPTION, columns * CELL[1], 3), np.uint8)
    left = 2
    for kind, colour in COLOURS.items():
        left = _write(legend, kind, left, colour) + 10
    starts = range(0, len(cells), columns)
    rows = [np.concatenate(cells[start : start + columns], axis=1) for start in starts]
    return np.concatenate([*rows, legend])


def _draw_cell(mammogram: Mammogram, skipped: Skipped) -> NDArray[np.uint8]:
    scale = min(CELL[0] / mammogram.rows, CELL[1] / mammogram.cols)
    rows = max(1, int(mammogram.rows * scale))
    cols = max(1, int(mammogram.cols * scale))
    image = mammogram.pixels()[..., 0]
    grey = cv2.resize(image, (cols, rows), interpolation=cv2.INTER_AREA)
    picture = cv2.cvtColor(np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8), cv2.COLOR_GRAY2RGB)
    for number, lesion in enumerate(mammogram.lesions):
        try:
            top, left, bottom, right = np.array(lesion.box) - (0, 0, 1, 1)
            corners = [[top, left], [top, right], [bottom, right], [bottom, left]]
            borders = lesion.outlines or (np.array(corners, np.float32),)
        except ValueError as error:
            skipped.add(mammogram.image_id, f"lesion {number}: {error}")
            continue
        for outline in borders:
            points = np.rint(((outline + 0.5) * scale - 0.5)[:, ::-1] * 16).astype(np.int32)
            cv2.polylines(picture, [points], True, COLOURS[lesion.kind], 1, cv2.LINE_AA, 4)
    cell = np.zeros((CELL[0] + CAPTION, CELL[1], 3), np.uint8)
    cell[:rows, :cols] = picture
    _write(cell[CELL[0] :], _caption(mammogram, float(image.max())), 2, (200, 200, 200))
    return cell


def _write(line: NDArray[np.uint8], words: str, left: int, colour: tuple[int, int, int]) -> int:
    """Write words into a line of CAPTION rows; return the column where they end."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.34
    cv2.putText(line, words, (left, 12), font, scale, colour, 1, cv2.LINE_AA)
    return left + cv2.getTextSize(words, font, scale, 1)[0][0]


def _caption(mammogram: Mammogram, highest: float) -> str:
    full = 2 ** (mammogram.bits or 1) - 1
    advice = unused_range(round(highest * full), full)
    facts = (
        f"{mammogram.image_id[-24:]} {mammogram.laterality or '?'} {mammogram.view or '?'} "
        f"{mammogram.pathology or ''}"
    )
    return advice.partition(" in ")[0] if advice else facts
