"""The contract between the loop and a model, and its check before the first step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import keras
import tensorflow as tf

from tfmammo.config import TrainingConfig
from tfmammo.data.patches import Patches
from tfmammo.errors import ConfigError, TrainingError
from tfmammo.nn.optimization import Adam, unwrap

# tf.functions: TensorFlow has no public type for one with an input_signature
Functions = dict[str, Any]


@runtime_checkable
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


def check_model(model: TrainableModel, functions: Functions, config: TrainingConfig) -> None:
    """Check whatever TensorFlow would notice late, as at the export, or not at all.

    Raises:
        TrainingError: The model breaks the contract. The message names the network.
        ConfigError: The model states why it can't do what the config asks (`not_for_xla`,
            `not_for_accumulation`), or does not use `optimization.Adam`.
    """
    owner = type(model).__name__
    if not isinstance(model, TrainableModel) or not model.networks:
        raise TrainingError(f"{owner}: offers not all that TrainableModel lists")
    _check_config(model, config)
    for name, network in model.networks.items():
        if not network.variables:
            raise TrainingError(f"{owner}.networks: {name} has no weights; build it in __init__")
    for kind, items in (("optimizers", model.optimizers), ("functions", functions)):
        if not items or not items.keys() <= model.networks.keys():
            names = ", ".join(model.networks)
            raise TrainingError(f"{owner}.{kind}: {[*items]} must be names of networks ({names})")
    for name, optimizer in model.optimizers.items():
        if not getattr(optimizer, "built", True):
            raise TrainingError(f"{owner}.optimizers: {name} is not built; see optimization.build")
    for name, function in functions.items():
        _check_function(f"{owner}.functions: {name}", function)


def _check_function(name: str, function: Any) -> None:
    """Check that a tf.function can be exported, and be called by the names of its inputs."""
    specs = getattr(function, "input_signature", None) or ()
    inputs = [getattr(spec, "name", None) for spec in specs]
    if not specs or None in inputs or any(spec.dtype != tf.float32 for spec in specs):
        raise TrainingError(f"{name}: must be a tf.function of named float32 tensors, not {specs}")
    parameters = [*inspect.signature(function.python_function).parameters]
    if parameters != inputs:
        raise TrainingError(f"{name}: its parameters {parameters} must have its inputs' names")
    outputs = function.get_concrete_function().structured_outputs
    if not isinstance(outputs, Mapping) or not outputs:
        raise TrainingError(f"{name}: must return tensors by name, not {outputs!r:.80}")


def _check_config(model: Any, config: TrainingConfig) -> None:
    """Check that a model can do what `jit_compile`, `accumulate` and `exchange` ask."""
    if config.jit_compile and (reason := getattr(model, "not_for_xla", None)):
        raise ConfigError(
            f"training.jit_compile: {model.name} can't be compiled by XLA, because {reason}"
        )
    if config.accumulate > 1 and (reason := getattr(model, "not_for_accumulation", None)):
        raise ConfigError(f"training.accumulate: {model.name} takes one batch a step, {reason}")
    for optimizer in map(unwrap, model.optimizers.values()):
        if config.exchange != "float32" and not isinstance(optimizer, Adam):
            raise ConfigError(
                f"training.exchange: {model.name} is trained by Keras's "
                f"{type(optimizer).__name__}, which exchanges float32"
            )
