"""Which way a training step moves each network, compared with gradient descent by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

Loss = Callable[[], tf.Tensor]
Descend = Callable[..., None]


def read_weights(model: Any) -> dict[str, list[NDArray]]:
    """Read the trained weights of each of a model's networks."""
    return {
        name: [weight.numpy() for weight in network.trainable_variables]
        for name, network in model.networks.items()
    }


def respond(logits: tf.Tensor, average: str = "losses") -> tf.Tensor:
    """Compute P, a discriminator's probability that something is real.

    "responses" averages over a sample's responses, [b, rows, cols, 1]; "losses" keeps each of them.
    """
    responses = tf.sigmoid(logits)
    return tf.reduce_mean(responses, axis=[1, 2, 3]) if average == "responses" else responses


def deceive(fake: tf.Tensor, adversarial: str = "non_saturating") -> tf.Tensor:
    """Compute a generator's loss, -log P of its fakes; "as_printed": log(1 - P)."""
    return tf.reduce_mean(
        tf.math.log(1 - fake) if adversarial == "as_printed" else -tf.math.log(fake)
    )


def tell_apart(real: tf.Tensor, *fakes: tf.Tensor) -> tf.Tensor:
    """Compute a discriminator's loss, -log P of what is real and -log(1 - P) of each fake."""
    losses = [-tf.math.log(real), *(-tf.math.log(1 - fake) for fake in fakes)]
    return tf.add_n([tf.reduce_mean(loss) for loss in losses])


def assert_descends(
    model: Any,
    reference: Any,
    batch: Mapping[str, tf.Tensor],
    numbers: Mapping[str, Loss] | None = None,
    **losses: Loss,
) -> None:
    """Check that one training step moves each network down the gradient of its own loss.

    All gradients are those at the weights before the step.

    Args:
        model: Trained for one step.
        reference: Another model of the same config, which is given the model's weights.
        batch: Of the training step.
        numbers: What the step must return besides the networks' losses, and nothing else, each
            computed with the reference's networks; None: that is not checked.
        losses: By network: functions without arguments that compute the paper's losses with the
            reference's networks.
    """

    def algorithm(descend: Descend) -> Mapping[str, tf.Tensor] | None:
        returned = numbers and {name: number() for name, number in numbers.items()}
        descend(**losses)
        return returned

    assert_follows(model, reference, batch, algorithm)


def assert_follows(
    model: Any,
    reference: Any,
    batch: Mapping[str, tf.Tensor],
    algorithm: Callable[[Descend], Mapping[str, tf.Tensor] | None],
) -> None:
    """Check that one training step follows the paper's algorithm, and returns its losses.

    SGD takes the place of the model's optimizers, at rates 1, 1/2 and so on. The rates differ so
    that no two optimizers can change places unseen. Every trained number of every network must move
    as the reference's. A network that the algorithm leaves alone must not move at all.

    `algorithm` writes the paper's out on the reference's networks, by calls of `descend(NAME=LOSS,
    ...)`; see `assert_descends`. All gradients of one call are taken before it moves a network. The
    step must return the loss of a network's last call, and what else the algorithm returns.
    """
    rates = {name: 0.5**i for i, name in enumerate(model.optimizers)}
    start = read_weights(model)
    for name, network in reference.networks.items():
        network.set_weights(model.networks[name].get_weights())
    returned = {}

    def descend(**losses: Loss) -> None:
        gradients = {}
        for name, loss in losses.items():
            value, gradients[name] = _differentiate(reference.networks[name], loss)
            returned[f"{name}_loss"] = value
        for name, values in gradients.items():
            weights = reference.networks[name].trainable_variables
            for weight, gradient in zip(weights, values, strict=True):
                weight.assign(weight - rates[name] * gradient)

    numbers = algorithm(descend)
    returned |= numbers or {}
    model.optimizers = {name: keras.optimizers.SGD(value) for name, value in rates.items()}
    found = model.train_step(batch)
    assert numbers is None or set(found) == set(returned)
    for name, value in returned.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    now = read_weights(model)
    for name, weights in read_weights(reference).items():
        expected = [new - old for new, old in zip(weights, start[name], strict=True)]
        largest = max(float(np.abs(change).max()) for change in expected)
        assert largest > 1e-3 or name not in rates, f"{name} hardly moves, which shows nothing"
        for new, old, change in zip(now[name], start[name], expected, strict=True):
            rounding = 2e-5 * max(largest, float(np.abs(old).max())) if largest else 0.0
            np.testing.assert_allclose(
                new - old, change, rtol=2e-3, atol=rounding, err_msg=f"update of {name}"
            )


def _differentiate(network: Any, loss: Loss) -> tuple[tf.Tensor, list[tf.Tensor]]:
    with tf.GradientTape() as tape:
        value = loss()
    zero = tf.UnconnectedGradients.ZERO
    return value, tape.gradient(value, network.trainable_variables, unconnected_gradients=zero)
