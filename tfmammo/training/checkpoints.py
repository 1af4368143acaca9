"""Checkpoints: what a training run that was stopped goes on from, whatever stopped it."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmammo import filesystem
from tfmammo.errors import TrainingError
from tfmammo.training.contract import TrainableModel

log = logging.getLogger(__name__)
# TensorFlow's list of checkpoints, which its own tools read; this module only writes it
STATE = "checkpoint"


def list_checkpoints(folder: Path) -> list[str]:
    """List the checkpoints of a folder, oldest first, by their index files, written last."""
    paths = {
        int(match[1]): path
        for path in folder.glob("ckpt-*.index")
        if (match := re.fullmatch(r"ckpt-(\d+)\.index", path.name))
    }
    return [str(path.with_suffix("")) for _, path in sorted(paths.items())]


def parse_step(path: str) -> int:
    """Return the step of a checkpoint, by its name."""
    return int(path.rpartition("-")[2])


class Checkpoints:
    """The `keep` newest checkpoints of a training run in a folder, named ckpt-STEP.

    An older one is removed when the newer one is on the disk, so that a kill or a power loss at any
    moment leaves one.
    """

    def __init__(self, checkpoint: tf.train.Checkpoint, folder: Path, keep: int) -> None:
        self.checkpoint = checkpoint
        self.folder = folder
        self.keep = keep

    @property
    def paths(self) -> list[str]:
        """All on disk, oldest first."""
        return list_checkpoints(self.folder)

    @property
    def latest(self) -> str | None:
        """The newest one on disk; None if there is none."""
        return self.paths[-1] if self.paths else None

    def save(self, step: int) -> None:
        """Write a checkpoint, or raise an OpError or OSError; then nothing of it stays."""
        path = self.folder / f"ckpt-{step}"
        try:
            self.checkpoint.write(str(path))
            for file in self.folder.glob(f"{path.name}.*"):
                filesystem.flush(file)
            filesystem.flush_names(self.folder)
        except (tf.errors.OpError, OSError):  # a full disk: make room, and leave no broken one
            self._remove_all_except({Path(other).name for other in self.paths} - {path.name})
            raise
        # a later one was unreadable, else this training run would have resumed from it
        older = [Path(other) for other in self.paths if parse_step(other) < step]
        kept = [*older, path][-self.keep :]
        lines = [
            f'model_checkpoint_path: "{path.name}"',
            *(f'all_model_checkpoint_paths: "{other.name}"' for other in kept),
        ]
        filesystem.write_atomically(self.folder / STATE, "\n".join(lines) + "\n")
        self._remove_all_except({other.name for other in kept})

    def _remove_all_except(self, names: set[str]) -> None:
        """Remove older checkpoints, each one's index first, and what a killed write has left."""
        paths = [
            path
            for path in self.folder.glob("ckpt-*")
            if (stem := path.name.split(".")[0]) not in names
            if re.fullmatch(r"ckpt-\d+(_\w+)?", stem)  # with the folder of a killed write
        ]
        for path in sorted(paths, key=lambda path: path.suffix != ".index"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def restore(self) -> str | None:
        """Restore the newest readable checkpoint and return its path, or None if there is none.

        Checkpoints of which none can be read, or of another model, are a TrainingError.
        """
        for path in reversed(self.paths):
            try:
                self.checkpoint.read(path).assert_existing_objects_matched()
                return path
            except (tf.errors.OpError, ValueError, IndexError) as error:
                # a truncated file can be any of them
                log.warning(
                    "%s can't be read (%s); trying the one before", path, str(error).split("\n")[0]
                )
            except AssertionError:
                raise TrainingError(
                    f"{path} holds another model's weights; choose another --output"
                ) from None
        if self.paths:
            raise TrainingError(
                f"none of the checkpoints beside {self.latest} can be read; choose another "
                "--output to start anew"
            )
        return None


class TrainingState:
    """A model and how far its training is, with the checkpoints of both on disk.

    Args:
        model: The model, its networks and optimizers built.
        output: The run's folder; checkpoints are in checkpoints/ and checkpoints/best/.
        keep: How many of the newest checkpoints stay.

    Attributes:
        step: Update rounds done, int64.
        best: The best validation score so far, float64; higher is better.
    """

    def __init__(self, model: TrainableModel, output: Path, keep: int) -> None:
        self.model = model
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self.best = tf.Variable(-np.inf, dtype=tf.float64, trainable=False, name="best")
        # The variables themselves: tf.train.Checkpoint finds neither dropout's seeds nor layers
        # that a network keeps in lists.
        networks = {
            f"network_{name}": get_variables(network) for name, network in model.networks.items()
        }
        optimizers = {
            f"optimizer_{name}": optimizer for name, optimizer in model.optimizers.items()
        }
        checkpoint = tf.train.Checkpoint(step=self.step, best=self.best, **networks, **optimizers)
        self.newest_checkpoints = Checkpoints(checkpoint, output / "checkpoints", keep)
        self.best_checkpoints = Checkpoints(checkpoint, output / "checkpoints" / "best", 1)

    def save(self) -> None:
        """Write a checkpoint of this step; older ones stay where that is a TrainingError."""
        self._save(self.newest_checkpoints)

    def save_if_best(self, score: float) -> None:
        """Write a checkpoint, as `save`, if no earlier score was as high; NaN never is."""
        if score > float(self.best):
            self.best.assign(score)
            self._save(self.best_checkpoints)

    def _save(self, checkpoints: Checkpoints) -> None:
        self.check_weights()
        step = int(self.step)
        try:
            checkpoints.save(step)
        except (tf.errors.OpError, OSError) as error:
            reason = (
                str(error.message).rpartition("; ")[2]
                if isinstance(error, tf.errors.OpError)
                else str(error.strerror)
            )
            raise TrainingError(
                f"the checkpoint of step {step:,} can't be written ({reason[:200]}); "
                f"{self.describe_kept()}"
            ) from None

    def check_weights(self) -> None:
        """Check that no weight became NaN or Inf, as the last update may have spoilt one."""
        for name, network in self.model.networks.items():
            for variable, value in zip(network.variables, get_variables(network), strict=True):
                if value.dtype.is_floating and not bool(tf.reduce_all(tf.math.is_finite(value))):
                    path = variable.path if isinstance(variable, keras.Variable) else variable.name
                    raise TrainingError(
                        f"{name}'s {path} is NaN or Inf after step {int(self.step):,}; "
                        f"{self.describe_kept()}"
                    )

    def describe_kept(self) -> str:
        """Say which checkpoint a training run that ends here leaves."""
        kept = self.newest_checkpoints.latest
        return f"kept: {kept}" if kept else "no checkpoint had been written yet"

    def describe_optimizers(self) -> dict[str, float]:
        """Return each optimizer's learning rate and, under float16, its loss scale and skips."""
        values = {}
        for name, optimizer in self.model.optimizers.items():
            values[f"{name}_learning_rate"] = read_scalar(optimizer.learning_rate)
            if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
                updates = read_scalar(optimizer.inner_optimizer.iterations)
                values[f"{name}_loss_scale"] = read_scalar(optimizer.dynamic_scale)
                # the contextual GAN updates its generator several times a step
                wanted = int(self.step) * getattr(self.model, f"{name}_updates", 1)
                values[f"{name}_skipped_updates"] = wanted - updates
        return values


def get_variables(network: Any) -> list[tf.Variable]:
    """Return TensorFlow's variables of a network, in its order, even if it is not Keras 3's."""
    return [
        variable.value if isinstance(variable, keras.Variable) else variable
        for variable in network.variables
    ]


def read_scalar(variable: keras.Variable) -> float:
    """Return the value of a variable of one element, mirrored over replicas or not."""
    return float(tf.convert_to_tensor(variable))
