"""Writing an export: each function is saved, read back and compared, then all move in place."""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from pydantic_core import to_jsonable_python

from tfmammo import filesystem
from tfmammo.errors import ExportError, summarize
from tfmammo.mammogram import key_check
from tfmammo.tracking.export.card import (
    CARD,
    FORMAT,
    RANGES,
    SIGNATURE,
    TOLERANCE,
    Tensors,
    check_names,
    describe_variables,
    sibling,
)


class Exportable(Protocol):
    """What `export` needs of a model: its networks, and functions named after them."""

    @property
    def name(self) -> str:
        """The system's name."""

    @property
    def networks(self) -> Mapping[str, keras.Model]:
        """The networks by name."""

    def functions(self) -> Mapping[str, Any]:
        """Return network's name -> tf.function from named float32 tensors to a dict of such."""


def write_saved_models(model: Exportable, folder: Path) -> dict[str, Any]:
    """Write every function of a model as a SavedModel, checked against the eager network.

    Args:
        model: Built under the float32 policy.
        folder: Where; each SavedModel has the name of its function.

    Returns:
        The card's "functions".
    """
    return {
        name: _write_function(name, function, model, folder / name)
        for name, function in model.functions().items()
    }


def export(
    model: Exportable,
    directory: Path,
    card: Mapping[str, Any],
    write: Callable[[Any, Path], dict[str, Any]] = write_saved_models,
) -> Path:
    """Write every function of a model as a SavedModel, check each, then put them in place.

    Args:
        model: Built under the float32 policy; it stays as it is.
        directory: Created, or replaced if it holds an export.
        card: Goes into card.json. "name": the system's, by default the model's. "serves": the
            function that a server answers with, by default the one from image to mask, else from
            mask to image, else the first.
        write: Writes the SavedModels into a folder, each named after its function and checked, and
            returns the card's "functions".

    Returns:
        `directory`.

    Raises:
        ExportError: The model computes in another precision; an answer from disk differs from the
            eager one by more than 1e-5, or leaves the range of its name; or the directory holds
            something else. An older export stays.
    """
    directory = Path(directory)
    if (
        directory.exists()
        and not (directory / CARD).is_file()
        and (not directory.is_dir() or any(directory.iterdir()))
    ):
        raise ExportError(f"{directory}: exists and is not an export, so it is not replaced")
    new = sibling(directory, "new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        functions = write(model, new)
        text = json.dumps(_make_card(model, functions, card), indent=2, allow_nan=False)
        (new / CARD).write_text(text + "\n", encoding="utf-8")
        filesystem.flush(new)
        _replace(directory, new)
    except (OSError, tf.errors.OpError) as error:
        raise ExportError(f"{directory}: can't be written ({summarize(error)})") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return directory


def remove_leftovers(directory: Path) -> None:
    """Remove what a killed `export` has left beside its place.

    An older export whose replacement is missing goes back to its place.
    """
    old = sibling(directory, "old")
    if old.is_dir() and not directory.exists():
        old.replace(directory)
    for left in (old, sibling(directory, "new")):
        shutil.rmtree(left, ignore_errors=True)


def _write_function(name: str, function: Any, model: Exportable, folder: Path) -> dict[str, Any]:
    """Save one function, read it back and compare; return its part of the card."""
    if name not in model.networks:
        raise ExportError(
            f"the function {name} is named after none of the networks {', '.join(model.networks)}"
        )
    network = model.networks[name]
    concrete = function.get_concrete_function()
    specs = {spec.name: spec for spec in tf.nest.flatten(concrete.structured_input_signature)}
    _check_float32(name, concrete)
    module = tf.Module()
    # in order, so that `assign` can give them back
    module.weights = [variable.value for variable in network.variables]
    module.others = list(concrete.graph.variables)  # a function may use more than its own network
    tf.saved_model.save(module, str(folder), signatures={SIGNATURE: concrete})
    inputs = draw_inputs(specs)
    with _keep_state(network):
        eager = {key: output.numpy() for key, output in function.python_function(**inputs).items()}
    saved = tf.saved_model.load(str(folder))
    compare_answers(f"network {name}", saved.signatures[SIGNATURE](**inputs), eager)
    _check_ranges(name, eager)
    return {
        "inputs": {key: _describe_tensor(key, spec) for key, spec in specs.items()},
        "outputs": {
            key: _describe_tensor(key, output)
            for key, output in concrete.structured_outputs.items()
        },
        "variables": describe_variables(network),
    }


def _check_float32(name: str, concrete: Any) -> None:
    dtypes = {
        output.dtype
        for operation in concrete.graph.get_operations()
        for output in operation.outputs
    }
    for half in (tf.float16, tf.bfloat16):
        if half in dtypes:
            raise ExportError(
                f"network {name} computes in {half.name}, but only a model built under the float32 "
                "policy can be exported"
            )


def draw_inputs(specs: Mapping[str, tf.TensorSpec]) -> dict[str, tf.Tensor]:
    """Draw two random patches in [0, 1] for each input, always the same."""
    generator = np.random.default_rng(0)
    shapes = {name: [2, *spec.shape[1:]] for name, spec in specs.items()}
    return {
        name: tf.constant(generator.random(shape, np.float32)) for name, shape in shapes.items()
    }


@contextlib.contextmanager
def _keep_state(network: keras.Model) -> Iterator[None]:
    """Restore what a call changes, such as a dropout's random state, so that both calls agree."""
    before = [variable.numpy() for variable in network.non_trainable_variables]
    yield
    for variable, value in zip(network.non_trainable_variables, before, strict=True):
        variable.assign(value)


def compare_answers(
    owner: str,
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
    tolerance: float = TOLERANCE,
    of_each: bool = True,
) -> None:
    """Check that what was saved gives the expected answers; else ExportError names the answer.

    Args:
        owner: What was saved.
        found: Its answers by name.
        expected: The answers of the network in memory; further ones that were found don't count.
        tolerance: Relative to an answer's largest value if that is above 1: a value near 0 among
            large ones is no more exact than they are.
        of_each: Whether a value may be off by as large a part of itself besides.
    """
    rtol = tolerance if of_each else 0.0
    for key, answer in expected.items():
        values = np.asarray(answer)
        scale = max(1.0, float(np.max(np.abs(values), initial=0.0)))
        if not np.allclose(found[key], values, rtol=rtol, atol=tolerance * scale):
            largest = np.max(np.abs(found[key] - values))
            raise ExportError(
                f"{owner}: {key} differs by up to {largest:.3g} from the network in memory"
            )


def _check_ranges(name: str, eager: Tensors) -> None:
    for key, expected in eager.items():
        low, high = RANGES.get(key, (-np.inf, np.inf))
        if expected.min() < low - TOLERANCE or expected.max() > high + TOLERANCE:
            raise ExportError(
                f"network {name}: {key} reaches from {expected.min():.3g} to "
                f"{expected.max():.3g}, outside [{low:g}, {high:g}]"
            )


def _describe_tensor(name: str, tensor: Any) -> dict[str, Any]:
    return {"shape": tensor.shape.as_list(), "dtype": tensor.dtype.name, "range": RANGES.get(name)}


def _make_card(
    model: Exportable, functions: dict[str, Any], card: Mapping[str, Any]
) -> dict[str, Any]:
    serves = card.get("serves", _choose_default(functions))
    if serves not in functions:
        raise ExportError(
            f"the card serves {serves}, which is none of the functions {', '.join(functions)}"
        )
    # JSON has no NaN and no infinity
    plain = to_jsonable_python(dict(card), inf_nan_mode="null", fallback=_find_json_type)
    content = {"format": FORMAT, "name": model.name, "id_key": key_check()} | plain
    check_names(CARD, content | {"functions": functions})
    return content | {
        "format": FORMAT,
        "serves": serves,
        "versions": {
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
            "Python": platform.python_version(),
        },
        "networks": {name: network.count_params() for name, network in model.networks.items()},
        "functions": functions,
    }


def _choose_default(functions: Mapping[str, Any]) -> str | None:
    for wanted in (("image", "mask"), ("mask", "image")):
        for name, function in functions.items():
            if set(function["inputs"]) == {wanted[0]} and wanted[1] in function["outputs"]:
                return name
    return next(iter(functions), None)


def _find_json_type(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def _replace(directory: Path, new: Path) -> None:
    old = sibling(directory, "old")
    if directory.exists():
        shutil.rmtree(old, ignore_errors=True)
        directory.replace(old)
    new.replace(directory)  # no system moves two folders at once: see `locate`
    filesystem.flush_names(directory.parent)
    shutil.rmtree(old, ignore_errors=True)
