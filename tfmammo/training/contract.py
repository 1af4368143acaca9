"""The contract between the loop and a model, and its checks before the first step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from tfmammo.config import TrainingConfig
from tfmammo.data.patches import Patches
from tfmammo.errors import ConfigError, TrainingError
from tfmammo.nn.optimization import Adam, unwrap

# tf.functions: TensorFlow has no public type for one with an input_signature
Functions = dict[str, Any]


class TrainableModel(Protocol):
    """What the loop asks of a model. A keras.Model that offers this inherits nothing else."""

    name: str
    networks: dict[str, keras.Model]
    optimizers: dict[str, keras.optimizers.Optimizer]

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Run one update round in the paper's order; return scalar losses by name."""

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Return panels for the image grid, float32 [batch, size, size, 1] in [0, 1]."""

    def functions(self) -> Functions:
        """Return what is exported: a tf.function with an input signature per network."""


# (functions, held-out patches) -> metrics by name
Validate = Callable[[Functions, Patches], dict[str, float]]
# (model, folder) -> the card's "functions"; see tfmammo.tracking.export.export
Write = Callable[[Any, Path], dict[str, Any]]


def check_model(model: Any, functions: Any) -> None:
    """Check that a model fulfils `TrainableModel`, as far as that shows before a step is taken.

    Args:
        model: The model, built.
        functions: What `model.functions()` returned.

    Raises:
        TrainingError: It does not. One sentence names the network, optimizer, function or method.
    """
    owner = type(model).__name__
    networks = getattr(model, "networks", None)
    optimizers = getattr(model, "optimizers", None)
    if not isinstance(networks, Mapping) or not networks:
        raise TrainingError(
            f"{owner}.networks: must be a dict of networks by name, not {networks!r:.80}"
        )
    for name, network in networks.items():
        if not getattr(network, "variables", None):
            raise TrainingError(
                f"{owner}.networks: {name} has no weights yet; build it in the constructor"
            )
    if not isinstance(optimizers, Mapping) or not optimizers:
        raise TrainingError(
            f"{owner}.optimizers: must be a dict of optimizers by their network's name, not "
            f"{optimizers!r:.80}"
        )
    _check_names(f"{owner}.optimizers", optimizers, networks)
    for name, optimizer in optimizers.items():
        if not getattr(optimizer, "built", True):
            raise TrainingError(
                f"{owner}.optimizers: {name} is not built; make it with optimization.build in the "
                "constructor"
            )
    for method in ("train_step", "sample"):
        check_signature(f"{owner}.{method}", getattr(model, method, None), "batch")
    if not isinstance(functions, Mapping) or not functions:
        raise TrainingError(
            f"{owner}.functions: must return a dict of tf.functions by their network's name, not "
            f"{functions!r:.80}"
        )
    _check_names(f"{owner}.functions", functions, networks)
    for name, function in functions.items():
        _check_function(f"{owner}.functions: {name}", function)


def check_xla(model: Any, config: TrainingConfig) -> None:
    """Refuse `training.jit_compile` for a model that states why XLA can't compile it.

    Raises:
        ConfigError: The message gives the model's `not_for_xla`.
    """
    reason = getattr(model, "not_for_xla", None)
    if config.jit_compile and reason:
        raise ConfigError(
            f"training.jit_compile: {model.name} can't be compiled by XLA, because {reason}"
        )


def check_exchange(model: Any, config: TrainingConfig) -> None:
    """Refuse what `training.accumulate` and `training.exchange` can't do for a model.

    Raises:
        ConfigError: The model states why it can't accumulate (`not_for_accumulation`), or does not
            use `optimization.Adam`.
    """
    reason = getattr(model, "not_for_accumulation", None)
    if config.accumulate > 1 and reason:
        raise ConfigError(f"training.accumulate: {model.name} takes one batch a step, {reason}")
    for optimizer in map(unwrap, model.optimizers.values()):
        if config.exchange != "float32" and not isinstance(optimizer, Adam):
            raise ConfigError(
                f"training.exchange: {model.name} is trained by Keras's "
                f"{type(optimizer).__name__}, which exchanges float32"
            )


def check_signature(name: str, function: Any, *arguments: str) -> None:
    """Check that a function can be called with these arguments, all positional.

    Args:
        name: What an error calls the function.
        function: Anything; only a callable passes.
        arguments: What each argument is.

    Raises:
        TrainingError: It can't.
    """
    requirement = f"{name}: must be a function of ({', '.join(arguments)})"
    if not callable(function):
        raise TrainingError(f"{requirement}, not {function!r:.80}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a built-in function
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TrainingError(f"{requirement}, not of {signature} ({error})") from None


def check_losses(model: Any, losses: Any) -> None:
    """Check that a training step returns scalars by name.

    Args:
        model: The owner of `train_step`.
        losses: What tracing `train_step` returned.

    Raises:
        TrainingError: It does not.
    """
    method = f"{type(model).__name__}.train_step"
    if not isinstance(losses, Mapping) or not losses:
        raise TrainingError(f"{method}: must return scalars by name, not {losses!r:.80}")
    for name, loss in losses.items():
        shape = getattr(loss, "shape", np.shape(loss) if np.isscalar(loss) else None)
        if shape is None or tf.TensorShape(shape).rank not in (0, None):
            raise TrainingError(
                f"{method}: must return scalars by name, but {name} is {loss!r:.80}"
            )


def check_metrics(validate: Callable[..., Any], metrics: Any, monitor: str) -> None:
    """Check that a validation returned numbers by name, the monitored metric among them.

    Raises:
        TrainingError: It did not.
    """
    name = getattr(validate, "__name__", "validate")
    if not isinstance(metrics, Mapping) or not metrics:
        raise TrainingError(f"{name}: must return metrics by name, not {metrics!r:.80}")
    if monitor not in metrics:
        raise TrainingError(
            f"{name}: must return the monitored metric {monitor}, not only {', '.join(metrics)}"
        )


def _check_names(owner: str, items: Mapping[str, Any], networks: Mapping[str, Any]) -> None:
    for name in items:
        if name not in networks:
            raise TrainingError(
                f"{owner}: {name} is named after none of the networks {', '.join(networks)}"
            )


def _check_function(name: str, function: Any) -> None:
    """Check that a tf.function takes named float32 tensors and returns tensors by name."""
    specs = getattr(function, "input_signature", None)
    if not isinstance(specs, tuple | list) or not specs:
        raise TrainingError(f"{name}: must be a tf.function with an input_signature")
    for spec in specs:
        if not isinstance(spec, tf.TensorSpec) or spec.name is None or spec.dtype != tf.float32:
            raise TrainingError(
                f"{name}: every input must be a named float32 tf.TensorSpec, not {spec!r:.80}"
            )
    names = [spec.name for spec in specs]
    # the export calls it by these names, after the last step
    _check_parameters(name, function.python_function, names)
    outputs = function.get_concrete_function().structured_outputs
    if (
        not isinstance(outputs, Mapping)
        or not outputs
        or not all(isinstance(value, tf.Tensor) for value in outputs.values())
    ):
        raise TrainingError(f"{name}: must return tensors by name, not {outputs!r:.80}")


def _check_parameters(name: str, function: Callable[..., Any], inputs: list[str]) -> None:
    """Check that a function can be called with these arguments by name."""
    signature = inspect.signature(function)
    try:
        signature.bind(**dict.fromkeys(inputs))
    except TypeError:
        raise TrainingError(
            f"{name}: its parameters must have the names of its inputs, {', '.join(inputs)}, not "
            f"{signature}"
        ) from None
