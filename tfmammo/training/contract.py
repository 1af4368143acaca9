"""What a model must offer to be trained, checked before the first step: names, signatures
and shapes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfmammo.errors import TrainingError


def check(room: Any, functions: Any) -> None:
    """Make sure that a model keeps its side of the contract, see `loop.Room`, as far as that shows
    before a step is taken.

    Args:
        functions: What `room.functions()` gave.

    Raises:
        TrainingError: It does not; one sentence names the network, optimizer, function or method.
    """
    who = type(room).__name__
    networks = getattr(room, "networks", None)
    optimizers = getattr(room, "optimizers", None)
    if not isinstance(networks, Mapping) or not networks:
        raise TrainingError(
            f"{who}.networks: must be a dict of networks by name, not {networks!r:.80}"
        )
    for name, network in networks.items():
        if not getattr(network, "variables", None):
            raise TrainingError(
                f"{who}.networks: {name} has no weights yet; build it in the constructor"
            )
    if not isinstance(optimizers, Mapping) or not optimizers:
        raise TrainingError(
            f"{who}.optimizers: must be a dict of optimizers by their network's name, not "
            f"{optimizers!r:.80}"
        )
    _check_names(f"{who}.optimizers", optimizers, networks)
    for name, optimizer in optimizers.items():
        if not getattr(optimizer, "built", True):
            raise TrainingError(
                f"{who}.optimizers: {name} is not built; make it with optimization.build in the "
                "constructor"
            )
    for method in ("train_step", "sample"):
        check_takes(f"{who}.{method}", getattr(room, method, None), "batch")
    if not isinstance(functions, Mapping) or not functions:
        raise TrainingError(
            f"{who}.functions: must return a dict of tf.functions by their network's name, not "
            f"{functions!r:.80}"
        )
    _check_names(f"{who}.functions", functions, networks)
    for name, function in functions.items():
        _check_function(f"{who}.functions: {name}", function)


def check_takes(what: str, function: Any, *arguments: str) -> None:
    """Make sure that something can be called with so many unnamed arguments.

    Raises:
        TrainingError: It can't.
    """
    wanted = f"{what}: must be a function of ({', '.join(arguments)})"
    if not callable(function):
        raise TrainingError(f"{wanted}, not {function!r:.80}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of something built in
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TrainingError(f"{wanted}, not of {signature} ({error})") from None


def check_losses(room: Any, losses: Any) -> None:
    """Make sure that a step returns scalars by name.

    Args:
        losses: What tracing `train_step` gave.
    """
    what = f"{type(room).__name__}.train_step"
    if not isinstance(losses, Mapping) or not losses:
        raise TrainingError(f"{what}: must return scalars by name, not {losses!r:.80}")
    for name, loss in losses.items():
        shape = getattr(loss, "shape", np.shape(loss) if np.isscalar(loss) else None)
        if shape is None or tf.TensorShape(shape).rank not in (0, None):
            raise TrainingError(f"{what}: must return scalars by name, but {name} is {loss!r:.80}")


def check_metrics(validate: Callable[..., Any], metrics: Any) -> None:
    """Make sure that a validation gave numbers by name: the first decides which
    checkpoint is best.
    """
    what = getattr(validate, "__name__", "validate")
    if not isinstance(metrics, Mapping) or not metrics:
        raise TrainingError(
            f"{what}: must return metrics by name, the first of which tells the best checkpoint, "
            f"not {metrics!r:.80}"
        )


def _check_names(what: str, found: Mapping[str, Any], networks: Mapping[str, Any]) -> None:
    for name in found:
        if name not in networks:
            raise TrainingError(
                f"{what}: {name} is named after none of the networks {', '.join(networks)}"
            )


def _check_function(what: str, function: Any) -> None:
    """A tf.function of named float32 tensors that returns tensors by name."""
    specs = getattr(function, "input_signature", None)
    if not isinstance(specs, tuple | list) or not specs:
        raise TrainingError(f"{what}: must be a tf.function with an input_signature")
    for spec in specs:
        if not isinstance(spec, tf.TensorSpec) or spec.name is None or spec.dtype != tf.float32:
            raise TrainingError(
                f"{what}: every input must be a named float32 tf.TensorSpec, not {spec!r:.80}"
            )
    outputs = function.get_concrete_function().structured_outputs
    if (
        not isinstance(outputs, Mapping)
        or not outputs
        or not all(isinstance(value, tf.Tensor) for value in outputs.values())
    ):
        raise TrainingError(f"{what}: must return tensors by name, not {outputs!r:.80}")
