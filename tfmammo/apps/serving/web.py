"""What the model server and the studio share: uvicorn, who may ask, a private folder, a clean end.

A browser on this machine reaches what listens on 127.0.0.1, and so does any page in that browser:
by a form, or by a host name that suddenly leads to this machine (DNS rebinding). So requests must
name this server, and none may come from a page of another site.

uvicorn has no time limit for a request's header or for reading an answer. A reverse proxy has.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger(__name__)

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")  # reached from this machine only
STOPPING_SECONDS = 5  # for requests under way, from a signal on
DRAINING_SECONDS = 5.0  # the rest of a refused body is read


class SameOrigin:
    """An ASGI application that refuses requests from pages of other sites."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse a request."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host = headers.get("host", "").lower()
            origins = [origin.partition("://")[2].lower() for origin in headers.getlist("origin")]
            if any(origin != host for origin in origins):
                refusal = refuse(403, "the request comes from a page of another site")
                return await refusal(scope, receive, send)
        await self.app(scope, receive, send)


def guard(app: ASGIApp, host: str, names: Sequence[str]) -> ASGIApp:
    """Let an application answer only requests to this machine's names, from its own pages.

    `names` are further names and addresses of this machine. Without any, a `host` that other
    machines reach answers requests to every name.
    """
    if host not in LOCAL_HOSTS:
        log.warning(
            "listening on %s: anybody who reaches this address has access; there is no password "
            "and no encryption",
            host,
        )
    app = SameOrigin(app)
    if names or host in LOCAL_HOSTS:
        own = ["127.0.0.1", "localhost", "[::1]", socket.gethostname(), socket.getfqdn(), *names]
        app = TrustedHostMiddleware(app, own, www_redirect=False)
    return app


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    address = format_address(host, port)
    if not 0 <= port < 2**16:
        raise OSError(f"{address}: can't listen (ports go from 0 to 65535)")
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"{address}: can't listen ({error.strerror or error})") from None


def format_address(host: str, port: int) -> str:
    """Format where a server listens, as URLs have it: "127.0.0.1:5001", "[::1]:5001"."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def make_server(app: ASGIApp, connections: int) -> uvicorn.Server:
    """Make a server; its `run([listener])` answers requests until a signal.

    Requests over more than `connections` open connections get a 503.
    """
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="error",
            access_log=False,
            ws="none",
            limit_concurrency=connections,
            timeout_graceful_shutdown=STOPPING_SECONDS,
        )
    )


async def drain(request: Request) -> None:
    """Read the rest of a refused body: a client may not see an answer before it has sent all."""
    # RuntimeError: the body has been read already
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(DRAINING_SECONDS):
            async for _ in request.stream():
                pass


def refuse(status: int, sentence: str) -> JSONResponse:
    """Make an error's answer, after which the connection is closed: its body may be unread."""
    return JSONResponse({"error": sentence}, status, {"connection": "close"})


@contextmanager
def private_folder(prefix: str) -> Iterator[Path]:
    """Provide a folder, mode 0700, for all temporary files of this process, until its end."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before


@contextmanager
def stoppable() -> Iterator[None]:
    """Make SIGTERM end the process like Ctrl-C, so that its folder is removed; exit code 143."""

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
