"""Reading an export: a callable for each function, a hash of its weights, or the weights alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfmammo.errors import ExportError, summarize
from tfmammo.filesystem import sha256
from tfmammo.nn._tensorflow import hold_back_stderr
from tfmammo.tracking.export.card import (
    SIGNATURE,
    TOLERANCE,
    Tensors,
    describe_variables,
    find_function,
    get_training_patients,
    locate,
    read_card,
)

log = logging.getLogger(__name__)
SAME = "_out"  # ends the name of an output that an input has too, which ONNX forbids


@dataclass(frozen=True, eq=False)
class LoadedFunction:
    """One function of an export in memory.

    Attributes:
        call: As `load` returns it, but it gives arrays alone.
        card: The export's.
        description: The function's part of the card.
        patients: Those that the export's networks were trained on. None where the card does not
            say, or where a network of the zoo meets pseudonyms of another TFMAMMO_ID_KEY.
        weights: A hash; see `load_identified`.
    """

    call: Callable[..., Tensors]
    card: dict[str, Any]
    description: dict[str, Any]
    patients: frozenset[str] | None
    weights: str

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Shapes of its inputs, by name; None for any size."""
        return {name: tensor["shape"] for name, tensor in self.description["inputs"].items()}


def load(
    directory: Path, function: str, runtime: Literal["tensorflow", "onnx"] = "tensorflow"
) -> Callable[..., Tensors]:
    """Load one function of an export, ready to be called with arrays or tensors.

    Args:
        directory: An export.
        function: A name in its card, see `find_function`.
        runtime: What answers: TensorFlow, or ONNX Runtime from the FUNCTION.onnx that `write_onnx`
            put into the export.

    Returns:
        A callable that takes numbers [n, s, s, 1] in the card's ranges, by name or in the card's
        order, and returns output's name -> float32 array; float32 tensor where an input is one. It
        raises ExportError on a wrong name, number or shape of inputs, and on values that are NaN or
        more than 1e-5 outside their range. Within a tf.function that is an InvalidArgumentError.

    Raises:
        ExportError: There is no export or no such function, or its file is damaged or missing.
        ModuleNotFoundError: onnxruntime is missing.
    """
    card = read_card(directory)
    if runtime == "onnx":
        answer = load_onnx(locate(Path(directory)) / f"{function}.onnx")
    else:
        answer = _make_answer(load_saved_model(directory, function, card))
    return _make_caller(answer, directory, function, card)


def load_identified(
    directory: Path, inputs: Collection[str], outputs: Collection[str]
) -> LoadedFunction:
    """Find and load one function of an export, with its card and a hash of its weights.

    The hash is of what is in memory, whatever becomes of the files: the SHA-256 of the signature
    and of every variable's dtype, shape and values. Equal networks have equal hashes, however often
    they are exported.

    Args:
        directory: An export.
        inputs: See `find_function`.
        outputs: See `find_function`.

    Raises:
        ExportError: As `find_function` and `load`, the export was replaced by another meanwhile,
            or its patients' pseudonyms were made with another TFMAMMO_ID_KEY.
    """
    function = find_function(directory, inputs, outputs)
    card = read_card(directory)
    loaded = load_saved_model(directory, function, card)
    if read_card(directory) != card:
        raise ExportError(f"{directory}: was replaced while it was read; try again")
    description = card["functions"][function]
    return LoadedFunction(
        _make_caller(_make_answer(loaded, gives_tensors=False), directory, function, card),
        card,
        description,
        find_patients(card, directory),
        _hash_weights(loaded, description),
    )


def find_patients(card: Mapping[str, Any], directory: Path | str) -> frozenset[str] | None:
    """Return the patients of a card, as `get_training_patients`; None where it names none."""
    return get_training_patients(card, directory) if "train_patients" in card else None


def hash_files(directory: Path, function: str) -> str:
    """Compute the SHA-256 of a SavedModel's files."""
    content = hashlib.sha256()
    place = locate(Path(directory)) / function
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        content.update(f"{path.relative_to(place).as_posix()} {sha256(path)}\n".encode())
    return content.hexdigest()


def load_onnx(file: Path) -> Callable[..., Tensors]:
    """Load an ONNX file that `write_onnx` made.

    Returns:
        Takes float32 arrays by name, and returns float32 arrays by the card's names.

    Raises:
        ExportError: There is no such file, or it can't be read.
        ModuleNotFoundError: onnxruntime is missing.
    """
    import onnxruntime

    if not file.is_file():
        raise ExportError(f"{file}: there is no such file")
    try:
        session = onnxruntime.InferenceSession(
            file.read_bytes(), providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own, of several classes
        raise ExportError(f"{file}: can't be read as ONNX ({summarize(error)})") from None
    names = [output.name for output in session.get_outputs()]

    def answer(**values: Any) -> Tensors:
        arrays = {name: np.asarray(value, np.float32) for name, value in values.items()}
        outputs = session.run(names, arrays)
        return {name.removesuffix(SAME): value for name, value in zip(names, outputs, strict=True)}

    return answer


def load_saved_model(directory: Path, function: str, card: Mapping[str, Any]) -> Any:
    """Load the SavedModel of one function of an export, whose card is known.

    Raises:
        ExportError: There is no such function, or its SavedModel is damaged.
    """
    if function not in card["functions"]:
        raise ExportError(
            f"{directory}: has no function {function}, only {', '.join(card['functions'])}"
        )
    folder = locate(Path(directory)) / function
    with _translate_errors(folder):
        return tf.saved_model.load(str(folder))


def _make_answer(loaded: Any, gives_tensors: bool = True) -> Callable[..., Tensors]:
    """Make the function of a loaded SavedModel: arrays by name -> arrays by name.

    Args:
        loaded: The SavedModel.
        gives_tensors: Whether it answers tensors with tensors.
    """
    # At the first call TensorFlow reports each optimisation of the graph that it can't apply as an
    # error.
    first_call = iter((hold_back_stderr(),))

    def answer(**values: Any) -> Tensors:
        # `loaded` owns the variables, so the closure must hold it and not only the signature.
        with next(first_call, contextlib.nullcontext()):
            outputs = loaded.signatures[SIGNATURE](
                **{name: tf.cast(value, tf.float32) for name, value in values.items()}
            )
        if gives_tensors and any(map(tf.is_tensor, values.values())):
            return dict(outputs)
        return {name: output.numpy() for name, output in outputs.items()}

    return answer


def _make_caller(
    answer: Callable[..., Tensors], directory: Path, function: str, card: Mapping[str, Any]
) -> Callable[..., Tensors]:
    """Make a function that checks its inputs before `answer` gets them."""
    folder = locate(Path(directory)) / function
    inputs = card["functions"][function]["inputs"]

    @tf.autograph.experimental.do_not_convert
    def call(*arrays: Any, **named: Any) -> Tensors:
        """Call the function as the docstring of `load` says."""
        values = dict(zip(inputs, arrays, strict=False)) | named
        if len(arrays) + len(named) != len(inputs) or values.keys() != inputs.keys():
            raise ExportError(
                f"{folder}: takes {', '.join(inputs)}, got {len(arrays)} unnamed and "
                f"{sorted(named)}"
            )
        for name, value in values.items():
            where = f"{folder}: {name}"
            if not tf.is_tensor(value):
                _check_shape(where, np.shape(value), inputs[name]["shape"])
            elif value.shape.rank is not None:
                _check_shape(where, tuple(value.shape), inputs[name]["shape"])
            _check_range(where, value, inputs[name]["range"])
        return answer(**values)

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


def _check_shape(name: str, shape: tuple[int | None, ...], expected: list[int | None]) -> None:
    if len(shape) != len(expected) or any(
        want not in (None, size) and size is not None
        for size, want in zip(shape, expected, strict=True)
    ):
        wanted = ", ".join("n" if size is None else str(size) for size in expected)
        raise ExportError(f"{name} must have the shape [{wanted}], not {list(shape)}")


def _check_range(name: str, value: Any, limits: list[float] | None) -> None:
    """Check values in one pass on their device; a comparison with NaN is false.

    Within a graph, which runs every assertion, they are checked when it has values.
    """
    if limits is None:
        return
    low = limits[0] - TOLERANCE
    high = limits[1] + TOLERANCE
    values, every = (
        (tf.cast(value, tf.float32), tf.reduce_all)
        if tf.is_tensor(value)
        else (np.asarray(value), np.all)
    )
    fits = every((values >= low) & (values <= high))
    sentence = f"{name} must be in [{limits[0]:g}, {limits[1]:g}]"
    if tf.is_tensor(fits) and not tf.executing_eagerly():
        lowest, highest = tf.reduce_min(values), tf.reduce_max(values)
        tf.debugging.Assert(fits, [sentence, "but reaches from", lowest, "to", highest])
    elif not fits:
        smallest = float(np.min(values))
        largest = float(np.max(values))
        raise ExportError(f"{sentence}, but reaches from {smallest:g} to {largest:g}")


def assign(networks: Mapping[str, keras.Model], directory: Path) -> None:
    """Copy the weights of an export into networks, to start from them.

    Networks that the exported model had but did not export keep their weights, and all keep the
    states of their random numbers. Nothing is assigned unless everything fits.

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
    if foreign := set(card["functions"]) - set(networks):
        raise ExportError(
            f"{owner} with the functions {', '.join(sorted(foreign))}, which are no networks of "
            "this one"
        )
    variables = {
        name: _pair_weights(f"{owner} whose {name}", networks[name], function["variables"])
        for name, function in card["functions"].items()
    }
    for name, pairs in variables.items():
        folder = locate(directory) / name
        with _translate_errors(folder):
            values = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
            for index, variable in pairs:
                variable.assign(values.get_tensor(f"weights/{index}/.ATTRIBUTES/VARIABLE_VALUE"))


def _pair_weights(
    owner: str, network: keras.Model, exported: Sequence[str]
) -> list[tuple[int, keras.Variable]]:
    """Pair the places of an export's weights with a network's; an ExportError if they differ."""
    described = describe_variables(network)
    theirs, ours = (
        # no states of dropout's random numbers
        [i for i, text in enumerate(texts) if not text.startswith("seed_generator_state ")]
        for texts in (exported, described)
    )
    if len(ours) != len(theirs):
        raise ExportError(f"{owner} has {len(theirs)} variables, this one has {len(ours)}")
    pairs = []
    for index, place in zip(theirs, ours, strict=True):
        variable = network.variables[place]
        if exported[index] != described[place]:
            raise ExportError(
                f"{owner} has variable {index} of name and shape {exported[index]}, this one has "
                f"{described[place]} ({variable.path})"
            )
        pairs.append((index, variable))
    return pairs


@contextlib.contextmanager
def _translate_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, tf.errors.OpError, RuntimeError, ValueError) as error:
        raise ExportError(f"{folder}: the SavedModel can't be read ({summarize(error)})") from error


def predict(
    function: Callable[..., Mapping[str, Any]], inputs: Mapping[str, np.ndarray], batch: int = 8
) -> Tensors:
    """Run an exported function over many patches, `batch` at a time.

    Args:
        function: A function of these inputs.
        inputs: Input's name -> [n, ...], the same n for all. Where n is 0, it is called once, which
            gives the outputs their shapes.
        batch: Patches in a call.

    Returns:
        float32 arrays by output name.
    """
    count = len(next(iter(inputs.values())))
    parts = [
        function(
            **{name: tf.constant(values[start : start + batch]) for name, values in inputs.items()}
        )
        for start in range(0, max(1, count), batch)
    ]
    return {
        key: np.concatenate([np.asarray(part[key], np.float32) for part in parts])
        for key in parts[0]
    }
