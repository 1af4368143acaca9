"""Tiles that cover a mammogram, and the merging of their detections; pure functions of NumPy.

A mammogram of native resolution does not fit into a detector. Tiles share `overlap` px with their
neighbours, so that every lesion of no more rows and columns is whole in at least one of them. A
lesion that a tile's border cuts gives a smaller box inside the whole one, which `merge` removes; no
rule needs to know where borders are. A lesion larger than the overlap may leave two parts, side by
side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tfmammo.metrics.boxes import area, intersection

# Boxes that share more, of the smaller one, show the same. Of equal size they then have an IoU
# above 1/3, about what detectors here merge in one image; a part cut off at a tile's border shares
# nearly all of itself, however small it is.
SAME = 0.5


def lay_grid(image: tuple[int, int], shape: tuple[int, int], overlap: int) -> list[tuple[int, int]]:
    """Lay the fewest tiles that cover an image, the last ones flush with its border.

    Neighbours share `overlap` px or more. Along each axis there are ceil((length - overlap) / (side
    - overlap)) tiles, at even distances, to the px. An image no longer than a tile has one at 0,
    which reaches beyond it.

    Args:
        image: Rows and columns of the image, px.
        shape: Rows and columns of a tile, px.
        overlap: px, less than both sides of a tile.

    Returns:
        Upper left corners (top, left), row by row.
    """
    if overlap >= min(shape):
        raise ValueError(f"tiles of {shape[0]} x {shape[1]} px can't share {overlap} px")
    tops, lefts = (
        _starts(length, side, overlap) for length, side in zip(image, shape, strict=True)
    )
    return [(top, left) for top in tops for left in lefts]


def merge(
    boxes: NDArray[np.floating],
    scores: NDArray[np.floating],
    classes: NDArray,
    tiles: NDArray[np.integer],
    same: float = SAME,
) -> NDArray[np.intp]:
    """Select which detections of tiles are those of the whole image, the surest first.

    A box is dropped when a surer box of another tile stays that has its class and shares more than
    `same` of the smaller one's area with it; of equally sure boxes the larger one stays. Boxes of
    one tile are left to the detector's own suppression, so one tile alone changes nothing.

    Args:
        boxes: float [n, 4], in px of the whole image.
        tiles: [n], the number of each one's tile.
        same: Share of the smaller box above which two boxes show the same.

    Returns:
        int [k], indices, the surest first; none of a box without area.
    """
    areas = area(boxes)
    shared = intersection(boxes, boxes) > same * np.minimum.outer(areas, areas)
    rivals = shared & np.equal.outer(classes, classes) & np.not_equal.outer(tiles, tiles)
    selected: list[int] = []
    for index in np.lexsort((-areas, -np.asarray(scores))):
        if areas[index] > 0 and not rivals[index, selected].any():
            selected.append(int(index))
    return np.array(selected, np.intp)


def _starts(length: int, side: int, overlap: int) -> list[int]:
    count = max(1, -(-(length - overlap) // (side - overlap)))
    if count == 1:
        return [0]
    return [number * (length - side) // (count - 1) for number in range(count)]
