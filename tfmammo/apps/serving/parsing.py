"""Parse the body of a request.

MLflow's parser is not used: its errors repeat the request, which holds a patient's image.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

# Numbers, texts and lists of a request: as Python objects they take up to forty bytes each, however
# short their text. The largest mammograms have half as many pixels.
MAX_VALUES = 2**24


class BadRequest(ValueError):
    """A body that can't be used. The message is one sentence and repeats nothing of the body."""


def parse(body: bytes | bytearray, of_images: bool) -> tuple[Any, dict[str, Any] | None]:
    """Parse a JSON body into inputs and params.

    Args:
        body: JSON.
        of_images: Whether the inputs must be a list of objects, one for each image; otherwise
            they become a float32 array, or name -> array.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise BadRequest(
            f"the request holds more than {MAX_VALUES} values; send a large image as a file, in "
            "image"
        )
    try:
        request = json.loads(body, parse_constant=_refuse_constant)
    except BadRequest:
        raise
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"the request is not valid JSON ({error.msg} at character {error.pos})"
        ) from None
    except (ValueError, RecursionError):  # not UTF-8, a number of too many digits, too deep
        raise BadRequest("the request is not valid JSON") from None
    if not isinstance(request, dict) or "inputs" not in request:
        raise BadRequest("the request must be an object with the key inputs")
    inputs = request["inputs"]
    params = request.get("params")
    if not isinstance(params, dict | None):
        raise BadRequest("params must be an object")
    if of_images:
        if not isinstance(inputs, list) or not all(isinstance(item, dict) for item in inputs):
            raise BadRequest("inputs must be a list of images, each an object with image or pixels")
        return inputs, params
    if isinstance(inputs, dict):
        return {name: _to_array(value) for name, value in inputs.items()}, params
    return _to_array(inputs), params


def _refuse_constant(name: str) -> None:
    raise BadRequest(f"{name} is not a number in JSON")


def _to_array(value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        array = np.empty(0, object)
    if array.dtype.kind not in "iuf" or not isinstance(value, list):
        raise BadRequest("inputs must be an array of numbers, or an object of such arrays")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite
        return array.astype(np.float32)
