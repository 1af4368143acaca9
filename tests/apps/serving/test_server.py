"""The server: MLflow's protocol with limits and short errors, hostile bodies, many requests."""

import asyncio
import json
import re
from contextlib import nullcontext
from types import SimpleNamespace

import httpx
import mlflow
import numpy as np
import pytest

from tfmammo.apps.serving import saving, server
from tfmammo.tracking import pyfunc

CODE = """
import os, time
from typing import Any
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

class Doubler(PythonModel):
    def predict(self, context, model_input: list[dict[str, Any]], params=None):
        if any("refuse" in one for one in model_input):
            raise MlflowException.invalid_parameter_value("inputs[0]: no picture")
        if any("fault" in one for one in model_input):
            raise ZeroDivisionError(SECRET)
        time.sleep(max(one.get("wait", 0) for one in model_input))
        return [{"value": 2 * one["value"]} for one in model_input]

SECRET = "JANE^DOE"
set_model(Doubler())
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "code.py").write_text(CODE)
    mlflow.pyfunc.save_model(
        str(folder / "model"), python_model=str(folder / "code.py"), pip_requirements=["mlflow"]
    )
    return folder / "model"


def exchange(model, requests, limit=2000, parallel=2):
    """All requests at once.

    Args:
        requests: (method, path, arguments of httpx).

    Returns:
        Responses in their order.
    """
    app = server.make_application(mlflow.pyfunc.load_model(str(model)), limit, parallel)

    async def work():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://server", timeout=60
        ) as client:
            return await asyncio.gather(
                *(client.request(method, path, **more) for method, path, more in requests)
            )

    return asyncio.run(work())


def posted(content, **headers):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return (
        "POST",
        "/invocations",
        {"content": body, "headers": {"content-type": "application/json", **headers}},
    )


def test_an_answer_is_mlflows(model):
    (response,) = exchange(model, [posted({"inputs": [{"value": 3}, {"value": 4}]})])
    assert response.status_code == 200 and response.json() == {
        "predictions": [{"value": 6}, {"value": 8}]
    }


HOSTILE = [
    (b"", 400),
    (b"{", 400),
    (b"\xff\xfe\x00", 400),
    (b"[1]", 400),
    (b'"x"', 400),
    (b"null", 400),
    (b"{}", 400),
    (b'{"inputs": 3}', 400),
    (b'{"inputs": [3]}', 400),
    (b'{"inputs": {"\\ud800": "x"}}', 400),
    (b'{"dataframe_split": {"data": [[1]]}}', 400),
    (b'{"inputs": [{"refuse": 1}]}', 400),
    (b'{"inputs": [{"fault": 1}]}', 400),
    (b'{"inputs": ' + b"[" * 900 + b"]" * 900 + b"}", 400),
    (b'{"inputs": [{"value": "' + b"x" * 3000 + b'"}]}', 413),
]


@pytest.mark.parametrize(("body", "status"), HOSTILE)
def test_a_bad_body_is_one_sentence(model, body, status):
    (response,) = exchange(model, [posted(body)])
    assert response.status_code == status, response.text
    said = response.json()["error"]
    assert (
        list(response.json()) == ["error"]
        and said
        and "\n" not in said
        and len(said) <= server.MAX_ERROR_LENGTH
    )
    assert "DOE" not in said and "Traceback" not in said and "xxxx" not in said


def test_what_is_asked_wrongly(model):
    plain = {"content": b"{}", "headers": {"content-type": "text/csv"}}
    none = {"content": b"{}"}
    responses = exchange(
        model,
        [
            ("POST", "/invocations", plain),
            ("POST", "/invocations", none),
            ("GET", "/invocations", {}),
            ("GET", "/x", {}),
        ],
    )
    assert [response.status_code for response in responses] == [415, 415, 405, 404]


def test_health_version_and_a_histogram_of_latencies(model):
    asked = [
        posted({"inputs": [{"value": 1}]}),
        posted(b"{"),
        ("GET", "/health", {}),
        ("GET", "/ping", {}),
        ("GET", "/version", {}),
    ]
    app = server.make_application(mlflow.pyfunc.load_model(str(model)), 1000, 1)

    async def work():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://server"
        ) as client:
            answers = [await client.request(method, path, **more) for method, path, more in asked]
            return answers, await client.get("/metrics")

    answers, metrics = asyncio.run(work())
    assert [answer.status_code for answer in answers] == [200, 400, 200, 200, 200] and answers[
        4
    ].text == mlflow.__version__
    counts = dict(
        re.findall(r'tfmammo_request_seconds_count\{status="(\d+)"\} (\d+)', metrics.text)
    )
    assert counts == {"200": "1", "400": "1"} and "tfmammo_requests_under_way 0.0" in metrics.text
    assert 'tfmammo_request_seconds_bucket{le="+Inf",status="200"} 1.0' in metrics.text


def test_no_more_are_computed_at_once_than_asked_for(model):
    import time

    start = time.perf_counter()
    responses = exchange(
        model,
        [posted({"inputs": [{"value": number, "wait": 0.1}]}) for number in range(6)],
        parallel=2,
    )
    assert time.perf_counter() - start > 0.28  # three rounds of two
    assert [response.json()["predictions"][0]["value"] for response in responses] == [
        2 * number for number in range(6)
    ]


def test_good_and_hostile_requests_at_once_lose_no_answer(model):
    random = np.random.default_rng(0)
    kinds = random.integers(0, 3, 300).tolist()
    bodies = [
        posted({"inputs": [{"value": number}]})
        if kind
        else posted(HOSTILE[number % len(HOSTILE)][0])
        for number, kind in enumerate(kinds)
    ]
    responses = exchange(model, bodies, parallel=2)
    for number, (kind, response) in enumerate(zip(kinds, responses, strict=True)):
        if kind:
            assert response.json() == {"predictions": [{"value": 2 * number}]}
        else:
            assert response.status_code == HOSTILE[number % len(HOSTILE)][1]


def test_a_model_that_is_not_there_is_one_line(tmp_path, capsys, monkeypatch):
    from tfmammo.apps.serving.__main__ import main

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(SystemExit) as caught:
        main(["run", "--model", str(tmp_path / "none")])
    said = capsys.readouterr().err.strip().splitlines()
    assert caught.value.code == 2 and said[-1].startswith(
        f"error: {tmp_path / 'none'}: can't be served"
    )


@pytest.mark.parametrize(
    ("host", "names", "guarded"),
    [("127.0.0.1", (), True), ("0.0.0.0", (), False), ("0.0.0.0", ("mammo.example",), True)],
)
def test_where_the_server_listens_decides_who_is_answered(
    monkeypatch, tmp_path, caplog, host, names, guarded
):
    served = {}
    monkeypatch.setattr(server.saving, "check", lambda *_: None)
    monkeypatch.setattr(mlflow.pyfunc, "load_model", lambda _: "a model")
    monkeypatch.setattr(server.connections, "listen", lambda *place: nullcontext(place))
    app = SimpleNamespace(state=SimpleNamespace(stop=None))

    def make(model, limit, parallel):
        served.update(limit=limit, parallel=parallel)
        return app

    def serve(app, listener, stop):
        served.update(app=app, listener=listener)

    monkeypatch.setattr(server, "make_application", make)
    monkeypatch.setattr(server.connections, "serve", serve)
    server.run(str(tmp_path), host, 5001, 3, 2, names)
    assert (served["limit"], served["parallel"]) == (3 * 2**20, 2)
    assert served["listener"] == (host, 5001)
    assert isinstance(served["app"], server.local.SameOrigin) == guarded
    assert ("there is no password" in caplog.text) == (host == "0.0.0.0")


def test_a_pickle_is_never_loaded(tmp_path, capsys, monkeypatch):
    from tfmammo.apps.serving.__main__ import main

    class Pickled(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input: list[str], params=None):
            return model_input

        def __reduce__(self):
            return Pickled.unpickled, (str(tmp_path / "loaded"),)

        @staticmethod
        def unpickled(path):
            open(path, "w").close()
            return Pickled()

    mlflow.pyfunc.save_model(
        str(tmp_path / "model"), python_model=Pickled(), pip_requirements=["mlflow"]
    )
    (tmp_path / "loaded").unlink(missing_ok=True)
    with pytest.raises(SystemExit) as caught:
        main(["run", "--model", str(tmp_path / "model")])
    assert (
        caught.value.code == 2
        and "as a pickle" in capsys.readouterr().err
        and not (tmp_path / "loaded").exists()
    )


def test_both_kinds_of_models_are_kept_as_text():
    assert {path.name for path in (pyfunc.NETWORKS, saving.ENTRY)} == {
        "pyfunc_model.py",
        "entry.py",
    }
    assert all(path.is_file() for path in (pyfunc.NETWORKS, saving.ENTRY))
