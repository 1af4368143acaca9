"""One place for loss scaling and replica scaling, so that a train_step reads like the
paper's algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import keras
import tensorflow as tf

# bytes that CPUs of several workers exchange at once; in a tensor of 300 MB each takes gRPC more
# than twice as long
PIECE = 2**22


@keras.saving.register_keras_serializable("tfmammo")
class Adam(keras.optimizers.Adam):
    """Keras's Adam, its update done by TensorFlow's fused kernel: the same numbers, about three
    times as fast on a CPU.

    m <- beta_1 m + (1 - beta_1) g;  v <- beta_2 v + (1 - beta_2) g^2 w <- w - learning_rate *
    sqrt(1 - beta_2^t) / (1 - beta_1^t) * m / (sqrt(v) + epsilon)

    Source:
        Kingma & Ba 2015, the "epsilon hat" form of section 2, as Keras and TensorFlow have it.
    """

    def __init__(
        self,
        learning_rate: float = 2e-4,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        name: str = "adam",
    ) -> None:
        super().__init__(learning_rate, beta_1, beta_2, epsilon, name=name)

    def get_config(self) -> dict[str, object]:
        """The constructor's arguments."""
        keep = ("learning_rate", "beta_1", "beta_2", "epsilon", "name")
        return {key: value for key, value in super().get_config().items() if key in keep}

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
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

    def _all_reduce_sum_gradients(
        self, pairs: Iterable[tuple[tf.Tensor, tf.Variable]]
    ) -> list[tuple[tf.Tensor, tf.Variable]]:
        """The sum of all replicas' gradients; on CPUs of several workers large ones go
        in pieces.
        """
        strategy = tf.distribute.get_strategy()
        many = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        if not many or "CPU" not in strategy.extended.worker_devices[0]:
            return super()._all_reduce_sum_gradients(pairs)
        cut = [(_cut(gradient), variable) for gradient, variable in pairs]
        summed = iter(
            super()._all_reduce_sum_gradients(
                [(piece, variable) for pieces, variable in cut for piece in pieces]
            )
        )
        together = [([next(summed)[0] for _ in pieces], variable) for pieces, variable in cut]
        return [
            (
                tf.reshape(tf.concat(pieces, axis=0), variable.shape)
                if len(pieces) > 1
                else pieces[0],
                variable,
            )
            for pieces, variable in together
        ]


def _cut(gradient: tf.Tensor) -> list[tf.Tensor]:
    """Parts of at most PIECE bytes, as far as its rows allow; of aligned rows, they lie in the
    memory that it lies in.
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
    """Create an optimizer's slots for one network, with its own loss scale where the precision
    policy is mixed_float16.

    Called by a room's constructor, so inside the strategy's scope and before the first trace: an
    optimizer that builds itself while being traced fails under float16 on several replicas.
    """
    if keras.config.dtype_policy().compute_dtype == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(network.trainable_variables)
    return optimizer


def minimize(
    loss: tf.Tensor,
    network: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    tape: tf.GradientTape,
) -> None:
    """One step of `optimizer` down the gradient of `loss` by `network`'s weights, and by no
    other's.

    The gradient starts from scale / replicas instead of 1, so that neither the loss scale nor the
    division by the number of replicas stands in a paper's code: replicas sum their gradients, and
    each one's loss is the mean over its own share.

    Args:
        loss: float32 scalar, recorded by `tape`, which is persistent where several networks
            minimise from it.
    """
    _apply(
        tape.gradient(loss, network.trainable_variables, output_gradients=_start(optimizer)),
        network,
        optimizer,
    )


def call_sharing_gradients(network: keras.Model, x: tf.Tensor) -> tf.Tensor:
    """network(x, training=True), so recorded that losses whose gradients by its output differ by a
    factor share one pass back through it.

    A pass back is linear in the gradient that enters it. What it gave for one gradient, times a
    factor, is what it gives for that multiple. Such are the gradients of -log P and -log(1 - P) by
    a discriminator's logits, P being the mean response to one pair. Every gradient is compared with
    the first one, and one that is no multiple of it gets a pass of its own. So a tape finds what it
    finds of a plain call, whatever the losses are.

    It is a plain call where a gain is not to be expected, or would cost accuracy or a state: for
    several samples, whose factors differ, under float16, and for networks that are changed by a
    call, as by batch normalisation.

    Args:
        x: floating [batch, ...].

    Returns:
        What the network returns, one floating tensor.
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
    """`pass_back`, a linear function, which is not called again for a multiple of what it was first
    called with.
    """
    known: list[tuple[tf.Tensor, list[tf.Tensor]]] = []

    def answer(of_y: tf.Tensor) -> list[tf.Tensor]:
        if not known:
            known.append((of_y, pass_back(of_y)))
            return known[0][1]
        first, gradients = known[0]
        factor, is_multiple = _factor(of_y, first)
        return tf.cond(
            is_multiple,
            lambda: [tf.cast(factor, g.dtype) * g for g in gradients],
            lambda: pass_back(of_y),
        )

    return answer


def _factor(gradient: tf.Tensor, first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(f, whether gradient = f first): to 1e-5, and with a first one so large that nothing behind
    it vanished in float32.
    """
    largest = tf.reduce_max(tf.abs(first))
    unit = first / largest
    along = tf.reduce_sum(gradient * unit) / tf.reduce_sum(unit * unit)
    is_multiple = tf.reduce_all(
        tf.abs(gradient - along * unit) <= 1e-5 * tf.reduce_max(tf.abs(gradient))
    )
    return along / largest, is_multiple & (largest > 1e-20)


def _start(optimizer: keras.optimizers.Optimizer) -> tf.Tensor:
    return optimizer.scale_loss(tf.ones([])) / tf.distribute.get_strategy().num_replicas_in_sync


def _apply(
    gradients: list[tf.Tensor], network: keras.Model, optimizer: keras.optimizers.Optimizer
) -> None:
    if tf.distribute.get_strategy().num_replicas_in_sync > 1 and isinstance(
        optimizer, keras.optimizers.LossScaleOptimizer
    ):
        gradients = _finite_on_all_replicas_or_on_none(gradients)
    optimizer.apply(gradients, network.trainable_variables)


def _finite_on_all_replicas_or_on_none(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    # LossScaleOptimizer (Keras 3.15) asks the first replica alone whether to skip the step: an
    # overflow on another one would reach the weights. So all of them learn of it.
    overflows = tf.add_n(
        [tf.cast(tf.reduce_any(~tf.math.is_finite(gradient)), tf.float32) for gradient in gradients]
    )
    overflows = tf.distribute.get_replica_context().all_reduce(
        tf.distribute.ReduceOp.SUM, overflows
    )
    return [tf.where(overflows > 0, float("nan"), gradients[0]), *gradients[1:]]
