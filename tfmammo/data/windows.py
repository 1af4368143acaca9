"""Choose and extract the window of a mammogram that a patch shows.

Images are float32 [rows, cols, 1] in [0, 1]; boxes are native px, half-open.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tfmammo.config import DataConfig
from tfmammo.data import preprocess
from tfmammo.data.preprocess import resize_image
from tfmammo.mammogram import Box, Mammogram


def square_window(
    box: Box, rows: int, cols: int, context: float, spacing: tuple[float, float] | None = None
) -> Box:
    """Return the square window around a lesion's box, moved to stay inside the image.

    Without a spacing, (row, col) in mm per px, pixels count as square.

    Returns:
        [row_min, col_min, row_max, col_max], half-open, native px; beyond the image only along an
        axis where it is longer than the image.
    """
    step = spacing or (1.0, 1.0)
    side = context * max((box[2] - box[0]) * step[0], (box[3] - box[1]) * step[1])
    starts = []
    lengths = []
    for axis, extent in enumerate((rows, cols)):
        length = max(1, round(side / step[axis]))
        start = round((box[axis] + box[axis + 2] - length) / 2)
        starts.append(int(np.clip(start, min(0, extent - length), max(0, extent - length))))
        lengths.append(length)
    return starts[0], starts[1], starts[0] + lengths[0], starts[1] + lengths[1]


def crop_window(box: Box, mammogram: Mammogram, config: DataConfig) -> Box:
    """Return the window of a lesion's patch in the crop mode config.frame, in native px.

    - "square": see `square_window`.
    - "tight": the lesion's box.
    - "loose": the box doubled in each direction about its centre, cut at the image's border.
    - "padded": the box with `padding` px on every side, cut at the image's border.
    - "full": the whole mammogram.

    All but "square" are then scaled to a square, rows and columns by different factors.

    Source:
        Singh et al., Breast tumor segmentation and shape classification in mammograms using cGAN
        and CNN, by Tsang's review, section 1.3; "padded": Shen et al., Mass image synthesis in
        mammogram with contextual information based on GANs, section 4.3.
    """
    rows = mammogram.rows
    cols = mammogram.cols
    top, left, bottom, right = box
    if config.frame == "square":
        return square_window(box, rows, cols, config.context, mammogram.spacing)
    if config.frame == "tight":
        return box
    if config.frame == "full":
        return 0, 0, rows, cols
    above = (bottom - top) // 2
    before = (right - left) // 2
    below = bottom - top - above
    behind = right - left - before
    if config.frame == "padded":
        above = before = below = behind = config.padding
    return (
        max(0, top - above),
        max(0, left - before),
        min(rows, bottom + below),
        min(cols, right + behind),
    )


def normalize_intensity(image: NDArray[np.float32], config: DataConfig) -> NDArray[np.float32]:
    """Denoise an image, then set its contrast and intensities."""
    image = preprocess.preprocess_patch(image, config.preprocess)
    if config.window:
        return preprocess.apply_window(image, *config.window)
    return preprocess.normalise(image, config.percentiles)


def extract_window(
    image: NDArray[np.float32], place: Box, config: DataConfig
) -> NDArray[np.float32]:
    """Extract a window of a mammogram as a network sees it: scaled, contrast and intensities set.

    What is beyond the image is 0.
    """
    crop = crop_image(image, place)
    # Scaling a constant leaves rounding errors, which would be stretched to an image.
    if not config.window and crop.min() == crop.max():
        raise ValueError("the image is constant")
    return normalize_intensity(resize_image(crop, config.size, config.size), config)


def crop_image(image: NDArray, place: Box) -> NDArray:
    """Return a window of an image [rows, cols, 1], 0 beyond the image."""
    top, left, bottom, right = place
    inside = image[max(0, top) : bottom, max(0, left) : right]
    above = max(0, -top)
    before = max(0, -left)
    below = bottom - max(0, top) - inside.shape[0]
    behind = right - max(0, left) - inside.shape[1]
    return np.pad(inside, ((above, below), (before, behind), (0, 0)))
