"""Labelled grids of images: one column a panel, one row a sample, on white for print and web."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo import filesystem

WHITE = (255, 255, 255)
INK = (40, 40, 40)
# distinct for colour-blind readers, and on grey tissue
BLUE = (86, 180, 233)
ORANGE = (230, 159, 0)
FONT = cv2.FONT_HERSHEY_SIMPLEX
HEADER = 24
SPACING = 3  # px of white between images and around the grid


def draw_grid(panels: Mapping[str, NDArray[np.floating]]) -> NDArray[np.uint8]:
    """Draw n rows of images with the panels side by side, each under its name.

    Args:
        panels: Name -> float [n, h, w, 1] grey or [n, h, w, 3] RGB, in [0, 1], all of one n, h and
            w, in the order of columns. A ValueError names one that is of another form.

    Returns:
        uint8 [rows, cols, 3], RGB.
    """
    tiles = {name: _tiles(name, np.asarray(images)) for name, images in panels.items()}
    count, rows, cols = next(iter(tiles.values())).shape[:3]
    grid = np.full(
        (HEADER + count * (rows + SPACING), SPACING + len(tiles) * (cols + SPACING), 3),
        WHITE,
        np.uint8,
    )
    for column, (name, images) in enumerate(tiles.items()):
        left = SPACING + column * (cols + SPACING)
        _label(grid[:HEADER, left : left + cols], name)
        for row, image in enumerate(images):
            top = HEADER + row * (rows + SPACING)
            grid[top : top + rows, left : left + cols] = image
    return grid


def draw_outline(
    image: NDArray[np.floating], mask: NDArray[np.generic], colour: tuple[int, int, int] = BLUE
) -> NDArray[np.float32]:
    """Colour the mask's outermost pixels; a mask cut off by the image's edge has no line there.

    Args:
        image: float [rows, cols, 1] grey or [rows, cols, 3] RGB, in [0, 1].
        mask: Any number type, [rows, cols, 1], 0 and 1 alone.
        colour: Red, green, blue, 0 to 255.

    Returns:
        float32 [rows, cols, 3], RGB in [0, 1].
    """
    inside = mask[..., 0].astype(np.uint8)
    border = inside != cv2.erode(inside, np.ones((3, 3), np.uint8))
    return np.where(border[..., np.newaxis], np.array(colour, np.float32) / 255, image).astype(
        np.float32
    )


def draw_agreement(
    targets: NDArray[np.generic], outputs: NDArray[np.generic]
) -> NDArray[np.float32]:
    """Colour true positives yellow, false negatives red, false positives green, the rest black.

    Masks [n, s, s, 1] of 0 and 1 -> float32 [n, s, s, 3], RGB in [0, 1]. Singh et al., the figures
    of segmentation results.
    """
    # red where the mass is, green where the model says it is
    target = np.asarray(targets, np.float32)
    output = np.asarray(outputs, np.float32)
    return np.concatenate([target, output, np.zeros_like(target)], axis=-1)


def save_grid(panels: Mapping[str, NDArray[np.floating]], path: Path) -> None:
    """Write `draw_grid` of the panels as a PNG file, and create its folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    filesystem.write_atomically(path, encode_rgb_png(draw_grid(panels)), durable=False)


def encode_rgb_png(image: NDArray[np.uint8]) -> bytes:
    """Encode an image, uint8 [rows, cols, 3], RGB, as PNG."""
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def _tiles(name: str, images: NDArray[np.floating]) -> NDArray[np.uint8]:
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"panel {name} must be [n, h, w, 1] or [n, h, w, 3], not {images.shape}")
    if not np.all((images >= 0) & (images <= 1)):
        raise ValueError(f"panel {name} has values outside [0, 1]")
    return np.broadcast_to(
        np.rint(images.astype(np.float32) * 255).astype(np.uint8), (*images.shape[:3], 3)
    )


def _label(band: NDArray[np.uint8], name: str) -> None:
    """Write the name in the middle of the band, smaller if it is wider than its column."""
    text = name.replace("_", " ")
    scale = 0.5
    width = max(1, cv2.getTextSize(text, FONT, scale, 1)[0][0])
    scale *= min(1.0, (band.shape[1] - 2) / width)
    (width, height), _ = cv2.getTextSize(text, FONT, scale, 1)
    canvas = np.ascontiguousarray(band)
    cv2.putText(
        canvas,
        text,
        ((band.shape[1] - width) // 2, (HEADER + height) // 2 - 1),
        FONT,
        scale,
        INK,
        1,
        cv2.LINE_AA,
    )
    band[:] = canvas
