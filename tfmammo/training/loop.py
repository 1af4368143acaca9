"""The training loop: strategy, precision, tf.function, checkpoints, resume, guards.

It knows no paper. A model (tfmammo.models, tfmammo.baselines) owns its losses and the order of its
updates; the loop calls `train_step` and looks after everything else. Progressive growing and staged
freezing are repeated `fit` calls.

The other modules of the package, in the order in which the loop uses them: task (the arguments of
`fit`), contract (what a model must offer), devices and workers (where it runs), folder and state
(what is on disk), image_grid and progress (what a user sees), exporter (what comes out).
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfmammo import filesystem
from tfmammo.config import Experiment, TrainingConfig
from tfmammo.data import datasets
from tfmammo.data.patches import Patches, PatchSource
from tfmammo.errors import Interrupted, TrainingError, name_key
from tfmammo.nn import optimization
from tfmammo.tracking import export, models, runs
from tfmammo.tracking.runs import Run
from tfmammo.training import contract, devices, folder, workers
from tfmammo.training.contract import TrainableModel, Validate, Write
from tfmammo.training.exporter import Exporter
from tfmammo.training.image_grid import draw_grid, encode_png
from tfmammo.training.progress import Progress, announce_duration
from tfmammo.training.state import TrainingState
from tfmammo.training.task import Mode, TrainingTask

log = logging.getLogger(__name__)


def fit(
    build: Callable[[], TrainableModel],
    experiment: Experiment[Any],
    train: PatchSource,
    held_out: Patches,
    output: Path,
    validate: Validate,
    *,
    monitor: str,
    mode: Mode = "max",
    seen_patients: Iterable[str] = (),
    strategy: tf.distribute.Strategy | None = None,
    write: Write = export.write_saved_models,
) -> dict[str, float]:
    """Train a model, or go on training it, and export it.

    Rerunning with the same experiment and output resumes from the newest readable checkpoint. The
    order of draws and the augmentation depend on seed and step alone, so a resumed run sees what it
    would have seen.

    Whatever is wrong with model, data, folder or start is found before anything is written to the
    folder or the tracking store.

    Args:
        build: Builds the model under the current precision policy; called in the strategy's scope.
        experiment: The whole config.
        train: Training patches, or records to stream.
        held_out: Validation patches, of other patients than `train` unless the split is "paper".
        output: The run's folder: config.yaml, checkpoints/, samples/, best/ and export/
            (SavedModels), mlflow_run_id.
        validate: Computes metrics of the model's functions on the held-out patches.
        monitor: The metric by which the best checkpoint is chosen.
        mode: Whether a higher ("max") or a lower ("min") value of `monitor` is better.
        seen_patients: Patients, besides those of `train` and of training.initial, that the weights
            were already trained on when `build` made them. The folder records them at step 0; a
            training that resumes goes by the record.
        strategy: None takes the workers that this process has joined, else all GPUs when there are
            several, as `training.devices` says.
        write: Writes the SavedModels; see tfmammo.tracking.export.export.

    Returns:
        The held-out metrics at the last step; nothing on workers that are not the chief (see
        tfmammo.training.workers).

    Raises:
        TrainingError: The folder belongs to another experiment or another process, the devices
            can't share the batch, the model breaks the contract (see tfmammo.training.contract), or
            a loss became NaN or Inf.
        Interrupted: SIGTERM or Ctrl-C, after saving.
        WorkerError: Another worker is gone, or has other data.
    """
    task = TrainingTask(
        build,
        experiment,
        train,
        held_out,
        output,
        validate,
        monitor,
        mode,
        tuple(seen_patients),
        write,
    )
    strategy = strategy or devices.choose_strategy(experiment.training, task.classes)
    group = workers.WorkerGroup(strategy)
    training = _Training(task, group)
    lock = folder.hold_lock(output) if group.is_chief else nullcontext()
    with lock, collect_stop_signals() as signals, group.translate_errors():
        try:
            metrics = training.run(signals)
        except tf.errors.ResourceExhaustedError as error:
            log.debug("memory ran out", exc_info=error)
            raise TrainingError(
                "the device's memory ran out; training.accumulate=2 with half of "
                "training.batch_size needs less, and so does a smaller data.size; "
                f"{training.state.describe_kept()}"
            ) from None
    if signals:  # after the last step: what follows, as another stage, must not begin
        raise Interrupted(signals[0], f"at step {training.steps:,}, the last one")
    return metrics


class _Training:
    """One call of `fit`. Its phases are `run`'s lines, in their order.

    Constructing it checks task and model, and leaves no trace in the folder or the tracking store.
    """

    def __init__(self, task: TrainingTask, group: workers.WorkerGroup) -> None:
        self.task = task
        self.group = group
        self.strategy = group.strategy
        self.experiment = task.experiment
        self.config = task.experiment.training
        self.steps = count_steps(self.config, len(task.train))
        self.signals: list[int] = []
        self.run_log: Run | None = None
        replicas = self.strategy.num_replicas_in_sync
        devices.check_batch(self.config, replicas, task.classes)
        contract.check_signature("validate", task.validate, "functions", "held_out")
        contract.check_signature("write", task.write, "model", "folder")
        keras.utils.set_random_seed(self.config.seed)
        with self.strategy.scope():
            self.model = task.build()
            contract.check_xla(self.model, self.config)
            # once: each call would make and trace new ones
            self.functions = self.model.functions()
        contract.check_model(self.model, self.functions)
        contract.check_exchange(self.model, self.config)
        with self.strategy.scope():
            self.accumulator = optimization.prepare_exchange(
                self.model.networks,
                self.model.optimizers,
                self.config.accumulate,
                self.config.exchange,
            )
        self.state = TrainingState(self.model, task.output, self.config.keep)

    def run(self, signals: list[int]) -> dict[str, float]:
        """Start or resume, train, export; the run's state reaches the tracking store in any case.

        Args:
            signals: The list that `collect_stop_signals` appends to.
        """
        self.signals = signals
        seen_patients = self._start_or_resume()
        status: Literal["FAILED", "FINISHED", "KILLED"] = "FAILED"
        self.run_log = Run(self.experiment, self.task.output) if self.group.is_chief else None
        try:
            self._claim_folder(seen_patients)
            metrics = self._train()
            if self.group.is_chief:
                Exporter(self.task, self.state, self.run_log).finish(metrics)
            self.group.wait()
            status = "FINISHED"
            return metrics
        except Interrupted:
            status = "KILLED"
            raise
        finally:
            if self.run_log:
                self.run_log.close(status)

    def _start_or_resume(self) -> set[str] | None:
        """Restore the newest checkpoint, else start from `initial` or as built; write nothing.

        Returns:
            At a start, the patients that the weights were already trained on; None at a resume.
        """
        task = self.task
        if self.group.is_chief:
            folder.check_owner(task.output, self.experiment, task.train, task.held_out)
        checkpoint = self.state.newest_checkpoints.restore()
        seen_patients = None if checkpoint else self._start()
        self.group.agree(int(self.state.step), self.experiment, task.train)
        start = f"step {int(self.state.step):,}" if checkpoint else self.config.initial
        log.info(
            "training %s from %s to step %s: %d patches, %d held out, %s, %d device(s), %s",
            self.experiment.name,
            start or "the start",
            f"{self.steps:,}",
            len(task.train),
            len(task.held_out),
            keras.config.dtype_policy().name,
            self.strategy.num_replicas_in_sync,
            task.output,
        )
        return seen_patients

    def _start(self) -> set[str]:
        """Take the weights of `training.initial`, if it is set.

        Returns:
            The patients that the start was trained on, or that stand behind synthetic data. They
            count as seen, whatever this run's own split holds out.
        """
        folder.check_nothing_lost(self.task.output)
        seen_patients = set(self.task.seen_patients)
        seen_patients |= datasets.list_synthetic_patients(self.experiment.data)
        if self.config.initial:
            with name_key("training.initial"):
                initial = models.resolve(self.config.initial, self.experiment.tracking.uri)
                export.assign(self.model.networks, initial)
                card = export.read_card(initial)
                if "train_patients" in card:
                    seen_patients |= export.get_training_patients(card, initial)
        held_out = set(self.task.held_out.patient_ids.tolist())
        if known := len(seen_patients & held_out):
            log.warning(
                "what this training starts from, or its synthetic data, knows %d of the %d "
                "held-out patients: the held-out metrics are too good",
                known,
                len(held_out),
            )
        return seen_patients

    def _claim_folder(self, seen_patients: set[str] | None) -> None:
        """Write whose the folder is, now that nothing is left that could be wrong."""
        task = self.task
        if not self.group.is_chief:
            return
        if self.group.count == 1:
            folder.remove_partial_files(task.output)
        folder.claim(task.output, self.experiment, task.train, task.held_out)
        if seen_patients is not None:
            folder.write_seen_patients(task.output, seen_patients)
        if self.run_log:
            self.run_log.log_tags(
                {
                    "archive": self.experiment.data.archive_name,
                    "train_patches": task.train.fingerprint(),
                    "held_out_patches": task.held_out.fingerprint(),
                    runs.MONITOR: task.monitor,
                }
            )

    def _train(self) -> dict[str, float]:
        """Take steps until the last one; return the last held-out metrics, {} if not the chief."""
        step = int(self.state.step)
        metrics: dict[str, float] = {}
        if step == 0 and self.group.is_chief:
            self._write_grid(step)
        batches = iter(
            self.group.batches(
                self.task.train,
                self.config.batch_size,
                self.config.seed,
                self.experiment.data.turn_draws,
                step * self.config.accumulate,
            )
        )
        take_steps = self._compile_steps()
        with Progress(self.experiment.name, step, self.steps, self._announce()) as progress:
            while step < self.steps:
                count = self._count_steps_to_next_event(step)
                means = take_steps(batches, tf.constant(count, tf.int64))
                losses = {name: float(mean) for name, mean in means.items()}
                self._check_finite(losses, step, step + count)
                step += count
                progress.update(step, losses)
                if self.group.is_chief:
                    metrics = self._report(step, losses, progress) or metrics
                # all workers stop in the same step
                stop = max(self.group.gather(self.signals[0] if self.signals else 0))
                is_last = step >= self.steps
                is_checkpoint = step % self.config.checkpoint_every == 0 or is_last or stop
                if is_checkpoint and self.group.is_chief:
                    self.state.save()
                if stop and not is_last:
                    self.group.wait()
                    raise Interrupted(stop, f"at step {step:,}")
        if not metrics and self.group.is_chief:
            exported = Exporter(self.task, self.state, self.run_log).read_metrics()
            return exported or self.task.validate(self.functions, self.task.held_out)
        return metrics

    def _announce(self) -> Callable[[int, float], None] | None:
        """Return what tells how long a training on the phantom takes, if this is one."""
        on_phantom = self.group.is_chief and datasets.lacks_data(self.experiment.data)
        return announce_duration if on_phantom else None

    def _count_steps_to_next_event(self, step: int) -> int:
        """Count the steps until something has to be done outside the graph."""
        config = self.config
        intervals = (
            config.checkpoint_every,
            config.validate_every,
            config.grid_every,
            config.steps_per_loop,
        )
        return min(self.steps - step, *(interval - step % interval for interval in intervals))

    def _compile_steps(self) -> Callable[[Any, tf.Tensor], dict[str, tf.Tensor]]:
        """Make a tf.function that takes a number of steps and returns each loss's mean over them.

        Its arguments are an iterator of batches and the number, int64.
        """

        @tf.function
        def take_batch(batch: Any, is_last: bool) -> dict[str, tf.Tensor]:
            train_step = (
                tf.function(self.model.train_step, jit_compile=True)
                if self.config.jit_compile
                else self.model.train_step
            )
            if self.accumulator:
                self.accumulator.is_last = is_last
            losses = self.strategy.run(train_step, args=(batch,))
            return {
                name: self.strategy.reduce(tf.distribute.ReduceOp.MEAN, loss, axis=None)
                for name, loss in losses.items()
            }

        @tf.function
        def take_steps(batches: Any, count: tf.Tensor) -> dict[str, tf.Tensor]:
            names = take_batch.get_concrete_function(batches.element_spec, True).structured_outputs
            contract.check_losses(self.model, names)
            totals = {name: tf.zeros([], tf.float32) for name in names}
            for _ in tf.range(count):
                if self.accumulator:
                    for _part in tf.range(self.config.accumulate - 1):
                        totals = add(totals, take_batch(next(batches), False))
                        self.accumulator.done.assign_add(1)
                totals = add(totals, take_batch(next(batches), True))
                if self.accumulator:
                    self.accumulator.done.assign(0)
                self.state.step.assign_add(1)
            taken = tf.cast(count * self.config.accumulate, tf.float32)
            return {name: total / taken for name, total in totals.items()}

        def add(totals: dict[str, tf.Tensor], losses: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return {
                name: total + tf.cast(losses[name], tf.float32) for name, total in totals.items()
            }

        return take_steps

    def _check_finite(self, losses: dict[str, float], before: int, step: int) -> None:
        for name, value in losses.items():
            if not np.isfinite(value):
                raise TrainingError(
                    f"{name} became {value} between steps {before:,} and {step:,}; "
                    f"{self.state.describe_kept()}"
                )

    def _report(self, step: int, losses: dict[str, float], progress: Progress) -> dict[str, float]:
        """Log the losses, draw the image grid and validate, the last two when it is their turn.

        Returns:
            The held-out metrics; {} if it was not their turn.
        """
        self._log_metrics({**losses, **self.state.describe_optimizers()}, step)
        is_last = step >= self.steps
        draws_grid = is_last or step % self.config.grid_every == 0
        validates = is_last or step % self.config.validate_every == 0
        if draws_grid or validates:
            self.state.check_weights()  # spoilt ones draw no image, and have no metrics
        if draws_grid:
            self._write_grid(step)
        if not validates:
            return {}
        metrics = self._validate(step)
        progress.log_metrics(step, metrics)
        return metrics

    def _log_metrics(self, metrics: dict[str, float], step: int) -> None:
        if self.run_log:
            self.run_log.log_metrics(metrics, step)

    def _validate(self, step: int) -> dict[str, float]:
        """Compute and log the held-out metrics, and save the weights if they are the best."""
        task = self.task
        metrics = task.validate(self.functions, task.held_out)
        contract.check_metrics(task.validate, metrics, task.monitor)
        self._log_metrics({f"validation_{name}": value for name, value in metrics.items()}, step)
        self.state.save_if_best(task.sign * metrics[task.monitor])
        return metrics

    def _write_grid(self, step: int) -> None:
        """Draw the model's panels of the same held-out patches every time."""
        held_out = self.task.held_out
        count = min(self.config.grid_samples, len(held_out))
        samples = held_out.take(np.linspace(0, len(held_out) - 1, count).astype(int))
        panels = self.model.sample(
            {"image": tf.constant(samples.images), "mask": tf.constant(samples.masks, tf.float32)}
        )
        grid = draw_grid({name: np.asarray(panel, np.float32) for name, panel in panels.items()})
        path = self.task.output / "samples" / f"step_{step:08d}.png"
        try:
            path.parent.mkdir(exist_ok=True)
            filesystem.write_atomically(path, encode_png(grid), durable=False)
        except OSError as error:  # a full disk: an image is no reason to stop
            log.warning("%s: can't be written (%s)", path, error.strerror)
        if self.run_log:
            self.run_log.log_image("samples", grid, step)


def count_steps(config: TrainingConfig, patches: int) -> int:
    """Count the steps of a training.

    Args:
        config: Its `steps`, or else `epochs` epochs of `epoch_samples` draws.
        patches: How many training patches there are: the draws of an epoch by default.
    """
    if config.steps is not None:
        return config.steps
    draws = config.epochs * (config.epoch_samples or patches)
    return -(-draws // (config.batch_size * config.accumulate))


@contextmanager
def collect_stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT while inside; a second one takes effect at once.

    Yields:
        The list that they are appended to.
    """
    signals: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore_handlers() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def collect(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        restore_handlers()
        log.info("saving, then stopping (once more to stop at once)")

    for number in handlers:
        signal.signal(number, collect)
    try:
        yield signals
    finally:
        restore_handlers()
