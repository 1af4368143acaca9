"""What the train scripts share: arguments, devices, data, the closing table."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.table import Table

from tfmammo import cli, shipped
from tfmammo.config import Experiment, TrainingConfig
from tfmammo.data import datasets
from tfmammo.data.extraction import MakePatches, make_patches
from tfmammo.data.patches import Patches
from tfmammo.data.tfrecord import PatchSource
from tfmammo.errors import ConfigError
from tfmammo.metrics import segmentation, synthesis
from tfmammo.nn._tensorflow import hold_back_stderr
from tfmammo.tracking import store
from tfmammo.tracking.export import predict
from tfmammo.training import devices, folder, workers
from tfmammo.training.contract import Functions, TrainableModel, Validate
from tfmammo.training.initial import parse_with_initial
from tfmammo.training.loop import Training

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Command:
    """A train script's command: the config that it was given, and what follows from that.

    Attributes:
        experiment: The config file with the overrides.
        overrides: Of --set, "section.key=value" each.
        given_output: Of --output.
    """

    experiment: Experiment[Any]
    overrides: tuple[str, ...] = ()
    given_output: Path | None = None

    @property
    def output(self) -> Path:
        """The run's folder: --output, else one that follows from the config."""
        return self.given_output or default_output(self.experiment)

    def open_subsets(self, make: MakePatches = make_patches) -> tuple[PatchSource, Patches]:
        """Open the training and the held-out patches; see `datasets.open_subsets`."""
        return datasets.open_subsets(self.experiment.data, self.output, make)

    def fit(
        self,
        build: Callable[[], TrainableModel],
        train: PatchSource,
        held_out: Patches,
        validate: Validate,
        **options: Any,
    ) -> None:
        """Train by `loop.Training`, which takes these arguments, and print the closing table."""
        training = Training(
            build, self.experiment, train, held_out, self.output, validate, **options
        )
        print_summary(self.experiment, training.fit(), held_out, self.output)


@contextmanager
def start(
    description: str,
    config: Any,
    not_for_workers: str | None = None,
    complete: Callable[[Experiment[Any]], Experiment[Any]] = lambda experiment: experiment,
) -> Iterator[Command]:
    """Read the arguments and the config, configure TensorFlow, and hold the run's folder.

    Args:
        description: For --help.
        config: The class of the `model` section.
        not_for_workers: Why this training run can't be shared by several workers.
        complete: Sets what follows from the rest of the config.

    Raises:
        ConfigError: The config is wrong, or it asks for several workers.
        TrainingError: Another process is training in the folder, whose split.json is its own.
    """
    schema = Experiment[config]
    name = Path(sys.argv[0]).stem
    parser = cli.make_parser(description, schema, name if name in shipped.list_configs() else None)
    parser.add_data()
    arguments = parser.parse_args()
    experiment = complete(parse_with_initial(schema, arguments))
    cli.print_if_wanted(experiment, arguments)
    if not_for_workers:
        workers.refuse_multi_worker(experiment.training, not_for_workers)
    command = Command(experiment, tuple(arguments.set), arguments.output)
    configure_tensorflow(experiment.training, folder.read_precision(command.output))
    # several workers share a folder, and one of them holds it while they train
    is_shared = experiment.training.strategy == "multi_worker"
    with nullcontext() if is_shared else folder.hold_lock(command.output):
        yield command


def train(
    description: str, model: Callable[[Any, int], TrainableModel], config: type, monitor: str
) -> None:
    """Run a train script: read the config, split the data by patient, train, export.

    Args:
        description: For --help.
        model: A class of tfmammo.models or tfmammo.baselines, called with its config and data.size.
        config: Its config class.
        monitor: The metric of `compute_validation_metrics` that chooses the best checkpoint.
    """
    with start(description, config) as command:
        experiment = command.experiment
        patches, held_out = command.open_subsets()
        build = partial(model, experiment.model, experiment.data.size)
        command.fit(build, patches, held_out, compute_validation_metrics, monitor=monitor)


def default_output(experiment: Experiment[Any]) -> Path:
    """Return runs/NAME-ARCHIVE-FINGERPRINT: the same command comes back to its folder."""
    name = f"{experiment.name}-{experiment.data.archive_name}-{experiment.fingerprint()}"
    return Path("runs") / name


def configure_tensorflow(training: TrainingConfig, began_with: str | None = None) -> None:
    """Set precision and threads, and join the other workers, before TensorFlow's first operation.

    `began_with` is the dtype policy of a run that goes on. It is kept on every device, because
    checkpoints of another one can't be read.

    Raises:
        ConfigError: training.deterministic is set, but TensorFlow's threads are already running;
            or nothing says who the workers are.
        WorkerError: The workers don't come together.
    """
    with hold_back_stderr():
        gpus = tf.config.list_physical_devices("GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        policy = devices.choose_precision(training, gpus)
        if began_with and began_with != policy and training.precision == "auto":
            log.info(
                "going on in %s, as the training began; here it would be %s", began_with, policy
            )
            policy = began_with
        keras.config.set_dtype_policy(policy)
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
    if training.strategy == "multi_worker":
        workers.join()
    with hold_back_stderr():
        tf.config.list_logical_devices()


def compute_validation_metrics(functions: Functions, held_out: Patches) -> dict[str, float]:
    """Score a segmenter by Dice, Jaccard, ..., a generator by SSIM and L1, a model of both by all.

    A function from "image" is a segmenter, one from "mask" a generator. The metrics are means over
    the held-out patches, those of segmentation first; "dice_of_disc" is the Dice of the centred
    disc that fits these masks best.
    """
    metrics: dict[str, float] = {}
    for function in functions.values():
        inputs = {spec.name for spec in function.input_signature}
        if inputs == {"image"}:
            masks = predict(function, {"image": held_out.images})["mask"]
            scores = segmentation.per_image(held_out.masks, masks)
            names = ("dice", "jaccard", "accuracy", "mcc")
            disc = float(segmentation.disc_dice(held_out.masks).mean(axis=0).max())
            means = {name: float(scores[name].mean()) for name in names}
            metrics = means | {"dice_of_disc": disc} | metrics
        elif inputs == {"mask"}:
            images = predict(function, {"mask": held_out.masks.astype(np.float32)})["image"]
            scores = synthesis.per_image(held_out.images, images, held_out.masks)
            metrics |= {name: float(scores[name].mean()) for name in ("ssim", "l1")}
    return metrics


def print_summary(
    experiment: Experiment[Any], metrics: dict[str, float], held_out: Patches, output: Path
) -> None:
    """Print the closing table, and where image grid, model and history are.

    A worker that is not the chief has no metrics, and prints nothing.
    """
    if not metrics:
        return
    patients = len(set(held_out.patient_ids))
    table = Table(
        title=f"{experiment.name}: {len(held_out)} held-out patches of {patients} patients"
    )
    table.add_column("metric")
    table.add_column("mean", justify="right")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    cli.console.print(table)
    if metrics.get("dice", 1) <= metrics.get("dice_of_disc", 0):
        log.warning("this segmenter is no better than a centred disc, which ignores the image")
    grids = sorted((output / "samples").glob("step_*.png"))
    for name, place in (
        ("picture", grids[-1] if grids else "-"),
        ("model", output / "export"),
        ("history", store.describe_viewer(store.store_uri(experiment.tracking.uri))),
    ):
        cli.console.print(f"{name:<10}{place}", highlight=False, soft_wrap=True)
