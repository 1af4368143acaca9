"""uvicorn with an end to waiting: for a request's header, for a client to read its answer,
for the server to stop.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 512  # connections; beyond, the one that has waited longest for its header makes room
# from the begin of a connection, or of a further request over it, to the end of a header
HEADER_SECONDS = 10
# between two requests over one connection; more than clients keep theirs, so that they close it
IDLE_SECONDS = 75
READING_SECONDS = 30  # that a client may leave an answer unread
STOPPING_SECONDS = 5  # from a signal to the end; requests are told at once


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 over one connection, cut off where nothing comes of it."""

    # when it began to wait for a header; None while a request is under way
    since: float | None = None
    begun = True  # whether something has come since, or has to come
    limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        if len(self.connections) >= MOST:
            waiting = [
                one
                for one in self.connections
                if isinstance(one, Connection) and one.since is not None
            ]
            min(waiting, key=lambda one: one.since or 0.0, default=self).transport.abort()
        self._await_header(HEADER_SECONDS)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self.since is not None and not self.begun:
            self.begun = True
            self._limit(HEADER_SECONDS, self.since)
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._forget_limit()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """What uvicorn does with what has come; a whole header begins a request."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and not self.cycle.response_complete:
            self._forget_limit()

    def on_response_complete(self) -> None:
        """An answer is written; the next header may come."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self.begun = False
            self._await_header(IDLE_SECONDS)

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._limit(READING_SECONDS)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        if self.cycle is None or self.cycle.response_complete:
            self._await_header(IDLE_SECONDS)
        else:
            self._forget_limit()

    def _await_header(self, seconds: float) -> None:
        self._limit(
            READING_SECONDS if self.transport.get_write_buffer_size() else seconds, self.loop.time()
        )

    def _limit(self, seconds: float, since: float | None = None) -> None:
        self._forget_limit()
        self.since = since
        self.limit = self.loop.call_later(seconds, self.transport.abort)

    def _forget_limit(self) -> None:
        self.since = None
        if self.limit is not None:
            self.limit.cancel()
            self.limit = None


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: The port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MOST)
    except OSError as error:
        raise OSError(f"{host}:{port}: can't be listened on ({error.strerror or error})") from None


def serve(app: Any, listener: socket.socket, stopping: Callable[[], None] = lambda: None) -> None:
    """Answer until a signal.

    Args:
        app: An ASGI application.
        stopping: Called when it comes.
    """
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        http=Connection,
        ws="none",
        limit_concurrency=MOST,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=STOPPING_SECONDS,
    )
    Server(config, stopping).run([listener])


class Server(uvicorn.Server):
    """uvicorn's server, which says when it begins to stop.

    Args:
        stopping: Called then.
    """

    def __init__(self, config: uvicorn.Config, stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self.stopping = stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        self.stopping()
        await super().shutdown(sockets)
