"""Loss scaling and replica scaling, so that a train_step reads like the paper's algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf

# bytes that CPUs of several workers exchange at once; a byte of a tensor of 300 MB takes gRPC more
# than twice as long
PIECE = 2**22


class Adam(keras.optimizers.Adam):
    """Keras's Adam by TensorFlow's fused kernel: about three times as fast on a CPU.

    The numbers are the same, but there is no AMSGrad:

        m <- beta_1 m + (1 - beta_1) g
        v <- beta_2 v + (1 - beta_2) g^2
        w <- w - learning_rate * sqrt(1 - beta_2^t) / (1 - beta_1^t) * m / (sqrt(v) + epsilon)

    Attributes:
        exchange: The dtype in which replicas exchange gradients; `training.exchange`.

    Source:
        Kingma & Ba 2015, the "epsilon hat" form of section 2, as Keras and TensorFlow have it.
    """

    exchange = "float32"

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Update one variable in place; called by `apply`."""
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

    def _all_reduce_sum_gradients(
        self, pairs: Iterable[tuple[tf.Tensor, tf.Variable]]
    ) -> list[tuple[tf.Tensor, tf.Variable]]:
        """Sum all replicas' gradients; on CPUs of several workers large ones go in pieces."""
        strategy = tf.distribute.get_strategy()
        if strategy.num_replicas_in_sync > 1 and self.exchange != "float32":
            pairs = [(tf.cast(gradient, self.exchange), variable) for gradient, variable in pairs]
        has_workers = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        if not has_workers or "CPU" not in strategy.extended.worker_devices[0]:
            return super()._all_reduce_sum_gradients(pairs)
        pieces_of = [(_split(gradient), variable) for gradient, variable in pairs]
        sums = iter(
            super()._all_reduce_sum_gradients(
                [(piece, variable) for pieces, variable in pieces_of for piece in pieces]
            )
        )
        joined = []
        for pieces, variable in pieces_of:
            summed = [next(sums)[0] for _ in pieces]
            if len(summed) > 1:
                joined.append((tf.reshape(tf.concat(summed, axis=0), variable.shape), variable))
            else:
                joined.append((summed[0], variable))
        return joined


def _split(gradient: tf.Tensor) -> list[tf.Tensor]:
    """Split a gradient into parts of at most PIECE bytes, as far as its rows allow.

    Parts of aligned rows share the gradient's memory.
    """
    size = gradient.dtype.size * gradient.shape.num_elements()
    if size <= PIECE or gradient.shape.rank < 2:
        return [gradient]
    rows = tf.reshape(gradient, [-1, gradient.shape[-1]])
    most = max(1, PIECE * rows.shape[0] // size)
    full, rest = divmod(rows.shape[0], most)
    return tf.split(rows, [most] * full + [rest] * (rest > 0))


def build(
    optimizer: keras.optimizers.Optimizer, network: keras.Model
) -> keras.optimizers.Optimizer:
    """Create an optimizer's slots for one network.

    Under the precision policy mixed_float16 the network gets its own loss scale. A model's
    constructor calls this, so inside the strategy's scope and before the first trace: an optimizer
    that builds itself while being traced fails under float16 on several replicas.
    """
    if keras.config.dtype_policy().compute_dtype == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(network.trainable_variables)
    return optimizer


def unwrap(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return the optimizer that updates the weights: the one inside a loss scale's, or itself."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


def build_adam(
    networks: Mapping[str, keras.Model],
    learning_rate: float,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
) -> dict[str, keras.optimizers.Optimizer]:
    """Create a built `Adam` for each network, with the networks' names and in their order."""
    return {
        name: build(Adam(learning_rate, beta_1, beta_2, epsilon, name=name), network)
        for name, network in networks.items()
    }


def minimize(
    loss: tf.Tensor,
    network: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    tape: tf.GradientTape,
) -> None:
    """Take one step down the gradient of `loss` with respect to one network's weights.

    The gradient starts from scale / replicas instead of 1. A paper's code therefore holds neither
    the loss scale nor the division by the number of replicas: replicas sum their gradients, and
    each one's loss is the mean over its own share.

    Args:
        loss: float32 scalar, recorded by `tape`.
        network: The one that changes.
        optimizer: The network's.
        tape: Persistent where several networks minimise from it.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    start = optimizer.scale_loss(tf.ones([])) / replicas
    gradients = tape.gradient(loss, network.trainable_variables, output_gradients=start)
    accumulator = getattr(optimizer, "accumulator", None)
    if accumulator is not None:
        gradients = accumulator.add(gradients, optimizer)
        if gradients is None:
            return
    if replicas > 1 and isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        gradients = _finite_on_all_replicas_or_on_none(gradients)
    optimizer.apply(gradients, network.trainable_variables)


def minimize_each(
    losses: Mapping[str, tf.Tensor], model: Any, tape: tf.GradientTape
) -> dict[str, tf.Tensor]:
    """Minimise each network's loss, all recorded by one tape, and return them as "NAME_loss"."""
    for name, loss in losses.items():
        minimize(loss, model.networks[name], model.optimizers[name], tape)
    return {f"{name}_loss": loss for name, loss in losses.items()}


class Accumulator:
    """Adds up the gradients of a step's batches; the last one's update takes the mean of all.

    Every device adds up its own. Devices and workers exchange the mean alone. The sums are in no
    checkpoint: they are zero between steps. The optimizers refer to this from now on.

    Attributes:
        batches: Of a step, at least 2.
        done: Batches of the present step so far, an int64 variable.
        is_last: Whether the training step that is traced next is of a step's last batch.
    """

    def __init__(
        self,
        networks: Mapping[str, keras.Model],
        optimizers: Mapping[str, keras.optimizers.Optimizer],
        batches: int,
    ) -> None:
        self.batches = batches
        self.done = tf.Variable(0, dtype=tf.int64, trainable=False, name="done")
        self.is_last = False
        self._sums = {
            id(optimizer): [
                tf.Variable(
                    tf.zeros(variable.shape),
                    trainable=False,
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=tf.VariableAggregation.SUM,
                )
                for variable in networks[name].trainable_variables
            ]
            for name, optimizer in optimizers.items()
        }
        for optimizer in optimizers.values():
            optimizer.accumulator = unwrap(optimizer).accumulator = self

    def add(
        self, gradients: list[tf.Tensor], optimizer: keras.optimizers.Optimizer
    ) -> list[tf.Tensor] | None:
        """Add a batch's gradients; return the step's means for its last batch, else None."""
        sums = self._sums[id(optimizer)]
        if not self.is_last:
            for total, gradient in zip(sums, gradients, strict=True):
                total.assign_add(gradient)
            return None
        means = [
            (tf.convert_to_tensor(total) + gradient) / self.batches
            for total, gradient in zip(sums, gradients, strict=True)
        ]
        for total in sums:
            total.assign(tf.zeros(total.shape))
        return means


def prepare_exchange(
    networks: Mapping[str, keras.Model],
    optimizers: Mapping[str, keras.optimizers.Optimizer],
    accumulate: int,
    exchange: str,
) -> Accumulator | None:
    """Set how many batches make a step, and the dtype in which devices exchange gradients.

    It is called in the strategy's scope, with built optimizers. See `Adam.exchange`.
    """
    for optimizer in map(unwrap, optimizers.values()):
        if isinstance(optimizer, Adam):
            optimizer.exchange = exchange
    return Accumulator(networks, optimizers, accumulate) if accumulate > 1 else None


def count_batches(
    optimizer: keras.optimizers.Optimizer, steps: tf.Tensor | None = None
) -> tf.Tensor:
    """Count the batches before this one, each of which draws its own random numbers.

    They are the steps so far, by default the optimizer's updates, unless several batches make a
    step (`training.accumulate`).
    """
    steps = tf.convert_to_tensor(optimizer.iterations if steps is None else steps)
    accumulator = getattr(optimizer, "accumulator", None)
    if accumulator is None:
        return steps
    return steps * accumulator.batches + tf.cast(accumulator.done, steps.dtype)


def ends_step(optimizer: keras.optimizers.Optimizer) -> bool:
    """Tell whether the batch being traced is the last of its step, which updates the network."""
    accumulator = getattr(optimizer, "accumulator", None)
    return accumulator is None or accumulator.is_last


def call_sharing_gradients(network: keras.Model, x: tf.Tensor) -> tf.Tensor:
    """Call network(x, training=True) so that several losses share one backward pass.

    A backward pass is linear in the gradient that enters it. Its result for one gradient, times a
    factor, is its result for that multiple. The gradients of -log P and -log(1 - P) with respect to
    a discriminator's logits are such multiples, P being the mean response to one pair. Every
    gradient is compared with the first one; one that is no multiple of it gets a pass of its own. A
    tape therefore computes the same gradients as for a plain call, whatever the losses are.

    The call is a plain one where sharing gains nothing, or costs accuracy or a state: for several
    samples, whose factors differ, under float16, and for networks that a call changes, as batch
    normalisation does.
    """
    if x.shape[0] != 1 or network.compute_dtype == "float16" or network.non_trainable_variables:
        return network(x, training=True)
    variables = network.trainable_variables

    @tf.custom_gradient
    def call(
        x: tf.Tensor, *weights: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
        with (
            tf.GradientTape(persistent=True) as tape,
            keras.StatelessScope(list(zip(variables, weights, strict=True))),
        ):
            tape.watch([x, *weights])
            y = network(x, training=True)
        zero = tf.UnconnectedGradients.ZERO
        return y, _remember(
            lambda of_y: tape.gradient(y, [x, *weights], of_y, unconnected_gradients=zero)
        )

    return call(x, *map(tf.convert_to_tensor, variables))


def _remember(
    pass_back: Callable[[tf.Tensor], list[tf.Tensor]],
) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """Wrap a linear function: for a multiple of its first argument it is not called again."""
    first_call: list[tuple[tf.Tensor, list[tf.Tensor]]] = []

    def answer(of_y: tf.Tensor) -> list[tf.Tensor]:
        if not first_call:
            first_call.append((of_y, pass_back(of_y)))
            return first_call[0][1]
        first, gradients = first_call[0]
        factor, is_multiple = _factor(of_y, first)
        return tf.cond(
            is_multiple,
            lambda: [tf.cast(factor, g.dtype) * g for g in gradients],
            lambda: pass_back(of_y),
        )

    return answer


def _factor(gradient: tf.Tensor, first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Compute a factor f, and whether gradient = f * first to 1e-5.

    It is not where `first` is so small that gradients behind it may have vanished in float32.
    """
    largest = tf.reduce_max(tf.abs(first))
    unit = first / largest
    along = tf.reduce_sum(gradient * unit) / tf.reduce_sum(unit * unit)
    is_multiple = tf.reduce_all(
        tf.abs(gradient - along * unit) <= 1e-5 * tf.reduce_max(tf.abs(gradient))
    )
    return along / largest, is_multiple & (largest > 1e-20)


def _finite_on_all_replicas_or_on_none(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    # LossScaleOptimizer (Keras 3.15) asks the first replica alone whether to skip the step. An
    # overflow on another one would reach the weights, so all replicas have to learn of it.
    overflows = tf.add_n(
        [tf.cast(tf.reduce_any(~tf.math.is_finite(gradient)), tf.float32) for gradient in gradients]
    )
    overflows = tf.distribute.get_replica_context().all_reduce(
        tf.distribute.ReduceOp.SUM, overflows
    )
    return [tf.where(overflows > 0, float("nan"), gradients[0]), *gradients[1:]]
