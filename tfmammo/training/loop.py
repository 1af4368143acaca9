"""The training loop: strategy, precision, tf.function, checkpoints, resume, guards.

It knows no paper.

A room (tfmammo.models, tfmammo.baselines) owns its losses and the order of its updates; the loop
calls `train_step` and looks after everything else. Progressive growing or staged freezing are
repeated `fit` calls in a script.
"""

from __future__ import annotations

import logging
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import cv2
import keras
import numpy as np
import tensorflow as tf

from tfmammo import datasets, filesystem
from tfmammo import export as exporting
from tfmammo.config import Experiment, TrainingConfig
from tfmammo.data.patches import Patches
from tfmammo.data.tfrecord import Records
from tfmammo.errors import ConfigError, ExportError, Interrupted, TrainingError
from tfmammo.mammogram import key_check
from tfmammo.tracking import models, runs, store
from tfmammo.training import contract, devices, folder, workers
from tfmammo.training.folder import INITIAL_PATIENTS, Checkpoints, locked
from tfmammo.training.image_grid import grid
from tfmammo.training.progress import Progress, announce_duration

log = logging.getLogger(__name__)
# tf.functions: TensorFlow has no public type for one with an input_signature
Functions = dict[str, Any]


class Room(Protocol):
    """What the loop asks of a model; a keras.Model that offers this needs to inherit
    nothing else.
    """

    name: str
    networks: dict[str, keras.Model]
    optimizers: dict[str, keras.optimizers.Optimizer]

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One update round in the paper's order; returns scalar losses by name."""

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Panels for the image grid, float32 [batch, size, size, 1] in [0, 1]."""

    def functions(self) -> Functions:
        """What is exported: a tf.function with an input signature per network."""


Validate = Callable[[Functions, Patches], dict[str, float]]
Write = Callable[[Any, Path], dict[str, Any]]


def fit(
    build: Callable[[], Room],
    experiment: Experiment[Any],
    train: Patches | Records,
    held_out: Patches,
    output: Path,
    validate: Validate,
    strategy: tf.distribute.Strategy | None = None,
    write: Write = exporting.saved_models,
) -> dict[str, float]:
    """Train a room, or go on training it, and export it.

    Rerunning with the same experiment and output resumes from the newest readable checkpoint. The
    order of draws and the augmentation depend on seed and step alone, so a resumed run sees what it
    would have seen.

    Whatever is wrong with model, data, folder or start is found before anything is written to the
    folder or the tracking store.

    Args:
        build: Makes the room under the current precision policy; called in the strategy's scope.
        train: Patches, or records to stream, of disjoint patients (or of the paper's leaky
            protocol).
        held_out: Patches, or records to stream, of disjoint patients (or of the paper's leaky
            protocol).
        output: The run's folder: config.yaml, checkpoints/, samples/, best/ and export/
            (SavedModels), mlflow_run_id.
        validate: Metrics of the room's functions on held-out patches; the first decides which
            checkpoint is best, higher is better.
        strategy: None takes the workers that this process has joined, else all GPUs when there are
            several, as `training.devices` says.
        write: See tfmammo.export.export.

    Returns:
        The held-out metrics at the last step; nothing on workers that are not the chief (see
        tfmammo.training.workers).

    Raises:
        TrainingError: The folder belongs to another experiment or another process, the batch can't
            be shared by the devices, the model breaks the contract (see tfmammo.training.contract),
            or a loss became NaN or Inf.
        Interrupted: SIGTERM or Ctrl-C, after saving.
        WorkerError: Another worker is gone, or has other data.
    """
    classes = train.shares if isinstance(train, Patches) else 1
    team = workers.Team(strategy or devices.strategy(experiment.training, classes))
    training = _Training(build, experiment, train, held_out, output, validate, team, write)
    with locked(output) if team.chief else nullcontext(), stop_signals() as stop, team.watched():
        return training.run(stop)


def check_xla(room: Room, config: TrainingConfig) -> None:
    """Refuse training.jit_compile for a model that says why it can't be compiled.

    Raises:
        ConfigError: With that reason.
    """
    reason = getattr(room, "not_for_xla", None)
    if config.jit_compile and reason:
        raise ConfigError(
            f"training.jit_compile: {room.name} can't be compiled by XLA, because {reason}"
        )


class _Training:
    """One call of `fit`: the state that its phases share.

    Made without a trace in the folder or in the tracking store.
    """

    def __init__(
        self,
        build: Callable[[], Room],
        experiment: Experiment[Any],
        train: Patches | Records,
        held_out: Patches,
        output: Path,
        validate: Validate,
        team: workers.Team,
        write: Write,
    ) -> None:
        self.build = build
        self.experiment = experiment
        self.config = experiment.training
        self.train = train
        self.held_out = held_out
        self.output = output
        self.validate = validate
        self.team = team
        self.write = write
        self.strategy = strategy = team.strategy
        self.stop: list[int] = []
        self.run_log: runs.Run | None = None
        self.steps = total_steps(self.config, len(train))
        devices.check_batch(
            self.config,
            strategy.num_replicas_in_sync,
            train.shares if isinstance(train, Patches) else 1,
        )
        contract.check_takes("validate", validate, "functions", "held_out")
        contract.check_takes("write", write, "room", "folder")
        keras.utils.set_random_seed(self.config.seed)
        with strategy.scope():
            self.room = build()
            check_xla(self.room, self.config)
            self.functions = self.room.functions()  # once: each call would make and trace new ones
        contract.check(self.room, self.functions)
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self.best = tf.Variable(-np.inf, dtype=tf.float64, trainable=False, name="best")
        # The variables themselves: tf.train.Checkpoint finds neither dropout's seeds nor layers
        # that a network keeps in lists.
        networks = {
            f"network_{name}": values(network) for name, network in self.room.networks.items()
        }
        optimizers = {
            f"optimizer_{name}": optimizer for name, optimizer in self.room.optimizers.items()
        }
        checkpoint = tf.train.Checkpoint(step=self.step, best=self.best, **networks, **optimizers)
        self.checkpoints = Checkpoints(checkpoint, output / "checkpoints", self.config.keep)
        self.best_checkpoints = Checkpoints(checkpoint, output / "checkpoints" / "best", 1)

    def run(self, stop: list[int]) -> dict[str, float]:
        """Start or resume, train, export; whatever happens, the run's state reaches the tracking
        store.

        Args:
            stop: Where `stop_signals` puts the signals that have come.
        """
        self.stop = stop
        initial_patients = self._start()
        status: Literal["FAILED", "FINISHED", "KILLED"] = "FAILED"
        self.run_log = runs.Run(self.experiment, self.output) if self.team.chief else None
        try:
            self._claim(initial_patients)
            metrics = self._loop()
            if self.team.chief:
                self._finish(metrics)
            self.team.wait()
            status = "FINISHED"
            return metrics
        except Interrupted:
            status = "KILLED"
            raise
        finally:
            if self.run_log:
                self.run_log.close(status)

    def _start(self) -> list[str] | None:
        """Resume, or start from `initial`, or as the room was made; nothing is written.

        Returns:
            Where it starts from `initial`: the patients that this was trained on.
        """
        if self.team.chief:
            folder.check(self.output, self.experiment, self.train)
        restored = self.checkpoints.restore()
        seen = None
        if restored is None:
            folder.check_nothing_is_lost(self.output)
            if self.config.initial:
                initial = models.resolve(self.config.initial, self.experiment.tracking.uri)
                exporting.assign(self.room.networks, initial)
                # What the start was trained on counts as seen, whatever this run's own split holds
                # out.
                card = exporting.read_card(initial)
                seen = (
                    sorted(exporting.trained_on(card, initial)) if "train_patients" in card else []
                )
        self.team.agree(int(self.step), self.experiment, self.train)
        policy = keras.config.dtype_policy().name
        where = (
            f"from step {int(self.step):,}"
            if restored
            else f"from {self.config.initial or 'the start'}"
        )
        log.info(
            "training %s %s to step %s: %d patches, %d held out, %s, %d device(s), %s",
            self.experiment.name,
            where,
            f"{self.steps:,}",
            len(self.train),
            len(self.held_out),
            policy,
            self.strategy.num_replicas_in_sync,
            self.output,
        )
        return seen

    def _claim(self, initial_patients: list[str] | None) -> None:
        """Write whose the folder is, now that nothing is left that could be wrong."""
        if not self.team.chief:
            return
        if self.team.count == 1:
            folder.sweep(self.output)
        folder.claim(self.output, self.experiment, self.train)
        if initial_patients is not None:
            filesystem.write_atomically(self.output / INITIAL_PATIENTS, "\n".join(initial_patients))
        if self.run_log:
            self.run_log.tags(
                {
                    "train_patches": self.train.fingerprint(),
                    "held_out_patches": self.held_out.fingerprint(),
                }
            )

    def _loop(self) -> dict[str, float]:
        step = int(self.step)
        metrics: dict[str, float] = {}
        if step == 0 and self.team.chief:
            self._grid(step)
        data = self.team.batches(
            self.train,
            self.config.batch_size,
            self.config.seed,
            self.experiment.data.turn_draws,
            step,
        )
        advance = self._advance()
        data = iter(data)
        tell = (
            announce_duration
            if self.team.chief and datasets.without_data(self.experiment.data)
            else None
        )
        with Progress(self.experiment.name, step, self.steps, tell) as progress:
            while step < self.steps:
                before = step
                chunk = self._chunk(step)
                losses = {
                    name: float(value)
                    for name, value in advance(data, tf.constant(chunk, tf.int64)).items()
                }
                step += chunk
                self._check_finite(losses, before, step)
                progress.update(step, losses)
                if self.team.chief:
                    metrics = self._look(step, losses, progress) or metrics
                # all of them, in the same step
                stop = max(self.team.gathered(self.stop[0] if self.stop else 0))
                last = step >= self.steps
                if step % self.config.checkpoint_every == 0 or last or stop:
                    self._save()
                if stop and not last:
                    self.team.wait()
                    raise Interrupted(stop, f"at step {step:,}")
        return metrics or (self.validate(self.functions, self.held_out) if self.team.chief else {})

    def _look(self, step: int, losses: dict[str, float], progress: Progress) -> dict[str, float]:
        """What the chief does for whoever watches.

        Returns:
            The held-out metrics, where it is their turn.
        """
        self._log({**losses, **self._optimizer_state()}, step)
        last = step >= self.steps
        metrics: dict[str, float] = {}
        if step % self.config.grid_every == 0 or last:
            self._grid(step)
        if step % self.config.validate_every == 0 or last:
            metrics = self._validate(step)
            progress.note(step, metrics)
        return metrics

    def _log(self, metrics: dict[str, float], step: int) -> None:
        if self.run_log:
            self.run_log.metrics(metrics, step)

    def _chunk(self, step: int) -> int:
        """How many steps until something has to be done outside the graph."""
        config = self.config
        events = (
            config.checkpoint_every,
            config.validate_every,
            config.grid_every,
            config.steps_per_loop,
        )
        return min(self.steps - step, *(every - step % every for every in events))

    def _advance(self) -> Callable[[Any, tf.Tensor], dict[str, tf.Tensor]]:
        """A tf.function that takes a number of steps and returns each loss's mean over them."""

        train_step = (
            tf.function(self.room.train_step, jit_compile=True)
            if self.config.jit_compile
            else self.room.train_step
        )

        @tf.function
        def one_step(batch: Any) -> dict[str, tf.Tensor]:
            losses = self.strategy.run(train_step, args=(batch,))
            self.step.assign_add(1)
            return {
                name: self.strategy.reduce(tf.distribute.ReduceOp.MEAN, loss, axis=None)
                for name, loss in losses.items()
            }

        @tf.function
        def advance(data: Any, steps: tf.Tensor) -> dict[str, tf.Tensor]:
            names = one_step.get_concrete_function(data.element_spec).structured_outputs
            contract.check_losses(self.room, names)
            totals = {name: tf.zeros([], tf.float32) for name in names}
            for _ in tf.range(steps):
                losses = one_step(next(data))
                totals = {
                    name: total + tf.cast(losses[name], tf.float32)
                    for name, total in totals.items()
                }
            return {name: total / tf.cast(steps, tf.float32) for name, total in totals.items()}

        return advance

    def _check_finite(self, losses: dict[str, float], before: int, step: int) -> None:
        for name, value in losses.items():
            if not np.isfinite(value):
                kept = self.checkpoints.latest
                raise TrainingError(
                    f"{name} became {value} between steps {before:,} and {step:,}; "
                    + (
                        f"the last good checkpoint is kept: {kept}"
                        if kept
                        else "no checkpoint had been written yet"
                    )
                )

    def _optimizer_state(self) -> dict[str, float]:
        state = {}
        for name, optimizer in self.room.optimizers.items():
            state[f"{name}_learning_rate"] = scalar(optimizer.learning_rate)
            if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
                state[f"{name}_loss_scale"] = scalar(optimizer.dynamic_scale)
                state[f"{name}_skipped_updates"] = int(self.step) - scalar(
                    optimizer.inner_optimizer.iterations
                )
        return state

    def _validate(self, step: int) -> dict[str, float]:
        metrics = self.validate(self.functions, self.held_out)
        contract.check_metrics(self.validate, metrics)
        self._log({f"validation_{name}": value for name, value in metrics.items()}, step)
        score = next(iter(metrics.values()))
        if score > float(self.best):
            self.best.assign(score)
            self._save(self.best_checkpoints)
        return metrics

    def _grid(self, step: int) -> None:
        """Input, output and truth side by side, of the same held-out patches every time."""
        some = self.held_out.take(
            np.linspace(
                0, len(self.held_out) - 1, min(self.config.grid_samples, len(self.held_out))
            ).astype(int)
        )
        panels = self.room.sample(
            {"image": tf.constant(some.images), "mask": tf.constant(some.masks, tf.float32)}
        )
        picture = grid({name: np.asarray(panel, np.float32) for name, panel in panels.items()})
        path = self.output / "samples" / f"step_{step:08d}.png"
        try:
            path.parent.mkdir(exist_ok=True)
            with filesystem.atomic_file(path) as part:
                part.write_bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
        except OSError as error:  # a full disk: a picture is no reason to stop
            log.warning("%s: can't be written (%s)", path, error.strerror)
        if self.run_log:
            self.run_log.image("samples", picture, step)

    def _save(self, checkpoints: Checkpoints | None = None) -> None:
        """By the chief alone; never over a good checkpoint with weights that the last update
        spoilt.
        """
        if not self.team.chief:
            return
        for name, network in self.room.networks.items():
            for variable, value in zip(network.variables, values(network), strict=True):
                if value.dtype.is_floating and not bool(tf.reduce_all(tf.math.is_finite(value))):
                    kept = self.checkpoints.latest
                    which = variable.path if isinstance(variable, keras.Variable) else variable.name
                    raise TrainingError(
                        f"{name}'s {which} is NaN or Inf after step {int(self.step):,}; kept: "
                        f"{kept}"
                    )
        try:
            (checkpoints or self.checkpoints).save(int(self.step))
        except (tf.errors.OpError, OSError) as error:
            said = (
                str(error.message).rpartition("; ")[2]
                if isinstance(error, tf.errors.OpError)
                else str(error.strerror)
            )
            kept = self.checkpoints.latest
            raise TrainingError(
                f"the checkpoint of step {int(self.step):,} can't be written ({said[:200]}); "
                f"kept: {kept}"
            ) from None

    def _finish(self, metrics: dict[str, float]) -> None:
        """Export the last weights and the best, each as a version in the registry; once, however
        often the command runs.
        """
        final_step = int(self.step)
        best = self.best_checkpoints.latest
        best_is_last = best is None or folder.step_of(best) == final_step
        for name in ("best", "export"):
            exporting.tidy(self.output / name)
        if self._exported_step() == final_step:
            log.info("step %s is already exported to %s", f"{final_step:,}", self.output / "export")
        else:
            log.info("exporting step %s to %s", f"{final_step:,}", self.output / "export")
            # of a shorter training in this folder
            shutil.rmtree(self.output / "best", ignore_errors=True)
            if not best_is_last:
                self._export_best(next(iter(metrics)))
            self._export("export", metrics)
            log.info(
                "finished at step %s; exported to %s", f"{final_step:,}", self.output / "export"
            )
        if (self.output / "best").exists():
            self._register("best", True)
        self._register("export", best_is_last)

    def _export_best(self, criterion: str) -> None:
        """Export the best weights, then take the last ones again."""
        try:
            self.best_checkpoints.restore()
            self._export("best", {criterion: float(self.best)})
        except TrainingError as error:
            log.warning(
                "the best weights are lost, and the last ones are exported alone: %s", error
            )
        self.checkpoints.restore()

    def _exported_step(self) -> int | None:
        try:
            return exporting.read_card(self.output / "export").get("step")
        except ExportError:
            return None

    def _export(self, name: str, metrics: dict[str, float]) -> None:
        card = {
            "id": uuid.uuid4().hex,  # by which the registry knows this export again
            "name": self.experiment.name,
            "step": int(self.step),
            "metrics": metrics,
            # the store's address may hold a password
            "config": self.experiment.model_dump(mode="json", exclude={"tracking"}),
            "split": self.experiment.data.split,
            "data_fingerprint": self.train.fingerprint(),
            "id_key": key_check(),
            "train_patients": sorted({*self.train.patient_ids.tolist(), *self._initial_patients()}),
            "held_out_ids": self.held_out.ids.tolist(),
            **store.git_state(),
        }
        exporting.export(in_float32(self.build, self.room), self.output / name, card, self.write)

    def _register(self, name: str, best: bool) -> None:
        """Make an export a version, unless an earlier call did: it may have been stopped between
        exporting and this.
        """
        card = exporting.read_card(self.output / name)
        done = self.output / f"{name}_registered"
        # nothing, if a write failed
        said = done.read_text(encoding="utf-8").split() if done.is_file() else []
        if (
            said[:1] == [str(card["step"])]
            or not self.run_log
            or not self.experiment.tracking.register_models
        ):
            return
        metrics = {f"validation_{key}": value for key, value in card["metrics"].items()}
        version = self.run_log.register(self.output / name, card["step"], metrics, best)
        if version is not None:
            filesystem.write_atomically(done, f"{card['step']} is version {version}\n")

    def _initial_patients(self) -> list[str]:
        path = self.output / INITIAL_PATIENTS
        return path.read_text(encoding="utf-8").split() if path.exists() else []


def in_float32(build: Callable[[], Room], room: Room) -> Room:
    """A copy of a room that computes in float32, whatever precision it was trained in: what runs
    anywhere.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        copy = build()
    finally:
        keras.config.set_dtype_policy(policy)
    for name, network in room.networks.items():
        for target, source in zip(values(copy.networks[name]), values(network), strict=True):
            target.assign(source)
    return copy


def values(network: Any) -> list[tf.Variable]:
    """TensorFlow's variables of a network, in its order: behind Keras's, or its own where it is no
    network of Keras 3.
    """
    return [
        variable.value if isinstance(variable, keras.Variable) else variable
        for variable in network.variables
    ]


def scalar(variable: keras.Variable) -> float:
    """The value of a variable of one element, mirrored over replicas or not."""
    return float(tf.convert_to_tensor(variable))


def total_steps(config: TrainingConfig, patches: int) -> int:
    """`steps`, or what `epochs` epochs of `epoch_samples` draws (one per patch by
    default) come to.
    """
    if config.steps is not None:
        return config.steps
    return -(-config.epochs * (config.epoch_samples or patches) // config.batch_size)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT while inside; a second one takes effect at once.

    Yields the list they are put on.
    """
    caught: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)
        log.info("saving, then stopping (once more to stop at once)")

    for number in before:
        signal.signal(number, handle)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
