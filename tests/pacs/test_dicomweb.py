"""What a server of DICOMweb may do wrong: a small one of this test that does it."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tfmammo.errors import PacsError, PacsUnreachable
from tfmammo.pacs import nodes
from tfmammo.pacs.config import PacsConfig, parse_address

dicomweb = pytest.importorskip("tfmammo.pacs.dicomweb")

IMAGE = nodes.Instance("1.2", "1.3", "1.4")


@pytest.fixture(autouse=True)
def float32_policy():
    """In place of the fixture for all tests: nothing here touches Keras, so nothing
    waits for it.
    """


@contextmanager
def serve(answer):
    """Run a server; `answer(handler)` answers each request. Yields address and headers."""
    heard = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            heard.append(dict(self.headers))
            answer(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", heard
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reply(status=200, content=b"[]", kind="application/dicom+json", **headers):
    def answer(handler):
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def open_node(place, authorization="Bearer token", **config):
    address = parse_address(f"dicomweb+http://{place}/x", "--from")
    return dicomweb.WebNode(address, PacsConfig(**({"timeout": 5} | config)), authorization)


@pytest.mark.parametrize("status", [401, 403, 400])
def test_a_refusal_is_final(status):
    with serve(reply(status, b"QUIBBLE^ZEPHYRINE")) as (place, _):
        with pytest.raises(PacsError, match=f"^127.0.0.1: answered with status {status}$") as error:
            open_node(place).list_instances("1.2")
        assert not isinstance(error.value, PacsUnreachable)


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_passes_is_attempted_again(status):
    with serve(reply(status)) as (place, heard):
        node = open_node(place)
        config = PacsConfig(attempts=3, wait=0)
        with pytest.raises(PacsUnreachable):
            nodes.try_repeatedly(config, lambda: node.list_instances("1.2"))
        assert len(heard) == 3


def test_nothing_found_is_no_error():
    for answer in (reply(404), reply(204, b""), reply(200, b"[]")):
        with serve(answer) as (place, _):
            assert open_node(place).list_instances("1.2") == []


def test_a_server_that_ignores_the_page_ends(monkeypatch):
    item = b'{"00080018": {"vr": "UI", "Value": ["1.4"]}}'
    monkeypatch.setattr(dicomweb, "_PAGE", 1)
    with serve(reply(200, b"[" + item + b"]")) as (place, heard):
        assert [one.uid for one in open_node(place).list_instances("1.2")] == ["1.4"]
        assert len(heard) == 2


@pytest.mark.parametrize("content", [b"QUIBBLE", b"[1]", b'[{"00080018": {"vr": "UI"}}', b"{"])
def test_what_is_no_answer_is_not_quoted(content):
    with serve(reply(200, content)) as (place, _):
        with pytest.raises(PacsError) as error:
            open_node(place).list_instances("1.2")
        assert "QUIBBLE" not in str(error.value) and "127.0.0.1: " in str(error.value)


# the server's side of a connection that was broken off
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_answer_without_end_is_broken_off(monkeypatch):
    monkeypatch.setattr(dicomweb, "LARGEST", 10_000)

    def flood(handler):
        reply(200, b"--b\r\n\r\n", 'multipart/related; boundary="b"')(handler)
        try:
            while True:
                handler.wfile.write(bytes(1000))
        except OSError:
            return

    with serve(flood) as (place, _), pytest.raises(PacsError, match="sends more than 10000 bytes"):
        open_node(place).retrieve(IMAGE)


def test_credentials_do_not_follow_to_another_server(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login quibble password zephyrine\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with serve(reply()) as (other, heard_there):
        moved = reply(302, b"", Location=f"http://localhost:{other.rpartition(':')[2]}/x")
        with serve(moved) as (place, heard):
            open_node(place).list_instances("1.2")
        assert heard[0]["Authorization"] == "Bearer token"
        assert "Authorization" not in heard_there[0]
    with serve(reply()) as (place, heard):
        open_node(place, authorization=None).list_instances("1.2")
        assert "Authorization" not in heard[0]


@pytest.mark.slow
def test_a_certificate_that_nobody_signed_is_refused(tmp_path):
    with serve(reply()) as (place, _):  # it speaks no TLS at all
        address = parse_address(f"dicomweb://{place}/x", "--from")
        node = dicomweb.WebNode(address, PacsConfig(timeout=5), None)
        with pytest.raises(PacsError, match="certificate is not trusted"):
            node.list_instances("1.2")
