"""Where a lesion may lie in a mammogram, and how a generated patch gets into it without a
seam: pure functions of arrays.

A lesion is inserted by the difference that a generator makes. Its patch is cut where training
patches are cut (data.patches' `frame`), scaled to the generator's size and grey scale; what the
generator changes in it is scaled back to native pixels and grey values and added, weighted by
`Seam.weights`: 1 on the mask and its margin, falling to 0 within `feather` px of the patch around
them, 0 at the patch's border. So the tissue's own grain stays, and nothing beyond `Seam.support`
changes at all.

What the papers leave open: (X, Y) of Shen et al.'s rule is taken as the centre of the lesion's box.
A lesion's whole support lies on breast and keeps off other lesions and their supports. Around the
lesion a generator may be a little brighter or darker than the tissue that it was given; its mean
difference there is taken off everywhere, so that no step is left to feather. With data.percentiles
the brightest tissue of a patch is 1, so that a mass can't be brighter; data.window has no such end.

A patch that was made with its own tissue, of a CAN or a vanilla GAN, is set in whole instead
(`whole_seam`): its grey values take the place of the mammogram's, and fade out at its border alone.

Departure from Shen et al., section 4.3: "the breast tissue patch at original position is replaced
by the generated mass patch". By default the difference is added instead (`blended`), because a
patch of 256 px that is scaled to native pixels has none of the tissue's grain, so that its square
shows, and a detector can learn squares. `whole_patch` of a synthesis is the paper's way
(`replaced`), with feather=0 to its hard border.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.config import DataConfig, PreprocessConfig
from tfmammo.data import preprocess, sampling
from tfmammo.data.anatomy import breast_mask, pectoral_mask
from tfmammo.data.patches import frame
from tfmammo.data.preprocess import resize, resize_mask
from tfmammo.errors import DataError
from tfmammo.mammogram import Box, Lesion, Mammogram, Skipped, borders
from tfmammo.synthesis.config import GRID, LARGEST, Reach, Sizes


def fit_sizes(mammograms: Iterable[Mammogram], config: DataConfig, skipped: Skipped) -> Sizes:
    """The Gaussian of an archive's lesions, in mm where all their spacings are known, else in px.

    Args:
        mammograms: No pixel is read.
        config: Kinds and mixed_findings are used.
        skipped: Lesions whose mask can't be read, and those over half an image high or wide, which
            outline no single mass, are noted here.

    Raises:
        DataError: Fewer than two lesions.
    """
    sizes = []
    steps = []
    for mammogram in mammograms:
        for number, lesion in sampling.wanted(mammogram, config).items():
            try:
                top, left, bottom, right = lesion.box
            except ValueError as error:
                skipped.add(mammogram.image_id, f"lesion {number}: {error}")
                continue
            if 2 * (bottom - top) > mammogram.rows or 2 * (right - left) > mammogram.cols:
                skipped.add(
                    mammogram.image_id, f"lesion {number}: is over half the image high or wide"
                )
                continue
            sizes.append((bottom - top, right - left))
            steps.append(mammogram.spacing)
    if len(sizes) < 2:
        raise DataError(
            f"sizes can't be fitted on {len(sizes)} lesions; give sizes.height and sizes.width"
        )
    known = [step for step in steps if step]
    in_mm = len(known) == len(steps)
    values = np.array(sizes) * (np.array(known) if in_mm else 1.0)
    height, width = zip(
        values.mean(axis=0).tolist(), values.std(axis=0, ddof=1).tolist(), strict=True
    )
    off = values - values.mean(axis=0)
    both = (
        float((off[:, 0] * off[:, 1]).sum()) / (len(values) - 1) / max(height[1] * width[1], 1e-12)
    )
    return Sizes(
        unit="mm" if in_mm else "px",
        height=height,
        width=width,
        correlation=float(np.clip(both, -1, 1)),
        count=len(sizes),
    )


def cut(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A mask's region in its own box: uint8 [height, width], 0 or 1.

    Args:
        mask: uint8 [rows, cols], 0 or 1, one region.

    Raises:
        DataError: It is empty, or touches the border, where the rest of its shape is cut off.
    """
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        raise DataError("its mask is empty")
    if not (top and left and top + height < mask.shape[0] and left + width < mask.shape[1]):
        raise DataError("its mask touches the border")
    return mask[top : top + height, left : left + width]


def scaled(shape: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """A shape scaled by two factors, its edge smooth: uint8 [height, width], 0 or 1, touching all
    four sides but for rounding.

    Args:
        shape: uint8 [rows, cols], 0 or 1.
        height: px.
        width: px.

    Raises:
        DataError: It would be larger than any mammogram.
    """
    padded = cv2.copyMakeBorder(shape.astype(np.float32), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    # The padding's share of the result, so that the shape itself becomes height x width.
    rows = round(height * padded.shape[0] / shape.shape[0])
    cols = round(width * padded.shape[1] / shape.shape[1])
    if rows * cols > LARGEST:
        raise DataError(f"a mass of {height} x {width} px is larger than any mammogram")
    region = largest((resize(padded, rows, cols) >= 0.5).astype(np.uint8))
    if not region.any():
        # a thread that scaling tore: a box is what is left to say of it
        return np.ones((height, width), np.uint8)
    return cut(np.pad(region, 1))


def largest(region: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The largest 8-connected part of a region: uint8 [rows, cols], 0 or 1, empty where the region
    is.
    """
    count, labels, areas, _ = cv2.connectedComponentsWithStats(region, connectivity=8)
    return (
        region
        if count == 1
        else (labels == 1 + np.argmax(areas[1:, cv2.CC_STAT_AREA])).astype(np.uint8)
    )


@dataclass(frozen=True, eq=False)
class Spot:
    """One lesion in its place.

    Attributes:
        mask: uint8 [height, width] of the box, 0 or 1. box, window (its patch): native px,
            half-open.
    """

    mask: NDArray[np.uint8]
    box: Box
    window: Box

    @staticmethod
    def at(
        top: int, left: int, mask: NDArray[np.uint8], mammogram: Mammogram, data: DataConfig
    ) -> Spot:
        """A lesion whose box begins at (top, left), its patch as the training's.

        Raises:
            DataError: The lesion reaches beyond the mammogram, or its patch is larger than that; or
                training resampled mammograms (data.preprocess.spacing) and the mm per px of this
                one are not stated.
        """
        box = (top, left, top + mask.shape[0], left + mask.shape[1])
        if min(box) < 0 or box[2] > mammogram.rows or box[3] > mammogram.cols:
            raise DataError("it reaches beyond the mammogram")
        window = training_window(Lesion("mass", box), mask, mammogram, data)
        if min(window) < 0 or window[2] > mammogram.rows or window[3] > mammogram.cols:
            raise DataError("its patch is larger than the mammogram")
        return Spot(mask, box, window)

    def patch_mask(self, size: int) -> NDArray[np.uint8]:
        """The mask in its patch, scaled to that of a generator: uint8 [size, size], 0 or 1."""
        top, left, bottom, right = self.window
        native = np.zeros((bottom - top, right - left, 1), np.uint8)
        native[
            self.box[0] - top : self.box[2] - top, self.box[1] - left : self.box[3] - left, 0
        ] = self.mask
        return np.ascontiguousarray(resize_mask(native, size, size)[..., 0])


class Ground:
    """A mammogram to insert into: its pixels, its breast, and which of it is still free.

    Args:
        image: float32 [rows, cols, 1] in [0, 1], native px.
        mammogram: Its record.
        data: Of the generator's training; preprocess.remove_pectoral keeps lesions off the muscle.
    """

    def __init__(self, image: NDArray[np.float32], mammogram: Mammogram, data: DataConfig) -> None:
        self.image = image
        self.mammogram = mammogram
        self.data = data
        self.step = ceil(max(image.shape) / GRID)  # px of a cell's side
        rows = image.shape[0] // self.step
        cols = image.shape[1] // self.step
        small = image[: rows * self.step, : cols * self.step, 0]
        small = cv2.resize(small, (cols, rows), interpolation=cv2.INTER_AREA)[..., None]
        tissue = breast_mask(small)
        if data.preprocess.remove_pectoral and mammogram.view == "MLO" and mammogram.laterality:
            tissue &= 1 - pectoral_mask(small, mammogram.laterality)
        self.breast = tissue[..., 0]
        self.free = self.breast.copy()

    def take(self, box: Box) -> None:
        """No further lesion may lie on this box."""
        top, left, bottom, right = self._cells(box)
        self.free[top:bottom, left:right] = 0

    def is_free(self, box: Box) -> bool:
        """Whether all of a box is breast that nothing has taken."""
        return self.free_part(box) == 1

    def free_part(self, box: Box) -> float:
        """How much of a box is breast that nothing has taken, 0 to 1; 0 of one that reaches beyond
        the mammogram.
        """
        if min(box) < 0 or box[2] > self.mammogram.rows or box[3] > self.mammogram.cols:
            return 0.0
        top, left, bottom, right = self._cells(box)
        return float(self.free[top:bottom, left:right].sum()) / ((bottom - top) * (right - left))

    def draw(
        self, size: tuple[int, int], reach: Reach, random: np.random.Generator
    ) -> tuple[int, int]:
        """(top, left) of a lesion's box, each place by the paper's rule that has room for its
        support equally likely.

        X ~ U(w / 10, w / 2) from the chest wall and Y ~ U(h / 4, 3 h / 4), of the box's centre,
        given that all of it fits.

        Raises:
            DataError: The laterality is not stated, or there is no such place; the sentence says
                why.

        Source:
            Shen et al., section 4.3.
        """
        if self.mammogram.laterality is None:
            raise DataError("its laterality is not stated, so its chest wall is not known")
        by_rule = self._by_rule(size)
        what = f"a mass of {size[0]} x {size[1]} px"
        if not (fits := self._room(self.breast, size, reach)).any():
            raise DataError(f"the breast is too small for {what}")
        if not (fits & by_rule).any():
            raise DataError(
                f"the part of the breast that masses are set in is too small for {what}"
            )
        places = np.flatnonzero(self._room(self.free, size, reach) & by_rule)
        if not len(places):
            raise DataError(f"no normal tissue is left for {what}")
        row, col = divmod(int(places[random.integers(len(places))]), self.free.shape[1])
        shift = random.integers(self.step, size=2)
        return row * self.step + int(shift[0]), col * self.step + int(shift[1])

    def _by_rule(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Cells in which any box may begin, by the rule."""
        rows = self.mammogram.rows
        cols = self.mammogram.cols
        near, far = (
            (cols / 10, cols / 2)
            if self.mammogram.laterality == "L"
            else (cols / 2, cols - cols / 10)
        )
        limits = ((rows / 4, 3 * rows / 4), (near, far))
        inside = []
        for (low, high), length, count in zip(limits, size, self.free.shape, strict=True):
            centre = np.arange(count) * self.step + length / 2
            inside.append((centre >= low) & (centre + self.step - 1 <= high))
        return inside[0][:, None] & inside[1]

    def _room(
        self, region: NDArray[np.uint8], size: tuple[int, int], reach: Reach
    ) -> NDArray[np.bool_]:
        """Cells so that a box that begins anywhere in them has its whole support on the region."""
        starts = [floor(-before / self.step) for before in reach[:2]]
        ends = [
            ceil((self.step - 1 + length + behind) / self.step)
            for length, behind in zip(size, reach[2:], strict=True)
        ]
        sums = cv2.integral(region)
        room = np.zeros(region.shape, np.bool_)
        height = ends[0] - starts[0]
        width = ends[1] - starts[1]
        if height > region.shape[0] or width > region.shape[1]:
            return room
        full = (
            sums[height:, width:]
            - sums[:-height, width:]
            - sums[height:, :-width]
            + sums[:-height, :-width]
            == height * width
        )
        room[-starts[0] : full.shape[0] - starts[0], -starts[1] : full.shape[1] - starts[1]] = full
        return room

    def _cells(self, box: Box) -> Box:
        return (
            floor(box[0] / self.step),
            floor(box[1] / self.step),
            ceil(box[2] / self.step),
            ceil(box[3] / self.step),
        )


def training_data(section: dict[str, Any], handle: str) -> DataConfig:
    """The data section of a generator's card, if patches made so can be put back.

    Raises:
        DataError: Its contrast was equalised, which can't be undone, or its patches show whole
            mammograms.
    """
    config = DataConfig.model_validate(section)
    if config.preprocess.contrast != "none":
        raise DataError(
            f"{handle}: was trained with data.preprocess.contrast={config.preprocess.contrast}, "
            "which can't be undone"
        )
    if config.frame == "full":
        raise DataError(
            f"{handle}: was trained on whole mammograms (data.frame=full), not on patches of "
            "lesions"
        )
    return config


def training_window(
    lesion: Lesion, mask: NDArray[np.uint8], mammogram: Mammogram, data: DataConfig
) -> Box:
    """The window of a lesion's training patch in native px.

    Training frames a lesion on the mirrored and resampled mammogram, where data.padding counts
    resampled px. So does this, and then it maps the window back.
    """
    mirrored = data.preprocess.flip_right and mammogram.laterality == "R"
    spacing = data.preprocess.spacing
    if spacing:  # where outlines, not boxes, say what box is left of a lesion
        corner = np.array(lesion.box[:2], np.float32)
        lesion = replace(lesion, outlines=tuple(outline + corner for outline in borders(mask)))
    moves = PreprocessConfig(flip_right=mirrored, spacing=spacing)
    prepared = preprocess.preprocess_mammogram(replace(mammogram, lesions=(lesion,)), moves)
    window = frame(prepared.lesions[0].box, prepared, data)
    # native px for a resampled one
    down = mammogram.rows / prepared.rows
    across = mammogram.cols / prepared.cols
    top = round(window[0] * down)
    left = round(window[1] * across)
    bottom = round(window[2] * down)
    right = round(window[3] * across)
    if mirrored:
        left, right = mammogram.cols - right, mammogram.cols - left
    box = lesion.box  # which rounding might cut
    return min(top, box[0]), min(left, box[1]), max(bottom, box[2]), max(right, box[3])
