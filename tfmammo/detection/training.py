"""What the trainings of all detectors share: checks, schedules, validation and image grids."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmammo.config import DataConfig, TrainingConfig
from tfmammo.data.patches import Patches
from tfmammo.errors import DetectionError
from tfmammo.metrics import detection
from tfmammo.tracking.export import CARD, get_training_patients, read_card

BATCH = 8  # mammograms at once in validation
SHOWN = 0.3  # score from which a box is drawn into the image grid


@contextmanager
def import_quietly(library: str) -> Iterator[None]:
    """Import a detection library within: silent, and one sentence where it is missing.

    Warnings are held back while it is imported. From then on TensorFlow no longer logs what the
    library's sources are deprecated for.

    Args:
        library: Its name, for the message.

    Raises:
        DetectionError: It is missing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        raise DetectionError(
            f'{library} is missing ({error.name}); install it: pip install "tfmammo[detection]"'
        ) from None
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


class Network:
    """A tf_keras model, which the APIs build, with the attributes that the loop reads."""

    def __init__(self, model: Any) -> None:
        self.variables: list[tf.Variable] = list(model.variables)
        self.trainable_variables: list[tf.Variable] = list(model.trainable_variables)

    def count_params(self) -> int:
        """Count the numbers that its variables hold."""
        return sum(int(np.prod(variable.shape)) for variable in self.variables)


def learning_rate(
    rate: float, warmup: int = 0, decay: int | None = None
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Build an optimizer's learning rate.

    Args:
        rate: The rate after the warm-up.
        warmup: Steps over which the rate rises linearly from 0.
        decay: Steps over which it then falls to 0 along half a cosine; None: it stays.
    """
    schedules = keras.optimizers.schedules
    if decay and warmup:
        return schedules.CosineDecay(0.0, decay, warmup_target=rate, warmup_steps=warmup)
    if decay:
        return schedules.CosineDecay(rate, decay)
    return schedules.PolynomialDecay(0.0, warmup, rate) if warmup else rate


def check_split(data: DataConfig, detector: str) -> None:
    """Refuse the paper's split, which makes augmented copies of patches.

    Args:
        data: The experiment's section.
        detector: What is trained, for the message.

    Raises:
        DetectionError: data.split is "paper".
    """
    if data.split == "paper":
        raise DetectionError(
            f"data.split=paper: turns patches, and {detector} is trained on whole mammograms; take "
            "patient or official"
        )


def check_training(training: TrainingConfig, detector: str, library: str) -> None:
    """Refuse what another library's detector can't do.

    Args:
        training: The experiment's section.
        detector: What is trained, for the message.
        library: Whose detector it is, for the message.

    Raises:
        DetectionError: The precision is not float32, or training.initial is given.
    """
    if training.precision != "float32":
        raise DetectionError(
            f"training.precision: {library} trains in float32 here, not in {training.precision}"
        )
    if training.initial:
        raise DetectionError(
            f"training.initial: {detector} starts from model.checkpoint, a checkpoint of {library}"
        )


def image_shape(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of the image that a detector is built for, px.

    Args:
        size: Rows and columns, or the side of a square.
    """
    return (size, size) if isinstance(size, int) else size


def check_image_size(data: DataConfig, step: int, smallest: int, reason: str = "") -> None:
    """Check that the image's rows and columns are multiples of `step` px.

    Args:
        data: The experiment's section.
        step: px.
        smallest: Least number of rows and of columns, px.
        reason: Follows "multiple of .. px" in the message.

    Raises:
        DetectionError: They are not; the message names the key.
    """
    if any(side % step or side < smallest for side in data.shape):
        least = f" and at least {smallest}" if smallest > step else ""
        if data.canvas:
            raise DetectionError(
                f"data.canvas: rows and columns must be multiples of {step} px{reason}{least}, not "
                f"{list(data.canvas)}"
            )
        raise DetectionError(
            f"data.size: must be a multiple of {step} px{reason}{least}, not {data.size}"
        )


def check_unused_size(overrides: Sequence[str], data: DataConfig) -> None:
    """Refuse data.size on the command line where data.canvas decides instead.

    Args:
        overrides: Of --set.
        data: The experiment's section.

    Raises:
        DetectionError: Both are given.
    """
    keys = [override.partition("=")[0].strip() for override in overrides]
    if data.canvas and "data.size" in keys:
        raise DetectionError(
            "data.size: is not used beside data.canvas; data.canvas=null takes a square of "
            "data.size px"
        )


def restore_checkpoint(checkpoint: Path, parts: Mapping[str, Any], differences: str) -> None:
    """Read parts of a detector from a checkpoint of its library.

    Args:
        checkpoint: A checkpoint's prefix, or a folder with one.
        parts: Trackable objects by their names in the checkpoint.
        differences: In what a checkpoint that does not fit may differ, for the message.

    Raises:
        DetectionError: There is no checkpoint, or it does not fit.
    """
    prefix = tf.train.latest_checkpoint(str(checkpoint)) if checkpoint.is_dir() else str(checkpoint)
    if prefix is None or not tf.io.gfile.glob(f"{prefix}.index"):
        raise DetectionError(
            f"model.checkpoint: {checkpoint} is neither a checkpoint nor a folder with one"
        )
    try:
        tf.train.Checkpoint(**parts).read(prefix).expect_partial().assert_existing_objects_matched()
    except (AssertionError, ValueError, tf.errors.OpError):
        raise DetectionError(
            f"model.checkpoint: {checkpoint} is damaged, or of another {differences}"
        ) from None


def draw_panels(
    batch: Mapping[str, tf.Tensor], detected: Mapping[str, tf.Tensor]
) -> dict[str, tf.Tensor]:
    """Draw panels for the image grid: image, the same with the surer boxes, truth.

    Args:
        batch: "image" and "mask".
        detected: "detection_boxes" and "detection_scores", see data.whole for the boxes' unit.

    Returns:
        float32 [batch, rows, cols, 1] in [0, 1].
    """
    boxes = tf.where(
        detected["detection_scores"][..., tf.newaxis] >= SHOWN, detected["detection_boxes"], 0.0
    )
    with_boxes = tf.image.draw_bounding_boxes(batch["image"], boxes, [[1.0]])
    return {"image": batch["image"], "detected": with_boxes, "truth": batch["mask"]}


def validate(functions: Mapping[str, Any], held_out: Patches) -> dict[str, float]:
    """Compute recall on held-out mammograms at IoU 0.5.

    With data.tiles an image is a tile, drawn as the training's are. The numbers then choose
    checkpoints; evaluate/detection.py gives the FROC of mammograms.

    Args:
        functions: A detector's.
        held_out: Mammograms whose targets are boxes and classes (see data.whole).

    Returns:
        "recall" at 1 false positive per image, "recall_of_all" detections, and "froc", the FROC's
        mean.

    Raises:
        DetectionError: No held-out mammogram has a lesion.
    """
    matches_by_image = []
    for start in range(0, len(held_out), BATCH):
        mammograms = held_out.take(np.arange(start, min(start + BATCH, len(held_out))))
        outputs = functions["detector"](image=tf.constant(mammograms.images))
        detected = {name: value.numpy() for name, value in outputs.items()}
        matches_by_image += [_match(mammograms, detected, row) for row in range(len(mammograms))]
    matches = detection.Matches.join(matches_by_image)
    if not matches.lesions:
        raise DetectionError(
            "no held-out mammogram has a lesion, so that there is nothing to validate on; take "
            "other folds"
        )
    return {
        "recall": float(matches.froc([1.0])[0]),
        "recall_of_all": len(matches.hits) / matches.lesions,
        "froc": float(matches.froc().mean()),
    }


def _match(mammograms: Patches, detected: Mapping[str, np.ndarray], row: int) -> detection.Matches:
    true_boxes = mammograms.targets["boxes"][row]
    true_classes = mammograms.targets["classes"][row]
    has_area = true_boxes[:, 2] > true_boxes[:, 0]
    is_detection = detected["scores"][row] > 0
    boxes, scores, classes = (
        detected[name][row][is_detection] for name in ("boxes", "scores", "classes")
    )
    return detection.match_kinds(
        boxes,
        scores,
        classes.astype(int),
        true_boxes[has_area],
        true_classes[has_area],
    )


def read_training_patients(checkpoint: Path | None) -> list[str]:
    """Read which patients the checkpoint of an earlier run here was trained on.

    The loop counts them as seen.

    Returns:
        Patient ids, sorted; [] of any other checkpoint.
    """
    for folder in (checkpoint, *checkpoint.parents[:2]) if checkpoint else ():
        if (folder / CARD).is_file():
            return sorted(get_training_patients(read_card(folder), folder))
    return []
