"""Limits in front of the studio's page: the length of each request, and the size of all files.

Gradio writes any number of uploads to disk before the studio's functions are called, and keeps
those that no page opens for an hour.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request

from tfmammo.apps.serving.local import Application, Receive, Scope, Send, drain, refuse

MAX_OTHER = 2 * 2**20  # bytes of a request that is no upload: a page sends a few numbers and words
UPLOAD_FRAMING = 2**16  # bytes of an upload in addition to its file
UPLOAD_SECONDS = 120.0  # an upload may take
UNOPENED_SECONDS = 600.0  # an upload that no page has opened is kept
WATCH_SECONDS = 30.0  # between two searches for such uploads


class Bounded:
    """An ASGI application with limits on uploads and other requests.

    Args:
        app: The page.
        folder: Folder of all temporary files.
        upload: Largest file, bytes.
        total: Most bytes of all files in the folder; an upload that would exceed them is refused.
    """

    def __init__(self, app: Application, folder: Path, upload: int, total: int) -> None:
        self.app = app
        self.folder = folder
        self.upload = upload
        self.total = total
        self.incoming = 0  # bytes of the uploads under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse a request, see ASGI."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self.app(scope, receive, send)
        is_upload = scope["path"].rstrip("/").endswith("/upload")
        length = dict(scope["headers"]).get(b"content-length", b"").decode("latin-1")
        if not length.isdecimal():
            return await refuse(411, "the request must say how long it is (content-length)", send)
        limit = self.upload + UPLOAD_FRAMING if is_upload else MAX_OTHER
        if len(length) > 15 or int(length) > limit:
            await drain(Request(scope, receive))
            return await refuse(413, "the request is too large", send)
        if not is_upload:
            return await self.app(scope, receive, send)
        await self._receive(int(length), scope, receive, send)

    async def _receive(self, length: int, scope: Scope, receive: Receive, send: Send) -> None:
        held = await asyncio.to_thread(folder_size, self.folder)
        if held + self.incoming + length > self.total:
            await drain(Request(scope, receive))
            return await refuse(
                413,
                "the studio holds too many files; close a page, or try again in a few minutes",
                send,
            )
        self.incoming += length
        answer = _WatchedSend(send)
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                await self.app(scope, receive, answer)
        except TimeoutError:
            if not answer.begun:
                await refuse(408, "the upload came too slowly", send)
        except ClientDisconnect:
            pass
        finally:
            self.incoming -= length


class _WatchedSend:
    """A `send` that records whether an answer has begun."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.begun = False

    async def __call__(self, message: Any) -> None:
        self.begun = True
        await self.send(message)


def folder_size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # it has just been deleted
            continue
    return total


def remove_unopened(page: Any, folder: Path, age: float = UNOPENED_SECONDS) -> None:
    """Delete uploads that were not opened, and files of broken-off uploads.

    Args:
        page: A gr.Blocks, which knows what was uploaded.
        folder: Folder that uploads are written to.
        age: Least age of a deleted file, s.
    """
    # Each complete upload lies in a folder of its own.
    incomplete = [path for path in folder.glob("*") if path.is_file()]
    for path in [*map(Path, tuple(page.upload_file_set)), *incomplete]:
        try:
            if time.time() - path.stat().st_mtime > age:
                path.unlink()
                path.parent.rmdir()
        except OSError:  # it was opened, or its folder holds more
            continue


def watch(page: Any, folder: Path) -> None:
    """Call `remove_unopened` again and again in a thread of its own."""

    def look() -> None:
        while True:
            time.sleep(WATCH_SECONDS)
            remove_unopened(page, folder)

    threading.Thread(target=look, daemon=True).start()
