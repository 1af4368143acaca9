"""The small archives of tests of syntheses: normal mammograms, and masses to insert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import tensorflow as tf
from numpy.typing import NDArray

from tests.archives.writers import folder as writer
from tests.facts import read_csv
from tests.small_mammograms import draw_breast, make_mammogram, make_rectangle
from tfmammo import archives
from tfmammo.config import DataConfig
from tfmammo.mammogram import Lesion, Mammogram, Skipped
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.recipe import Recipe

ROWS = 200
COLS = 150
SIZES = {"height": (24, 4), "width": (20, 3), "correlation": 0.5}
PATIENT_NAME = "QUIBBLE^ZEPHYRINE"  # of the DICOM files


def draw_mammogram(
    number: int, lesion: Sequence[Sequence[float]] | Lesion | None = None, **facts: Any
) -> Mammogram:
    """Draw a mammogram of patient p<number>, benign with a mass of this outline, else normal."""
    laterality = facts.get("laterality") or "LR"[number % 2]
    known = {
        "laterality": laterality,
        "spacing": (0.1, 0.1),
        "pathology": "normal" if lesion is None else "benign",
        "density": "2",
    }
    if lesion is not None and not isinstance(lesion, Lesion):
        lesion = Lesion.from_outline("mass", np.float32(lesion), ROWS, COLS)
    lesions = [] if lesion is None else [lesion]
    image = draw_breast(number, ROWS, COLS, laterality)
    mammogram = make_mammogram(number, image, lesions, **known)
    return replace(mammogram, **facts)


def make_outline(top: int, left: int, bottom: int, right: int) -> list[list[float]]:
    """Make a box with a tip on its right side."""
    tip = [(top + bottom) / 2, right + 6]
    return [[top, left], [top, right], tip, [bottom, right], [bottom, left]]


def make_mass(top: int, left: int, height: int, width: int, **details: Any) -> Lesion:
    """Make a rectangular mass."""
    return make_rectangle(top, left, top + height, left + width, size=(ROWS, COLS), **details)


MASSES = [
    make_outline(80, 30, 104, 50),
    make_outline(90, 60, 112, 84),
    make_outline(70, 40, 100, 62),
]


def write_archive(root: Path, mammograms: Sequence[Mammogram], **how: Any) -> DataConfig:
    """Write a folder of images, of 8 bits unless `how` says otherwise."""
    writer.write(mammograms, root, **{"bits": 8, **how})
    return DataConfig(name="folder", root=root)


def write_mask(path: Path, *boxes: tuple[int, int, int, int]) -> Path:
    """Write a mask picture of 64 x 64 px with some boxes."""
    mask = np.zeros((64, 64), np.uint8)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = 255
    assert cv2.imwrite(str(path), mask)
    return path


def read_metadata(folder: Path) -> list[dict[str, str]]:
    """Read the rows of a set's metadata.csv."""
    return read_csv(folder / "metadata.csv")


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


def read_features(root: Path, recipe: Recipe) -> Any:
    """Read the features of an item's TFRecord."""
    path = root / f"images/{recipe.name}.tfrecord"
    (raw,) = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    return tf.train.Example.FromString(raw).features.feature


def read_image(root: Path, recipe: Recipe) -> NDArray[np.integer]:
    """Read the stored values of an item."""
    path = root / f"images/{recipe.name}"
    if recipe.config.format == "dicom":
        return pydicom.dcmread(path.with_suffix(".dcm")).pixel_array
    if recipe.config.format == "png":
        return cv2.imread(str(path.with_suffix(".png")), cv2.IMREAD_UNCHANGED)
    (encoded,) = read_features(root, recipe)["image/encoded"].bytes_list.value
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)


def find_outside(recipe: Recipe) -> NDArray[np.bool_]:
    """Find everything beyond the windows of a recipe's lesions: bool [rows, cols]."""
    outside = np.ones((recipe.source.rows, recipe.source.cols), bool)
    for lesion in recipe.lesions:
        top, left, bottom, right = lesion.window
        outside[top:bottom, left:right] = False
    return outside
