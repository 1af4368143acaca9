"""CAD pipelines of tiny exports whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tests.known_networks import KnownSegmenter
from tfmammo.config import DataConfig
from tfmammo.models.shape import ShapeCNN, ShapeConfig
from tfmammo.tracking import export

SIZE = 64


def save_models(
    folder: Path, boxes: Sequence[Sequence[int]], rows: int, cols: int, level: float = 0.5
) -> list[str]:
    """Save three models; return overrides of configs/case.yaml that name them.

    The detector finds the same boxes in every mammogram. The segmenter marks what is brighter than
    the middle of its patch, and the classifier is random.

    Args:
        folder: Where they are saved.
        boxes: Native px; none: the detector is blind.
        rows: Of the mammograms.
        cols: Of the mammograms.
        level: Grey value of a patch from which on the segmenter marks it.
    """
    _save_detector(folder / "detector", boxes, rows, cols)
    data = DataConfig(size=SIZE, frame="loose").model_dump(mode="json")
    card = {"name": "bright", "step": 7, "config": {"data": data}}
    export.export(KnownSegmenter(200.0, -200.0 * level), folder / "segmenter", card)
    keras.utils.set_random_seed(0)
    classifier = ShapeCNN(ShapeConfig(filters=(2, 2, 2), units=4))
    export.export(classifier, folder / "shape", {"name": "shape"})
    steps = [f"postprocess.{step}=0" for step in ("closing", "erosion", "dilation")]
    return [
        f"detector={folder}/detector",
        f"segmenter={folder}/segmenter",
        f"classifier={folder}/shape",
        *steps,
    ]


def _save_detector(folder: Path, boxes: Sequence[Sequence[int]], rows: int, cols: int) -> None:
    parts = np.zeros((1, 4), np.float32)
    if boxes:
        parts = np.array(boxes, np.float32) / np.array([rows, cols] * 2, np.float32)
    scores = np.linspace(0.9, 0.8, len(parts), dtype=np.float32) * bool(boxes)
    image = tf.TensorSpec([1, None, None, 3], tf.float32, name="input_tensor")

    @tf.function(input_signature=[image])
    def detect(input_tensor):
        return {
            "detection_boxes": tf.constant(parts[np.newaxis]),
            "detection_scores": tf.constant(scores[np.newaxis]),
            "detection_classes": tf.ones([1, len(parts)]),
            "num_detections": tf.constant([float(len(boxes))]),
        }

    tf.saved_model.save(tf.Module(), str(folder), signatures=detect.get_concrete_function())
