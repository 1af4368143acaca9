"""A limit on all the studio's files together.

Gradio limits each file, and deletes what has arrived after an hour. It limits neither the number
of files nor what many open pages keep, and never deletes an upload that was broken off.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from tfmammo.apps.serving import web


class BoundedUploads:
    """An ASGI application that refuses uploads beyond `total` bytes of all files in a folder."""

    def __init__(self, app: ASGIApp, folder: Path, total: int) -> None:
        self.app = app
        self.folder = folder
        self.total = total
        self.incoming = 0  # bytes of the uploads under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse a request."""
        if scope["type"] != "http" or not scope["path"].rstrip("/").endswith("/upload"):
            return await self.app(scope, receive, send)
        length = Headers(scope=scope).get("content-length")
        if length is None:
            refusal = web.refuse(411, "the upload must say how long it is (content-length)")
            return await refusal(scope, receive, send)
        held = await asyncio.to_thread(folder_size, self.folder)
        if held + self.incoming + int(length) > self.total:
            await web.drain(Request(scope, receive))
            refusal = web.refuse(
                413, "the studio has too many open files; close a page, or try again in an hour"
            )
            return await refusal(scope, receive, send)
        self.incoming += int(length)
        try:
            with suppress(ClientDisconnect):
                await self.app(scope, receive, send)
        finally:
            self.incoming -= int(length)


def folder_size(folder: Path) -> int:
    """Add up the bytes of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # it has just been deleted
            total += path.stat().st_size if path.is_file() else 0
    return total
