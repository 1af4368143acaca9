"""Networks of full size, which a test can count but not run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras.src.backend.common import global_state

from tfmammo.nn import optimization


class NoOptimizer:
    """Stands for an optimizer of any arguments, and has no slots."""

    def __init__(self, *values: Any, **named: Any) -> None:
        pass

    def build(self, variables: Any) -> None:
        """Create nothing."""


def build_without_memory(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Build a model whose networks have layers and shapes, but no numbers, and no optimizers.

    A hundred million weights and Adam's slots would take gigabytes, which TensorFlow keeps.

    Args:
        make: Returns the model, or a network.
        monkeypatch: Of the test.
    """
    for module, name in ((optimization, "Adam"), (keras.optimizers, "RMSprop")):
        monkeypatch.setattr(module, name, NoOptimizer)
    with keras.StatelessScope(initialize_variables=False):
        made = make()
    # Else Keras makes their numbers up with the next network that anybody builds.
    global_state.set_global_attribute("uninitialized_variables", [])
    return made


def count_weights(network: Any) -> int:
    """Count the numbers that training changes."""
    return sum(int(np.prod(weight.shape)) for weight in network.trainable_variables)


def count_each(model: Any) -> dict[str, int]:
    """Count the numbers that training changes in each of a model's networks."""
    return {name: count_weights(network) for name, network in model.networks.items()}


def shape_answer(network: Any, *shape: int) -> tuple[int | None, ...]:
    """Return the shape of what a network without numbers answers to an input, batch first."""
    with keras.StatelessScope(initialize_variables=False):
        return network(keras.Input(shape, batch_size=1)).shape
