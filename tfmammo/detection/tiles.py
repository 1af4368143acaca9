"""Tiles that cover a mammogram, and their detections as those of the whole; numpy alone,
pure functions.

A mammogram of native resolution does not fit into a detector. Tiles that share `overlap` px with
their neighbours show every lesion of no more rows and columns whole at least once. What a tile's
border cuts is found there as a smaller box inside the whole one, which `merged` takes away; no rule
asks where borders are. Of a lesion larger than the overlap two parts may be left, side by side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tfmammo.metrics.detection import area, intersection

# Boxes that share more, of the smaller one, show the same. Of equal size they then have an IoU
# above 1/3, about what detectors here merge in one image; a part cut off at a tile's border shares
# nearly all of itself, however small it is.
SAME = 0.5


def grid(image: tuple[int, int], shape: tuple[int, int], overlap: int) -> list[tuple[int, int]]:
    """The fewest tiles that cover an image, neighbours sharing `overlap` px or more, the last ones
    flush with its border.

    n = ceil((length - overlap) / (side - overlap)) along each axis, at even distances, to the px;
    one at 0 where the image is no longer than the tile, which then reaches beyond it.

    Args:
        image: Rows and columns of the image and of a tile, px.
        shape: Rows and columns of the image and of a tile, px.
        overlap: px, less than both sides of a tile.

    Returns:
        Upper left corners (top, left), row by row.

    Raises:
        ValueError: The overlap is not less than a tile's side.
    """
    if overlap >= min(shape):
        raise ValueError(f"tiles of {shape[0]} x {shape[1]} px can't share {overlap} px")
    tops, lefts = (
        _starts(length, side, overlap) for length, side in zip(image, shape, strict=True)
    )
    return [(top, left) for top in tops for left in lefts]


def merged(
    boxes: NDArray[np.floating],
    scores: NDArray[np.floating],
    classes: NDArray,
    tiles: NDArray[np.integer],
    same: float = SAME,
) -> NDArray[np.intp]:
    """Which detections of tiles are those of the whole: class by class, the surest first, those
    that no kept one shows already.

    A box goes when a surer kept one (or an equally sure, larger one) of another tile has its class
    and shares more than `same` of the smaller one's area with it. Boxes of one tile are left to the
    detector's own suppression, so that one tile alone changes nothing.

    Args:
        boxes: float [n, 4], in px of the whole image.
        scores: [n].
        classes: [n].
        tiles: [n], the number of each one's tile.

    Returns:
        int [k], indices, the surest first; none of a box without area.
    """
    areas = area(boxes)
    shared = intersection(boxes, boxes) > same * np.minimum.outer(areas, areas)
    rivals = shared & np.equal.outer(classes, classes) & np.not_equal.outer(tiles, tiles)
    kept: list[int] = []
    for index in np.lexsort((-areas, -np.asarray(scores))):
        if areas[index] > 0 and not rivals[index, kept].any():
            kept.append(int(index))
    return np.array(kept, np.intp)


def _starts(length: int, side: int, overlap: int) -> list[int]:
    count = max(1, -(-(length - overlap) // (side - overlap)))
    room = max(0, length - side)
    return [number * room // (count - 1) if count > 1 else 0 for number in range(count)]
