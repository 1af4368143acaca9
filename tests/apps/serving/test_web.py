"""Who may ask the servers, and the private folder of their temporary files."""

import asyncio
import stat
import tempfile
from pathlib import Path

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


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860"])
def test_own_names_are_answered(host):
    assert ask({"host": host, "origin": f"http://{host}"}).text == "ok"
    assert ask({"host": host}).text == "ok"


@pytest.mark.parametrize(
    "host", ["evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1"]
)
def test_a_name_that_was_made_to_lead_to_this_machine_is_refused(host):
    """DNS rebinding: the page of evil.example, whose name now means 127.0.0.1."""
    assert ask({"host": host, "origin": f"http://{host}"}).status_code == 400


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "https://localhost:7860"]
)
@pytest.mark.parametrize("method", ["POST", "OPTIONS", "GET"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_another_sites_page_is_refused(origin, method, host):
    answer = ask({"host": "127.0.0.1:7860", "origin": origin}, host=host, method=method)
    assert answer.status_code == 403 and list(answer.json()) == ["error"]


def test_names_and_addresses_may_be_added():
    proxy = {"host": "reading-room.hospital.example"}
    assert ask(proxy).status_code == 400
    for listening in ("127.0.0.1", "0.0.0.0"):
        names = ["Reading-Room.hospital.example", "10.0.0.7"]
        assert ask(proxy, names, listening).text == "ok"
        assert ask({"host": "10.0.0.7:80"}, names, listening).text == "ok"
        assert ask({"host": "evil.example"}, names, listening).status_code == 400


def test_listening_for_other_machines_warns(caplog):
    ask({}, host="::1")
    assert caplog.text == ""
    assert ask({"host": "any.example"}, host="0.0.0.0").text == "ok"
    assert "no password" in caplog.text


def test_a_port_in_use_is_one_sentence():
    with web.listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match=f"^127.0.0.1:{port}: can't listen"):
            web.listen("127.0.0.1", port)


def test_a_folder_is_private_and_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with web.private_folder("tfmammo_x_") as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert Path(tempfile.mkdtemp()).parent == folder
    assert list(tmp_path.iterdir()) == [] and tempfile.gettempdir() == str(tmp_path)
