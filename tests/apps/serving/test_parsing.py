"""Parsing of bodies: errors are one sentence, and no body costs more memory than allowed."""

import io
import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from tfmammo.apps.serving import parsing
from tfmammo.apps.serving.parsing import BadRequest, parse


def body(inputs, **more):
    return json.dumps({"inputs": inputs, **more}).encode()


def test_pictures_arrays_and_named_arrays():
    inputs, params = parse(
        body(
            [{"pixels": [[0, 1], [0.5, 0.25]], "view": "CC"}, {"image": "QQ=="}],
            params={"network": "g"},
        )
    )
    assert (
        params == {"network": "g"} and inputs[1] == {"image": "QQ=="} and inputs[0]["view"] == "CC"
    )
    assert inputs[0]["pixels"].dtype == np.float32 and inputs[0]["pixels"].tolist() == [
        [0, 1],
        [0.5, 0.25],
    ]
    inputs, params = parse(body([[[[0.5], [1]]]]))
    assert inputs.shape == (1, 1, 2, 1) and params is None
    inputs, _ = parse(body({"mask": [[1.0]], "image": [[2]]}))
    assert {name: array.tolist() for name, array in inputs.items()} == {
        "mask": [[1.0]],
        "image": [[2.0]],
    }
    assert parse(body([]))[0] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no valid JSON"),
        (b'{"inputs": ', "is no valid JSON"),
        (b"\xff\xfe", "is not text in UTF-8"),
        ('{"inputs": []}'.encode("utf-16"), "is not text in UTF-8"),
        (b"[1]", "must be an object with the key inputs"),
        (b'{"input": []}', "must be an object with the key inputs"),
        (b'{"inputs": 3}', "inputs must be"),
        (b'{"inputs": [], "params": 3}', "params must be an object"),
        (b'{"inputs": [[NaN]]}', "NaN is not a number in JSON"),
        (b'{"inputs": [[-Infinity]]}', "-Infinity is not a number in JSON"),
        (b'{"inputs": [], "inputs": [1]}', "has a key twice"),
        (b'{"inputs": [{"image": "a", "image": "b"}]}', "has a key twice"),
        (b'{"inputs": [' + b"9" * 5000 + b"]}", "a number of too many digits"),
        (b'{"inputs": [' + b"9" * 400 + b"]}", "inputs must be rows of equal length"),
        (b'{"inputs": [["1"]]}', "of numbers"),
        (b'{"inputs": [[true]]}', "of numbers"),
        (b'{"inputs": [[1], [1, 2]]}', "rows of equal length"),
        (b'{"inputs": [[[[[1]]]]]}', "up to 4 deep"),
        (b'{"inputs": ' + b"[" * 900 + b"]" * 900 + b"}", "rows of equal length"),
        (b'{"inputs": ' + b"[" * 100_000, "nested too deeply"),
        (
            b'{"inputs": [{"view": ' + b'{"a":' * 300 + b"1" + b"}" * 301 + b"]}",
            "more than a short list",
        ),
        (b'{"inputs": [{"view": [[1]]}]}', "more than a short list"),
        (b'{"inputs": [{"pixels": [[1]]}, 7]}', r"inputs\[1\] must be an object"),
        (body([{str(number): 1 for number in range(40)}]), "more than 32 keys"),
        (body({str(number): [1] for number in range(40)}), "more than 32 keys"),
        (b'{"inputs": [' + b"{}," * 5000 + b"{}]}", "more than 4096 objects"),
    ],
)
def test_what_is_no_request_is_one_sentence(content, message):
    with pytest.raises(BadRequest, match=message) as caught:
        parse(content)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_too_many_values_are_refused_before_any_is_made():
    content = b'{"inputs": [' + b"[]," * (parsing.MAX_VALUES // 2 + 1) + b"[]]}"
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match="more than 16777216 values"):
            parse(content)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_what_is_too_large_for_float32_is_infinite():
    assert np.isinf(parse(b'{"inputs": [[1e999, 1e39]]}')[0]).all()


@pytest.mark.parametrize(
    "request_",
    [
        [{"pixels": [[0.5, 0.25]], "view": "MLO"}, {"image": "QQ=="}],
        [[[0.5]]],
        {"a": [1.0], "b": [[2.0]]},
        [],
    ],
)
def test_what_is_written_is_read_again(request_):
    file = io.BytesIO()
    parsing.write(parse(body(request_, params={"network": "x"})), file)
    file.seek(0)
    inputs, params = parsing.load(file)
    expected, _ = parse(body(request_))
    assert params == {"network": "x"} and type(inputs) is type(expected)
    np.testing.assert_equal(inputs, expected)


def apart(content, tmp_path, *, spare=parsing.BASE_MEMORY):
    """Exit code and result of the script, of whose memory `spare` is left."""
    (tmp_path / "in").write_bytes(content)
    # Only the script, as the server runs it: the package's imports would take the memory.
    code = (
        f"script = {{'__name__': 'parsing'}}; exec(open({parsing.__file__!r}).read(), script); "
        f"script['BASE_MEMORY'] = {spare}; script['main']()"
    )
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("w+b") as answer:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=source,
            stdout=answer,
            stderr=subprocess.DEVNULL,
            timeout=300,
        )
        answer.seek(0)
        return done.returncode, answer if done.returncode else parsing.load(answer)


def test_a_process_parses_a_mammogram_of_numbers(tmp_path):
    row = b"[" + b",".join([b"0.1234"] * 1000) + b"]"
    code, items = apart(b'{"inputs": [{"pixels": [' + b",".join([row] * 800) + b"]}]}", tmp_path)
    assert (
        code == 0
        and items[0][0]["pixels"].shape == (800, 1000)
        and items[0][0]["pixels"][7, 9] == np.float32(0.1234)
    )


def test_the_memory_of_the_process_is_limited_by_the_system(tmp_path):
    """A body whose values are allowed, with less memory than they take."""
    code, _ = apart(b'{"inputs": [' + b"[0]," * 2_000_000 + b"[0]]}", tmp_path, spare=2**27)
    assert code == 1


def test_the_process_says_why_there_is_no_request(tmp_path):
    with pytest.raises(BadRequest, match="key inputs"):
        apart(b" " * 100 + b'{"input": []}', tmp_path)
    # half of a surrogate pair, which has no bytes
    with pytest.raises(BadRequest, match=r"inputs\.\? must be rows of equal length"):
        apart(b'{"inputs": {"\\ud800": "x"}}', tmp_path)
