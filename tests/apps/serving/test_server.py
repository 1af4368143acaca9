"""The server as it runs: MLflow's protocol with limits and short errors, hostile bodies, stops."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import contextmanager, suppress

import cv2
import httpx
import mlflow
import numpy as np
import pytest

from tests.commands import refuse
from tests.known_networks import KnownCAN
from tests.ports import find_free_port
from tfmammo.apps.serving import pictures, saving, server, web
from tfmammo.apps.serving.__main__ import main, register
from tfmammo.apps.serving.pictures import NetworkConfig, Service, ServiceConfig, check_cancelled
from tfmammo.config import DataConfig
from tfmammo.errors import ArchiveError
from tfmammo.tracking import export

SECRET = "JANE^DOE"
HEAD = b"POST /invocations HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"


class Doubler(Service):
    """Doubles values; it takes a tenth of a second for each of "parts", and fails as asked."""

    def answer(self, items, proceed=check_cancelled):
        if any("refuse" in item for item in items):
            raise ArchiveError("inputs[0]: no picture")
        if any("fault" in item for item in items):
            raise ZeroDivisionError(SECRET)
        if any("store" in item for item in items):
            with open("/dev/full", "w") as file:
                file.write(SECRET)
        for _ in range(items[0].get("parts", 0)):
            proceed()
            time.sleep(0.1)
        return [{"value": 2 * item["value"]} for item in items]


@contextmanager
def served(service, limit=2000, parallel=2):
    """Serve in a thread, otherwise as `server.run` does; gives the port."""
    with web.listen("127.0.0.1", 0) as listener:
        running = server.make_server(service, "127.0.0.1", limit, parallel)
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            running.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def port():
    with served(Doubler()) as port:
        yield port


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The config of a network that marks bright pixels, of patches of 16 px."""
    card = {"config": {"data": DataConfig(size=16, window=(0, 1)).model_dump(mode="json")}}
    known = KnownCAN("can", 16, level=0.5, weight=0.5, bias=0.0, steepness=40.0)
    folder = tmp_path_factory.mktemp("can") / "export"
    export.export(known, folder, card | {"step": 1, "train_patients": []})
    return NetworkConfig(handle=str(folder))


def exchange(port, *requests):
    """Send requests (method, path, arguments of httpx) at once; return responses in order."""

    async def work():
        limits = httpx.Limits(max_connections=16)  # as many clients
        address = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as client:
            return await asyncio.gather(
                *(client.request(method, path, **more) for method, path, more in requests)
            )

    return asyncio.run(work())


def posted(content, **headers):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    headers = {"content-type": "application/json; charset=UTF-8", **headers}
    return "POST", "/invocations", {"content": body, "headers": headers}


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def whole(value, **more):
    body = json.dumps({"inputs": [{"value": value, **more}]}).encode()
    return HEAD + b"content-length: %d\r\n\r\n" % len(body) + body


def read_answers(client):
    """All that the server says until it hangs up."""
    answers = b""
    with suppress(ConnectionError):
        while part := client.recv(65536):
            answers += part
    return answers


def test_images_are_objects():
    images = [{"pixels": [[0, 1], [0.5, 0.25]], "view": "CC"}, {"image": "QQ=="}]
    assert server.parse(json.dumps({"inputs": images}).encode()) == images
    assert server.parse(b'{"inputs": []}') == []


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "valid JSON"),
        (b"\xff\xfe", "valid JSON"),
        (b'{"inputs": [' + b"9" * 5000 + b"]}", "valid JSON"),
        (b'{"inputs": ' + b"[" * 100_000, "valid JSON"),
        (b'{"input": []}', "key inputs"),
        (b'{"inputs": [], "params": {}}', "key inputs alone"),
        (b'{"inputs": 3}', "inputs must be"),
        (b'{"inputs": [[NaN]]}', "NaN"),
        (b'{"inputs": [' + b"9" * 400 + b"]}", "inputs must be"),
        (b'{"inputs": [["1"]]}', "inputs must be"),
        (b'{"inputs": [[true]]}', "inputs must be"),
        (b'{"inputs": [[1], [1, 2]]}', "inputs must be"),
        (b'{"inputs": {"Jane": "x"}}', "inputs must be"),
        (b'{"inputs": [{"pixels": [[1]]}, 7]}', "inputs must be"),
    ],
)
def test_an_unreadable_body_is_not_quoted(content, word):
    with pytest.raises(server.RequestRefused, match=word) as caught:
        server.parse(content)
    assert caught.value.status == 400 and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200 and "Jane" not in str(caught.value)


def test_too_many_values_are_refused_before_any_is_made():
    content = b'{"inputs": [' + b"[]," * (server.MAX_VALUES // 2 + 1) + b"[]]}"
    tracemalloc.start()
    try:
        with pytest.raises(server.RequestRefused, match=f"more than {server.MAX_VALUES} values"):
            server.parse(content)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


HOSTILE = [
    (b"{", 400),
    (b'{"inputs": [3]}', 400),
    (b'{"inputs": {"\\ud800": "x"}}', 400),
    (b'{"inputs": [{"refuse": 1}]}', 400),
    (b'{"inputs": [{"fault": 1}]}', 400),
    (b'{"inputs": [{"value": "' + b"x" * 3000 + b'"}]}', 413),
]


@pytest.mark.parametrize(("body", "status"), HOSTILE)
def test_a_bad_request_is_answered_by_one_sentence(port, body, status, caplog):
    (response,) = exchange(port, posted(body))
    assert response.status_code == status, response.text
    said = response.json()["error"]
    assert list(response.json()) == ["error"] and said and "\n" not in said
    assert len(said) <= server.MAX_ERROR_LENGTH
    assert "Traceback" not in said and "xxxx" not in said
    assert "DOE" not in said and "DOE" not in caplog.text


def test_wrong_requests(port):
    responses = exchange(
        port,
        ("POST", "/invocations", {"content": b"{}", "headers": {"content-type": "text/csv"}}),
        ("POST", "/invocations", {"content": b"{}"}),
        posted(b"{}", **{"content-encoding": "gzip"}),
        posted(b"{}", host="evil.example"),
        posted(b"{}", origin="http://evil.example"),
        ("GET", "/invocations", {}),
        ("GET", "/x", {}),
    )
    assert [response.status_code for response in responses] == [415, 415, 415, 400, 403, 405, 404]


async def pieces(*parts):
    for part in parts:
        yield part


@pytest.mark.parametrize("known", [True, False])
def test_a_client_that_sends_too_much_gets_the_reason(port, known):
    """It sends everything before it reads, with its length or without."""
    parts = [b" " * 2**20] * 20
    _, path, more = posted(b"")
    content = b"".join(parts) if known else pieces(*parts)
    (response,) = exchange(port, ("POST", path, more | {"content": content}))
    assert response.status_code == 413 and list(response.json()) == ["error"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_a_full_disk_is_the_servers_fault(caplog):
    """The service stores a file of a request of 20 MB, and the disk is full."""
    with served(Doubler(), limit=30 * 2**20) as port:
        text = "x" * (20 * 2**20)
        (response,) = exchange(port, posted({"inputs": [{"store": 1, "text": text}]}))
    assert response.status_code == 503 and "space" in response.json()["error"]
    assert "is full" in caplog.text and "DOE" not in caplog.text


def test_a_body_that_does_not_arrive_gets_a_408(port, monkeypatch):
    monkeypatch.setattr(server, "RECEIVING_SECONDS", 0.5)
    with connect(port) as client:
        client.sendall(HEAD + b"content-length: 1000\r\n\r\n{")
        assert read_answers(client).startswith(b"HTTP/1.1 408")


def test_more_connections_than_allowed_get_a_503(port):
    idle = [connect(port) for _ in range(server.MAX_CONNECTIONS)]
    try:
        (response,) = exchange(port, ("GET", "/health", {}))
        assert response.status_code == 503
    finally:
        for client in idle:
            client.close()


def test_work_stops_when_the_client_has_gone(port, caplog):
    """Of four requests of a minute, two are computed at once; the next one does not wait."""
    for _ in range(4):
        with connect(port) as client:
            client.sendall(whole(1, parts=600))
            time.sleep(0.3)
    start = time.monotonic()
    (response,) = exchange(port, posted({"inputs": [{"value": 3}]}))
    assert response.json() == {"predictions": [{"value": 6}]} and time.monotonic() - start < 30
    assert caplog.text == ""


def test_health_version_and_a_histogram_of_latencies():
    asked = [
        posted({"inputs": [{"value": 1}]}),
        posted(b"{"),
        ("GET", "/health", {}),
        ("GET", "/ping", {}),
        ("GET", "/version", {}),
    ]
    with served(Doubler()) as port:
        answers = exchange(port, *asked)
        (metrics,) = exchange(port, ("GET", "/metrics", {}))
    assert [answer.status_code for answer in answers] == [200, 400, 200, 200, 200]
    assert answers[4].text == mlflow.__version__
    for line in (
        'tfmammo_request_seconds_count{status="200"} 1.0',
        'tfmammo_request_seconds_count{status="400"} 1.0',
        'tfmammo_request_seconds_bucket{le="+Inf",status="200"} 1.0',
        "tfmammo_requests_under_way 0.0",
    ):
        assert line in metrics.text


def test_no_more_are_computed_at_once_than_allowed(port):
    start = time.perf_counter()
    exchange(port, *(posted({"inputs": [{"value": 1, "parts": 1}]}) for _ in range(6)))
    assert time.perf_counter() - start > 0.28  # three rounds of two


def test_good_and_hostile_requests_at_once_lose_no_answer(port):
    kinds = np.random.default_rng(0).integers(0, 3, 300).tolist()
    bodies = [
        {"inputs": [{"value": number}]} if kind else HOSTILE[number % len(HOSTILE)][0]
        for number, kind in enumerate(kinds)
    ]
    responses = exchange(port, *map(posted, bodies))
    for number, (kind, response) in enumerate(zip(kinds, responses, strict=True)):
        if kind:
            assert response.json() == {"predictions": [{"value": 2 * number}]}
        else:
            assert response.status_code == HOSTILE[number % len(HOSTILE)][1]


def test_the_guides_examples_run(repository, network, tmp_path, monkeypatch, capsys):
    """The first commands of the guide register the zoo's CAN; the examples send it a patch."""
    page = (repository / "docs/guides/serving.md").read_text()
    (shell,) = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (python,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    register(ServiceConfig(name="can-inverter", network=network, tracking_uri=uri))
    place = mlflow.MlflowClient(uri).get_model_version_download_uri("tfmammo-can-inverter", "1")
    image = np.full((16, 16), 30, np.uint8)
    image[4:12, 4:12] = 220
    cv2.imwrite(str(tmp_path / "PATCH.png"), image)
    monkeypatch.chdir(tmp_path)
    with served(server.load(place, tmp_path / "copy"), limit=2**20) as port:
        if shutil.which("curl"):
            command = ["bash", "-c", shell.replace(":5001", f":{port}")]
            said = subprocess.run(command, capture_output=True, check=True).stdout
            assert json.loads(said)["predictions"][0]["box"] == [4, 4, 12, 12]
        exec(python.replace(":5001", f":{port}"), {})
    assert capsys.readouterr().out == "box: [4, 4, 12, 12]\n"
    mask = cv2.imread("mask.png", cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(mask > 0, image > 100)


RUN = """
import sys
from tests.apps.serving.test_server import Doubler
from tfmammo.apps.serving import server
server.load = lambda uri, folder: Doubler()
server.run("doubler", "127.0.0.1", int(sys.argv[1]), 1, 2)
"""


@pytest.mark.slow
def test_sigterm_ends_it_within_seconds_and_leaves_nothing(repository, tmp_path):
    """While a request is computed that takes a minute, and another one is still on its way."""
    port = find_free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(port)],
        cwd=repository,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    try:
        for _ in range(600):
            with suppress(OSError), connect(port):
                break
            assert process.poll() is None
            time.sleep(0.2)
        with connect(port) as computed, connect(port) as sent:
            computed.sendall(whole(1, parts=600))
            sent.sendall(HEAD + b"content-length: 1000\r\n\r\n{")
            time.sleep(1)
            assert [path.name[:16] for path in tmp_path.iterdir()] == ["tfmammo_serving_"]
            process.send_signal(signal.SIGTERM)
            start = time.monotonic()
            for client in (computed, sent):
                assert read_answers(client).startswith(b"HTTP/1.1 503")
        assert process.wait(30) == 143 and time.monotonic() - start < 15
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
        process.wait()


def test_a_model_that_is_not_there_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    said = refuse(capsys, main, ["run", "--model", str(tmp_path / "none")])
    assert said.startswith(f"error: {tmp_path / 'none'}: can't be served")
    said = refuse(capsys, main, ["run", "--model", "models:/tfmammo-can@best"])
    assert "mlflow.db: no such MLflow store" in said
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_is_never_loaded(tmp_path, capsys):
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
    said = refuse(capsys, main, ["run", "--model", str(tmp_path / "model")])
    assert said.startswith(f"error: {tmp_path / 'model'}: is no service")
    assert not (tmp_path / "loaded").exists()


def test_code_that_is_stored_with_a_service_is_not_run(network, tmp_path):
    service = tmp_path / saving.SERVICE
    service.mkdir()
    pictures.gather(ServiceConfig(name="can-inverter", network=network), service)
    saving.save_service(tmp_path / "model", service, "0" * 32)
    stored = tmp_path / "model" / "entry.py"
    stored.unlink()  # the copy of one in a read-only checkout is read-only
    stored.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    loaded = server.load(str(tmp_path / "model"), tmp_path)
    (answer,) = loaded.answer([{"pixels": [[1.0] * 16] * 16}])
    assert answer["box"] == [0, 0, 16, 16] and not (tmp_path / "ran").exists()
