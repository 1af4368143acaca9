"""What the trainings of all detectors share: how one is validated and drawn, and what the
loop is given of a model of tf_keras.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmammo.config import DataConfig
from tfmammo.data.patches import Patches
from tfmammo.data.whole import Whole
from tfmammo.errors import DetectionError
from tfmammo.export import CARD, read_card, trained_on
from tfmammo.metrics import detection

BATCH = 8  # mammograms at once in validation
SHOWN = 0.3  # score from which a box is drawn into the image grid
ROUNDING = 1e-3  # of answers: a saved graph may merge operations


class Network:
    """A model of tf_keras, which the APIs build, as the loop sees a network."""

    def __init__(self, model: Any) -> None:
        self.variables: list[tf.Variable] = list(model.variables)
        self.trainable_variables: list[tf.Variable] = list(model.trainable_variables)

    def count_params(self) -> int:
        """How many numbers its variables hold."""
        return sum(int(np.prod(variable.shape)) for variable in self.variables)


def learning_rate(
    rate: float, warmup: int = 0, decay: int | None = None
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """What an optimizer is given: a rate that rises linearly over `warmup` steps, then stays or,
    over `decay` steps, falls to 0 along half a cosine.
    """
    if decay:
        start = {"warmup_target": rate, "warmup_steps": warmup} if warmup else {}
        return keras.optimizers.schedules.CosineDecay(0.0 if warmup else rate, decay, **start)
    return keras.optimizers.schedules.PolynomialDecay(0.0, warmup, rate) if warmup else rate


def refuse_copies(data: DataConfig, what: str) -> None:
    """Raise DetectionError where data.split is the paper's, which makes turned copies of patches.

    Args:
        what: Is trained.
    """
    if data.split == "paper":
        raise DetectionError(
            f"data.split=paper: turns patches, and {what} is trained on whole mammograms; take "
            "patient or official"
        )


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Rows and columns, px, of what a detector is built for.

    Args:
        size: Both, or the side of a square.
    """
    return (size, size) if isinstance(size, int) else size


def refuse_sides(data: DataConfig, step: int, smallest: int, why: str = "") -> None:
    """Raise DetectionError, naming the key, unless the rows and columns of what a detector sees are
    multiples of `step` px.

    Args:
        smallest: px, of either.
        why: Said behind "multiple of .. px".
    """
    if any(side % step or side < smallest for side in data.shape):
        least = f" and at least {smallest}" if smallest > step else ""
        if data.canvas:
            raise DetectionError(
                f"data.canvas: rows and columns must be multiples of {step} px{why}{least}, not "
                f"{list(data.canvas)}"
            )
        raise DetectionError(
            f"data.size: must be a multiple of {step} px{why}{least}, not {data.size}"
        )


def refuse_unused_size(overrides: Sequence[str], data: DataConfig) -> None:
    """Raise DetectionError where --set gives data.size beside data.canvas, which decides instead.

    Args:
        overrides: Of --set.
    """
    if data.canvas and any(one.partition("=")[0].strip() == "data.size" for one in overrides):
        raise DetectionError(
            "data.size: is not used beside data.canvas; data.canvas=null takes a square of "
            "data.size px"
        )


def panels(batch: Mapping[str, tf.Tensor], found: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Panels for the image grid.

    Args:
        batch: "image" and "mask".
        found: "detection_boxes" and "detection_scores", see data.whole for the boxes' unit.

    Returns:
        float32 [batch, rows, cols, 1] in [0, 1]: image, the same with the surer boxes, truth.
    """
    boxes = tf.where(
        found["detection_scores"][..., tf.newaxis] >= SHOWN, found["detection_boxes"], 0.0
    )
    drawn = tf.image.draw_bounding_boxes(batch["image"], boxes, [[1.0]])
    return {"image": batch["image"], "detected": drawn, "truth": batch["mask"]}


def validate(functions: Mapping[str, Any], held_out: Patches) -> dict[str, float]:
    """Recall on held-out mammograms at IoU 0.5: at 1 false positive per image, of all detections,
    and the FROC's mean.

    With data.tiles an image is a tile, drawn as those of the training are: a number to choose
    checkpoints by, not a FROC of mammograms, which evaluate/detection.py gives.

    Args:
        functions: A detector's.
        held_out: A Whole; classes are told apart.
    """
    assert isinstance(held_out, Whole)
    parts = []
    for start in range(0, len(held_out), BATCH):
        some = held_out.take(np.arange(start, min(start + BATCH, len(held_out))))
        found = {
            name: value.numpy()
            for name, value in functions["detector"](image=tf.constant(some.images)).items()
        }
        parts += [_matches(some, found, row) for row in range(len(some))]
    matches = detection.Matches.join(parts)
    if not matches.lesions:
        raise DetectionError(
            "no held-out mammogram has a lesion, so that there is nothing to validate on; take "
            "other folds"
        )
    recall = float(matches.froc([1.0])[0])
    return {
        "recall": recall,
        "recall_of_all": len(matches.hits) / matches.lesions,
        "froc": float(matches.froc().mean()),
    }


def _matches(some: Whole, found: Mapping[str, np.ndarray], row: int) -> detection.Matches:
    real = some.boxes[row, :, 2] > some.boxes[row, :, 0]
    kept = found["scores"][row] > 0
    boxes, scores, classes = (found[name][row][kept] for name in ("boxes", "scores", "classes"))
    return detection.match_kinds(
        boxes, scores, classes.astype(int), some.boxes[row][real], some.classes[row][real]
    )


def seen(checkpoint: Path | None) -> list[str]:
    """The patients that the checkpoint of an earlier run here was trained on, which the loop counts
    as seen; [] of any other.
    """
    for folder in (checkpoint, *checkpoint.parents[:2]) if checkpoint else ():
        if (folder / CARD).is_file():
            return sorted(trained_on(read_card(folder), folder))
    return []
