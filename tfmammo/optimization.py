"""One place for loss scaling and replica scaling, so that a train_step reads like the paper's algorithm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from tfmammo.losses import Average, log_odds_of_fake

PIECE = 2**22  # bytes that CPUs of several workers exchange at once; in a tensor of 300 MB each takes gRPC more than twice as long


@keras.saving.register_keras_serializable("tfmammo")
class Adam(keras.optimizers.Adam):
    """Keras's Adam, its update done by TensorFlow's fused kernel: the same numbers, about three times as fast on a CPU.

    m <- beta_1 m + (1 - beta_1) g;  v <- beta_2 v + (1 - beta_2) g^2
    w <- w - learning_rate * sqrt(1 - beta_2^t) / (1 - beta_1^t) * m / (sqrt(v) + epsilon)

    Source:   Kingma & Ba 2015, the "epsilon hat" form of section 2, as Keras and TensorFlow have it.
    """

    def __init__(
        self, learning_rate: float = 2e-4, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7, name: str = "adam"
    ) -> None:
        super().__init__(learning_rate, beta_1, beta_2, epsilon, name=name)

    def get_config(self) -> dict[str, object]:
        """The constructor's arguments."""
        keep = ("learning_rate", "beta_1", "beta_2", "epsilon", "name")
        return {key: value for key, value in super().get_config().items() if key in keep}

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """One variable's update, in place; called by `apply`."""
        index = self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, variable.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.cast(self.beta_1, variable.dtype) ** step,
            beta2_power=tf.cast(self.beta_2, variable.dtype) ** step,
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=tf.cast(self.beta_1, variable.dtype),
            beta2=tf.cast(self.beta_2, variable.dtype),
            epsilon=tf.cast(self.epsilon, variable.dtype),
            grad=tf.cast(gradient, variable.dtype),
        )

    def _all_reduce_sum_gradients(self, pairs: Iterable[tuple[tf.Tensor, tf.Variable]]) -> list[tuple[tf.Tensor, tf.Variable]]:
        """The sum of all replicas' gradients; on CPUs of several workers large ones go in pieces."""
        strategy = tf.distribute.get_strategy()
        many = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        if not many or "CPU" not in strategy.extended.worker_devices[0]:
            return super()._all_reduce_sum_gradients(pairs)
        cut = [(_cut(gradient), variable) for gradient, variable in pairs]
        summed = iter(super()._all_reduce_sum_gradients([(piece, variable) for pieces, variable in cut for piece in pieces]))
        together = [([next(summed)[0] for _ in pieces], variable) for pieces, variable in cut]
        return [
            (tf.reshape(tf.concat(pieces, axis=0), variable.shape) if len(pieces) > 1 else pieces[0], variable)
            for pieces, variable in together
        ]


def _cut(gradient: tf.Tensor) -> list[tf.Tensor]:
    """Parts of at most PIECE bytes, as far as its rows allow; of aligned rows, they lie in the memory that it lies in."""
    size = gradient.dtype.size * gradient.shape.num_elements()
    if size <= PIECE or gradient.shape.rank < 2:
        return [gradient]
    rows = tf.reshape(gradient, [-1, gradient.shape[-1]])
    most = max(1, PIECE * rows.shape[0] // size)
    full, rest = divmod(rows.shape[0], most)
    return tf.split(rows, [most] * full + [rest] * (rest > 0))


def build(optimizer: keras.optimizers.Optimizer, network: keras.Model) -> keras.optimizers.Optimizer:
    """Create an optimizer's slots for one network, with its own loss scale where the precision policy is mixed_float16.

    Called by a room's constructor, so inside the strategy's scope and before the first trace: an optimizer that builds
    itself while being traced fails under float16 on several replicas.
    """
    if keras.config.dtype_policy().compute_dtype == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(network.trainable_variables)
    return optimizer


def minimize(loss: tf.Tensor, network: keras.Model, optimizer: keras.optimizers.Optimizer, tape: tf.GradientTape) -> None:
    """One step of `optimizer` down the gradient of `loss` by `network`'s weights, and by no other's.

    The gradient starts from scale / replicas instead of 1, so that neither the loss scale nor the division by the number
    of replicas stands in a paper's code: replicas sum their gradients, and each one's loss is the mean over its own share.

    Args:     loss: float32 scalar, recorded by `tape`, which is persistent where several networks minimise from it.
    """
    _apply(tape.gradient(loss, network.trainable_variables, output_gradients=_start(optimizer)), network, optimizer)


def gradients_are_shared(average: Average) -> bool:
    """Whether a room that averages so, under the policy of now, may use `minimize_against`."""
    return average == "responses" and keras.config.dtype_policy().compute_dtype != "float16"


class Adversary(NamedTuple):
    """Who makes one half of a pair that the discriminator shall take for real.

    output: what its network made, float32 [batch, rows, cols, channels]. logits: the discriminator's of the pair. own: the part
    of its loss in which the discriminator has none, float32 scalar.
    """

    network: keras.Model
    optimizer: keras.optimizers.Optimizer
    output: tf.Tensor
    logits: tf.Tensor
    own: tf.Tensor


def minimize_against(
    adversaries: Sequence[Adversary],
    loss: tf.Tensor,
    discriminator: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    tape: tf.GradientTape,
    as_printed: bool,
) -> None:
    """One step of a discriminator and of each of its adversaries, with one pass back through the discriminator for all of them.

    P being the mean response to an adversary's pair, `loss` holds -log(1 - P) of it, and the adversary minimises `own` and -log P,
    or `own` and log(1 - P) where that is as_printed. By the discriminator's logits all three are multiples of dP, so that for each sample

        d(-log P) / d output = -(1 - P) / P * d loss / d output,   d log(1 - P) / d output = -d loss / d output

    and what `minimize` would compute in a pass of its own is here. The factor stops growing at P = e^-60: with less of it float32 can't
    hold the gradient. Not for float16, which can't even hold that of a P of 1e-5; see `gradients_are_shared`.

    Args:     loss: float32 scalar; `output` enters it through its pair alone. tape: persistent.
    """
    weights, outputs = discriminator.trainable_variables, [adversary.output for adversary in adversaries]
    of_weights, of_outputs = tape.gradient(loss, [weights, outputs], output_gradients=_start(optimizer))
    for adversary, of_output in zip(adversaries, of_outputs, strict=True):
        factor = -1.0 if as_printed else -tf.exp(tf.minimum(log_odds_of_fake(adversary.logits), 60.0))[:, None, None, None]
        own = tape.gradient(adversary.own, adversary.output, output_gradients=_start(adversary.optimizer))
        start = own + factor * of_output
        _apply(tape.gradient(adversary.output, adversary.network.trainable_variables, start), adversary.network, adversary.optimizer)
    _apply(of_weights, discriminator, optimizer)


def _start(optimizer: keras.optimizers.Optimizer) -> tf.Tensor:
    return optimizer.scale_loss(tf.ones([])) / tf.distribute.get_strategy().num_replicas_in_sync


def _apply(gradients: list[tf.Tensor], network: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    if tf.distribute.get_strategy().num_replicas_in_sync > 1 and isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        gradients = _finite_on_all_replicas_or_on_none(gradients)
    optimizer.apply(gradients, network.trainable_variables)


def _finite_on_all_replicas_or_on_none(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    # LossScaleOptimizer (Keras 3.15) asks the first replica alone whether to skip the step: an overflow on another one
    # would reach the weights. So all of them learn of it.
    overflows = tf.add_n([tf.cast(tf.reduce_any(~tf.math.is_finite(gradient)), tf.float32) for gradient in gradients])
    overflows = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, overflows)
    return [tf.where(overflows > 0, float("nan"), gradients[0]), *gradients[1:]]
