"""The limit of all files in front of the studio's page, without Gradio."""

import asyncio

import httpx
import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")

from tfmammo.apps.studio import guard  # noqa: E402


def asked(folder, *requests, total):
    """Answers of a page that takes its time.

    Args:
        requests: (method, path, arguments of httpx).
    """

    async def slow(scope, receive, send):
        await asyncio.sleep(0.2)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask():
        transport = httpx.ASGITransport(guard.BoundedUploads(slow, folder, total))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await asyncio.gather(
                *(client.request(method, path, **more) for method, path, more in requests)
            )

    return asyncio.run(ask())


def test_uploads_that_come_at_once_are_counted_together(tmp_path):
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "file").write_bytes(bytes(7000))
    uploads = [("POST", "/gradio_api/upload", {"content": b"x" * 900})] * 5
    answers = asked(tmp_path, *uploads, total=10_000)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 413, 413]
    # what is through does not count any more
    assert asked(tmp_path, *uploads[:1], total=10_000)[0].status_code == 200


def test_only_uploads_of_known_length_count(tmp_path):
    async def pieces():
        yield b"x"

    answers = asked(
        tmp_path,
        ("GET", "/", {}),
        ("POST", "/gradio_api/queue/join", {"content": b"x" * 100}),
        ("POST", "/gradio_api/upload/", {"content": b"x" * 100}),
        ("POST", "/gradio_api/upload", {"content": pieces()}),
        total=99,
    )
    assert [answer.status_code for answer in answers] == [200, 200, 413, 411]
