"""Send many valid and hostile requests to a served model at once, and measure its answers.

python benchmarks/serving.py [--requests 10000] [--at-once 16]

It registers the segmentation network of a small CAN, starts `tfmammo serve run`, and
sends patches as arrays and as PNG, whose answers it knows, and requests that must be refused. It
prints one JSON line: counts by status; wrong answers; p50 and p99 of the latency of answers and of
refusals in seconds; the server's memory before and after, in MB.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TextIO

# the first to import TensorFlow, because it keeps that quiet
from tfmammo.nn import _tensorflow  # noqa: F401

# isort: split
import cv2
import httpx
import numpy as np
import psutil

from tfmammo.apps.serving.__main__ import register
from tfmammo.apps.serving.pictures import NetworkConfig, ServiceConfig
from tfmammo.config import DataConfig
from tfmammo.models.can import CAN, CANConfig
from tfmammo.tracking import export

SIZE = 64
KINDS = 24  # different patches
HOSTILE: list[tuple[bytes, int]] = [
    (b"", 400),
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b"[]", 400),
    (b'{"inputs": 7}', 400),
    (b'{"inputs": [{}]}', 400),
    (b'{"inputs": [{"image": "*"}]}', 400),
    (b'{"inputs": [{"pixels": [[1], [1, 2]]}]}', 400),
    (b'{"inputs": [{"pixels": [[7]]}]}', 400),
    (b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
    (
        json.dumps({"inputs": [{"image": base64.b64encode(os.urandom(4000)).decode()}]}).encode(),
        400,
    ),
    (
        json.dumps(
            {
                "inputs": [
                    {"image": base64.b64encode(b"\0" * 128 + b"DICM" + os.urandom(500)).decode()}
                ]
            }
        ).encode(),
        400,
    ),
    (b'{"inputs": [{"image": "' + b"A" * 3_000_000 + b'"}]}', 413),
]


def main() -> None:
    """Print the measured line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        bodies, expected = make_requests(register_network(Path(folder)))
        process, port = start_server(Path(folder), limit=2)
        try:
            measurement = measure(
                f"http://127.0.0.1:{port}",
                process.pid,
                bodies,
                expected,
                options.requests,
                options.at_once,
            )
            print(json.dumps(asyncio.run(measurement)))
            assert process.poll() is None, "the server is gone"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def start_server(
    folder: Path, limit: int, log: TextIO | None = None
) -> tuple[subprocess.Popen[bytes], int]:
    """Serve what `register_network` registered.

    Args:
        folder: The server's working folder.
        limit: Its limit of a request, MB.
        log: Takes what it writes to stderr.

    Returns:
        (process, its port on 127.0.0.1).
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    options = f"--model models:/tfmammo-served@best --port {port} --limit {limit}".split()
    command = [sys.executable, "-m", "tfmammo.apps.serving", "run", *options]
    return subprocess.Popen(command, cwd=folder, stderr=log), port


def register_network(folder: Path) -> Path:
    """Register a small CAN, and return its export."""
    model = CAN(CANConfig(filters=(8, 16, 32, 32), discriminator_filters=8), SIZE)
    data = DataConfig(size=SIZE, window=(0, 1)).model_dump(mode="json")
    card = {"step": 0, "config": {"data": data, "model": {}}, "train_patients": []}
    exported = export.export(model, folder / "export", card)
    register(ServiceConfig(name="served", network=NetworkConfig(handle=str(exported))))
    return exported


def make_requests(folder: Path) -> tuple[list[bytes], list[np.ndarray]]:
    """Make bodies, as arrays and as PNG in turn, with the probabilities to expect."""
    random = np.random.default_rng(0)
    values = random.integers(0, 65536, (KINDS, SIZE, SIZE)).astype(np.uint16)
    images = (values / np.float32(65535)).astype(np.float32)
    segment = export.load(folder, export.find_function(folder, {"image"}, {"mask"}))
    expected = segment(images[..., None])["mask"][..., 0]
    bodies = []
    for number, (value, image) in enumerate(zip(values, images, strict=True)):
        png = base64.b64encode(cv2.imencode(".png", value)[1].tobytes()).decode()
        item = {"image": png} if number % 2 else {"pixels": image.tolist()}
        bodies.append(json.dumps({"inputs": [item]}).encode())
    return bodies, list(expected)


async def measure(
    address: str,
    pid: int,
    bodies: list[bytes],
    expected: list[np.ndarray],
    count: int,
    at_once: int,
) -> dict[str, Any]:
    """Send `count` requests, a quarter of them hostile, `at_once` at a time."""
    is_hostile = np.random.default_rng(1).random(count) < 0.25
    turn = asyncio.Semaphore(at_once)
    nth = np.cumsum(is_hostile)  # hostile requests take turns, so that a short run sends them all
    seconds: dict[str, list[float]] = {"answered": [], "refused": []}
    statuses: dict[int, int] = {}
    wrong: list[str] = []
    server = psutil.Process(pid)
    async with httpx.AsyncClient(timeout=120) as client:
        await wait_until_ready(client, address)

        async def send(number: int) -> None:
            hostile = is_hostile[number]
            body, status = (
                HOSTILE[nth[number] % len(HOSTILE)] if hostile else (bodies[number % KINDS], 200)
            )
            async with turn:
                start = time.perf_counter()
                response = await client.post(
                    f"{address}/invocations",
                    content=body,
                    headers={"content-type": "application/json"},
                )
                seconds["refused" if hostile else "answered"].append(time.perf_counter() - start)
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
            if response.status_code != status:
                wrong.append(f"{response.status_code} instead of {status}: {response.text[:200]}")
            elif (
                not hostile
                and (far := largest_difference(response.json(), expected[number % KINDS])) > 1e-5
            ):
                wrong.append(f"off by {far:.2g}")

        await asyncio.gather(*(send(number) for number in range(count // 10)))
        before = server.memory_info().rss
        await asyncio.gather(*(send(number) for number in range(count // 10, count)))
        after = server.memory_info().rss
    times = {
        f"{name}_{part}": round(float(np.percentile(seconds[name], q)), 4)
        for name in seconds
        for part, q in (("p50", 50), ("p99", 99))
    }
    return {
        "requests": count,
        "at_once": at_once,
        "statuses": {str(status): statuses[status] for status in sorted(statuses)},
        "wrong": len(wrong),
        "first_wrong": wrong[:1],
        **times,
        "memory_mb": [round(before / 2**20), round(after / 2**20)],
    }


async def wait_until_ready(client: httpx.AsyncClient, address: str) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            await client.get(f"{address}/health")
            return
        except httpx.TransportError:
            await asyncio.sleep(0.5)
    raise SystemExit("the server does not answer")


def largest_difference(answer: dict[str, Any], expected: np.ndarray) -> float:
    """Return the largest difference between served and local probabilities."""
    content = np.frombuffer(base64.b64decode(answer["predictions"][0]["probability"]), np.uint8)
    return float(np.abs(cv2.imdecode(content, cv2.IMREAD_UNCHANGED) / 65535 - expected).max())


if __name__ == "__main__":
    main()
