"""Trained networks on disk: a SavedModel for each function of a model, and a card about them.

    directory/card.json     names, shapes, ranges, and where the weights come from
    directory/NAME/         a SavedModel with the signature "serving_default", named inputs and
                            named outputs

An export counts only if every SavedModel, read back from disk, answers as the eager network does.
It is written beside its place and moved there whole; until then an older export stays. Reading one
executes no pickle: SavedModels are protocol buffers and a tensor file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfmammo import filesystem
from tfmammo._tensorflow import hold_back_stderr
from tfmammo.errors import ExportError
from tfmammo.mammogram import key_fault

log = logging.getLogger(__name__)

FORMAT = 1
CARD = "card.json"
SIGNATURE = "serving_default"
# Of every tensor with this name; any other may have any value.
RANGES = {
    "image": [0.0, 1.0],
    "mask": [0.0, 1.0],
    "uncertainty": [0.0, 0.5],
    "shapes": [0.0, 1.0],
    "noise": [-1.0, 1.0],
    "lesion": [-1.0, 1.0],
    "tri_label": [0.0, 1.0],
}
PLAIN_NAME = re.compile(r"\w[\w .-]*")  # of systems and functions, which become folders
# float32, relative to each value, and to an output's largest value if that is above 1
TOLERANCE = 1e-5

Tensors = dict[str, NDArray[np.float32]]


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

    Raises:
        ExportError: As `export`.
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
        raise ExportError(f"{directory}: exists and is no export, so it is not replaced")
    new = _sibling(directory, "new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        functions = write(model, new)
        text = json.dumps(_make_card(model, functions, card), indent=2, allow_nan=False)
        (new / CARD).write_text(text + "\n", encoding="utf-8")
        filesystem.flush(new)
        _replace(directory, new)
    except (OSError, tf.errors.OpError) as error:
        raise ExportError(f"{directory}: can't be written ({_summarize(error)})") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return directory


def locate(directory: Path) -> Path:
    """Find an export: in its place, or beside it.

    It lies beside its place after a crash between the two moves that replace one export by another.
    """
    old = _sibling(directory, "old")
    return old if old.is_dir() and not directory.exists() else directory


def remove_leftovers(directory: Path) -> None:
    """Remove what a killed `export` has left beside its place.

    An older export whose replacement is missing goes back to its place.
    """
    old = _sibling(directory, "old")
    if old.is_dir() and not directory.exists():
        old.replace(directory)
    for left in (old, _sibling(directory, "new")):
        shutil.rmtree(left, ignore_errors=True)


def read_card(directory: Path) -> dict[str, Any]:
    """Read the card of an export.

    Returns:
        "format", "name", "serves", "versions", "networks" (name -> number of parameters),
        "functions" (name -> "inputs" and "outputs", each name -> shape, dtype and range, and
        "variables"), and what `export` was given.

    Raises:
        ExportError: The folder holds no export, or one of a newer tfmammo.
    """
    path = locate(Path(directory)) / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ExportError(f"{directory}: holds no export, {CARD} is missing") from None
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: can't be read ({_summarize(error)})") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ExportError(f"{path}: is no card of format {FORMAT}, the one that this version reads")
    _check_names(path, card)
    return card


def get_training_patients(card: Mapping[str, Any], where: object) -> frozenset[str]:
    """Return the pseudonyms of the patients that an export's networks were trained on.

    Args:
        card: Of `read_card`.
        where: What an error names.

    Raises:
        KeyError: The card does not name them.
        ExportError: They were made with another TFMAMMO_ID_KEY, so none could match a patient of
            today.
    """
    patients = frozenset(card["train_patients"])
    if fault := key_fault(card.get("id_key")):
        raise ExportError(f"{where}: {fault}")
    return patients


def find_function(directory: Path, inputs: Collection[str], outputs: Collection[str]) -> str:
    """Find the function of an export with exactly these inputs and at least these outputs.

    If there are several, it is the one that the card serves, else the first.

    Raises:
        ExportError: There is none.
    """
    card = read_card(directory)
    names = sorted(card["functions"], key=lambda name: name != card["serves"])
    for name in names:
        function = card["functions"][name]
        if set(function["inputs"]) == set(inputs) and set(outputs) <= set(function["outputs"]):
            return name
    wanted = f"{', '.join(sorted(inputs))} to {', '.join(sorted(outputs))}"
    raise ExportError(
        f"{directory}: holds a model for {card['name']}, and none of its functions leads from "
        f"{wanted}"
    )


@dataclass(frozen=True, eq=False)
class LoadedFunction:
    """One function of an export in memory.

    Attributes:
        call: As `load` returns it.
        card: The export's.
        weights: A hash; see `load_identified`.
    """

    call: Callable[..., Tensors]
    card: dict[str, Any]
    weights: str


def load(directory: Path, function: str) -> Callable[..., Tensors]:
    """Load one function of an export, ready to be called with arrays or tensors.

    Args:
        directory: An export.
        function: A name in its card, see `find_function`.

    Returns:
        A callable that takes float32 [n, s, s, 1] in the card's ranges, by name or in the card's
        order, and returns output's name -> float32 array. It raises ExportError on a wrong name,
        number or shape of inputs, and on values that are NaN or more than 1e-5 outside their range.

    Raises:
        ExportError: There is no export or no such function, or the SavedModel is damaged.
    """
    card = read_card(directory)
    return _make_caller(_load_saved_model(directory, function, card), directory, function, card)


def load_identified(directory: Path, function: str) -> LoadedFunction:
    """Load one function of an export with its card and a hash of its weights.

    The hash is of what is in memory, whatever becomes of the files: the SHA-256 of the signature
    and of every variable's dtype, shape and values. Equal networks have equal hashes, however often
    they are exported.

    Raises:
        ExportError: As `load`, or the export was replaced by another meanwhile.
    """
    card = read_card(directory)
    loaded = _load_saved_model(directory, function, card)
    if read_card(directory) != card:
        raise ExportError(f"{directory}: was replaced while it was read; try again")
    call = _make_caller(loaded, directory, function, card)
    return LoadedFunction(call, card, _hash_weights(loaded, card["functions"][function]))


def hash_files(directory: Path, function: str) -> str:
    """Compute the SHA-256 of a SavedModel's files, as recipes of earlier versions hold it."""
    content = hashlib.sha256()
    place = locate(Path(directory)) / function
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        content.update(f"{path.relative_to(place).as_posix()} {digest}\n".encode())
    return content.hexdigest()


def _load_saved_model(directory: Path, function: str, card: Mapping[str, Any]) -> Any:
    if function not in card["functions"]:
        raise ExportError(
            f"{directory}: has no function {function}, only {', '.join(card['functions'])}"
        )
    folder = locate(Path(directory)) / function
    with _translate_errors(folder):
        return tf.saved_model.load(str(folder))


def _make_caller(
    loaded: Any, directory: Path, function: str, card: Mapping[str, Any]
) -> Callable[..., Tensors]:
    folder = locate(Path(directory)) / function
    inputs = card["functions"][function]["inputs"]
    # At the first call TensorFlow reports each optimisation of the graph that it can't apply as an
    # error.
    first_call = iter((hold_back_stderr(),))

    def call(*arrays: Any, **named: Any) -> Tensors:
        """Call the function as the docstring of `load` says."""
        values = dict(zip(inputs, arrays, strict=False)) | named
        if len(arrays) + len(named) != len(inputs) or values.keys() != inputs.keys():
            raise ExportError(
                f"{folder}: takes {', '.join(inputs)}, got {len(arrays)} unnamed and "
                f"{sorted(named)}"
            )
        for name, value in values.items():
            _check_shape(f"{folder}: {name}", np.shape(value), inputs[name]["shape"])
            _check_range(f"{folder}: {name}", value, inputs[name]["range"])
        # `loaded` owns the variables, so the closure must hold it and not only the signature.
        with next(first_call, contextlib.nullcontext()):
            outputs = loaded.signatures[SIGNATURE](
                **{name: tf.cast(value, tf.float32) for name, value in values.items()}
            )
        return {name: output.numpy() for name, output in outputs.items()}

    return call


def _hash_weights(loaded: Any, description: Mapping[str, Any]) -> str:
    """Hash a loaded function; see `load_identified`.

    A variable goes by its index, because names count up within a process.

    Args:
        loaded: The SavedModel.
        description: The function's part of the card.
    """
    weights = list(getattr(loaded, "weights", ()))
    others = list(getattr(loaded, "others", ()))
    signature = {
        part: {name: (spec["shape"], spec["dtype"]) for name, spec in description[part].items()}
        for part in ("inputs", "outputs")
    }
    content = hashlib.sha256(json.dumps(signature, sort_keys=True).encode())
    for variable in weights:
        content.update(_hash_variable(variable))
    hashed = {id(variable) for variable in weights}
    # sorted, because the others have no order
    remaining = (variable for variable in others if id(variable) not in hashed)
    for digest in sorted(_hash_variable(variable) for variable in remaining):
        content.update(digest)
    return content.hexdigest()


def _hash_variable(variable: tf.Variable) -> bytes:
    values = variable.numpy()
    content = hashlib.sha256(f"{values.dtype.str} {values.shape}".encode())
    content.update(np.ascontiguousarray(values).data)
    return content.digest()


def assign(networks: Mapping[str, keras.Model], directory: Path) -> None:
    """Copy the weights of an export into networks, to start from them.

    Networks that the exported model had but did not export keep their weights. Nothing is assigned
    unless everything fits.

    Args:
        networks: Of the same names as the export's, each with the same variables in the same order,
            trainable or not.
        directory: The export.

    Raises:
        ExportError: The export holds another model, or can't be read.
    """
    card = read_card(directory)
    directory = Path(directory)
    owner = f"{directory}: holds a model for {card['name']}"
    if set(networks) != set(card["networks"]):
        raise ExportError(
            f"{owner} with the networks {', '.join(sorted(card['networks']))}, this one has "
            f"{', '.join(sorted(networks))}"
        )
    for name, function in card["functions"].items():
        _check_variables(f"{owner} whose {name}", networks[name], function["variables"])
    for name in card["functions"]:
        folder = locate(directory) / name
        with _translate_errors(folder):
            values = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
            for index, variable in enumerate(networks[name].variables):
                variable.assign(values.get_tensor(f"weights/{index}/.ATTRIBUTES/VARIABLE_VALUE"))


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
    inputs = _random_inputs(specs)
    with _keep_state(network):
        eager = {key: output.numpy() for key, output in function.python_function(**inputs).items()}
    saved = tf.saved_model.load(str(folder))
    _compare_answers(
        name,
        eager,
        {key: output.numpy() for key, output in saved.signatures[SIGNATURE](**inputs).items()},
    )
    return {
        "inputs": {key: _describe_tensor(key, spec) for key, spec in specs.items()},
        "outputs": {
            key: _describe_tensor(key, output)
            for key, output in concrete.structured_outputs.items()
        },
        "variables": _describe_variables(network),
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


def _random_inputs(specs: Mapping[str, tf.TensorSpec]) -> dict[str, tf.Tensor]:
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


def _compare_answers(name: str, eager: Tensors, saved: Tensors) -> None:
    for key, expected in eager.items():
        # a value near 0 among large ones is no more exact than they are
        scale = max(1.0, float(np.max(np.abs(expected))))
        if not np.allclose(saved[key], expected, rtol=TOLERANCE, atol=TOLERANCE * scale):
            largest = np.max(np.abs(saved[key] - expected))
            raise ExportError(
                f"network {name}: {key} differs by up to {largest:.3g} between the SavedModel and "
                "the eager network"
            )
        low, high = RANGES.get(key, (-np.inf, np.inf))
        if expected.min() < low - TOLERANCE or expected.max() > high + TOLERANCE:
            raise ExportError(
                f"network {name}: {key} reaches from {expected.min():.3g} to "
                f"{expected.max():.3g}, outside [{low:g}, {high:g}]"
            )


def _make_card(
    model: Exportable, functions: dict[str, Any], card: Mapping[str, Any]
) -> dict[str, Any]:
    serves = card.get("serves", _choose_default(functions))
    if serves not in functions:
        raise ExportError(
            f"the card serves {serves}, which is none of the functions {', '.join(functions)}"
        )
    plain = {key: _to_json_types(value) for key, value in card.items()}
    content = {"format": FORMAT, "name": model.name} | plain
    _check_names(CARD, content | {"functions": functions})
    return content | {
        "format": FORMAT,
        "serves": serves,
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
        "networks": {name: network.count_params() for name, network in model.networks.items()},
        "functions": functions,
    }


def _check_names(path: Path | str, card: Mapping[str, Any]) -> None:
    for name in (*([card["name"]] if "name" in card else []), *card.get("functions", ())):
        if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
            raise ExportError(
                f"{path}: {str(name)[:80]!r} is no plain name (letters, digits, _ - .)"
            )


def _choose_default(functions: Mapping[str, Any]) -> str | None:
    for wanted in (("image", "mask"), ("mask", "image")):
        for name, function in functions.items():
            if set(function["inputs"]) == {wanted[0]} and wanted[1] in function["outputs"]:
                return name
    return next(iter(functions), None)


def _describe_tensor(name: str, tensor: Any) -> dict[str, Any]:
    return {"shape": tensor.shape.as_list(), "dtype": tensor.dtype.name, "range": RANGES.get(name)}


def _describe_variables(network: keras.Model) -> list[str]:
    """Describe each variable by name and shape.

    Only the last part of its path counts, because layers' names count up within a process.
    """
    return [
        f"{variable.name} {'x'.join(map(str, variable.shape)) or 'scalar'}"
        for variable in network.variables
    ]


def _check_variables(owner: str, network: keras.Model, exported: list[str]) -> None:
    own = _describe_variables(network)
    if len(own) != len(exported):
        raise ExportError(f"{owner} has {len(exported)} variables, this one has {len(own)}")
    for index, (theirs, ours) in enumerate(zip(exported, own, strict=True)):
        if theirs != ours:
            path = network.variables[index].path
            raise ExportError(
                f"{owner} has variable {index} of name and shape {theirs}, this one has {ours} "
                f"({path})"
            )


def _check_shape(name: str, shape: tuple[int, ...], expected: list[int | None]) -> None:
    if len(shape) != len(expected) or any(
        want not in (None, size) for size, want in zip(shape, expected, strict=True)
    ):
        wanted = ", ".join("n" if size is None else str(size) for size in expected)
        raise ExportError(f"{name} must have the shape [{wanted}], not {list(shape)}")


def _check_range(name: str, value: Any, limits: list[float] | None) -> None:
    """Check values in one pass on their device; a comparison with NaN is false."""
    if limits is None:
        return
    low = limits[0] - TOLERANCE
    high = limits[1] + TOLERANCE
    values, every = (
        (tf.cast(value, tf.float32), tf.reduce_all)
        if tf.is_tensor(value)
        else (np.asarray(value), np.all)
    )
    if not every((values >= low) & (values <= high)):
        smallest = float(np.min(values))
        largest = float(np.max(values))
        raise ExportError(
            f"{name} must lie in [{limits[0]:g}, {limits[1]:g}], but reaches from {smallest:g} to "
            f"{largest:g}"
        )


def _to_json_types(value: Any) -> Any:
    """Convert a value to JSON's types: non-finite numbers to null, unknown types to text."""
    if isinstance(value, Mapping):
        return {str(key): _to_json_types(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [
            _to_json_types(item)
            for item in (sorted(value) if isinstance(value, set | frozenset) else value)
        ]
    if isinstance(value, np.ndarray | np.generic):
        return _to_json_types(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _sibling(directory: Path, suffix: str) -> Path:
    return directory.with_name(f".{directory.name}.{suffix}")


def _replace(directory: Path, new: Path) -> None:
    old = _sibling(directory, "old")
    if directory.exists():
        shutil.rmtree(old, ignore_errors=True)
        directory.replace(old)
    new.replace(directory)  # no system moves two folders at once: see `locate`
    filesystem.flush_names(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _translate_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, tf.errors.OpError, RuntimeError, ValueError) as error:
        raise ExportError(
            f"{folder}: the SavedModel can't be read ({_summarize(error)})"
        ) from error


def _summarize(error: Exception) -> str:
    return " ".join(str(error).split()) or error.__class__.__name__


def predict(
    function: Callable[..., dict[str, tf.Tensor]], name: str, values: np.ndarray, batch: int = 8
) -> dict[str, np.ndarray]:
    """Run an exported function over many patches, `batch` at a time.

    Args:
        function: A function of one input.
        name: The input's name.
        values: [n, ...].
        batch: Patches in a call.

    Returns:
        float32 arrays by output name.
    """
    parts = [
        function(**{name: tf.constant(values[i : i + batch])}) for i in range(0, len(values), batch)
    ]
    return {
        key: np.concatenate([np.asarray(part[key], np.float32) for part in parts])
        for key in parts[0]
    }
