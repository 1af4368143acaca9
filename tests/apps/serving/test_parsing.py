"""Parsing of bodies: arrays, images, and one sentence for what is no request."""

import json
import tracemalloc

import numpy as np
import pytest

from tfmammo.apps.serving import parsing
from tfmammo.apps.serving.parsing import BadRequest, parse


def body(inputs, **more):
    return json.dumps({"inputs": inputs, **more}).encode()


def test_images_are_objects_and_networks_take_arrays():
    images = [{"pixels": [[0, 1], [0.5, 0.25]], "view": "CC"}, {"image": "QQ=="}]
    assert parse(body(images, params={"network": "g"}), True) == (images, {"network": "g"})
    assert parse(body([]), True) == ([], None)
    inputs, params = parse(body([[[[0.5], [1]]]]), False)
    assert inputs.shape == (1, 1, 2, 1) and inputs.dtype == np.float32 and params is None
    inputs, _ = parse(body({"mask": [[1.0]], "image": [[2]]}), False)
    assert {name: array.tolist() for name, array in inputs.items()} == {
        "mask": [[1.0]],
        "image": [[2.0]],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no valid JSON"),
        (b'{"inputs": ', "no valid JSON"),
        (b"\xff\xfe", "UTF-8"),
        ('{"inputs": []}'.encode("utf-16"), "UTF-8"),
        (b"[1]", "key inputs"),
        (b'{"input": []}', "key inputs"),
        (b'{"inputs": 3}', "inputs must be"),
        (b'{"inputs": [], "params": 3}', "params"),
        (b'{"inputs": [[NaN]]}', "NaN"),
        (b'{"inputs": [[-Infinity]]}', "-Infinity"),
        (b'{"inputs": [], "inputs": [1]}', "twice"),
        (b'{"inputs": [{"image": "a", "image": "b"}]}', "twice"),
        (b'{"inputs": [' + b"9" * 5000 + b"]}", "too many digits"),
        (b'{"inputs": [' + b"9" * 400 + b"]}", "inputs must be"),
        (b'{"inputs": [["1"]]}', "of numbers"),
        (b'{"inputs": [[true]]}', "of numbers"),
        (b'{"inputs": [[1], [1, 2]]}', "equal length"),
        (b'{"inputs": [[[[[1]]]]]}', "4 deep"),
        (b'{"inputs": ' + b"[" * 900 + b"]" * 900 + b"}", "equal length"),
        (b'{"inputs": ' + b"[" * 100_000, "nested"),
        (b'{"inputs": {"Jane": "x"}}', "inputs must be"),
        (b'{"inputs": [{"pixels": [[1]]}, 7]}', "inputs must be"),
        (body([{str(number): 1 for number in range(40)}]), "32 keys"),
        (body({str(number): [1] for number in range(40)}), "32 keys"),
        (b'{"inputs": [' + b"{}," * 5000 + b"{}]}", "4096 objects"),
    ],
)
@pytest.mark.parametrize("of_images", [False, True])
def test_what_is_no_request_is_one_sentence(content, message, of_images):
    if of_images and message in ("of numbers", "equal length", "4 deep"):
        message = "inputs must be"
    with pytest.raises(BadRequest, match=message) as caught:
        parse(content, of_images)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
    assert "Jane" not in str(caught.value)


def test_too_many_values_are_refused_before_any_is_made():
    content = b'{"inputs": [' + b"[]," * (parsing.MAX_VALUES // 2 + 1) + b"[]]}"
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match=f"more than {parsing.MAX_VALUES} values"):
            parse(content, False)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_what_is_too_large_for_float32_is_infinite():
    assert np.isinf(parse(b'{"inputs": [[1e999, 1e39]]}', False)[0]).all()
