"""A request's body as values; run as a script, in a process of its own whose memory and
time are limited.

A list of numbers takes sixteen times its text as Python objects, a list of empty lists thirty
times: whatever a body is made of, what it may cost must be known beforehand. Small bodies are
parsed where they are. Any other goes to a process that the system itself holds to a limit
(RLIMIT_AS), that can be killed when nobody waits for it any more, and whose memory is gone with it.
What comes back are arrays and text (`written`, `loaded`; no pickle). Neither a streaming parser nor
a typed one does that: both still make an object of each number.

The script needs the standard library and NumPy alone, so that it starts within a fraction of a
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

# numbers, texts, lists and objects of a request; the largest mammograms have half as many pixels
VALUES = 2**24
OBJECTS = 4096  # of a request
KEYS = 32  # of an object
DIMENSIONS = 4  # of an array
SPARE = 512 * 2**20  # bytes of memory of the process, beside those that follow from the body
TIMES = 8  # bytes of memory for each of the body
CPU_SECONDS = 60

Request = tuple[Any, dict[str, Any] | None]


class BadRequest(ValueError):
    """A body that is no request. The message is one sentence, without anything that was sent."""


def parsed(body: bytes) -> Request:
    """The inputs and params of a request, lists of numbers as arrays.

    Returns:
        Inputs: a list of objects, in which "pixels" is an array; an array; or name -> array.
        params: an object, or None.

    Raises:
        BadRequest: It is none.
    """
    # so many values would follow, or are text that we never ask for
    if sum(map(body.count, (b",", b"[", b"{"))) > VALUES:
        raise BadRequest(
            f"the request holds more than {VALUES} values; send a large picture as a file, in image"
        )
    if body.count(b"{") > OBJECTS:
        raise BadRequest(f"the request holds more than {OBJECTS} objects")
    request = _json(body)
    if not isinstance(request, dict) or "inputs" not in request:
        raise BadRequest("the request must be an object with the key inputs")
    inputs = request["inputs"]
    params = request.get("params")
    if params is not None and not isinstance(params, dict):
        raise BadRequest("params must be an object")
    _check_plain(params or {}, "params")
    if isinstance(inputs, dict):
        if len(inputs) > KEYS:
            raise BadRequest(f"inputs has more than {KEYS} keys")
        return {
            name: _array(value, f"inputs.{name[:40]}") for name, value in inputs.items()
        }, params
    if not isinstance(inputs, list):
        raise BadRequest("inputs must be a list of pictures, an array, or an object of arrays")
    if not inputs or not isinstance(inputs[0], dict):
        return (_array(inputs, "inputs") if inputs else []), params
    return [_picture(item, number) for number, item in enumerate(inputs)], params


def written(request: Request, file: IO[bytes]) -> None:
    """Write a request for `loaded`: its arrays as NumPy has them, all else as JSON."""
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
    np.savez(file, request=np.frombuffer(text, np.uint8), **arrays)  # type: ignore[arg-type]  # of its own options none is meant


def loaded(file: IO[bytes]) -> Request:
    """What `written` wrote.

    Raises:
        BadRequest: It is what `failed` wrote.
    """
    with np.load(file, allow_pickle=False) as held:
        if "failed" in held:
            raise BadRequest(held["failed"].tobytes().decode())
        request = json.loads(held["request"].tobytes())
        inputs = request["inputs"]
        params = request["params"]
        if "inputs" in held:
            return held["inputs"], params
        if isinstance(inputs, dict):
            return {
                name: held[f"input {number}"] for number, name in enumerate(inputs["names"])
            }, params
        for number, item in enumerate(inputs):
            if str(number) in held:
                item["pixels"] = held[str(number)]
        return inputs, params


def failed(sentence: str, file: IO[bytes]) -> None:
    """Write why there is no request."""
    np.savez(file, failed=np.frombuffer(sentence.encode(), np.uint8))


def main() -> None:
    """Parse stdin to stdout, both files. Exit code 1: the memory did not do."""
    size = sys.stdin.buffer.seek(0, io.SEEK_END)
    _limit(resource.RLIMIT_AS, SPARE + TIMES * size)
    _limit(resource.RLIMIT_CPU, CPU_SECONDS)
    sys.stdin.buffer.seek(0)
    os.nice(10)  # whoever waits for a small answer comes first
    gc.disable()  # which would walk all lists again and again, while nothing can be freed
    try:
        request = parsed(sys.stdin.buffer.read())
    except BadRequest as error:
        return failed(str(error), sys.stdout.buffer)
    except MemoryError:
        sys.exit(1)
    written(request, sys.stdout.buffer)


def _limit(kind: int, value: int) -> None:
    # a system that knows no such limit, or a lower one that holds already
    with suppress(ValueError, OSError):
        resource.setrlimit(kind, (value, value))


def _json(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadRequest("an object of the request has a key twice")
    return found


def _constant(name: str) -> None:
    raise BadRequest(f"{name} is no number in JSON")


def _check_plain(item: dict[str, Any], name: str) -> None:
    """Refuse what is neither pixels nor one of a few texts, numbers and short lists: only arrays
    may be many.
    """
    if len(item) > KEYS:
        raise BadRequest(f"{name} has more than {KEYS} keys")
    for key, value in item.items():
        if key != "pixels" and isinstance(value, list | dict):
            inner = value if isinstance(value, list) else value.values()
            if len(value) > KEYS or any(isinstance(one, list | dict) for one in inner):
                raise BadRequest(f"{name} has a key with more than a short list")


def _picture(item: Any, number: int) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise BadRequest(f"inputs[{number}] must be an object, as the others are")
    _check_plain(item, f"inputs[{number}]")
    if item.get("pixels") is None:
        return item
    return item | {"pixels": _array(item["pixels"], f"inputs[{number}]: pixels")}


def _array(value: Any, name: str) -> np.ndarray:
    """float32 of numbers.

    What float32 can't hold is infinite in it, which no check of a range lets pass.
    """
    refusal = BadRequest(
        f"{name} must be rows of equal length, or lists of one shape up to {DIMENSIONS} deep, of "
        "numbers"
    )
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        raise refusal from None
    if array.dtype.kind not in "iuf" or not isinstance(value, list) or array.ndim > DIMENSIONS:
        raise refusal
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


if __name__ == "__main__":
    main()
