"""Turned, mirrored and scaled copies of mammograms, lesions and all: the traditional
augmentation that synthetic masses are compared with.

Shen et al. (Mass image synthesis in mammogram with contextual information based on GANs, 2021),
section 4.5: "rotate, flip, and scale", added to the training set in portions. Departures: they give
no ranges; see AddedConfig. The image keeps its size, and what a copy shows beyond it is lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.config import DataConfig
from tfmammo.data import sampling
from tfmammo.errors import DataError
from tfmammo.mammogram import Laterality, Lesion, Mammogram, Skipped

OTHER: dict[Laterality | None, Laterality | None] = {"L": "R", "R": "L", None: None}


@dataclass(frozen=True)
class Turn:
    """What is done to a copy.

    Attributes:
        angle: Degrees, counter-clockwise as shown.
        factor: Of its size.
        mirrored: Before that, left to right.
    """

    angle: float
    factor: float
    mirrored: bool

    def matrix(self, rows: int, cols: int) -> NDArray[np.float64]:
        """float64 [2, 3]: from a point's (x, y), px, to where it goes; the image's centre stays."""
        angle = math.radians(self.angle)
        middle = np.array([(cols - 1) / 2, (rows - 1) / 2])
        turn = self.factor * np.array(
            [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        )
        turn = turn * (-1 if self.mirrored else 1, 1)
        return np.column_stack([turn, middle - turn @ middle])


def copies(
    mammograms: Sequence[Mammogram], config: DataConfig, skipped: Skipped
) -> Iterator[Mammogram]:
    """`config.added.copies` copies of mammograms with a wanted lesion, spread evenly over them.

    A copy follows from the seed, its image's id and its number of that image: more copies begin
    with the fewer. Its image_id is the image's with ~1, ~2 and so on.

    Args:
        config: Kinds, mixed_findings, seed and added are used.
        skipped: Copies without a lesion in sight, and lesions whose mask can't be read, are noted
            here.

    Raises:
        DataError: No mammogram has a wanted lesion.
    """
    found = [one for one in mammograms if sampling.wanted(one, config)]
    if not found:
        raise DataError(
            f"data.added.copies: no training mammogram has a {' or '.join(config.kinds)}"
        )
    order = np.random.default_rng(config.seed).permutation(len(found))
    for number in range(config.added.copies):
        mammogram = found[order[number % len(found)]]
        copy = number // len(found) + 1
        try:
            yield turned(mammogram, _drawn(config, mammogram, copy), copy, skipped)
        except ValueError as error:
            skipped.add(f"{mammogram.image_id}~{copy}", error)


def turned(mammogram: Mammogram, turn: Turn, number: int, skipped: Skipped) -> Mammogram:
    """One copy; its pixels are turned when they are asked for.

    A lesion that is known by its box alone gets the box around the turned one, which is larger. A
    mirrored breast is the other side's. Spacing shrinks as the breast grows.

    Raises:
        ValueError: No lesion is in sight any more, though there was one.
    """
    matrix = turn.matrix(mammogram.rows, mammogram.cols)
    size = (mammogram.rows, mammogram.cols)
    lesions = []
    for place, lesion in enumerate(mammogram.lesions):
        try:
            lesions.append(_moved(lesion, matrix, *size))
        except ValueError as error:
            skipped.add(f"{mammogram.image_id}~{number}", f"lesion {place}: {error}")
    if mammogram.lesions and not lesions:
        raise ValueError("no lesion is in sight")
    return replace(
        mammogram,
        image_id=f"{mammogram.image_id}~{number}",
        read=partial(_pixels, mammogram, turn),
        lesions=tuple(lesions),
        laterality=OTHER[mammogram.laterality] if turn.mirrored else mammogram.laterality,
        spacing=(mammogram.spacing[0] / turn.factor, mammogram.spacing[1] / turn.factor)
        if mammogram.spacing
        else None,
        bits=None,
    )


def _drawn(config: DataConfig, mammogram: Mammogram, number: int) -> Turn:
    random = sampling.stream(config.seed, mammogram.image_id, number)
    added = config.added
    return Turn(
        random.uniform(-added.rotate, added.rotate),
        random.uniform(*added.resize),
        bool(random.random() < 0.5),
    )


def _moved(lesion: Lesion, matrix: NDArray[np.float64], rows: int, cols: int) -> Lesion:
    details = {
        name: getattr(lesion, name) for name in ("pathology", "shape", "margin", "kind_is_certain")
    }
    if lesion.outlines:
        moved = tuple(_points(outline, matrix) for outline in lesion.outlines)
        parts = [
            part for part in (_inside(lesion, outline, rows, cols) for outline in moved) if part
        ]
    else:
        top, left, bottom, right = lesion.box
        corners = np.array(
            [(r, c) for r in (top - 0.5, bottom - 0.5) for c in (left - 0.5, right - 0.5)]
        )
        low = (_points(corners, matrix) + 0.5).min(axis=0)
        high = (_points(corners, matrix) + 0.5).max(axis=0)
        (top, left) = np.clip(np.rint(low), 0, (rows, cols))
        (bottom, right) = np.clip(np.rint(high), 0, (rows, cols))
        parts = (
            [Lesion(lesion.kind, (int(top), int(left), int(bottom), int(right)))]
            if top < bottom and left < right
            else []
        )
    if not parts:
        raise ValueError("is not in sight")
    corners = np.array([part.box for part in parts])
    (top, left) = corners[:, :2].min(axis=0).tolist()
    (bottom, right) = corners[:, 2:].max(axis=0).tolist()
    return Lesion(
        lesion.kind,
        (top, left, bottom, right),
        tuple(outline for part in parts for outline in part.outlines),
        **details,
    )


def _inside(lesion: Lesion, outline: NDArray[np.float32], rows: int, cols: int) -> Lesion | None:
    try:
        return Lesion.from_outline(lesion.kind, outline, rows, cols)
    except ValueError:
        return None


def _points(points: NDArray, matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """Points [n, 2], (row, col), where they go."""
    return (points[:, ::-1] @ matrix[:, :2].T + matrix[:, 2])[:, ::-1].astype(np.float32)


def _pixels(mammogram: Mammogram, turn: Turn) -> NDArray[np.float32]:
    image = mammogram.pixels()
    matrix = turn.matrix(mammogram.rows, mammogram.cols)
    return np.clip(
        cv2.warpAffine(image, matrix, (mammogram.cols, mammogram.rows), flags=cv2.INTER_LINEAR),
        0,
        1,
    )[..., np.newaxis]
