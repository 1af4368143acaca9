"""The training loop: strategy, precision, tf.function, checkpoints, resume, guards, export.

It knows no paper. A model (tfmammo.models, tfmammo.baselines) owns its losses and the order of its
updates; the loop calls `train_step` and looks after everything else. Progressive growing and staged
freezing are repeated runs.

The other modules of the package, in the order in which the loop uses them: contract (what a model
must offer), devices and workers (where it runs), checkpoints and folder (what is on disk),
image_grid and progress (what a user sees).
"""

from __future__ import annotations

import logging
import math
import shutil
import uuid
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfmammo import filesystem
from tfmammo.config import Experiment, TrainingConfig
from tfmammo.data import datasets
from tfmammo.data.patches import Patches
from tfmammo.data.tfrecord import PatchSource
from tfmammo.errors import ConfigError, ExportError, Interrupted, TrainingError, name_key
from tfmammo.nn import optimization
from tfmammo.nn.growth import copy_weights
from tfmammo.tracking import export, runs, store
from tfmammo.tracking.runs import Run
from tfmammo.training import checkpoints, contract, devices, folder, initial, workers
from tfmammo.training.contract import TrainableModel, Validate, Write
from tfmammo.training.image_grid import draw_grid, encode_rgb_png
from tfmammo.training.progress import Progress
from tfmammo.training.signals import collect_stop_signals

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Training:
    """A training run, to be begun or continued.

    Constructing it builds the model and checks it, and leaves no trace in the folder or the
    tracking store.

    Args:
        build: Builds the model under the current precision policy; called in the strategy's scope.
        experiment: The whole config.
        train: Training patches, or records to stream.
        held_out: Validation patches, of other patients than `train` unless the split is "paper".
        output: The run's folder: config.yaml, checkpoints/, samples/, best/ and export/
            (SavedModels), mlflow_run_id.
        validate: Computes metrics of the model's functions on the held-out patches.
        monitor: The metric by which the best checkpoint is chosen; higher is better.
        seen_patients: Patients, besides those of `train` and of training.initial, that the weights
            were already trained on when `build` made them. The folder records them at step 0; a
            training that resumes goes by the record.
        write: Writes the SavedModels; see tfmammo.tracking.export.export.

    Raises:
        ConfigError: The config asks for what there is no device or memory for, or for what the
            model can't do.
        TrainingError: The devices can't share the batch, or the model breaks the contract.
    """

    build: Callable[[], TrainableModel]
    experiment: Experiment[Any]
    train: PatchSource
    held_out: Patches
    output: Path
    validate: Validate
    _: KW_ONLY
    monitor: str
    seen_patients: Iterable[str] = ()
    write: Write = export.write_saved_models

    def __post_init__(self) -> None:
        self.config = self.experiment.training
        self.steps = count_steps(self.config, len(self.train))
        self.signals: list[int] = []
        self.run_log: Run  # of the chief, once it has started
        classes = self.train.balanced_classes
        strategy = devices.choose_strategy(self.config, classes)
        devices.check_batch(self.config, strategy.num_replicas_in_sync, classes)
        self.group = workers.WorkerGroup(strategy)
        keras.utils.set_random_seed(self.config.seed)
        with strategy.scope():
            try:
                self.model = self.build()
            except tf.errors.ResourceExhaustedError:
                raise ConfigError(
                    "model: its weights and their optimizers' need more memory than there is"
                ) from None
            # once: each call would make and trace new ones
            self.functions = self.model.functions()
        contract.check_model(self.model, self.functions, self.config)
        with strategy.scope():
            self.accumulator = optimization.prepare_exchange(
                self.model.networks,
                self.model.optimizers,
                self.config.accumulate,
                self.config.exchange,
            )
        self.state = checkpoints.TrainingState(self.model, self.output, self.config.keep)

    def fit(self) -> dict[str, float]:
        """Start or resume, train, and export the last weights and the best.

        The same experiment and output resume from the newest readable checkpoint. The order of
        draws and the augmentation depend on seed and step alone, so a resumed run sees what it
        would have seen.

        Returns:
            The held-out metrics at the last step; nothing on workers that are not the chief.

        Raises:
            TrainingError: The folder belongs to another experiment or another process, a loss
                became NaN or Inf, or memory or disk are full.
            Interrupted: SIGTERM or Ctrl-C, after saving.
            WorkerError: Another worker is gone, or has other data.
        """
        lock = folder.hold_lock(self.output) if self.group.is_chief else nullcontext()
        with lock, collect_stop_signals() as self.signals, self.group.translate_errors():
            try:
                metrics = self._run()
            except tf.errors.ResourceExhaustedError as error:
                log.debug("memory ran out", exc_info=error)
                raise TrainingError(
                    "the device's memory ran out; training.accumulate=2 with half of "
                    "training.batch_size needs less, and so does a smaller data.size; "
                    f"{self.state.describe_kept()}"
                ) from None
        if self.signals:  # after the last step: what follows, as another stage, must not begin
            raise Interrupted(self.signals[0], f"at step {self.steps:,}, the last one")
        return metrics

    def _run(self) -> dict[str, float]:
        """Take the phases in their order.

        Whatever is wrong with model, data, folder or start is found before anything is written.
        """
        seen_patients = self._start_or_resume()
        status: Literal["FAILED", "FINISHED", "KILLED"] = "FAILED"
        if self.group.is_chief:
            self.run_log = Run(self.experiment, self.output)
        try:
            if self.group.is_chief:
                self._claim_folder(seen_patients)
            metrics = self._train()
            if self.group.is_chief:
                self._finish(metrics)
            self.group.wait()
            status = "FINISHED"
            return metrics
        except Interrupted:
            status = "KILLED"
            raise
        finally:
            if self.group.is_chief:
                self.run_log.close(status)

    def _start_or_resume(self) -> set[str] | None:
        """Restore the newest checkpoint, else start from `initial` or as built; write nothing.

        Returns the patients that the weights were already trained on; None at a resume.
        """
        if self.group.is_chief:
            folder.check_owner(self.output, self.experiment, self.train, self.held_out)
        checkpoint = self.state.newest_checkpoints.restore()
        seen_patients = None if checkpoint else self._start()
        self.group.agree(int(self.state.step), self.experiment, self.train)
        start = f"step {int(self.state.step):,}" if checkpoint else self.config.initial
        if checkpoint and int(self.state.step) >= self.steps:
            log.info("%s is at %s already, of %s", self.experiment.name, start, f"{self.steps:,}")
            return seen_patients
        log.info(
            "training %s from %s to step %s: %d patches, %d held out, %s, %d device(s), %s",
            self.experiment.name,
            start or "the start",
            f"{self.steps:,}",
            len(self.train),
            len(self.held_out),
            keras.config.dtype_policy().name,
            self.group.strategy.num_replicas_in_sync,
            self.output,
        )
        return seen_patients

    def _start(self) -> set[str]:
        """Take the weights of `training.initial`; return the patients that count as seen."""
        folder.check_nothing_lost(self.output)
        seen_patients = set(self.seen_patients)
        seen_patients |= datasets.list_synthetic_patients(self.experiment.data)
        if self.config.initial:
            with name_key("training.initial"):
                start = initial.assign(self.model.networks, self.config.initial, self.experiment)
                seen_patients |= export.find_patients(export.read_card(start), start) or set()
        held_out = set(self.held_out.patient_ids.tolist())
        if known := len(seen_patients & held_out):
            log.warning(
                "what this run starts from, or its synthetic data, knows %d of the %d "
                "held-out patients: the held-out metrics are too good",
                known,
                len(held_out),
            )
        return seen_patients

    def _claim_folder(self, seen_patients: set[str] | None) -> None:
        """Write whose the folder is, now that nothing is left that could be wrong."""
        if self.group.count == 1:
            folder.remove_partial_files(self.output)
        folder.claim(self.output, self.experiment, self.train, self.held_out)
        if seen_patients is not None:
            folder.write_seen_patients(self.output, seen_patients)
        self.run_log.log_tags(
            {
                "archive": self.experiment.data.archive_name,
                "train_patches": self.train.fingerprint(),
                "held_out_patches": self.held_out.fingerprint(),
                runs.MONITOR: self.monitor,
            }
        )

    def _train(self) -> dict[str, float]:
        """Take steps until the last one; return the last held-out metrics, {} if not the chief."""
        step = int(self.state.step)
        metrics: dict[str, float] = {}
        if step == 0 and self.group.is_chief:
            self._write_grid(step)
        turn = self.experiment.data.turn_draws
        batches = iter(self.group.batches(self.train, self.config, turn, step))
        take_steps = self._compile_steps()
        with Progress(self.experiment.name, step, self.steps) as progress:
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
                stop = int(self.group.gather(self.signals[0] if self.signals else 0).max())
                is_last = step >= self.steps
                is_checkpoint = step % self.config.checkpoint_every == 0 or is_last or stop
                if is_checkpoint and self.group.is_chief:
                    self.state.save()
                if stop and not is_last:
                    self.group.wait()
                    raise Interrupted(stop, f"at step {step:,}")
        if not metrics and self.group.is_chief:
            exported: dict[str, float] = self._read_exported_card().get("metrics", {})
            return exported or self.validate(self.functions, self.held_out)
        return metrics

    def _count_steps_to_next_event(self, step: int) -> int:
        """Count the steps until something has to be done outside the graph."""
        of = self.config
        intervals = (of.checkpoint_every, of.validate_every, of.grid_every, of.steps_per_loop)
        return min(self.steps - step, *(interval - step % interval for interval in intervals))

    def _compile_steps(self) -> Callable[[Any, tf.Tensor], dict[str, tf.Tensor]]:
        """Make a tf.function (batches, number of steps) -> each loss's mean over them."""

        @tf.function
        def take_batch(batch: Any, is_last: bool) -> dict[str, tf.Tensor]:
            train_step = (
                tf.function(self.model.train_step, jit_compile=True)
                if self.config.jit_compile
                else self.model.train_step
            )
            if self.accumulator:
                self.accumulator.is_last = is_last
            losses = self.group.strategy.run(train_step, args=(batch,))
            return {
                name: self.group.strategy.reduce(tf.distribute.ReduceOp.MEAN, loss, axis=None)
                for name, loss in losses.items()
            }

        @tf.function
        def take_steps(batches: Any, count: tf.Tensor) -> dict[str, tf.Tensor]:
            names = take_batch.get_concrete_function(batches.element_spec, True).structured_outputs
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
            if not math.isfinite(value):
                raise TrainingError(
                    f"{name} became {value} between steps {before:,} and {step:,}; "
                    f"{self.state.describe_kept()}"
                )

    def _report(self, step: int, losses: dict[str, float], progress: Progress) -> dict[str, float]:
        """Log the losses, draw the image grid and validate, the last two when it is their turn."""
        self.run_log.log_metrics({**losses, **self.state.describe_optimizers()}, step)
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

    def _validate(self, step: int) -> dict[str, float]:
        """Compute and log the held-out metrics, and save the weights if they are the best."""
        metrics = self.validate(self.functions, self.held_out)
        if self.monitor not in metrics:
            raise TrainingError(
                f"the monitored metric {self.monitor} is not among those of the validation, "
                f"{', '.join(metrics)}"
            )
        named = {f"validation_{name}": value for name, value in metrics.items()}
        self.run_log.log_metrics(named, step)
        self.state.save_if_best(metrics[self.monitor])
        return metrics

    def _write_grid(self, step: int) -> None:
        """Draw the model's panels of the same held-out patches every time."""
        count = min(self.config.grid_samples, len(self.held_out))
        rows = np.linspace(0, len(self.held_out) - 1, count).astype(int)
        samples = self.held_out.take(rows)
        panels = self.model.sample(
            {"image": tf.constant(samples.images), "mask": tf.constant(samples.masks, tf.float32)}
        )
        grid = draw_grid({name: np.asarray(panel, np.float32) for name, panel in panels.items()})
        path = self.output / "samples" / f"step_{step:08d}.png"
        try:
            path.parent.mkdir(exist_ok=True)
            filesystem.write_atomically(path, encode_rgb_png(grid), durable=False)
        except OSError as error:  # a full disk: an image is no reason to stop
            log.warning("%s: can't be written (%s)", path, error.strerror)
        self.run_log.log_image("samples", grid, step)

    def _finish(self, metrics: dict[str, float]) -> None:
        """Export the last weights, of these metrics, and the best; register both, all once."""
        last, best = (self.output / name for name in ("export", "best"))
        step = int(self.state.step)
        checkpoint = self.state.best_checkpoints.latest
        best_is_last = checkpoint is None or checkpoints.parse_step(checkpoint) == step
        for place in (best, last):
            export.remove_leftovers(place)
        if self._read_exported_card():
            log.info("step %s is already exported to %s", f"{step:,}", last)
        else:
            log.info("exporting step %s to %s", f"{step:,}", last)
            # of a shorter training in this folder
            shutil.rmtree(best, ignore_errors=True)
            if not best_is_last:
                self._export_best(best)
            self._export(last, metrics)
            log.info("finished at step %s; exported to %s", f"{step:,}", last)
        if best.exists():
            self._register(best, True)
        self._register(last, best_is_last)

    def _read_exported_card(self) -> dict[str, Any]:
        """Read the export's card; {} if it is not of the present step."""
        try:
            card = export.read_card(self.output / "export")
        except ExportError:
            return {}
        return card if card.get("step") == int(self.state.step) else {}

    def _export_best(self, place: Path) -> None:
        """Export the best weights, then restore the last ones."""
        try:
            self.state.best_checkpoints.restore()
            # of these weights: a later best may have been lost
            self._export(place, {self.monitor: float(self.state.best)})
        except TrainingError as error:
            log.warning(
                "the best weights are lost, and the last ones are exported alone: %s", error
            )
        self.state.newest_checkpoints.restore()

    def _export(self, place: Path, metrics: dict[str, float]) -> None:
        experiment = self.experiment
        seen_patients = folder.read_seen_patients(self.output)
        pretrained = getattr(self.model, "pretrained", {})
        card = {
            "id": uuid.uuid4().hex,  # by which the registry knows this export again
            "name": experiment.name,
            "step": int(self.state.step),
            # a card is JSON, which has no NaN: a metric that could not be measured is omitted
            "metrics": {key: value for key, value in metrics.items() if math.isfinite(value)},
            # the store's address may hold a password
            "config": experiment.model_dump(mode="json", exclude={"tracking"}),
            "archive": experiment.data.archive_name,
            "split": experiment.data.split,
            "data_fingerprint": self.train.fingerprint(),
            "precision": keras.config.dtype_policy().name,
            "hardware": devices.describe_hardware(),
            "train_patients": sorted({*self.train.patient_ids.tolist(), *seen_patients}),
            "held_out_ids": self.held_out.ids.tolist(),
            "pretrained": {name: source._asdict() for name, source in pretrained.items()},
            **store.read_git_state(),
        }
        export.export(self._copy_in_float32(), place, card, self.write)

    def _copy_in_float32(self) -> TrainableModel:
        """Copy the model into one that computes in float32, which runs anywhere."""
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy("float32")
        try:
            copy = self.build()
        finally:
            keras.config.set_dtype_policy(policy)
        for name, network in self.model.networks.items():
            copy_weights(network, copy.networks[name])
        return copy

    def _register(self, place: Path, best: bool) -> None:
        """Make an export a version, unless its step, the last of a shorter training, is one."""
        card = export.read_card(place)
        path = self.output / "registered"
        recorded = path.read_text(encoding="utf-8") if path.is_file() else ""
        versions = [line.split() for line in recorded.splitlines()]
        own = (str(card["step"]), self.run_log.id)
        is_registered = any((words[0], words[-1]) == own for words in versions)
        if is_registered or not self.experiment.tracking.register_models:
            return
        metrics = {f"validation_{key}": value for key, value in card["metrics"].items()}
        version = self.run_log.register(place, card["step"], metrics, best)
        if version is not None:
            line = f"{card['step']} is version {version} of run {self.run_log.id}\n"
            filesystem.write_atomically(path, f"{recorded}{line}")


def count_steps(config: TrainingConfig, patches: int) -> int:
    """Count the steps of a training run: its `steps`, or else `epochs` of `epoch_samples` draws.

    By default an epoch draws as often as there are training patches.
    """
    if config.steps is not None:
        return config.steps
    draws = config.epochs * (config.epoch_samples or patches)
    return -(-draws // (config.batch_size * config.accumulate))
