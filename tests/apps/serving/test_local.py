"""What all servers share: the names and pages that are answered, and temporary files."""

import asyncio
import errno
import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import portalocker
import pytest

from tfmammo.apps.serving.local import LEFTOVER_SECONDS, SameOrigin, private_folder


async def page(scope, receive, send):
    """Lets every site read it, as Gradio's does."""
    headers = [(b"access-control-allow-origin", b"*"), (b"x-page", b"1")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


def asked(headers, names=(), method="GET"):
    async def ask():
        transport = httpx.ASGITransport(SameOrigin(page, names))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1:7860"
        ) as client:
            return await client.request(method, "/", headers=headers)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860", "192.168.7.7", "10.0.0.1:80"],
)
def test_own_names_and_addresses_are_answered(host):
    answer = asked({"host": host, "origin": f"http://{host}"})
    assert (
        answer.status_code == 200
        and answer.headers["x-page"] == "1"
        and "access-control-allow-origin" not in answer.headers
    )


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
    answer = asked({"host": host, "origin": f"http://{host}"})
    assert (
        answer.status_code == 403
        and "Host" in answer.json()["error"]
        and "access-control-allow-origin" not in answer.headers
    )


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "https://localhost:7860"]
)
@pytest.mark.parametrize("method", ["POST", "OPTIONS", "GET"])
def test_another_sites_page_is_refused(origin, method):
    answer = asked({"host": "127.0.0.1:7860", "origin": origin}, method=method)
    assert answer.status_code == 403 and "another site" in answer.json()["error"]


def test_a_name_may_be_added():
    assert asked({"host": "reading-room.hospital.example"}).status_code == 403
    assert (
        asked(
            {"host": "reading-room.hospital.example"}, names=["Reading-Room.hospital.example"]
        ).status_code
        == 200
    )


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_private_and_goes(temporary):
    with private_folder("tfmammo_x_") as folder:
        assert (
            stat.S_IMODE(folder.stat().st_mode) == 0o700
            and Path(tempfile.mkdtemp()).parent == folder
        )
    assert list(temporary.iterdir()) == [] and tempfile.gettempdir() == str(temporary)


@pytest.mark.long
def test_what_a_killed_process_left_goes_at_the_next_start_and_nothing_else(temporary):
    code = (
        "import os, time\nfrom tfmammo.apps.serving.local import private_folder\n"
        "with private_folder('tfmammo_x_') as folder:\n"
        "    (folder / 'upload').write_text('patient')\n    print(folder, flush=True)\n    "
        "time.sleep(100)\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(temporary)},
        )
        for _ in range(2)
    ]
    try:
        killed, alive = (Path(process.stdout.readline().strip()) for process in started)
        started[0].kill()
        started[0].wait()
        (temporary / "tfmammo_y_other").mkdir()
        for name, age in (("new", 0), ("old", LEFTOVER_SECONDS + 60)):  # of a version without locks
            (temporary / f"tfmammo_x_{name}").mkdir()
            os.utime(temporary / f"tfmammo_x_{name}", (time.time() - age,) * 2)
        (temporary / "tfmammo_x_link").symlink_to(temporary / "tfmammo_y_other")
        with private_folder("tfmammo_x_"):
            assert not killed.exists() and (alive / "upload").exists()
            left = {path.name for path in temporary.iterdir()}
        assert {
            "tfmammo_y_other",
            "tfmammo_x_new",
            "tfmammo_x_link",
        } < left and "tfmammo_x_old" not in left
    finally:
        for process in started:
            process.kill()
            process.wait()
            process.stdout.close()


def test_a_file_system_without_locks_is_an_error(tmp_path, monkeypatch):
    """Without a lock, another process would take the folder for a leftover and remove it."""

    def refuse_lock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(portalocker.portalocker, "LOCKER", refuse_lock)
    with pytest.raises(OSError, match="can't be locked"), private_folder("tfmammo_test_"):
        pass
    assert list(tmp_path.iterdir()) == [] and tempfile.tempdir == str(tmp_path)
