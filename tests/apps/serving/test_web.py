"""Who may ask the servers: the names and pages that are answered."""

import asyncio

import httpx
import pytest
from starlette.responses import PlainTextResponse

from tfmammo.apps.serving import web


def asked(headers, names=(), host="127.0.0.1", method="GET"):
    async def ask():
        transport = httpx.ASGITransport(web.guard(PlainTextResponse("ok"), host, names))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, "/", headers=headers)

    return asyncio.run(ask())


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860"])
def test_own_names_are_answered(host):
    assert asked({"host": host, "origin": f"http://{host}"}).text == "ok"
    assert asked({"host": host}).text == "ok"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:7860",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "[::1",
        "a@127.0.0.1.x",
    ],
)
def test_a_name_that_leads_here_by_a_trick_is_refused(host):
    """DNS rebinding: the page of evil.example, whose name now means 127.0.0.1."""
    assert asked({"host": host, "origin": f"http://{host}"}).status_code == 400


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:9999", "https://localhost:7860", "http://["],
)
@pytest.mark.parametrize("method", ["POST", "OPTIONS", "GET"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_another_sites_page_is_refused(origin, method, host):
    answer = asked({"host": "127.0.0.1:7860", "origin": origin}, host=host, method=method)
    assert answer.status_code == 403 and list(answer.json()) == ["error"]


def test_names_and_addresses_may_be_added():
    room = {"host": "reading-room.hospital.example"}
    assert asked(room).status_code == 400
    for listening in ("127.0.0.1", "0.0.0.0"):
        names = ["Reading-Room.hospital.example", "10.0.0.7"]
        assert asked(room, names, listening).text == "ok"
        assert asked({"host": "10.0.0.7:80"}, names, listening).text == "ok"
        assert asked({"host": "evil.example"}, names, listening).status_code == 400


def test_who_listens_for_other_machines_is_warned(caplog):
    asked({}, host="::1")
    assert caplog.text == ""
    assert asked({"host": "any.example"}, host="0.0.0.0").text == "ok"
    assert "no password" in caplog.text


def test_a_port_in_use_is_one_sentence():
    with web.listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match=f"^127.0.0.1:{port}: can't listen there"):
            web.listen("127.0.0.1", port)
