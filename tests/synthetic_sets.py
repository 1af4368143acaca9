"""What tests of syntheses share: tiny networks, real lesions in recipes, the files of a set."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.known_networks import KnownModel
from tfmammo.config import DataConfig
from tfmammo.data import splits
from tfmammo.mammogram import key_check
from tfmammo.nn.networks import export_function
from tfmammo.synthesis.recipe import TransformRecord
from tfmammo.tracking.export import export


def read_files(folder: Path) -> dict[str, bytes]:
    """Read all files beneath a folder, by path beneath it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def make_transform(**changes: Any) -> TransformRecord:
    """Make the record of a real lesion that is used as it is, but for `changes`."""
    facts: dict[str, Any] = {
        "archive": "test",
        "image_id": "i",
        "patient_id": "p",
        "number": 0,
        "sha256": "",
        "pathology": None,
        "angle": 0.0,
        "factor": 1.0,
        "mirrored": False,
        "trained_on": None,
    }
    return TransformRecord(**facts | changes)


def save_split(file: Path, places: dict[str, Any], archive: str = "folder", **changes: Any) -> Path:
    """Save a split in two folds: patient -> the fold that holds the patient out."""
    facts: dict[str, Any] = {"split": "patient", "folds": 2, "seed": 0, "stratify": "none"}
    facts |= {"archive": archive, "patients": places, "id_key": key_check(), **changes}
    splits.save(file, splits.SavedSplit(**facts))
    return file


def make_generator(name, takes, shape, layer, gives):
    """Make a model of one network, named generator, which takes one input.

    Args:
        name: The model's.
        takes: Name of the input, noise or mask.
        shape: Shape of the input without the batch.
        layer: Input -> [n, size, size, one channel for each output].
        gives: Names of the outputs.
    """
    network = keras.Sequential([keras.Input(shape), layer])

    def answer(values):
        channels = tf.split(network(values), len(gives), axis=-1)
        return dict(zip(gives, channels, strict=True))

    by_input = {"noise": lambda noise: answer(noise), "mask": lambda mask: answer(mask)}
    function = export_function(by_input[takes], **{takes: shape})
    return KnownModel(name, {"generator": network}, {"generator": function})


class Disc(keras.layers.Layer):
    """Noise [n, 1] -> a disc whose radius it moves."""

    def call(self, noise):
        row, col = np.mgrid[:64, :64] - 31.5
        radius = 16 + 4 * noise[:, :, None]
        return tf.cast(tf.constant(np.hypot(row, col), tf.float32) < radius, tf.float32)[..., None]


class DrawPatch(keras.layers.Layer):
    """z [n, 3] -> patches of 32 px as a vanilla GAN makes them.

    A ramp from left to right, 0.2 brighter in the rectangle BOX, and that rectangle: none where
    z[0] > 0.5, and where z[0] < -0.5 one that goes on to the border.
    """

    SIZE = 32
    BOX = (8, 6, 24, 18)

    def call(self, z):
        row, col = np.mgrid[: self.SIZE, : self.SIZE]
        top, left, bottom, right = self.BOX
        inside = (row >= top) & (row < bottom) & (col >= left) & (col < right)
        bridge = (np.abs(row - top - 5) < 3) & (col < left + 1)
        first = z[:, :1, None]
        mask = tf.cast((inside & (first <= 0.5)) | (bridge & (first < -0.5)), tf.float32)
        ramp = tf.constant(0.25 + 0.5 * col / self.SIZE, tf.float32)
        return tf.stack([ramp + 0.2 * mask + 0.01 * z[:, 1:2, None], mask], axis=-1)


def export_trained(
    model: Any, folder: Path, patients: Collection[str] = (), step: int = 1, **data: Any
) -> Path:
    """Export a model with a card that says how (a data section) and on whom it was trained."""
    card = {
        "name": model.name,
        "step": step,
        "config": {"data": DataConfig(**data).model_dump(mode="json"), "model": {}},
        "train_patients": sorted(patients),
    }
    return export(model, folder, card)


def edit_card(folder: Path, old: str, new: str) -> Path:
    """Replace a text in the card of an export."""
    card = folder / "card.json"
    text = card.read_text()
    assert old in text
    card.write_text(text.replace(old, new))
    return folder
