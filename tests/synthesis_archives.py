"""The small archives of tests of syntheses: normal mammograms, and masses to insert."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.small_mammograms import make_mammogram
from tfmammo import archives
from tfmammo.mammogram import Lesion, Mammogram, Skipped
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.recipe import Recipe

ROWS = 200
COLS = 150
SIZES = {"height": (24, 4), "width": (20, 3), "correlation": 0.5}
PATIENT_NAME = "QUIBBLE^ZEPHYRINE"  # of the DICOM files


def draw_breast(seed: int, laterality: str = "L", reach: float = 0.85) -> NDArray[np.float32]:
    """Half an ellipse of textured tissue on black: float32 [ROWS, COLS, 1]."""
    random = np.random.default_rng(seed)
    row, col = np.mgrid[:ROWS, :COLS]
    inside = ((row - ROWS / 2) / (0.47 * ROWS)) ** 2 + (col / (reach * COLS)) ** 2 < 1
    texture = cv2.GaussianBlur(random.standard_normal((ROWS, COLS)).astype(np.float32), (0, 0), 4)
    image = (
        0.4
        + 0.05 * texture / texture.std()
        + 0.01 * random.standard_normal((ROWS, COLS)).astype(np.float32)
    )
    image = np.where(inside, np.clip(image, 0.2, 0.9), 0.01).astype(np.float32)[..., None]
    return image[:, ::-1].copy() if laterality == "R" else image


def draw_mammogram(
    number: int, lesion: Sequence[Sequence[float]] | None = None, **facts: Any
) -> Mammogram:
    """Draw a mammogram of patient p<number>, benign with a mass of this outline, else normal."""
    laterality = "LR"[number % 2]
    known = {
        "laterality": laterality,
        "spacing": (0.1, 0.1),
        "pathology": "normal" if lesion is None else "benign",
        "density": "2",
    }
    lesions = []
    if lesion is not None:
        lesions = [Lesion.from_outline("mass", np.float32(lesion), ROWS, COLS)]
    mammogram = make_mammogram(number, draw_breast(number, laterality), lesions, **known)
    return replace(mammogram, **facts)


def make_outline(top: int, left: int, bottom: int, right: int) -> list[list[float]]:
    """Make a box with a tip on its right side."""
    return [
        [top, left],
        [top, right],
        [(top + bottom) / 2, right + 6],
        [bottom, right],
        [bottom, left],
    ]


MASSES = [
    make_outline(80, 30, 104, 50),
    make_outline(90, 60, 112, 84),
    make_outline(70, 40, 100, 62),
]


def read_failures(folder: Path) -> dict[str, str]:
    """Read why each item of a set could not be made."""
    with (folder / "failures.csv").open(newline="", encoding="utf-8") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


def list_times(folder: Path) -> dict[Path, int]:
    """List when each file of a set was written, but README.md, which is written last."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "README.md"]
    return {path: path.stat().st_mtime_ns for path in files}


def find_source(config: SynthesisConfig, recipe: Recipe) -> Mammogram:
    """Find the mammogram that an item was made from."""
    (source,) = [
        mammogram
        for mammogram in archives.read_mammograms(config.data, Skipped())
        if mammogram.image_id == recipe.source.image_id
    ]
    return source
