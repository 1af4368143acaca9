"""What the model server and the studio have in common on the web: uvicorn, and who may ask.

A browser on this machine reaches what listens on 127.0.0.1, and so does any page in that browser:
by a form, or by a host name of the page that suddenly leads to this machine (DNS rebinding). So
requests must name this server, and none may come from a page of another site.

uvicorn has no time limit for a request's header or for reading an answer. A reverse proxy has.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress

import uvicorn
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger(__name__)

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")  # that only this machine reaches
STOPPING_SECONDS = 5  # requests under way have from a signal on
DRAINING_SECONDS = 5.0  # the rest of a refused body is read


class SameOrigin:
    """An ASGI application that refuses requests from pages of other sites.

    Args:
        app: The application that answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse a request, see ASGI."""
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

    Args:
        app: The application.
        host: Address that it listens on.
        names: Further names and addresses of this machine. If there are none and `host` is reached
            from other machines, requests to any name are answered.
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
    """Open a listening socket.

    Raises:
        OSError: The port is in use, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"{host}:{port}: can't listen there ({error.strerror or error})") from None


def make_server(app: ASGIApp, connections: int) -> uvicorn.Server:
    """Make a server, whose `run([listener])` answers requests until a signal.

    Args:
        app: The application.
        connections: Open at once; requests over further ones get a 503.
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
    """Read the rest of a refused body for a few seconds, so that the client can read the reason.

    Where a connection is closed upon unread bytes, the client may never see the answer.
    """
    # RuntimeError: the body has been read already
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(DRAINING_SECONDS):
            async for _ in request.stream():
                pass


def refuse(status: int, sentence: str) -> JSONResponse:
    """Make an error's answer, after which the connection is closed: its body may be unread."""
    return JSONResponse({"error": sentence}, status, {"connection": "close"})
