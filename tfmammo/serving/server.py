"""A registered model over HTTP: MLflow's own protocol and parsing, with what a server for patients' pictures needs around them.

    POST /invocations   {"inputs": ...}, with "params" where a model has them, as `mlflow models serve` takes it -> {"predictions": ...}
    GET  /health, /ping     200 while the model is loaded
    GET  /metrics           Prometheus: a histogram of seconds by status, requests under way
    GET  /version           of MLflow, as its own server

What can't be answered is {"error": "one sentence"} with a 4xx status; MLflow's own server repeats the whole request, picture and all. A
body larger than the limit is refused before it is read to its end (413). No request is logged.
"""

from __future__ import annotations

import asyncio
import logging
import time

import mlflow
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel, scoring_server
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, Histogram, generate_latest

from tfmammo.config import ConfigError

log = logging.getLogger(__name__)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # the histogram's bounds
FROM_CODE = "mlflow.pyfunc.loaders.code_model"  # how MLflow calls a model whose code it keeps as text
LONGEST = 500  # characters of an error
LOCAL = ("127.0.0.1", "localhost", "::1")


class Refused(Exception):
    """A request that is not answered. status: of HTTP."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def application(model: PyFuncModel, limit: int, parallel: int) -> FastAPI:
    """The server's application.

    Args:     model: loaded. limit: bytes of a request's body. parallel: requests that are computed at once; others wait.
    """
    app, metrics = FastAPI(openapi_url=None), CollectorRegistry()
    latency = Histogram("tfmammo_request_seconds", "Time of a request", ["status"], registry=metrics, buckets=SECONDS)
    under_way = Gauge("tfmammo_requests_under_way", "Requests that are waiting or computed", registry=metrics)
    turn = asyncio.Semaphore(parallel)

    @app.post("/invocations")
    async def invocations(request: Request) -> Response:
        start = time.perf_counter()
        with under_way.track_inprogress():
            response = await _answered(request, model, limit, turn)
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


def run(uri: str, host: str, port: int, limit: int, parallel: int) -> None:
    """Load a model and serve it until Ctrl-C or SIGTERM.

    Args:     uri: a folder or models:/NAME@ALIAS of MLflow's current store. limit: MB of a request.
    Raises:   MlflowException: there is no such model. ConfigError: it is kept as a pickle.
    """
    if mlflow.models.get_model_info(uri).flavors.get("python_function", {}).get("loader_module") != FROM_CODE:
        raise ConfigError(f"{uri}: is not kept as code and SavedModels but as a pickle or of another framework, which is never loaded")
    model = mlflow.pyfunc.load_model(uri)
    if host not in LOCAL:
        log.warning("listening on %s: whoever reaches this address can use the model; there is no password and no encryption", host)
    log.info("serving %s on http://%s:%d", uri, host, port)
    uvicorn.run(application(model, limit * 2**20, parallel), host=host, port=port, log_level="warning", access_log=False)


async def _answered(request: Request, model: PyFuncModel, limit: int, turn: asyncio.Semaphore) -> Response:
    try:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise Refused(415, "the content type must be application/json")
        body = await _body(request, limit)
        async with turn:
            return await _computed(body, model)
    except Refused as refused:
        return JSONResponse({"error": str(refused)}, refused.status)


async def _computed(body: bytes, model: PyFuncModel) -> Response:
    schema = model.metadata.get_input_schema()
    try:
        result = await asyncio.to_thread(scoring_server.invocations, body, "application/json", model, schema)
    except MlflowException as error:
        raise Refused(error.get_http_status_code(), sentence(error)) from None
    except RecursionError:
        raise Refused(400, "the JSON is nested too deeply") from None
    except (ValueError, TypeError, KeyError, AttributeError, MemoryError) as error:  # of MLflow's parsing, which does not expect all
        raise Refused(400, f"the request can't be read ({error.__class__.__name__})") from None
    return Response(result.response, result.status, media_type=result.mimetype)


async def _body(request: Request, limit: int) -> bytes:
    """What was sent, read no further than the limit."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise Refused(413, f"the request is larger than {limit // 2**20} MB")
        parts.append(part)
    return b"".join(parts)


def sentence(error: MlflowException) -> str:
    """An error of MLflow without the request that it quotes, before its reason or behind it."""
    text = str(error.message).rpartition("\nError: ")[2].partition("\nInput:")[0].partition(". Error: '")[0]
    text = text.partition("Received dictionary")[0]
    return " ".join(text.split())[:LONGEST]
