"""What the training of all detectors shares: checks, schedules, validation and image grids.

Deviation of all: normal mammograms are trained on too (`normal`). They are those that the archive
calls normal and that have no marked lesion: of INbreast BI-RADS 1 alone, by its authors 67
mammograms. Mammograms with other findings alone are used neither for training nor for evaluation.
False positives per image are therefore counted over other images than the papers'.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmammo.config import DataConfig, TrainingConfig
from tfmammo.data import splits
from tfmammo.data.patches import Patches
from tfmammo.errors import DetectionError
from tfmammo.metrics.boxes import Matches, match_kinds
from tfmammo.metrics.detection import froc
from tfmammo.nn.published import Source
from tfmammo.tracking.export import CARD, get_training_patients, read_card

BATCH = 8  # mammograms at once in validation
SHOWN = 0.3  # score from which a box is drawn into the image grid


@contextmanager
def import_quietly(library: str) -> Iterator[None]:
    """Import a detection library within: silent, and one sentence where it is missing.

    From then on TensorFlow no longer logs what the library's sources are deprecated for.
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


def list_seen_patients(data: DataConfig, normal: bool, checkpoint: Path | None = None) -> list[str]:
    """List the patients that count as seen besides those of the training images.

    They are those of the checkpoint, as far as it is known, and the training side of
    `data.split_file`, if normal mammograms are not trained on: patients who have no others are in
    no training image, but each mammogram is for one fold to be evaluated on, also a normal one.
    """
    patients = read_training_patients(checkpoint)
    if normal or data.split_file is None:
        return patients
    saved = splits.load_split_file(data.split_file)
    unused = saved.patients.keys() - splits.held_out_patients(saved, data.fold)
    return sorted({*patients, *unused})


def check_split(data: DataConfig, detector: str) -> None:
    """Refuse the paper's split, which makes augmented copies of patches, with DetectionError."""
    if data.split == "paper":
        raise DetectionError(
            f"data.split=paper: turns patches, and {detector} is trained on whole mammograms; take "
            "patient or official"
        )


def check_training(training: TrainingConfig, detector: str, library: str) -> None:
    """Refuse other precisions than float32, and training.initial, with DetectionError."""
    if training.precision != "float32":
        raise DetectionError(
            f"training.precision: {library} trains in float32 here, not in {training.precision}"
        )
    if training.initial:
        raise DetectionError(
            f"training.initial: {detector} starts from model.checkpoint, a checkpoint of {library}"
        )


def image_shape(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns, px, of a size that is either these or the side of a square."""
    return (size, size) if isinstance(size, int) else size


def check_image_size(data: DataConfig, step: int, smallest: int, reason: str = "") -> None:
    """Check that the image's sides are multiples of `step` px, at least `smallest`, by its key."""
    if any(side % step or side < smallest for side in data.shape):
        limits = [f"multiples of {step} px"] * (step > 1)
        limits += [f"at least {smallest} px"] * (smallest > step)
        key, value = ("canvas", list(data.canvas)) if data.canvas else ("size", data.size)
        raise DetectionError(
            f"data.{key}: rows and columns must be {' and '.join(limits)}{reason}, not {value}"
        )


def check_unused_size(overrides: Sequence[str], data: DataConfig) -> None:
    """Refuse data.size in the overrides of --set where data.canvas decides instead."""
    keys = [override.partition("=")[0].strip() for override in overrides]
    if data.canvas and "data.size" in keys:
        raise DetectionError(
            "data.size: is not used beside data.canvas; data.canvas=null takes a square of "
            "data.size px"
        )


def restore_checkpoint(checkpoint: Path, parts: Mapping[str, Any], differences: str) -> None:
    """Read parts of a detector from a checkpoint of its library, or raise DetectionError.

    Args:
        checkpoint: A checkpoint's prefix, or a folder with one.
        parts: Trackable objects by their names in the checkpoint.
        differences: In what a checkpoint that does not fit may differ, for the message.
    """
    prefix = _find_prefix(checkpoint)
    try:
        tf.train.Checkpoint(**parts).read(prefix).expect_partial().assert_existing_objects_matched()
    except (AssertionError, ValueError, tf.errors.OpError):
        raise DetectionError(
            f"model.checkpoint: {checkpoint} is damaged, or of another {differences}"
        ) from None


def identify_checkpoint(checkpoint: Path) -> Source:
    """Tell which checkpoint this is by the SHA-256 of its files, one after the other by name."""
    prefix = Path(_find_prefix(checkpoint))
    digest = hashlib.sha256()
    for path in sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}.*")):
        digest.update(path.read_bytes())
    return Source(f"checkpoint {prefix.name}", digest.hexdigest())


def _find_prefix(checkpoint: Path) -> str:
    prefix = tf.train.latest_checkpoint(str(checkpoint)) if checkpoint.is_dir() else str(checkpoint)
    if prefix is None or not Path(f"{prefix}.index").is_file():
        raise DetectionError(
            f"model.checkpoint: {checkpoint} is neither a checkpoint nor a folder with one"
        )
    return prefix


def draw_panels(
    batch: Mapping[str, tf.Tensor], detected: Mapping[str, tf.Tensor]
) -> dict[str, tf.Tensor]:
    """Draw panels for the image grid: image, the same with the surer boxes, truth."""
    boxes = tf.where(
        detected["detection_scores"][..., tf.newaxis] >= SHOWN, detected["detection_boxes"], 0.0
    )
    with_boxes = tf.image.draw_bounding_boxes(batch["image"], boxes, [[1.0]])
    return {"image": batch["image"], "detected": with_boxes, "truth": batch["mask"]}


def validation_functions(
    detect: Callable[[tf.Tensor], Mapping[str, tf.Tensor]], shape: tuple[int, int], first: int = 0
) -> dict[str, Callable]:
    """Make what `validate` calls: image -> boxes, scores and classes from 0 on.

    `first` is the number of the first class in `detect`, whose outputs have the API's names.
    """

    @tf.function(input_signature=[tf.TensorSpec([None, *shape, 1], tf.float32, "image")])
    def detector(image: tf.Tensor) -> dict[str, tf.Tensor]:
        detected = detect(image)
        return {
            "boxes": detected["detection_boxes"],
            "scores": detected["detection_scores"],
            "classes": tf.maximum(detected["detection_classes"] - first, 0),
        }

    return {"detector": detector}


def validate(functions: Mapping[str, Any], held_out: Patches) -> dict[str, float]:
    """Compute recall on held-out mammograms at an IoU above 0.5.

    With data.tiles an image is a tile, drawn as in training. The numbers then choose
    checkpoints; evaluate/detection.py gives the FROC of mammograms.

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
    matches = Matches.join(matches_by_image)
    if not matches.lesions:
        raise DetectionError(
            "no held-out mammogram has a lesion, so that there is nothing to validate on; take "
            "other folds"
        )
    return {
        "recall": float(froc([matches], [1.0]).tpr[0]),
        "recall_of_all": len(matches.hits) / matches.lesions,
        "froc": float(froc([matches]).tpr.mean()),
    }


def _match(mammograms: Patches, detected: Mapping[str, np.ndarray], row: int) -> Matches:
    true_boxes = mammograms.targets["boxes"][row]
    true_classes = mammograms.targets["classes"][row]
    has_area = true_boxes[:, 2] > true_boxes[:, 0]
    is_detection = detected["scores"][row] > 0
    boxes, scores, classes = (
        detected[name][row][is_detection] for name in ("boxes", "scores", "classes")
    )
    truth = true_boxes[has_area], true_classes[has_area]
    return match_kinds(boxes, scores, classes.astype(int), *truth)


def read_training_patients(checkpoint: Path | None) -> list[str]:
    """Read which patients the checkpoint of an earlier run here was trained on, sorted.

    The loop counts them as seen. Of any other checkpoint it is not known: [].
    """
    path = checkpoint and checkpoint.absolute()
    for folder in (path, *path.parents[:2]) if path else ():
        if (folder / CARD).is_file():
            return sorted(get_training_patients(read_card(folder), folder))
    return []
