"""Serve a service over HTTP: MLflow's protocol, with the limits that patients' data need.

A service is read from its JSON and SavedModels. No code that is stored with it is run.

    POST /invocations       {"inputs": [...]}, as `mlflow models serve` takes it
                            -> {"predictions": [...]}
    GET  /health, /ping     200 while the model is loaded
    GET  /metrics           Prometheus: a histogram of seconds by status, requests under way
    GET  /version           MLflow's version, as MLflow's own server answers it

An error is {"error": "one sentence"}, which repeats no image. No request is logged. MLflow's own
application repeats images, and has no limit for a body. When a client disconnects, work stops at
the next image or batch.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import uvicorn
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tfmammo.apps.serving import web
from tfmammo.apps.serving.pictures import FILE, Service, unpack
from tfmammo.apps.serving.saving import PLACE
from tfmammo.errors import ConfigError, TfmammoError

log = logging.getLogger(__name__)

# bounds of the histogram
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
MAX_ERROR_LENGTH = 500  # characters
MAX_CONNECTIONS = 64  # each may hold a body in memory
RECEIVING_SECONDS = 120.0  # a body may take
# Numbers, texts and lists of a request: as Python objects they take up to forty bytes each, however
# short their text. The largest mammograms have half as many pixels.
MAX_VALUES = 2**24


class RequestRefused(Exception):
    """A request that is answered by an error; the sentence repeats nothing of its body."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def make_server(
    service: Service, host: str, limit: int, parallel: int, names: Sequence[str] = ()
) -> uvicorn.Server:
    """Make a service's server; the arguments are those of `run`, but `limit` is bytes."""
    worker = _Worker(service, limit, parallel)
    registry = CollectorRegistry()
    latency = Histogram(
        "tfmammo_request_seconds",
        "Time of a request",
        ["status"],
        registry=registry,
        buckets=SECONDS,
    )
    under_way = Gauge(
        "tfmammo_requests_under_way", "Requests that are waiting or computed", registry=registry
    )

    async def invocations(request: Request) -> Response:
        start = time.perf_counter()
        with under_way.track_inprogress():
            response = await worker.respond(request)
        latency.labels(response.status_code).observe(time.perf_counter() - start)
        return response

    async def health(request: Request) -> Response:
        return Response("\n", media_type="application/json")

    async def version(request: Request) -> Response:
        return Response(mlflow.__version__, media_type="application/json")

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    routes = [
        Route("/invocations", invocations, methods=["POST"]),
        Route("/health", health),
        Route("/ping", health),
        Route("/version", version),
        Route("/metrics", metrics),
    ]
    return web.make_server(web.guard(Starlette(routes=routes), host, names), MAX_CONNECTIONS)


def run(
    uri: str, host: str, port: int, limit: int, parallel: int, names: Sequence[str] = ()
) -> None:
    """Load a service and serve it until Ctrl-C or SIGTERM, either of which ends it within seconds.

    Args:
        uri: A folder, or models:/NAME@ALIAS of MLflow's current store.
        host: Address to listen on.
        port: Port to listen on.
        limit: Largest body of a request, MB.
        parallel: Requests that are computed at once; others wait.
        names: Further names of this machine, see `web.guard`.
    """
    with web.stoppable(), _exiting_at_once(), web.private_folder("tfmammo_serving_") as folder:
        server = make_server(load(uri, folder), host, limit * 2**20, parallel, names)
        with web.listen(host, port) as listener:
            log.info("serving %s on http://%s", uri, web.format_address(host, port))
            server.run([listener])


def load(uri: str, folder: Path) -> Service:
    """Load a registered service.

    Of all that an MLflow model holds, only the service's JSON and exports are read.

    Args:
        uri: See `run`.
        folder: Where a model that is no folder of this machine is copied to.

    Raises:
        MlflowException: There is no such model.
        ConfigError: It holds no service.
    """
    target = None if Path(uri).is_dir() else str(folder)
    place = Path(mlflow.artifacts.download_artifacts(uri, dst_path=target)) / PLACE
    if not (place / FILE).is_file():
        raise ConfigError(
            f"{uri}: is no service of `tfmammo serve register` ({PLACE}/{FILE} is missing); a "
            "network that takes arrays is served by `mlflow models serve`, and pickled models "
            "are never loaded"
        )
    return Service.load(unpack(place))


@contextmanager
def _exiting_at_once() -> Iterator[None]:
    """Make a signal end the process at once: nothing can interrupt a network that is computed."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130 if isinstance(error, KeyboardInterrupt) else int(error.code or 0))


class _Worker:
    """Receives requests, and computes a few of them at once."""

    def __init__(self, service: Service, limit: int, parallel: int) -> None:
        self.service = service
        self.limit = limit
        self.executor = ThreadPoolExecutor(parallel, "request")

    async def respond(self, request: Request) -> Response:
        try:
            body = await _receive(request, self.limit)
            return Response(await self._compute(request, body), media_type="application/json")
        except RequestRefused as refused:
            if refused.status == 400:
                return JSONResponse({"error": str(refused)}, 400)
            if refused.status in (413, 415):
                await web.drain(request)
            return web.refuse(refused.status, str(refused))
        except (ClientDisconnect, ClientGone):
            return Response(status_code=400)  # nobody reads it
        except asyncio.CancelledError:  # by uvicorn, when it stops
            return web.refuse(503, "the server is stopping")

    async def _compute(self, request: Request, body: bytearray) -> str:
        """Compute the answer in a thread, which learns when the client has gone."""
        gone = threading.Event()

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            gone.set()

        watching = asyncio.create_task(watch())
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self.executor, _answer, self.service, body, gone
            )
        finally:
            gone.set()
            watching.cancel()


async def _receive(request: Request, limit: int) -> bytearray:
    """Receive a JSON body of at most `limit` bytes, in time."""
    kind = request.headers.get("content-type", "").partition(";")[0]
    if kind.strip().lower() != "application/json":
        raise RequestRefused("the content type must be application/json", 415)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestRefused("the request must not be compressed (content-encoding)", 415)
    too_large = RequestRefused(f"the request is larger than {limit / 2**20:g} MB", 413)
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(RECEIVING_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise RequestRefused("the request came too slowly", 408) from None
    return body


def _answer(service: Service, body: bytearray, gone: threading.Event) -> str:
    """Return the answer as JSON; `gone` is set when nobody waits for it any more."""

    def check_client() -> None:
        if gone.is_set():
            raise ClientGone

    check_client()
    try:
        return json.dumps({"predictions": service.answer(parse(body), check_client)})
    except TfmammoError as error:
        raise RequestRefused(shorten(str(error))) from None
    except (RequestRefused, ClientGone):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            log.error("the disk of %s is full", tempfile.gettempdir())
            raise RequestRefused("the server has no space for the request", 503) from None
        # The message may quote the request, the frames do not.
        frames = "".join(traceback.format_tb(error.__traceback__))
        log.error("%s\n%s", type(error).__name__, frames)
        raise RequestRefused(
            f"the model can't answer this request ({type(error).__name__})"
        ) from None


def parse(body: bytes | bytearray) -> list[dict[str, Any]]:
    """Parse a JSON body into its inputs, a list of objects.

    MLflow's parser is not used: its errors repeat the request, which holds a patient's image.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise RequestRefused(
            f"the request holds more than {MAX_VALUES} values; send a large image as a file, in "
            "image"
        )
    try:
        request = json.loads(body, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise RequestRefused(
            f"the request is not valid JSON ({error.msg} at character {error.pos})"
        ) from None
    except (ValueError, RecursionError):  # not UTF-8, a number of too many digits, too deep
        raise RequestRefused("the request is not valid JSON") from None
    if not isinstance(request, dict) or request.keys() != {"inputs"}:
        raise RequestRefused("the request must be an object with the key inputs alone")
    inputs = request["inputs"]
    if not isinstance(inputs, list) or not all(isinstance(item, dict) for item in inputs):
        raise RequestRefused("inputs must be a list of images, each an object with image or pixels")
    return inputs


def _refuse_constant(name: str) -> None:
    raise RequestRefused(f"{name} is not a number in JSON")


def shorten(message: str) -> str:
    """Return an error's message as one short line."""
    # half of a surrogate pair, which JSON may name in a request, has no bytes
    text = message.encode("utf-8", "replace").decode()
    return " ".join(text.split())[:MAX_ERROR_LENGTH]
