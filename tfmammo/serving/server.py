"""A registered model over HTTP: MLflow's own protocol, with what a server for patients'
pictures needs around it.

    POST /invocations   {"inputs": ...}, with "params" where a model has them, as `mlflow models
    serve` takes it -> {"predictions": ...}
    GET  /health, /ping     200 while the model is loaded
    GET  /metrics           Prometheus: a histogram of seconds by status, requests under way
    GET  /version           of MLflow, as its own server

What can't be answered is {"error": "one sentence"} with a 4xx status, in which nothing of the
request is repeated. A body larger than the limit, or of unknown length, is refused before it is
read (413, 411), one that comes too slowly is given up (408), and where too many are under way
already a request is turned away (503). Bodies wait on disk, nameless, and are parsed in a process
of its own (`parsing`), so that memory does not follow from what somebody sends. Where the client
has gone, work stops at the next picture, or patches. No request is logged.
"""

from __future__ import annotations

import asyncio
import ctypes
import io
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import IO, Any

import mlflow
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel, scoring_server
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.requests import ClientDisconnect

from tfmammo.serving import connections, local, parsing, saving

log = logging.getLogger(__name__)

# the histogram's bounds
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
LONGEST = 500  # characters of an error
IN_MEMORY = 2**18  # bytes of a body that wait in memory
SMALL = 2**19  # bytes of a body that is parsed in this process
ROOM = 16  # limits of bytes that may be under way; further large requests are turned away
GRACE = 10.0  # s before a body's pace counts
PACE = 64 * 2**10  # bytes a second that a body must come at
PARSING_SECONDS = 120.0
DRAINING = 5.0  # s


class Refused(Exception):
    """A request that is not answered.

    Attributes:
        status: Of HTTP.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Gone(Exception):
    """Nobody waits for the answer any more."""


# Of the request that a thread works on: set when its client has gone.
_gone: ContextVar[threading.Event] = ContextVar("_gone")


def application(model: PyFuncModel, limit: int, parallel: int) -> FastAPI:
    """The server's application. app.state.stop ends all requests under way.

    Args:
        model: Loaded.
        limit: Bytes of a request's body.
        parallel: Requests that are computed at once; others wait.
    """
    app = FastAPI(openapi_url=None)
    metrics = CollectorRegistry()
    latency = Histogram(
        "tfmammo_request_seconds",
        "Time of a request",
        ["status"],
        registry=metrics,
        buckets=SECONDS,
    )
    under_way = Gauge(
        "tfmammo_requests_under_way", "Requests that are waiting or computed", registry=metrics
    )
    work = _Work(model, limit, parallel)
    app.state.stop = work.stop

    @app.post("/invocations")
    async def invocations(request: Request) -> Response:
        start = time.perf_counter()
        with under_way.track_inprogress():
            response = await work.answered(request)
        latency.labels(response.status_code).observe(time.perf_counter() - start)
        return response

    @app.get("/ping")
    @app.get("/health")
    async def health() -> Response:
        return Response("\n", media_type="application/json")

    @app.get("/version")
    async def version() -> Response:
        return Response(mlflow.__version__, media_type="application/json")

    @app.get("/metrics")
    async def shown() -> Response:
        return Response(generate_latest(metrics), media_type=CONTENT_TYPE_LATEST)

    return app


def run(
    uri: str, host: str, port: int, limit: int, parallel: int, names: Collection[str] = ()
) -> None:
    """Load a model and serve it until Ctrl-C or SIGTERM, either of which ends it within seconds.

    Args:
        uri: A folder or models:/NAME@ALIAS of MLflow's current store.
        limit: MB of a request.
        names: That the machine is reached by, besides its own; where it listens on more than this
            machine, any will do if none is given.

    Raises:
        MlflowException: There is no such model.
        ConfigError: Its code is not this package's.
    """
    with local.stoppable(), _left_at_once(), local.private_folder("tfmammo_serving_") as folder:
        place = Path(
            mlflow.artifacts.download_artifacts(
                uri, dst_path=None if Path(uri).is_dir() else str(folder)
            )
        )
        saving.check(place, uri)
        app = application(mlflow.pyfunc.load_model(str(place)), limit * 2**20, parallel)
        if host not in local.NAMES:
            log.warning(
                "listening on %s: whoever reaches this address can use the model; there is no "
                "password and no encryption",
                host,
            )
        guarded = local.SameOrigin(app, names) if names or host in local.NAMES else app
        with connections.listening(host, port) as listener:
            log.info("serving %s on http://%s:%d", uri, host, port)
            connections.serve(guarded, listener, app.state.stop)


@contextmanager
def _left_at_once() -> Iterator[None]:
    """A signal ends the process although a network is being computed, which nothing interrupts, and
    Python would tidy up for seconds.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130 if isinstance(error, KeyboardInterrupt) else int(error.code or 0))


class _Work:
    """Takes requests in, and computes a few at once."""

    def __init__(self, model: PyFuncModel, limit: int, parallel: int) -> None:
        self.limit = limit
        self.held = 0
        self.tasks = set[asyncio.Task[Response]]()
        # MLflow's own checks of `predict` repeat the request in their errors; ours stand in the
        # models.
        self.model = model.unwrap_python_model()
        self.model.proceed = _proceed
        self.executor = ThreadPoolExecutor(parallel, "request")
        self.stopped = False

    async def answered(self, request: Request) -> Response:
        """The answer, or why there is none."""
        task = asyncio.ensure_future(self._answer(request))
        self.tasks.add(task)
        try:
            await asyncio.wait((task,))
            return (
                _sentence(503, "the server is being stopped") if task.cancelled() else task.result()
            )
        finally:
            task.cancel()
            self.tasks.discard(task)

    def stop(self) -> None:
        """Give up all requests under way; they are told."""
        self.stopped = True
        for task in self.tasks:
            task.cancel()
        self.executor.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, request: Request) -> Response:
        try:
            length = _length(request, self.limit)
            with self._reserved(length):
                body = await _received(request, length)
                return Response(await self._computed(request, body), media_type="application/json")
        except Refused as refused:
            if refused.status in (413, 415):
                await _drained(request)
            return _sentence(refused.status, str(refused))
        except (ClientDisconnect, Gone):
            return Response(status_code=400)  # which nobody reads
        except OSError as error:
            log.error("a request can't be kept (%s)", error.strerror)
            return _sentence(503, "the server has no room for the request")

    @contextmanager
    def _reserved(self, length: int) -> Iterator[None]:
        """Disk for a large body."""
        length = length if length > SMALL else 0
        if self.held + length > ROOM * self.limit:
            raise Refused(503, "too many large requests are under way; try again in a while")
        self.held += length
        try:
            yield
        finally:
            self.held -= length
            if length and not self.stopped:
                self.executor.submit(_give_back)

    async def _computed(self, request: Request, body: IO[bytes]) -> str:
        gone = threading.Event()
        context = copy_context()
        context.run(_gone.set, gone)
        watch = asyncio.ensure_future(_watched(request, gone))
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self.executor, context.run, _predicted, self.model, body
            )
        finally:
            gone.set()
            watch.cancel()


def _length(request: Request, limit: int) -> int:
    """How long a body is said to be.

    Raises:
        Refused: It need not be read.
    """
    kind, _, options = request.headers.get("content-type", "").partition(";")
    if kind.strip().lower() != "application/json":
        raise Refused(415, "the content type must be application/json")
    if options.strip().lower().replace('"', "") not in ("", "charset=utf-8"):
        raise Refused(415, "the content type must have no options but charset=utf-8")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, "the request must not be compressed (content-encoding)")
    length = request.headers.get("content-length", "")
    if not length.isdecimal():
        raise Refused(411, "the request must say how long it is (content-length)")
    if len(length) > 15 or int(length) > limit:
        raise Refused(413, f"the request is larger than {limit / 2**20:g} MB")
    return int(length)


async def _received(request: Request, length: int) -> IO[bytes]:
    """What was sent, on disk where it is not small. Nobody is waited for without end."""
    body = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  # the thread that reads it closes it
    parts = request.stream()
    start = time.monotonic()
    size = 0
    try:
        while True:
            left = start + GRACE + size / PACE - time.monotonic()
            part = await asyncio.wait_for(anext(parts, None), max(left, 0))
            if part is None:
                return body
            size += len(part)
            if size > length:  # which uvicorn does not let happen
                raise Refused(400, "the request is longer than it says")
            body.write(part)
    except TimeoutError:
        body.close()
        raise Refused(408, "the request came too slowly") from None
    except BaseException:
        body.close()
        raise


async def _drained(request: Request) -> None:
    """Let a client that sent too much come to its end, so that it reads why, but not for long."""
    if "content-length" in request.headers:
        # RuntimeError: it has been read already
        with suppress(TimeoutError, ClientDisconnect, RuntimeError):
            async with asyncio.timeout(DRAINING):
                async for _ in request.stream():
                    pass


async def _watched(request: Request, gone: threading.Event) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.set()


def _proceed() -> None:
    """What a model asks before each part of its work."""
    if _gone.get().is_set():
        raise Gone


def _predicted(model: Any, body: IO[bytes]) -> str:
    """The answer as JSON.

    Raises:
        Refused: There is none. Gone.
    """
    with body:
        _proceed()
        try:
            inputs, params = _values(body)
            if getattr(model, "pictures", False) and not isinstance(inputs, list):
                raise Refused(
                    400, "inputs must be a list of pictures, each an object with image or pixels"
                )
            result = io.StringIO()
            scoring_server.predictions_to_json(model.predict(None, inputs, params=params), result)
            return result.getvalue()
        except parsing.BadRequest as error:
            raise Refused(400, str(error)) from None
        except MlflowException as error:
            raise Refused(error.get_http_status_code(), sentence(error)) from None
        except (Refused, Gone):
            raise
        except Exception as error:
            # The message may quote the request, the frames do not.
            log.error(
                "%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__))
            )
            raise Refused(
                400, f"the model can't answer this request ({type(error).__name__})"
            ) from None


def _values(body: IO[bytes]) -> parsing.Request:
    size = body.seek(0, io.SEEK_END)
    body.seek(0)
    if size <= SMALL:
        return parsing.parsed(body.read())
    with tempfile.TemporaryFile() as found:
        _parsed_apart(body, found)
        found.seek(0)
        return parsing.loaded(found)


def _give_back() -> None:
    """Hand freed memory to the system, which glibc keeps otherwise."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _parsed_apart(body: IO[bytes], found: IO[bytes]) -> None:
    """Have a process parse a body into a file, and end it when the client has gone."""
    # each thread maps memory
    environment = os.environ | {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")}
    command = [sys.executable, "-P", parsing.__file__]
    process = subprocess.Popen(
        command, stdin=body, stdout=found, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        deadline = time.monotonic() + PARSING_SECONDS
        while process.poll() is None:
            _proceed()
            if time.monotonic() > deadline:
                raise Refused(413, "the request takes too long to be read")
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise Refused(413, "the request takes more memory than a request may")


def _sentence(status: int, text: str) -> Response:
    # What is refused before it was read to its end leaves the connection of no use.
    headers = {} if status == 400 else {"connection": "close"}
    return JSONResponse({"error": " ".join(text.split())[:LONGEST]}, status, headers)


def sentence(error: MlflowException) -> str:
    """An error of MLflow without the request that it quotes, before its reason or behind it."""
    text = (
        str(error.message)
        .rpartition("\nError: ")[2]
        .partition("\nInput:")[0]
        .partition(". Error: '")[0]
    )
    text = text.partition("Received dictionary")[0].partition(", invalid elements")[0]
    return " ".join(text.split())[:LONGEST]
