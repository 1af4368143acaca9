"""The state of a training that its checkpoints hold: step, best score, weights, optimizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmammo.errors import TrainingError
from tfmammo.training.contract import TrainableModel
from tfmammo.training.folder import Checkpoints


class TrainingState:
    """A model and how far its training is, with the checkpoints of both on disk.

    Args:
        model: The model, its networks and optimizers built.
        output: The training's folder; checkpoints lie in checkpoints/ and checkpoints/best/.
        keep: How many of the newest checkpoints stay.

    Attributes:
        step: Update rounds done, int64.
        best: The best validation score so far, float64; higher is better.
        newest_checkpoints: To resume from.
        best_checkpoints: The one whose validation score is `best`.
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
        """Write a checkpoint of this step.

        Raises:
            TrainingError: A weight is NaN or Inf, or the checkpoint can't be written. Older
                checkpoints stay.
        """
        self._save(self.newest_checkpoints)

    def save_if_best(self, score: float) -> None:
        """Write a checkpoint if no earlier score was as high; NaN never is.

        Raises:
            TrainingError: As `save`.
        """
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
                f"kept: {self.newest_checkpoints.latest}"
            ) from None

    def check_weights(self) -> None:
        """Check that no weight became NaN or Inf, as the last update may have spoilt one."""
        for name, network in self.model.networks.items():
            for variable, value in zip(network.variables, get_variables(network), strict=True):
                if value.dtype.is_floating and not bool(tf.reduce_all(tf.math.is_finite(value))):
                    path = variable.path if isinstance(variable, keras.Variable) else variable.name
                    raise TrainingError(
                        f"{name}'s {path} is NaN or Inf after step {int(self.step):,}; kept: "
                        f"{self.newest_checkpoints.latest}"
                    )

    def describe_kept(self) -> str:
        """Say which checkpoint a training that ends here leaves."""
        kept = self.newest_checkpoints.latest
        if not kept:
            return "no checkpoint had been written yet"
        return f"the last good checkpoint is kept: {kept}"

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
    """Return TensorFlow's variables of a network, in its order.

    They lie behind Keras's; a network that is none of Keras 3 has its own.
    """
    return [
        variable.value if isinstance(variable, keras.Variable) else variable
        for variable in network.variables
    ]


def read_scalar(variable: keras.Variable) -> float:
    """Return the value of a variable of one element, mirrored over replicas or not."""
    return float(tf.convert_to_tensor(variable))
