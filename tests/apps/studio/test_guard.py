"""The limits in front of the studio's page, without Gradio."""

import asyncio
import os
import time
from types import SimpleNamespace

import httpx
import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")

from tfmammo.apps.studio import guard  # noqa: E402


def asked(folder, *requests, upload=1000, total=10_000, page=None):
    """Answers of a page that says how many bytes it was sent.

    Args:
        requests: (method, path, arguments of httpx).
    """

    async def counting(scope, receive, send):
        size = 0
        more = True
        while more:
            message = await receive()
            size = size + len(message.get("body", b""))
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(size).encode()})

    async def ask():
        transport = httpx.ASGITransport(guard.Bounded(page or counting, folder, upload, total))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await asyncio.gather(
                *(client.request(method, path, **more) for method, path, more in requests)
            )

    return asyncio.run(ask())


def test_bodies_are_of_known_and_bounded_length(tmp_path):
    async def pieces():
        yield b"x"

    most = guard.UPLOAD_FRAMING + 1000
    requests = [
        ("GET", "/", {}),
        ("POST", "/gradio_api/upload", {"content": b"x" * most}),
        ("POST", "/gradio_api/upload", {"content": b"x" * (most + 1)}),
        ("POST", "/gradio_api/upload/", {"content": pieces()}),
        ("POST", "/gradio_api/queue/join", {"content": b"x" * guard.MAX_OTHER}),
        ("POST", "/gradio_api/queue/join", {"content": b"x" * (guard.MAX_OTHER + 1)}),
        ("PUT", "/", {"headers": {"content-length": "9" * 40}}),
    ]
    answers = asked(tmp_path, *requests, total=10**9)
    assert [answer.status_code for answer in answers] == [200, 200, 413, 411, 200, 413, 413]
    assert answers[1].text == str(most)


@pytest.mark.parametrize(("path", "total"), [("/gradio_api/queue/join", 10**9), ("/upload", 10)])
def test_a_refused_body_is_read_first_so_that_the_reason_arrives(tmp_path, path, total):
    """A connection that is closed upon unread bytes may lose the answer."""
    pieces = [b"x" * 2**20] * 3
    events = []

    async def receive():
        events.append("read")
        body = pieces.pop()
        return {"type": "http.request", "body": body, "more_body": bool(pieces)}

    async def send(message):
        events.append(message.get("status", "body"))

    length = [(b"content-length", b"%d" % (3 * 2**20))]
    scope = {"type": "http", "method": "POST", "path": path, "headers": length}
    bounded = guard.Bounded(None, tmp_path, 10 * 2**20, total)
    asyncio.run(bounded(scope, receive, send))
    assert events == ["read", "read", "read", 413, "body"]


def test_uploads_that_come_at_once_are_counted_together(tmp_path):
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "file").write_bytes(bytes(7000))

    async def slow(scope, receive, send):
        await asyncio.sleep(0.2)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    uploads = [("POST", "/upload", {"content": b"x" * 900})] * 5
    answers = asked(tmp_path, *uploads, page=slow)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 413, 413]
    # what is through does not count any more
    assert asked(tmp_path, *uploads[:1])[0].status_code == 200


def test_an_upload_that_does_not_come_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "UPLOAD_SECONDS", 0.1)

    async def waiting(scope, receive, send):
        await asyncio.sleep(60)

    (answer,) = asked(tmp_path, ("POST", "/upload", {"content": b"x"}), page=waiting)
    assert answer.status_code == 408


@pytest.mark.slow
def test_what_nobody_opens_is_removed(tmp_path):
    ages = {"opened": 0, "waiting": 100, "forgotten": 5000}
    page = SimpleNamespace(upload_file_set=set())
    for name, age in ages.items():
        path = tmp_path / name / "Jane Doe.dcm"
        path.parent.mkdir()
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
        page.upload_file_set.add(str(path))
    (tmp_path / "opened" / "Jane Doe.dcm").unlink()
    for name, age in (("tmpnew", 10), ("tmpold", 5000)):  # uploads that broke off
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "synthetic.dcm").write_bytes(b"x")
    os.utime(tmp_path / "result" / "synthetic.dcm", (time.time() - 5000,) * 2)
    guard.remove_unopened(page, tmp_path, 600)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "opened",
        "result",
        "tmpnew",
        "waiting",
    ]
