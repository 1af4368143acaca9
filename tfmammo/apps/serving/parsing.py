"""Parse the body of a request, with one sentence for whatever is wrong.

MLflow's parser is not used: its errors repeat the request, which holds a patient's image.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

# Numbers, texts and lists of a request: as Python objects they take up to forty bytes each, however
# short their text. The largest mammograms have half as many pixels.
MAX_VALUES = 2**24
MAX_OBJECTS = 4096  # of a request
MAX_KEYS = 32  # of an object
MAX_DIMENSIONS = 4  # of an array

Request = tuple[Any, dict[str, Any] | None]


class BadRequest(ValueError):
    """A body that is no request. The message is one sentence and repeats nothing of the body."""


def parse(body: bytes | bytearray, of_images: bool) -> Request:
    """Parse a body into inputs and params.

    Args:
        body: JSON.
        of_images: Whether the inputs must be a list of objects, one for each image.

    Returns:
        The inputs (such a list; otherwise a float32 array, or name -> array), and the params (an
        object, or None).

    Raises:
        BadRequest: The body is no request.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise BadRequest(
            f"the request holds more than {MAX_VALUES} values; send a large image as a file, in "
            "image"
        )
    if body.count(b"{") > MAX_OBJECTS:
        raise BadRequest(f"the request holds more than {MAX_OBJECTS} objects")
    request = _load_json(body)
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


def _load_json(body: bytes | bytearray) -> Any:
    try:
        return json.loads(
            body.decode("utf-8"), object_pairs_hook=_make_object, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError:
        raise BadRequest("the request is not text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"the request is no valid JSON ({error.msg} at character {error.pos})"
        ) from None
    except RecursionError:
        raise BadRequest("the JSON is nested too deeply") from None
    except BadRequest:
        raise
    except ValueError:  # of Python's limit on the digits of a whole number
        raise BadRequest("the request holds a number of too many digits") from None


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise BadRequest(f"an object of the request has more than {MAX_KEYS} keys")
    values = dict(pairs)
    if len(values) != len(pairs):
        raise BadRequest("an object of the request has a key twice")
    return values


def _refuse_constant(name: str) -> None:
    raise BadRequest(f"{name} is not a number in JSON")


def _to_array(value: Any) -> np.ndarray:
    """Convert lists of numbers to float32; those too large for it become infinite."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        array = np.empty(0, object)
    if array.dtype.kind not in "iuf" or not isinstance(value, list) or array.ndim > MAX_DIMENSIONS:
        raise BadRequest(
            "inputs must be an array, or an object of arrays: rows of equal length, or lists of "
            f"one shape up to {MAX_DIMENSIONS} deep, of numbers"
        )
    with np.errstate(over="ignore"):
        return array.astype(np.float32)
