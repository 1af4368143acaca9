"""What the model server and the studio share: a private folder for what comes in, a clean
end, and who may ask.

A browser on this machine reaches what listens on 127.0.0.1, and so does any page in it: by a form,
or under a name of the page's own that suddenly leads here (DNS rebinding). `SameOrigin` answers
only requests to a name that is ours, from pages that are ours.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

NAMES = ("127.0.0.1", "localhost", "::1")
LOCK = ".alive"
OLD = 24 * 3600  # s after which a folder without a lock is a leftover, too

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


@contextmanager
def private_folder(prefix: str) -> Iterator[Path]:
    """A folder for all temporary files of this process, mode 0700, removed at the end.

    Folders of the same prefix whose process was killed are removed first: their lock is free.
    """
    _sweep(prefix)
    before = tempfile.tempdir
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    tempfile.tempdir = str(folder)
    try:
        with (folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM ends the process as Ctrl-C does, so that the folder goes; its exit code is
    143.
    """
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class SameOrigin:
    """An ASGI application that answers only requests to one of its names, and none that another
    site's page sends.

    An address in numbers is always a name of ours: no other site can have it.

    Args:
        app: What answers.
        names: That the machine is reached by, besides its own.
    """

    def __init__(self, app: Application, names: Collection[str] = ()) -> None:
        self.app = app
        self.names = {
            name.lower() for name in (*NAMES, *names, socket.gethostname(), socket.getfqdn())
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        if reason := self._refused(scope["headers"]):
            return await refuse(403, reason, send, scope["type"])
        await self.app(scope, receive, _without_cors(send))

    def _refused(self, headers: Collection[tuple[bytes, bytes]]) -> str:
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        if len(hosts) != 1 or not self._ours(hosts[0]):
            return "the Host of the request is no name of this server"
        if any(urlsplit(origin).netloc.lower() != hosts[0].lower() for origin in origins):
            return "the request comes from a page of another site"
        return ""

    def _ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        return name in self.names or _is_address(name)


async def refuse(status: int, sentence: str, send: Send, kind: str = "http") -> None:
    """Answer a request with an error, and end its connection: what it still sends is not read."""
    if kind == "websocket":
        return await send({"type": "websocket.close", "code": 1008})
    body = json.dumps({"error": sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _without_cors(send: Send) -> Send:
    """What it sends lets no other site read it, whatever the application says."""

    async def sent(message: MutableMapping[str, Any]) -> None:
        if "headers" in message:
            kept = [
                pair
                for pair in message["headers"]
                if not pair[0].lower().startswith(b"access-control-")
            ]
            message = {**message, "headers": kept}
        await send(message)

    return sent


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _sweep(prefix: str) -> None:
    """Remove the folders of this user's processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid() or not folder.is_dir():
                continue
            if not (folder / LOCK).exists():
                if time.time() - folder.stat().st_mtime > OLD:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            with (folder / LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # it is in use, or gone already
            continue


def _stop(number: int, _: object) -> None:
    raise SystemExit(128 + number)
