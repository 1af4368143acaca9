"""Writing a function of an export as an ONNX file, from which ONNX Runtime answers.

On a CPU that is faster for single patches. The package tf2onnx converts; it and ONNX Runtime come
with the extra `onnx`.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf

from tfmammo import filesystem
from tfmammo.errors import ExportError, summarize
from tfmammo.nn._tensorflow import hold_back_stderr
from tfmammo.tracking.export.card import SIGNATURE, locate, read_card
from tfmammo.tracking.export.reading import SAME, load_onnx, load_saved_model
from tfmammo.tracking.export.writing import compare_answers, draw_inputs

OPSET = 17  # of ONNX: the latest that tf2onnx tests
TOLERANCE = 1e-4  # of answers; float32 sums in another order differ by some 1e-6


def write_onnx(directory: Path, function: str, file: Path) -> Path:
    """Write one function of an export as an ONNX file, and check that it answers alike.

    Args:
        directory: The export.
        function: A name in its card.
        file: Is replaced; its folder is made.

    Returns:
        `file`. Its inputs and outputs are the card's, of any number of patches. An output of an
        input's name ends in "_out".

    Raises:
        ExportError: The function can't be read or converted, or answers random patches differently
            by more than 1e-4. Dropout that stays at inference has no form in ONNX. An older file
            stays.
        ModuleNotFoundError: tf2onnx or onnxruntime is missing.
    """
    with _quiet():
        from tf2onnx import convert
    card = read_card(directory)
    loaded = load_saved_model(directory, function, card)
    call = loaded.signatures[SIGNATURE]
    folder = locate(Path(directory)) / function
    inputs = card["functions"][function]["inputs"]
    specs = [tf.TensorSpec(each["shape"], tf.float32, name) for name, each in inputs.items()]
    if any(None in spec.shape[1:] for spec in specs):
        raise ExportError(f"{folder}: takes images of any size, which can't be written as ONNX")
    patches = draw_inputs({spec.name: spec for spec in specs})
    file.parent.mkdir(parents=True, exist_ok=True)
    try:

        @tf.function(input_signature=specs)
        def answer(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
            outputs = call(**dict(zip(inputs, tensors, strict=True)))
            return {name + SAME * (name in inputs): value for name, value in outputs.items()}

        with hold_back_stderr(), _quiet():
            model, _ = convert.from_function(answer, input_signature=specs, opset=OPSET)
        with filesystem.atomic_file(file) as part:
            part.write_bytes(model.SerializeToString())
            found = load_onnx(part)(**patches)
            compare_answers("ONNX Runtime", found, call(**patches), TOLERANCE, of_each=False)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # tf2onnx's own, of several classes
        raise ExportError(f"{folder}: can't be written as ONNX ({summarize(error)})") from error
    return file


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back tf2onnx's log, and warnings of names that NumPy and TensorFlow have replaced.

    tf2onnx also sets the level of TensorFlow's own log, which later processes would inherit.
    """
    log = logging.getLogger("tf2onnx")
    level, native = log.level, os.environ["TF_CPP_MIN_LOG_LEVEL"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            log.setLevel(level)
            os.environ["TF_CPP_MIN_LOG_LEVEL"] = native
