"""What stands before the studio's page: bodies of a known and bounded length, and a bound
on all that lies on disk.

Gradio writes an upload to disk before anything of ours is asked, any number of them, and keeps
those that nobody opens for an hour.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect

from tfmammo.serving.local import Application, Receive, Scope, Send, refuse

OTHERS = 2 * 2**20  # bytes of any other request: a page sends a few numbers and words
FRAMING = 2**16  # bytes of an upload beside its file
SECONDS = 120.0  # that an upload may take
UNOPENED = 600.0  # s that an upload is kept which no page has opened
EVERY = 30.0  # s between two looks


class Bounded:
    """An ASGI application that takes no more than it should.

    Args:
        app: The page.
        folder: Of all temporary files.
        upload: Bytes of one file, at most.
        total: Bytes of all files in the folder, at most; uploads that would lead beyond are
            refused.
    """

    def __init__(self, app: Application, folder: Path, upload: int, total: int) -> None:
        self.app = app
        self.folder = folder
        self.upload = upload
        self.total = total
        self.coming = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self.app(scope, receive, send)
        is_upload = scope["path"].rstrip("/").endswith("/upload")
        length = dict(scope["headers"]).get(b"content-length", b"").decode("latin-1")
        if not length.isdecimal():
            return await refuse(411, "the request must say how long it is (content-length)", send)
        if len(length) > 15 or int(length) > (self.upload + FRAMING if is_upload else OTHERS):
            return await refuse(413, "the request is too large", send)
        if not is_upload:
            return await self.app(scope, receive, send)
        await self._take(int(length), scope, receive, send)

    async def _take(self, length: int, scope: Scope, receive: Receive, send: Send) -> None:
        held = await asyncio.to_thread(size, self.folder)
        if held + self.coming + length > self.total:
            return await refuse(
                413,
                "the studio keeps too many files already; close a page, or try again in some "
                "minutes",
                send,
            )
        self.coming += length
        answer = _Watched(send)
        try:
            async with asyncio.timeout(SECONDS):
                await self.app(scope, receive, answer)
        except TimeoutError:
            if not answer.begun:
                await refuse(408, "the upload came too slowly", send)
        except ClientDisconnect:
            pass
        finally:
            self.coming -= length


class _Watched:
    """A `send` that knows whether an answer has begun."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.begun = False

    async def __call__(self, message: Any) -> None:
        self.begun = True
        await self.send(message)


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # it has just gone
            continue
    return total


def remove_unopened(page: Any, folder: Path, age: float = UNOPENED) -> None:
    """Delete what was uploaded and not opened, and what an upload that broke off has left.

    Args:
        page: A gr.Blocks, which knows what was uploaded.
        folder: Where uploads are written.
        age: S, at least.
    """
    # what came whole lies in a folder of its own
    broken = [path for path in folder.glob("*") if path.is_file()]
    for path in [*map(Path, tuple(page.upload_file_set)), *broken]:
        try:
            if time.time() - path.stat().st_mtime > age:
                path.unlink()
                path.parent.rmdir()
        except OSError:  # it was opened, or its folder holds more
            continue


def watch(page: Any, folder: Path) -> None:
    """From now on, look for such files again and again."""

    def look() -> None:
        while True:
            time.sleep(EVERY)
            remove_unopened(page, folder)

    threading.Thread(target=look, daemon=True).start()
