"""Parse the body of a request; as a script, in a process with limited memory and time.

As Python objects, a list of numbers takes sixteen times the memory of its text, a list of empty
lists thirty times. So the cost of a body must be bounded beforehand, whatever it holds. Small
bodies are parsed in the server. Larger ones are parsed in another process: the system limits its
memory (RLIMIT_AS), it can be killed when nobody waits for it any more, and its memory is freed with
it. It returns arrays and text (`write`, `load`; no pickle). A streaming or a typed parser would not
help: both make an object of each number.

The script imports only the standard library and NumPy, so that it starts within a fraction of a
second.
"""

from __future__ import annotations

import gc
import io
import json
import os
import resource
import sys
from contextlib import suppress
from typing import IO, Any

import numpy as np

# Numbers, texts, lists and objects of a request. The largest mammograms have half as many pixels.
MAX_VALUES = 2**24
MAX_OBJECTS = 4096  # of a request
MAX_KEYS = 32  # of an object
MAX_DIMENSIONS = 4  # of an array
BASE_MEMORY = 512 * 2**20  # bytes that the process may use for an empty body
MEMORY_FACTOR = 8  # further bytes for each byte of the body
MAX_CPU_SECONDS = 60

Request = tuple[Any, dict[str, Any] | None]


class BadRequest(ValueError):
    """A body that is no request. The message is one sentence and repeats nothing of the body."""


def parse(body: bytes) -> Request:
    """Parse a body into inputs and params; lists of numbers become arrays.

    Returns:
        The inputs (a list of objects whose "pixels" is an array, an array, or name -> array), and
        the params (an object, or None).

    Raises:
        BadRequest: The body is no request.
    """
    # These bytes separate values, or are text that no service asks for.
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
    if params is not None and not isinstance(params, dict):
        raise BadRequest("params must be an object")
    _check_plain(params or {}, "params")
    if isinstance(inputs, dict):
        if len(inputs) > MAX_KEYS:
            raise BadRequest(f"inputs has more than {MAX_KEYS} keys")
        arrays = {name: _to_array(value, f"inputs.{name[:40]}") for name, value in inputs.items()}
        return arrays, params
    if not isinstance(inputs, list):
        raise BadRequest("inputs must be a list of images, an array, or an object of arrays")
    if not inputs or not isinstance(inputs[0], dict):
        return (_to_array(inputs, "inputs") if inputs else []), params
    return [_convert_image(item, number) for number, item in enumerate(inputs)], params


def write(request: Request, file: IO[bytes]) -> None:
    """Write a request for `load`: arrays in NumPy's format, all else as JSON."""
    inputs, params = request
    arrays: dict[str, np.ndarray] = {}
    if isinstance(inputs, np.ndarray):
        arrays = {"inputs": inputs}
        inputs = None
    elif isinstance(inputs, dict):
        arrays = {f"input {number}": array for number, array in enumerate(inputs.values())}
        inputs = {"names": list(inputs)}
    else:
        arrays = {
            str(number): item.pop("pixels")
            for number, item in enumerate(inputs)
            if "pixels" in item
        }
    text = json.dumps({"inputs": inputs, "params": params}).encode()
    # no array is meant for one of savez's own options
    np.savez(file, request=np.frombuffer(text, np.uint8), **arrays)  # type: ignore[arg-type]


def load(file: IO[bytes]) -> Request:
    """Load the request that `write` wrote.

    Raises:
        BadRequest: The file was written by `write_failure`; the message is the same.
    """
    with np.load(file, allow_pickle=False) as content:
        if "failed" in content:
            raise BadRequest(content["failed"].tobytes().decode())
        request = json.loads(content["request"].tobytes())
        inputs = request["inputs"]
        params = request["params"]
        if "inputs" in content:
            return content["inputs"], params
        if isinstance(inputs, dict):
            names = inputs["names"]
            return {name: content[f"input {n}"] for n, name in enumerate(names)}, params
        for number, item in enumerate(inputs):
            if str(number) in content:
                item["pixels"] = content[str(number)]
        return inputs, params


def write_failure(sentence: str, file: IO[bytes]) -> None:
    """Write why there is no request."""
    np.savez(file, failed=np.frombuffer(sentence.encode("utf-8", "replace"), np.uint8))


def main() -> None:
    """Parse stdin to stdout, both files. Exit code 1 means that the memory was not enough."""
    size = sys.stdin.buffer.seek(0, io.SEEK_END)
    _limit(resource.RLIMIT_AS, BASE_MEMORY + MEMORY_FACTOR * size)
    _limit(resource.RLIMIT_CPU, MAX_CPU_SECONDS)
    sys.stdin.buffer.seek(0)
    os.nice(10)  # small requests come first
    gc.disable()  # it would search all lists again and again, and nothing can be freed
    try:
        request = parse(sys.stdin.buffer.read())
    except BadRequest as error:
        return write_failure(str(error), sys.stdout.buffer)
    except MemoryError:
        sys.exit(1)
    write(request, sys.stdout.buffer)


def _limit(kind: int, value: int) -> None:
    # The system may not know the limit, or a lower one may hold already.
    with suppress(ValueError, OSError):
        resource.setrlimit(kind, (value, value))


def _load_json(body: bytes) -> Any:
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
    values = dict(pairs)
    if len(values) != len(pairs):
        raise BadRequest("an object of the request has a key twice")
    return values


def _refuse_constant(name: str) -> None:
    raise BadRequest(f"{name} is not a number in JSON")


def _check_plain(item: dict[str, Any], name: str) -> None:
    """Refuse long lists and many keys: only pixels may be large."""
    if len(item) > MAX_KEYS:
        raise BadRequest(f"{name} has more than {MAX_KEYS} keys")
    for key, value in item.items():
        if key != "pixels" and isinstance(value, list | dict):
            members = value if isinstance(value, list) else value.values()
            if len(value) > MAX_KEYS or any(isinstance(member, list | dict) for member in members):
                raise BadRequest(f"{name} has a key with more than a short list")


def _convert_image(item: Any, number: int) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise BadRequest(f"inputs[{number}] must be an object, as the others are")
    _check_plain(item, f"inputs[{number}]")
    if item.get("pixels") is None:
        return item
    return item | {"pixels": _to_array(item["pixels"], f"inputs[{number}]: pixels")}


def _to_array(value: Any, name: str) -> np.ndarray:
    """Convert lists of numbers to float32.

    Numbers too large for float32 become infinite, and the checks of ranges refuse them later.
    """
    refusal = BadRequest(
        f"{name} must be rows of equal length, or lists of one shape up to {MAX_DIMENSIONS} deep, "
        "of numbers"
    )
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        raise refusal from None
    if array.dtype.kind not in "iuf" or not isinstance(value, list) or array.ndim > MAX_DIMENSIONS:
        raise refusal
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


if __name__ == "__main__":
    main()
