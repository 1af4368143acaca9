"""What the train and evaluate scripts share: arguments, devices, data, the closing table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.table import Table

from tfmammo import config as configuration
from tfmammo._tensorflow import held_back
from tfmammo.archives import archive_name
from tfmammo.cli import arguments, console
from tfmammo.config import Experiment, TrainingConfig
from tfmammo.data.patches import Patches
from tfmammo.datasets import datasets
from tfmammo.errors import ConfigError
from tfmammo.export import predict
from tfmammo.metrics import segmentation, synthesis
from tfmammo.tracking import store
from tfmammo.training import devices, loop, workers

log = logging.getLogger(__name__)


def train(description: str, room: Callable[[Any, int], loop.Room], model: type) -> None:
    """What every train script does: read the config, split the data by patient, fit, show what came
    out.

    Args:
        description: For --help.
        room: A class of tfmammo.models or tfmammo.baselines.
        model: Its config class.
    """
    chosen = arguments(description).parse_args()
    experiment = configuration.load(chosen.config, chosen.set, model)
    prepare(experiment.training)
    output = chosen.output or default_output(experiment)
    patches, held_out = datasets(experiment.data, output)
    metrics = loop.fit(
        lambda: room(experiment.model, experiment.data.size),
        experiment,
        patches,
        held_out,
        output,
        validate,
    )
    summary(experiment, metrics, held_out, output)


def default_output(experiment: Experiment[Any]) -> Path:
    """runs/NAME-ARCHIVE-FINGERPRINT: the same command comes back to its folder, another one gets
    its own.
    """
    return (
        Path("runs")
        / f"{experiment.name}-{archive_name(experiment.data)}-{experiment.fingerprint()}"
    )


def prepare(training: TrainingConfig) -> None:
    """Set precision and threads, join the other workers; before the first TensorFlow operation of
    the process.

    Raises:
        ConfigError: training.deterministic is wanted, but TensorFlow's threads are already running;
            or nothing says who the workers are.
        WorkerError: They don't come together.
    """
    cluster = workers.cluster() if training.strategy == "multi_worker" else None
    with held_back():
        gpus = tf.config.list_physical_devices("GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        keras.config.set_dtype_policy(devices.precision(training, gpus))
        if training.deterministic:
            try:
                # The only setting found under which two float32 runs on a CPU agree bit for bit.
                tf.config.threading.set_inter_op_parallelism_threads(1)
            except RuntimeError:
                raise ConfigError(
                    "training.deterministic: must be set before TensorFlow's first operation in "
                    "the process"
                ) from None
            tf.config.experimental.enable_op_determinism()
        if cluster:
            workers.join(cluster)
        tf.config.list_logical_devices()


def validate(functions: loop.Functions, held_out: Patches) -> dict[str, float]:
    """Held-out metrics of a room's functions: image -> mask gives Dice, Jaccard, ...; mask -> image
    gives SSIM, L1.

    Returns:
        Means over patches, the criterion for the best checkpoint first.
    """
    found: dict[str, float] = {}
    for function in functions.values():
        inputs = {spec.name for spec in function.input_signature}
        if inputs == {"image"}:
            masks = predict(function, "image", held_out.images)["mask"]
            scores = segmentation.per_image(held_out.masks, masks)
            found = {
                **{
                    name: float(scores[name].mean())
                    for name in ("dice", "jaccard", "accuracy", "mcc")
                },
                **found,
            }
        elif inputs == {"mask"}:
            images = predict(function, "mask", held_out.masks.astype(np.float32))["image"]
            scores = synthesis.per_image(held_out.images, images, held_out.masks)
            found |= {name: float(scores[name].mean()) for name in ("ssim", "l1")}
    return found


def summary(
    experiment: Experiment[Any], metrics: dict[str, float], held_out: Patches, output: Path
) -> None:
    """Print the closing table and where picture, model and history are; nothing of a worker that is
    not the chief, which has no metrics.
    """
    if not metrics:
        return
    table = Table(
        title=f"{experiment.name}: {len(held_out)} held-out patches of "
        f"{len(set(held_out.patient_ids))} patients"
    )
    for heading in ("metric", "mean"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)
    pictures: Sequence[Path] = sorted((output / "samples").glob("step_*.png"))
    for what, where in (
        ("picture", pictures[-1] if pictures else "-"),
        ("model", output / "export"),
        ("history", store.how_to_look(store.store_uri(experiment.tracking.uri))),
    ):
        console.print(f"{what:<10}{where}", markup=False, highlight=False, soft_wrap=True)
