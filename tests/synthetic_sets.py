"""What tests of syntheses share: tiny networks, real lesions in recipes, the files of a set."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfmammo.config import DataConfig
from tfmammo.data import splits
from tfmammo.mammogram import key_check
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


class NoiseModel(keras.Model):
    """A model whose network, named generator, makes images from noise.

    Args:
        name: The model's.
        length: Length of the noise.
        layer: Noise [n, length] -> [n, size, size, one channel for each output].
        outputs: Names of the outputs.
    """

    def __init__(self, name: str, length: int, layer: keras.Layer, outputs: Collection[str]):
        super().__init__(name=name)
        self.networks = {"generator": keras.Sequential([keras.Input((length,)), layer])}
        self.length = length
        self.outputs_of_noise = tuple(outputs)

    def functions(self):
        @tf.function(input_signature=[tf.TensorSpec([None, self.length], tf.float32, "noise")])
        def generator(noise):
            channels = tf.split(
                self.networks["generator"](noise), len(self.outputs_of_noise), axis=-1
            )
            return dict(zip(self.outputs_of_noise, channels, strict=True))

        return {"generator": generator}


def export_trained(
    model: Any, folder: Path, patients: Collection[str] = (), step: int = 1, **data: Any
) -> Path:
    """Export a model with a card that says how and on whom it was trained.

    Args:
        model: See export.export.
        folder: Where.
        patients: Those that it was trained on.
        step: The card's.
        data: Values of the training's data section.
    """
    card = {
        "name": model.name,
        "step": step,
        "config": {"data": DataConfig(**data).model_dump(mode="json"), "model": {}},
        "train_patients": sorted(patients),
    }
    return export(model, folder, card)
