"""Serve a registered model over HTTP: MLflow's protocol, with the limits that patients' data need.

    POST /invocations       {"inputs": ...}, with "params" if the model has them, as `mlflow models
                            serve` takes it -> {"predictions": ...}
    GET  /health, /ping     200 while the model is loaded
    GET  /metrics           Prometheus: a histogram of seconds by status, requests under way
    GET  /version           MLflow's version, as MLflow's own server answers it

A request that can't be answered gets {"error": "one sentence"} with a 4xx status; nothing of the
request is repeated. A body larger than the limit, or of unknown length, is refused before it is
read (413, 411). A body that comes too slowly is refused (408), and so is a request when too many
are under way (503). Bodies wait on disk in nameless files and are parsed in another process
(`parsing`), so that no request can use up the server's memory. When the client has gone, work stops
at the next image or batch. No request is logged.
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

from tfmammo.apps.serving import connections, local, parsing, saving

log = logging.getLogger(__name__)

# bounds of the histogram
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
MAX_ERROR_LENGTH = 500  # characters
MAX_IN_MEMORY = 2**18  # bytes of a body; a larger one waits on disk
MAX_INLINE = 2**19  # bytes of a body; a larger one is parsed in another process
# Large bodies under way may have this many times the limit of one body; further ones are refused.
MAX_HELD = 16
GRACE_SECONDS = 10.0  # before MIN_PACE counts
MIN_PACE = 64 * 2**10  # bytes a second
PARSING_SECONDS = 120.0


class RequestRefused(Exception):
    """A request that is not answered.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


# For the request that a thread works on: set when its client has gone.
_gone: ContextVar[threading.Event] = ContextVar("_gone")


def make_application(model: PyFuncModel, limit: int, parallel: int) -> FastAPI:
    """Make the server's application; its `app.state.stop` ends all requests under way.

    Args:
        model: The loaded model.
        limit: Largest body of a request, bytes.
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
    worker = _Worker(model, limit, parallel)
    app.state.stop = worker.stop

    @app.post("/invocations")
    async def invocations(request: Request) -> Response:
        """Answer a request, and note how long that took."""
        start = time.perf_counter()
        with under_way.track_inprogress():
            response = await worker.respond(request)
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
    async def prometheus_metrics() -> Response:
        return Response(generate_latest(metrics), media_type=CONTENT_TYPE_LATEST)

    return app


def run(
    uri: str, host: str, port: int, limit: int, parallel: int, names: Collection[str] = ()
) -> None:
    """Load a model and serve it until Ctrl-C or SIGTERM, either of which ends it within seconds.

    Args:
        uri: A folder, or models:/NAME@ALIAS of MLflow's current store.
        host: Address to listen on.
        port: Port to listen on.
        limit: Largest request, MB.
        parallel: Requests that are computed at once; others wait.
        names: Further host names of this machine. If the server listens on more than this machine
            and there are none, any name is accepted.

    Raises:
        MlflowException: There is no such model.
        ConfigError: Its code is not that of this package.
        OSError: The port is in use.
    """
    with local.stoppable(), _exiting_at_once(), local.private_folder("tfmammo_serving_") as folder:
        target = None if Path(uri).is_dir() else str(folder)
        model_folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=target))
        saving.check(model_folder, uri)
        model = mlflow.pyfunc.load_model(str(model_folder))
        app = make_application(model, limit * 2**20, parallel)
        if host not in local.LOCAL_NAMES:
            log.warning(
                "listening on %s: anybody who reaches this address can use the model; there is no "
                "password and no encryption",
                host,
            )
        guarded = local.SameOrigin(app, names) if names or host in local.LOCAL_NAMES else app
        with connections.listen(host, port) as listener:
            log.info("serving %s on http://%s:%d", uri, host, port)
            connections.serve(guarded, listener, app.state.stop)


@contextmanager
def _exiting_at_once() -> Iterator[None]:
    """Make a signal end the process at once.

    Nothing can interrupt a network that is being computed, and Python's own end takes seconds.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130 if isinstance(error, KeyboardInterrupt) else int(error.code or 0))


class _Worker:
    """Receives requests, and computes a few of them at once."""

    def __init__(self, model: PyFuncModel, limit: int, parallel: int) -> None:
        self.limit = limit
        self.held = 0
        self.tasks = set[asyncio.Task[Response]]()
        # MLflow's wrapper of `predict` repeats the request in its errors. The models check requests
        # themselves.
        self.model = model.unwrap_python_model()
        self.model.proceed = _check_client
        self.executor = ThreadPoolExecutor(parallel, "request")
        self.stopped = False

    async def respond(self, request: Request) -> Response:
        """Answer a request, or say why not; `stop` cancels it."""
        task = asyncio.ensure_future(self._answer(request))
        self.tasks.add(task)
        try:
            await asyncio.wait((task,))
            if task.cancelled():
                return _error_response(503, "the server is stopping")
            return task.result()
        finally:
            task.cancel()
            self.tasks.discard(task)

    def stop(self) -> None:
        """Cancel all requests under way; each gets an answer that says so."""
        self.stopped = True
        for task in self.tasks:
            task.cancel()
        self.executor.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, request: Request) -> Response:
        try:
            length = _check_length(request, self.limit)
            with self._reserved(length):
                body = await _receive(request, length)
                answer = await self._compute(request, body)
                return Response(answer, media_type="application/json")
        except RequestRefused as refused:
            if refused.status in (413, 415):
                await local.drain(request)
            return _error_response(refused.status, str(refused))
        except (ClientDisconnect, ClientGone):
            return Response(status_code=400)  # nobody reads it
        except OSError as error:
            log.error("a request can't be stored (%s)", error.strerror)
            return _error_response(503, "the server has no space for the request")

    @contextmanager
    def _reserved(self, length: int) -> Iterator[None]:
        """Reserve disk space for a large body.

        Raises:
            RequestRefused: Too many large bodies are under way.
        """
        length = length if length > MAX_INLINE else 0
        if self.held + length > MAX_HELD * self.limit:
            raise RequestRefused(503, "too many large requests are under way; try again later")
        self.held += length
        try:
            yield
        finally:
            self.held -= length
            if length and not self.stopped:
                self.executor.submit(_trim_memory)

    async def _compute(self, request: Request, body: IO[bytes]) -> str:
        """Compute the answer in a thread, which learns when the client has gone."""
        gone = threading.Event()
        context = copy_context()
        context.run(_gone.set, gone)
        watch = asyncio.ensure_future(_watch_client(request, gone))
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self.executor, context.run, _predict, self.model, body
            )
        finally:
            gone.set()
            watch.cancel()


def _check_length(request: Request, limit: int) -> int:
    """Check the header of a request, and return the length of its body in bytes.

    Raises:
        RequestRefused: The body need not be read.
    """
    kind, _, options = request.headers.get("content-type", "").partition(";")
    if kind.strip().lower() != "application/json":
        raise RequestRefused(415, "the content type must be application/json")
    if options.strip().lower().replace('"', "") not in ("", "charset=utf-8"):
        raise RequestRefused(415, "the content type must have no options but charset=utf-8")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestRefused(415, "the request must not be compressed (content-encoding)")
    length = request.headers.get("content-length", "")
    if not length.isdecimal():
        raise RequestRefused(411, "the request must say how long it is (content-length)")
    if len(length) > 15 or int(length) > limit:
        raise RequestRefused(413, f"the request is larger than {limit / 2**20:g} MB")
    return int(length)


async def _receive(request: Request, length: int) -> IO[bytes]:
    """Receive a body; unless it is small, it lies on disk.

    Raises:
        RequestRefused: It comes too slowly, or is longer than its header says.
    """
    # The thread that reads the file closes it.
    body = tempfile.SpooledTemporaryFile(MAX_IN_MEMORY)  # noqa: SIM115
    parts = request.stream()
    start = time.monotonic()
    size = 0
    try:
        while True:
            left = start + GRACE_SECONDS + size / MIN_PACE - time.monotonic()
            part = await asyncio.wait_for(anext(parts, None), max(left, 0))
            if part is None:
                return body
            size += len(part)
            if size > length:  # uvicorn should not let this happen
                raise RequestRefused(400, "the request is longer than its header says")
            body.write(part)
    except TimeoutError:
        body.close()
        raise RequestRefused(408, "the request came too slowly") from None
    except BaseException:
        body.close()
        raise


async def _watch_client(request: Request, gone: threading.Event) -> None:
    """Set the event when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.set()


def _check_client() -> None:
    """Raise ClientGone if nobody waits for the answer.

    Models call this before each part of their work.
    """
    if _gone.get().is_set():
        raise ClientGone


def _predict(model: Any, body: IO[bytes]) -> str:
    """Return the answer as JSON.

    Raises:
        RequestRefused: The request can't be answered.
        ClientGone: Nobody waits for the answer.
    """
    with body:
        _check_client()
        try:
            inputs, params = _parse_body(body)
            if getattr(model, "pictures", False) and not isinstance(inputs, list):
                raise RequestRefused(
                    400, "inputs must be a list of images, each an object with image or pixels"
                )
            result = io.StringIO()
            scoring_server.predictions_to_json(model.predict(None, inputs, params=params), result)
            return result.getvalue()
        except parsing.BadRequest as error:
            raise RequestRefused(400, str(error)) from None
        except MlflowException as error:
            raise RequestRefused(error.get_http_status_code(), short_message(error)) from None
        except (RequestRefused, ClientGone):
            raise
        except Exception as error:
            # The message may quote the request, the frames do not.
            log.error(
                "%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__))
            )
            raise RequestRefused(
                400, f"the model can't answer this request ({type(error).__name__})"
            ) from None


def _parse_body(body: IO[bytes]) -> parsing.Request:
    size = body.seek(0, io.SEEK_END)
    body.seek(0)
    if size <= MAX_INLINE:
        return parsing.parse(body.read())
    with tempfile.TemporaryFile() as result:
        _parse_in_process(body, result)
        result.seek(0)
        return parsing.load(result)


def _trim_memory() -> None:
    """Return freed memory to the system; glibc would keep it."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _parse_in_process(body: IO[bytes], result: IO[bytes]) -> None:
    """Parse a body into a file in another process, which ends when the client has gone."""
    # One thread each: every thread would map memory, which is limited.
    environment = os.environ | {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")}
    command = [sys.executable, "-P", parsing.__file__]
    process = subprocess.Popen(
        command, stdin=body, stdout=result, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        deadline = time.monotonic() + PARSING_SECONDS
        while process.poll() is None:
            _check_client()
            if time.monotonic() > deadline:
                raise RequestRefused(413, "the request takes too long to parse")
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise RequestRefused(413, "the request takes more memory than allowed")


def _error_response(status: int, text: str) -> Response:
    # After a request that was not read to its end, the connection can't be used again.
    headers = {} if status == 400 else {"connection": "close"}
    # half of a surrogate pair, which JSON may name in a request, has no bytes
    text = text.encode("utf-8", "replace").decode()
    return JSONResponse({"error": " ".join(text.split())[:MAX_ERROR_LENGTH]}, status, headers)


def short_message(error: MlflowException) -> str:
    """Return an error of MLflow without the request, which it quotes before or after its reason."""
    text = (
        str(error.message)
        .rpartition("\nError: ")[2]
        .partition("\nInput:")[0]
        .partition(". Error: '")[0]
    )
    text = text.partition("Received dictionary")[0].partition(", invalid elements")[0]
    return " ".join(text.split())[:MAX_ERROR_LENGTH]
