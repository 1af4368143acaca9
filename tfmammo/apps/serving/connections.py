"""uvicorn with time limits: for a request's header, for reading an answer, for stopping."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

# With more connections, the one that has waited longest for its header is closed.
MAX_CONNECTIONS = 512
# From the start of a connection, or of its next request, to the end of the header.
HEADER_SECONDS = 10
# Between two requests of one connection; longer than clients wait, so that they close it first.
IDLE_SECONDS = 75
READING_SECONDS = 30  # a client may leave an answer unread
STOPPING_SECONDS = 5  # from a signal to the end; requests under way are answered at once


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 over one connection, which is closed when a time limit has passed."""

    # when it began to wait for a header; None while a request is under way
    since: float | None = None
    # whether a byte of the header has come; for a new connection, as if it had
    begun = True
    limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit; close another connection if there are too many."""
        super().connection_made(transport)
        if len(self.connections) >= MAX_CONNECTIONS:
            waiting = [
                connection
                for connection in self.connections
                if isinstance(connection, Connection) and connection.since is not None
            ]
            longest = min(waiting, key=lambda waiter: waiter.since or 0.0, default=self)
            longest.transport.abort()
        self._await_header(HEADER_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Shorten the time limit at the first byte of a further request."""
        if self.since is not None and not self.begun:
            self.begun = True
            self._limit(HEADER_SECONDS, self.since)
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the time limit."""
        self._forget_limit()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Handle what has come; a complete header starts a request and ends its time limit."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and not self.cycle.response_complete:
            self._forget_limit()

    def on_response_complete(self) -> None:
        """Start the time limit for the next header: an answer is complete."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self.begun = False
            self._await_header(IDLE_SECONDS)

    def pause_writing(self) -> None:
        """Start the time limit for reading: the client does not read its answer."""
        super().pause_writing()
        self._limit(READING_SECONDS)

    def resume_writing(self) -> None:
        """Cancel the time limit for reading: the client reads again."""
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


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        OSError: The port is in use, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)
    except OSError as error:
        raise OSError(f"{host}:{port}: can't listen there ({error.strerror or error})") from None


def serve(app: Any, listener: socket.socket, stopping: Callable[[], None] = lambda: None) -> None:
    """Answer requests until a signal.

    Args:
        app: An ASGI application.
        listener: The listening socket.
        stopping: Called when the signal arrives.
    """
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        http=Connection,
        ws="none",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=STOPPING_SECONDS,
    )
    Server(config, stopping).run([listener])


class Server(uvicorn.Server):
    """uvicorn's server, with a call when it begins to stop.

    Args:
        config: uvicorn's settings.
        stopping: Called when the server begins to stop.
    """

    def __init__(self, config: uvicorn.Config, stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self.stopping = stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Call `stopping`, then shut down as uvicorn does."""
        self.stopping()
        await super().shutdown(sockets)
