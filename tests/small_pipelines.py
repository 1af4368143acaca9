"""CAD pipelines of tiny exports whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from tests.exported_detectors import save_detector
from tests.known_networks import KnownSegmenter
from tfmammo.config import DataConfig
from tfmammo.models.shape import ShapeCNN, ShapeConfig
from tfmammo.tracking import export

SIZE = 64


def save_models(
    folder: Path, boxes: Sequence[Sequence[int]], rows: int, cols: int, level: float = 0.5
) -> list[str]:
    """Save three models; return overrides of configs/pacs.yaml that name them.

    The detector finds the same boxes in every mammogram. The segmenter marks what is brighter than
    the middle of its patch, and the classifier is random.

    Args:
        folder: Where they are saved.
        boxes: Native px; none: the detector is blind.
        rows: Of the mammograms.
        cols: Of the mammograms.
        level: Grey value of a patch from which on the segmenter marks it.
    """
    parts = (np.array(boxes) / np.array([rows, cols] * 2)).tolist() if boxes else []
    scores = np.linspace(0.9, 0.8, len(parts)).tolist()
    save_detector(folder / "detector", parts, scores, batch=1)
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
