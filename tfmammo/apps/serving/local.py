"""What the model server and the studio share: a private folder, a clean end, and who may ask.

A browser on this machine reaches what listens on 127.0.0.1, and so does any page in that browser:
by a form, or by a host name of the page that suddenly leads to this machine (DNS rebinding).
`SameOrigin` answers only requests to a name of this server, from its own pages.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tfmammo import filesystem

if TYPE_CHECKING:
    from starlette.requests import Request

LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
LOCK = ".alive"
DRAINING_SECONDS = 5.0  # the rest of a refused body is read
LEFTOVER_SECONDS = 24 * 3600  # age at which a folder without a lock file is a leftover, too

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


@contextmanager
def private_folder(prefix: str) -> Iterator[Path]:
    """Provide a folder, mode 0700, for all temporary files of this process; remove it at the end.

    Folders of the same prefix whose process was killed are removed first: their locks are free.

    Raises:
        OSError: The folder can't be locked, as on a file system without locks.
    """
    _remove_leftovers(prefix)
    before = tempfile.tempdir
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    tempfile.tempdir = str(folder)
    try:
        with (folder / LOCK).open("w") as lock:
            # Without a lock, another process would take the folder for a leftover.
            if not filesystem.take_lock(lock):
                raise OSError(f"{folder}: can't be locked; TMPDIR can name another folder")
            yield folder
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def stoppable() -> Iterator[None]:
    """Make SIGTERM end the process like Ctrl-C, so that its folder is removed; exit code 143."""
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class SameOrigin:
    """An ASGI application that answers only requests to its names, from its own pages.

    A numeric address is always accepted: no other site can have it as a name.

    Args:
        app: The application that answers.
        names: Further host names of this machine.
    """

    def __init__(self, app: Application, names: Collection[str] = ()) -> None:
        self.app = app
        self.names = {
            name.lower() for name in (*LOCAL_NAMES, *names, socket.gethostname(), socket.getfqdn())
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse a request, see ASGI."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        if reason := self._find_fault(scope["headers"]):
            return await refuse(403, reason, send, scope["type"])
        await self.app(scope, receive, _without_cors(send))

    def _find_fault(self, headers: Collection[tuple[bytes, bytes]]) -> str:
        """Return why a request is refused; empty if it is not."""
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            return "the Host of the request is not a name of this server"
        if any(urlsplit(origin).netloc.lower() != hosts[0].lower() for origin in origins):
            return "the request comes from a page of another site"
        return ""

    def _is_own(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        return name in self.names or _is_address(name)


async def drain(request: Request) -> None:
    """Read the rest of a refused body for a few seconds, so that the client can read the reason.

    Where a connection is closed upon unread bytes, the client may never see the answer.
    """
    from starlette.requests import ClientDisconnect  # of the extra serve

    if "content-length" in request.headers:
        # RuntimeError: the body has been read already
        with suppress(TimeoutError, ClientDisconnect, RuntimeError):
            async with asyncio.timeout(DRAINING_SECONDS):
                async for _ in request.stream():
                    pass


async def refuse(status: int, sentence: str, send: Send, kind: str = "http") -> None:
    """Answer a request with an error and close its connection."""
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
    """Drop the headers by which an application would let other sites read its answers."""

    async def send_filtered(message: MutableMapping[str, Any]) -> None:
        """Send a message of the application without those headers."""
        if "headers" in message:
            kept = [
                pair
                for pair in message["headers"]
                if not pair[0].lower().startswith(b"access-control-")
            ]
            message = {**message, "headers": kept}
        await send(message)

    return send_filtered


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _remove_leftovers(prefix: str) -> None:
    """Remove the folders of this user's processes that were killed."""
    # A symbolic link, or another user's folder, is never touched.
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        try:
            if folder.is_symlink() or not _is_own(folder) or not folder.is_dir():
                continue
            if not (folder / LOCK).exists():
                if time.time() - folder.stat().st_mtime > LEFTOVER_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            with (folder / LOCK).open() as lock:
                if filesystem.take_lock(lock):
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # it has just been removed
            continue


def _is_own(folder: Path) -> bool:
    """Tell whether a folder is this user's; on Windows temporary folders are."""
    return os.name == "nt" or folder.stat().st_uid == os.getuid()


def _stop(number: int, _: object) -> None:
    raise SystemExit(128 + number)
