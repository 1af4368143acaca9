"""Placement: where a lesion may be in a mammogram. Pure functions of arrays, in native px.

What Shen et al. leave open: (X, Y) of their rule is read as the centre of the lesion's box. A
lesion's whole support is on breast, and keeps off other lesions and their supports.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, floor

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.config import DataConfig, PreprocessConfig
from tfmammo.data import preprocess
from tfmammo.data.anatomy import breast_mask, pectoral_mask
from tfmammo.data.preprocess import resize, resize_mask
from tfmammo.data.sampling import count_in_windows
from tfmammo.data.windows import crop_window
from tfmammo.errors import DataError
from tfmammo.mammogram import Box, Lesion, Mammogram, keep_largest, trace_borders
from tfmammo.synthesis.config import GRID, LARGEST, Margins


def crop_to_mask(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Crop a mask, uint8 0 or 1, to the box of its one region."""
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        raise DataError("its mask is empty")
    if not (top and left and top + height < mask.shape[0] and left + width < mask.shape[1]):
        raise DataError("its mask touches the border")
    return mask[top : top + height, left : left + width]


def scale_shape(shape: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Scale a shape to a height and a width, with a smooth edge.

    Returns:
        uint8 [height, width], 0 or 1, touching all four sides but for rounding.
    """
    padded = cv2.copyMakeBorder(shape.astype(np.float32), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    # With the padding's share, so that the shape itself becomes height x width.
    rows = round(height * padded.shape[0] / shape.shape[0])
    cols = round(width * padded.shape[1] / shape.shape[1])
    if rows * cols > LARGEST:
        raise DataError(f"a mass of {height} x {width} px is larger than any mammogram")
    region = keep_largest((resize(padded, rows, cols) >= 0.5).astype(np.uint8))
    if not region.any():
        # Scaling tore a thin shape. Its box is what is left.
        return np.ones((height, width), np.uint8)
    return crop_to_mask(np.pad(region, 1))


@dataclass(frozen=True, eq=False)
class Placement:
    """One lesion in its place.

    Attributes:
        mask: uint8 [height, width] of the box, 0 or 1.
        box: Of the mask, native px, half-open.
        window: Of its patch, native px, half-open.
    """

    mask: NDArray[np.uint8]
    box: Box
    window: Box

    @staticmethod
    def at(
        top: int, left: int, mask: NDArray[np.uint8], mammogram: Mammogram, data: DataConfig
    ) -> Placement:
        """Place a lesion so that its box begins at (top, left), its patch as in training."""
        box = (top, left, top + mask.shape[0], left + mask.shape[1])
        if min(box) < 0 or box[2] > mammogram.rows or box[3] > mammogram.cols:
            raise DataError("it reaches beyond the mammogram")
        window = compute_training_window(Lesion("mass", box), mask, mammogram, data)
        if min(window) < 0 or window[2] > mammogram.rows or window[3] > mammogram.cols:
            raise DataError("its patch is larger than the mammogram")
        return Placement(mask, box, window)

    def scale_mask(self, size: int) -> NDArray[np.uint8]:
        """Scale the mask in its patch to a generator's size: uint8 [size, size], 0 or 1."""
        top, left, bottom, right = self.window
        native = np.zeros((bottom - top, right - left, 1), np.uint8)
        rows = slice(self.box[0] - top, self.box[2] - top)
        cols = slice(self.box[1] - left, self.box[3] - left)
        native[rows, cols, 0] = self.mask
        return np.ascontiguousarray(resize_mask(native, size, size)[..., 0])


class TargetMammogram:
    """A mammogram to insert into: its pixels, its breast, and the tissue that is still free.

    Args:
        image: float32 [rows, cols, 1] in [0, 1], native px.

    Attributes:
        step: Side of a cell of the free-tissue map, px.
        breast: uint8 [cells down, cells across], 1 on breast.
    """

    def __init__(self, image: NDArray[np.float32], mammogram: Mammogram, data: DataConfig) -> None:
        self.image = image
        self.mammogram = mammogram
        self.data = data
        self.step = ceil(max(image.shape) / GRID)
        rows = image.shape[0] // self.step
        cols = image.shape[1] // self.step
        small = image[: rows * self.step, : cols * self.step, 0]
        small = cv2.resize(small, (cols, rows), interpolation=cv2.INTER_AREA)[..., None]
        tissue = breast_mask(small)
        if data.preprocess.remove_pectoral and mammogram.view == "MLO" and mammogram.wall_side:
            tissue &= 1 - pectoral_mask(small, mammogram.wall_side)
        self.breast = tissue[..., 0]
        self.free = self.breast.copy()

    def occupy(self, box: Box) -> None:
        """Mark a box as occupied, so that no further lesion may be on it."""
        top, left, bottom, right = self._to_cells(box)
        self.free[top:bottom, left:right] = 0

    def is_free(self, box: Box) -> bool:
        """Return whether all of a box is free breast."""
        return self.measure_free(box) == 1

    def measure_free(self, box: Box) -> float:
        """Measure the part of a box that is free breast, 0 to 1; 0 beyond the mammogram."""
        if min(box) < 0 or box[2] > self.mammogram.rows or box[3] > self.mammogram.cols:
            return 0.0
        top, left, bottom, right = self._to_cells(box)
        return float(self.free[top:bottom, left:right].sum()) / ((bottom - top) * (right - left))

    def draw_place(
        self,
        size: tuple[int, int],
        margins: Margins,
        random: np.random.Generator,
        by_rule: bool = True,
    ) -> tuple[int, int]:
        """Draw (top, left) of a lesion's box, so that its whole support is on free breast.

        Each such place is equally likely. By the rule of Shen et al., section 4.3, the box's
        centre is at X ~ U(w / 10, w / 2) from the chest wall and Y ~ U(h / 4, 3 h / 4).

        Args:
            size: (height, width) of the box, native px.
        """
        allowed = self._find_starts_by_rule(size) if by_rule else np.ones(self.free.shape, bool)
        fits = self._find_starts_on(self.breast, size, margins)
        mass = f"a mass of {size[0]} x {size[1]} px"
        if not fits.any():
            raise DataError(f"the breast is too small for {mass}")
        if not (fits & allowed).any():
            raise DataError(
                f"the part of the breast that masses are inserted in is too small for {mass}"
            )
        starts = np.flatnonzero(self._find_starts_on(self.free, size, margins) & allowed)
        if not len(starts):
            raise DataError(f"no normal tissue is left for {mass}")
        row, col = divmod(int(starts[random.integers(len(starts))]), self.free.shape[1])
        shift = random.integers(self.step, size=2)
        return row * self.step + int(shift[0]), col * self.step + int(shift[1])

    def _find_starts_by_rule(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Find the cells in which a box may begin by the rule, wherever in the cell it begins."""
        if self.mammogram.wall_side is None:
            raise DataError("its laterality is not stated, so its chest wall is not known")
        rows, cols = self.mammogram.rows, self.mammogram.cols
        across = (cols / 2, cols - cols / 10)
        if self.mammogram.wall_side == "L":
            across = (cols / 10, cols / 2)
        limits = ((rows / 4, 3 * rows / 4), across)
        inside = []
        for (low, high), length, count in zip(limits, size, self.free.shape, strict=True):
            centre = np.arange(count) * self.step + length / 2
            inside.append((centre >= low) & (centre + self.step - 1 <= high))
        return inside[0][:, None] & inside[1]

    def _find_starts_on(
        self, region: NDArray[np.uint8], size: tuple[int, int], margins: Margins
    ) -> NDArray[np.bool_]:
        """Find the cells so that a box that begins in them has its whole support on a region."""
        starts = [floor(-before / self.step) for before in margins[:2]]
        ends = [
            ceil((self.step - 1 + length + behind) / self.step)
            for length, behind in zip(size, margins[2:], strict=True)
        ]
        fits = np.zeros(region.shape, np.bool_)
        height, width = ends[0] - starts[0], ends[1] - starts[1]
        if height > region.shape[0] or width > region.shape[1]:
            return fits
        full = count_in_windows(region, height, width) == height * width
        rows = slice(-starts[0], full.shape[0] - starts[0])
        cols = slice(-starts[1], full.shape[1] - starts[1])
        fits[rows, cols] = full
        return fits

    def _to_cells(self, box: Box) -> Box:
        top, left = (floor(corner / self.step) for corner in box[:2])
        bottom, right = (ceil(corner / self.step) for corner in box[2:])
        return top, left, bottom, right


def compute_training_window(
    lesion: Lesion, mask: NDArray[np.uint8], mammogram: Mammogram, data: DataConfig
) -> Box:
    """Compute the window of a lesion's training patch, native px, half-open.

    Training crops around a lesion on the mirrored and resampled mammogram, where data.padding
    counts resampled px. So does this function, and then it maps the window back.
    """
    mirrored = preprocess.is_mirrored(mammogram, data.preprocess)
    spacing = data.preprocess.spacing
    if spacing:  # where outlines, not boxes, say what box is left of a lesion
        corner = np.array(lesion.box[:2], np.float32)
        lesion = replace(
            lesion, outlines=tuple(outline + corner for outline in trace_borders(mask))
        )
    moves = PreprocessConfig(flip_right=mirrored, spacing=spacing)
    prepared = preprocess.preprocess_mammogram(replace(mammogram, lesions=(lesion,)), moves)
    window = crop_window(prepared.lesions[0].box, prepared, data)
    # native px for a resampled one
    scale = (mammogram.rows / prepared.rows, mammogram.cols / prepared.cols) * 2
    top, left, bottom, right = (round(x * by) for x, by in zip(window, scale, strict=True))
    if mirrored:
        left, right = mammogram.cols - right, mammogram.cols - left
    box = lesion.box  # which rounding might cut
    return min(top, box[0]), min(left, box[1]), max(bottom, box[2]), max(right, box[3])
