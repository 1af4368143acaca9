"""Who may ask the servers, and the private folder of their temporary files."""

import asyncio

import httpx
import pytest
from starlette.responses import PlainTextResponse

from tfmammo.apps.serving import web


def ask(headers, names=(), host="127.0.0.1", method="GET"):
    async def work():
        transport = httpx.ASGITransport(web.guard(PlainTextResponse("ok"), host, names))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, "/", headers=headers)

    return asyncio.run(work())


@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        (["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860"], 200),
        # DNS rebinding: the page of evil.example, whose name now means 127.0.0.1
        (["evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example", "[::1"], 400),
    ],
)
def test_own_names_alone_are_answered(hosts, status):
    for host in hosts:
        assert ask({"host": host, "origin": f"http://{host}"}).status_code == status
        assert ask({"host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "method", "host"),
    [
        ("http://evil.example", "POST", "127.0.0.1"),
        ("null", "POST", "127.0.0.1"),
        ("http://127.0.0.1:9999", "POST", "127.0.0.1"),
        ("https://localhost:7860", "POST", "127.0.0.1"),
        ("http://evil.example", "OPTIONS", "127.0.0.1"),
        ("http://evil.example", "GET", "127.0.0.1"),
        ("http://evil.example", "POST", "0.0.0.0"),
    ],
)
def test_another_sites_page_is_refused(origin, method, host):
    answer = ask({"host": "127.0.0.1:7860", "origin": origin}, host=host, method=method)
    assert answer.status_code == 403 and list(answer.json()) == ["error"]


def test_names_and_addresses_may_be_added():
    proxy = {"host": "reading-room.hospital.example"}
    assert ask(proxy).status_code == 400
    for listening in ("127.0.0.1", "0.0.0.0"):
        names = ["Reading-Room.hospital.example", "10.0.0.7"]
        assert ask(proxy, names, listening).text == "ok"
        assert ask({"host": "evil.example"}, names, listening).status_code == 400


def test_listening_for_other_machines_warns(caplog):
    ask({}, host="::1")
    assert caplog.text == ""
    assert ask({"host": "any.example"}, host="0.0.0.0").text == "ok"
    assert "no password" in caplog.text


def test_a_port_that_can_not_be_used_is_one_sentence():
    with web.listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match=f"^127.0.0.1:{port}: can't listen"):
            web.listen("127.0.0.1", port)
    with pytest.raises(OSError, match=r"^\[::1\]:70000: can't listen \(.*65535"):
        web.listen("::1", 70000)
