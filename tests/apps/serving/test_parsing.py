"""Parsing of bodies: arrays, images, and one sentence for what can't be used."""

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
    assert np.isinf(parse(b'{"inputs": [[1e999, 1e39]]}', False)[0]).all()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "valid JSON"),
        (b'{"inputs": ', "valid JSON"),
        (b"\xff\xfe", "valid JSON"),
        (b'{"inputs": [' + b"9" * 5000 + b"]}", "valid JSON"),
        (b'{"inputs": ' + b"[" * 100_000, "valid JSON"),
        (b"[1]", "key inputs"),
        (b'{"input": []}', "key inputs"),
        (b'{"inputs": 3}', "inputs must be"),
        (b'{"inputs": [], "params": 3}', "params"),
        (b'{"inputs": [[NaN]]}', "NaN"),
        (b'{"inputs": [' + b"9" * 400 + b"]}", "inputs must be"),
        (b'{"inputs": [["1"]]}', "inputs must be"),
        (b'{"inputs": [[true]]}', "inputs must be"),
        (b'{"inputs": [[1], [1, 2]]}', "inputs must be"),
        (b'{"inputs": {"Jane": "x"}}', "inputs must be"),
        (b'{"inputs": [{"pixels": [[1]]}, 7]}', "inputs must be"),
    ],
)
@pytest.mark.parametrize("of_images", [False, True])
def test_a_bad_body_is_one_sentence(content, word, of_images):
    with pytest.raises(BadRequest, match=word) as caught:
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
