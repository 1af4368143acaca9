"""Rotate, mirror and scale copies of mammograms with their lesions.

They are the traditional augmentation that synthetic masses are compared with: "rotate, flip, and
scale", added to the training set in portions (Shen et al., Mass image synthesis in mammogram with
contextual information based on GANs, 2021, section 4.5).

Deviation: they give no ranges; see AddedConfig. The image keeps its size, and what a copy shows
beyond it is lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.config import DataConfig
from tfmammo.data import sampling
from tfmammo.errors import ArchiveError, DataError
from tfmammo.mammogram import Laterality, Lesion, Lost, Mammogram, Skipped, cut_box, find_box

SAME: dict[Laterality | None, Laterality | None] = {"L": "L", "R": "R", None: None}
OTHER: dict[Laterality | None, Laterality | None] = {"L": "R", "R": "L", None: None}


@dataclass(frozen=True)
class Transform:
    """A rotation (degrees, counter-clockwise as shown) and scaling about the image's centre."""

    angle: float
    factor: float
    mirrored: bool

    def matrix(self, rows: int, cols: int) -> NDArray[np.float64]:
        """Return float64 [2, 3], which maps a point (x, y), px; the image's centre stays."""
        angle = math.radians(self.angle)
        middle = np.array([(cols - 1) / 2, (rows - 1) / 2])
        linear = self.factor * np.array(
            [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        )
        linear = linear * (-1 if self.mirrored else 1, 1)
        return np.column_stack([linear, middle - linear @ middle])


def make_copies(
    mammograms: Sequence[Mammogram], config: DataConfig, skipped: Skipped
) -> Iterator[Mammogram]:
    """Make `config.added.copies` copies of mammograms that have a wanted lesion, spread evenly.

    Seed, image's id and the copy's number of that image decide a copy, so a larger set begins with
    the smaller one. Its image_id is the image's with ~1, ~2 and so on. Copies without a lesion in
    the image, and lesions whose mask can't be read, are noted.
    """
    sources = [mammogram for mammogram in mammograms if sampling.select_lesions(mammogram, config)]
    if not sources:
        raise DataError(
            f"data.added.copies: no training mammogram has a {sampling.describe_wanted(config)}"
        )
    order = np.random.default_rng(config.seed).permutation(len(sources))
    for number in range(config.added.copies):
        mammogram = sources[order[number % len(sources)]]
        copy = number // len(sources) + 1
        transform = _draw_transform(config, mammogram, copy)
        try:
            yield transform_mammogram(mammogram, transform, copy, skipped)
        except ValueError as error:
            skipped.add(f"{mammogram.image_id}~{copy}", error)


def transform_mammogram(
    mammogram: Mammogram, transform: Transform, number: int, skipped: Skipped
) -> Mammogram:
    """Make one copy; its pixels are transformed when they are asked for.

    A lesion that is known by its box alone gets the box around the transformed one, which is
    larger. A mirrored breast is of the other laterality. Spacing shrinks as the breast grows. A
    lesion whose mask can't be read is lost, so that the copy is no background either.
    """
    matrix = transform.matrix(mammogram.rows, mammogram.cols)
    size = (mammogram.rows, mammogram.cols)
    lesions = []
    lost = list(mammogram.lost)
    for place, lesion in enumerate(mammogram.lesions):
        try:
            lesions.append(_move_lesion(lesion, matrix, *size))
        except ValueError as error:
            skipped.add(f"{mammogram.image_id}~{number}", f"lesion {place}: {error}")
            if isinstance(error, ArchiveError):  # else it is outside the image
                lost.append(Lost(lesion.kind))
    if mammogram.lesions and not lesions:
        raise ValueError("no lesion is in the image")
    side = OTHER if transform.mirrored else SAME
    spacing = mammogram.spacing
    return mammogram.with_pixels(
        partial(_transform_pixels, mammogram, transform),
        image_id=f"{mammogram.image_id}~{number}",
        lesions=tuple(lesions),
        lost=tuple(lost),
        laterality=side[mammogram.laterality],
        chest_wall=side[mammogram.chest_wall],
        spacing=spacing and (spacing[0] / transform.factor, spacing[1] / transform.factor),
        bits=None,
    )


def _draw_transform(config: DataConfig, mammogram: Mammogram, number: int) -> Transform:
    random = sampling.random_stream(config.seed, mammogram.image_id, number)
    added = config.added
    return Transform(
        random.uniform(-added.rotate, added.rotate),
        random.uniform(*added.resize),
        bool(random.random() < 0.5),
    )


def _move_lesion(lesion: Lesion, matrix: NDArray[np.float64], rows: int, cols: int) -> Lesion:
    if lesion.outlines:
        outlines = tuple(_map_points(outline, matrix) for outline in lesion.outlines)
        return Lesion(lesion.kind, find_box(outlines, rows, cols), outlines, **lesion.details)
    top, left, bottom, right = lesion.box
    corners = [(r, c) for r in (top - 0.5, bottom - 0.5) for c in (left - 0.5, right - 0.5)]
    moved = _map_points(np.array(corners), matrix) + 0.5
    top, left = np.rint(moved.min(axis=0)).astype(int).tolist()
    bottom, right = np.rint(moved.max(axis=0)).astype(int).tolist()
    box = cut_box((top, left, bottom, right), rows, cols)
    return Lesion(lesion.kind, box, **lesion.details)


def _map_points(points: NDArray, matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """Map points [n, 2], (row, col)."""
    return (points[:, ::-1] @ matrix[:, :2].T + matrix[:, 2])[:, ::-1].astype(np.float32)


def _transform_pixels(mammogram: Mammogram, transform: Transform) -> NDArray[np.float32]:
    matrix = transform.matrix(mammogram.rows, mammogram.cols)
    moved = cv2.warpAffine(mammogram.pixels(), matrix, (mammogram.cols, mammogram.rows))
    return np.clip(moved, 0, 1)[..., np.newaxis]
