"""Detectors whose answers are known, as SavedModels of the kind that others export."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfmammo.config import DataConfig
from tfmammo.mammogram import key_check
from tfmammo.tracking.export import FORMAT


def save_detector(
    folder: Path,
    boxes: Sequence[Sequence[float]],
    scores: Sequence[float],
    batch: int | None = None,
    classes: Sequence[int] = (),
) -> None:
    """Save a detector that finds the same boxes, parts of an image's sides, in every image.

    Without boxes it finds nothing. Without classes, which begin at 1, all are of the first.
    """
    parts = np.asarray(boxes or [[0, 0, 0, 0]], np.float32)
    sure = np.asarray(scores or [0], np.float32)
    image = tf.TensorSpec([batch, None, None, 3], tf.float32, name="input_tensor")

    @tf.function(input_signature=[image])
    def detect(input_tensor):
        return {
            "detection_boxes": tf.constant(parts[np.newaxis]),
            "detection_scores": tf.constant(sure[np.newaxis]),
            "detection_classes": tf.constant([classes or [1] * len(parts)], tf.float32),
            "num_detections": tf.constant([float(len(boxes))]),
        }

    tf.saved_model.save(tf.Module(), str(folder), signatures=detect.get_concrete_function())


def write_detector_card(
    folder: Path,
    data: DataConfig,
    train_patients: Sequence[str] = (),
    name: str = "ssd",
    functions: Mapping[str, object] | None = None,
) -> None:
    """Write the card of a detector of one SavedModel into its export."""
    card = {
        "format": FORMAT,
        "name": name,
        "serves": "saved_model",
        "functions": functions or {},
        "train_patients": list(train_patients),
        "id_key": key_check(),
        "config": {"data": data.model_dump(mode="json")},
    }
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
