"""Attack the model server on this machine, and check that valid requests are still answered.

python benchmarks/hostile.py [--requests 3000] [--at-once 16] [--minutes 20]

It serves the segmentation network of a small CAN, as benchmarks/serving.py does. It sends
`requests` hostile requests, `at-once` at a time, and valid ones between them. Some clients are
slow, hang up or break the protocol. Meanwhile it asks /health over new connections.

It prints one JSON line: requests by kind and status; valid requests without an answer or with a
wrong one (must be 0); the slowest /health in seconds (must be below 2), also before the attack;
memory of the server before, at its peak and after, in MB (must grow by less than 200); the seconds
from SIGTERM to the server's end with open uploads (must be below 10). "broken" names the bounds
that do not hold; the exit code is 1 then. Nothing leaves 127.0.0.1.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from serving import (
    KINDS,
    largest_difference,
    make_requests,
    register_network,
    start_server,
    wait_until_ready,
)

LIMIT_MB = 16  # the server's limit of a request
MAX_HEALTH_SECONDS = 2.0
QUIET_SECONDS = 5.0  # with only /health, before the attack
MAX_GROWTH_MB = 200
JSON_HEADERS = {"content-type": "application/json"}
Attack = Callable[[str, int], Awaitable[str]]


def main() -> None:
    """Print the measured line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=20, help="after which nothing new is sent")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "TMPDIR": folder}
        bodies, expected = make_requests(register_network(Path(folder)))
        with (Path(folder) / "log.txt").open("w") as log:
            process, port = start_server(Path(folder), LIMIT_MB, log)
        try:
            load_test = LoadTest(
                port, process.pid, bodies, expected, time.monotonic() + 60 * options.minutes
            )
            line = asyncio.run(load_test.run(options.requests, options.at_once))
            assert process.poll() is None, "the server is gone"
            line |= {"stopped_s": time_stop(process, port)} | find_leftovers(Path(folder))
        finally:
            process.kill()
            process.wait(60)
    bounds = {
        "nothing lost": line["lost"] == 0 and line["wrong"] == 0,
        "health": line["health_s"] < MAX_HEALTH_SECONDS,
        "memory": line["memory_mb"][2] - line["memory_mb"][0] < MAX_GROWTH_MB,
        "stopped": line["stopped_s"] < 10,
        "nothing left": line["left"] == [],
        "no traceback": line["tracebacks"] == 0,
    }
    print(json.dumps(line | {"broken": [name for name, holds in bounds.items() if not holds]}))
    sys.exit(0 if all(bounds.values()) else 1)


class LoadTest:
    """Sends all requests, and counts the server's answers.

    Args:
        port: The server's port.
        pid: The server's process.
        bodies: Valid bodies.
        expected: Their probabilities.
        until: time.monotonic() after which nothing new is sent.
    """

    def __init__(
        self, port: int, pid: int, bodies: list[bytes], expected: list[np.ndarray], until: float
    ) -> None:
        self.port = port
        self.bodies = bodies
        self.expected = expected
        self.until = until
        self.address = f"http://127.0.0.1:{port}"
        self.server = psutil.Process(pid)
        self.statuses: dict[str, Counter[str]] = {}
        self.valid = 0
        self.lost = 0
        self.wrong = 0
        self.health = [0.0]
        self.most = 0
        self.done = False

    async def run(self, count: int, at_once: int) -> dict[str, Any]:
        """Send `count` hostile requests, and a valid one for every four."""
        attacks = list(list_attacks())
        turn = asyncio.Semaphore(at_once)
        async with httpx.AsyncClient(timeout=120) as client:
            await wait_until_ready(client, self.address)
            for number in range(2 * KINDS):
                await self.ask(client, number)
            before = self.memory()
            watch = threading.Thread(target=self.watch)
            watch.start()
            await asyncio.sleep(QUIET_SECONDS)
            quiet = max(self.health)
            self.health = [0.0]

            async def send(number: int) -> None:
                async with turn:
                    if time.monotonic() > self.until:
                        return
                    if number % 5 == 4:
                        return await self.ask(client, number)
                    name, attack = attacks[(number - number // 5) % len(attacks)]
                    try:
                        status = await asyncio.wait_for(attack(self.address, self.port), 120)
                    except (httpx.HTTPError, OSError, TimeoutError) as error:
                        status = type(error).__name__
                    self.statuses.setdefault(name, Counter())[status] += 1

            try:
                await asyncio.gather(*(send(number) for number in range(count + count // 4)))
            finally:
                self.done = True
                await asyncio.to_thread(watch.join)
            await asyncio.sleep(5)
            after = self.memory()
        sent = sum(counts.total() for counts in self.statuses.values())
        return {
            "hostile": sent,
            "valid": self.valid,
            "at_once": at_once,
            "lost": self.lost,
            "wrong": self.wrong,
            "health_s": round(max(self.health), 3),
            "health_p99_s": round(float(np.percentile(self.health, 99)), 3),
            "health_before_s": round(quiet, 3),
            "health_asked": len(self.health) - 1,
            "memory_mb": [before, max(self.most, before), after],
            "statuses": {
                name: dict(sorted(counts.items())) for name, counts in sorted(self.statuses.items())
            },
        }

    async def ask(self, client: httpx.AsyncClient, number: int) -> None:
        """Send a valid request, and check its answer."""
        self.valid += 1
        try:
            answer = await client.post(
                f"{self.address}/invocations",
                content=self.bodies[number % KINDS],
                headers=JSON_HEADERS,
            )
            if answer.status_code != 200:
                self.lost += 1
                print(f"lost: {answer.status_code} {answer.text[:200]}", file=sys.stderr)
            elif largest_difference(answer.json(), self.expected[number % KINDS]) > 1e-5:
                self.wrong += 1
        except httpx.HTTPError as error:
            self.lost += 1
            print(f"lost: {type(error).__name__}", file=sys.stderr)

    def watch(self) -> None:
        """Watch the server's health and memory, in a thread that no attack delays."""
        while not self.done:
            start = time.perf_counter()
            healthy = False
            with (
                suppress(OSError),
                urllib.request.urlopen(f"{self.address}/health", timeout=60) as answer,
            ):
                healthy = answer.status == 200
            self.health.append(time.perf_counter() - start if healthy else 60.0)
            self.most = max(self.most, self.memory())
            time.sleep(0.2)

    def memory(self) -> int:
        """Return the MB of the server and its children."""
        total = 0
        for process in (self.server, *self.server.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:  # a child that has just ended
                continue
        return total // 2**20


def list_attacks() -> Iterator[tuple[str, Attack]]:
    """List all attacks with their names."""
    for name, body in make_bodies().items():
        yield name, post(body)
    valid = json.dumps({"inputs": [{"pixels": [[0.5] * 64] * 64}]}).encode()
    yield "no content type", post(valid, {"content-type": "text/csv"})
    yield "gzip", post(zlib.compress(valid), JSON_HEADERS | {"content-encoding": "gzip"})
    chunked = b"transfer-encoding: chunked\r\n\r\n" + encode_chunks(valid)
    yield (
        "chunks",
        send_raw(b"POST /invocations HTTP/1.1\r\nhost: 127.0.0.1\r\n" + JSON_LINE + chunked),
    )
    yield (
        "two lengths",
        send_raw(make_header(len(valid))[:-2] + b"content-length: 3\r\n\r\n" + valid),
    )
    yield "length and chunks", send_raw(make_header(len(valid))[:-2] + chunked)
    yield (
        "header flood",
        send_raw(
            b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n" + b"x-flood: 1\r\n" * 20_000 + b"\r\n"
        ),
    )
    yield "no http", send_raw(os.urandom(2000))
    yield "another host", send_raw(make_header(len(valid), b"evil.example") + valid)
    yield "pipeline", send_raw((make_header(len(valid)) + valid) * 20, hang_up=True)
    yield "hangs up in the body", send_raw(make_header(10_000_000) + b"[" * 100_000, hang_up=True)
    yield "hangs up after it", send_raw(make_header(len(valid)) + valid, hang_up=True)
    yield "half a header", dawdle(b"POST /invocations HTTP/1.1\r\nhost: 127")
    yield "a slow body", dawdle(make_header(10_000_000) + b'{"inputs": ')


JSON_LINE = b"content-type: application/json\r\n"


def make_bodies() -> dict[str, bytes]:
    """Make hostile bodies, by name."""

    def encode(content: bytes, count: int = 1) -> bytes:
        item = json.dumps({"image": base64.b64encode(content).decode()})
        return f'{{"inputs": [{", ".join([item] * count)}]}}'.encode()

    return {
        "empty": b"",
        "cut off": b'{"inputs": [{"pix',
        "no utf-8": b"\xff\xfe\x00",
        "a list": b"[1]",
        "input": b'{"input": []}',
        "no pictures": b'{"inputs": []}',
        "numbers": b'{"inputs": [1, 2]}',
        "nan": b'{"inputs": [{"pixels": [[NaN]]}]}',
        "infinity": b'{"inputs": [{"pixels": [[1e999]]}]}',
        "a huge number": b'{"inputs": [{"pixels": [[' + b"9" * 400 + b"]]}]}",
        "too many digits": b'{"inputs": [{"pixels": [[' + b"9" * 100_000 + b"]]}]}",
        "a key twice": b'{"inputs": [], "inputs": [{}]}',
        "empty lists": b'{"inputs": [' + b"[]," * 3_300_000 + b"[]]}",
        "empty objects": b'{"inputs": [' + b"{}," * 3_300_000 + b"{}]}",
        "lists in a field": b'{"inputs": [{"laterality": ' + b"[" * 900 + b"]" * 900 + b"}]}",
        "nested": b'{"inputs": ' + b"[" * 1_000_000,
        "objects": b'{"inputs": [{"pixels": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}]}",
        "many zeros": b'{"inputs": [{"pixels": [[' + b"0," * 6_000_000 + b"0]]}]}",
        "one wide row": b'{"inputs": [{"pixels": [[' + b"0.5," * 500_000 + b"0.5]]}]}",
        "too large": b" " * (LIMIT_MB * 2**20 + 1),
        "no base64": b'{"inputs": [{"image": "*"}]}',
        "no picture": encode(os.urandom(4000)),
        "a whole mammogram": encode(png(1024, 832)),
        "another shape": encode(png(32, 64)),
        "a bomb": encode(png(8192, 8192)),
        "a larger bomb": encode(png(30_000, 30_000, 1000)),
        "many pictures": encode(png(64, 64), 1100),
        "many bombs": encode(png(8192, 8192), 40),
        "a dicom of noise": encode(b"\0" * 128 + b"DICM" + os.urandom(500)),
        "an unknown key": b'{"inputs": [{"pixels": [[0.5]], "patient": "DOE^JANE"}]}',
        "params": b'{"inputs": [], "params": "x"}',
    }


def png(rows: int, cols: int, written: int | None = None) -> bytes:
    """Make a black 16-bit PNG that holds only `written` of its rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    pixels = zlib.compress(bytes((2 * cols + 1) * (written or rows)), 9)
    head = struct.pack(">IIBBBBB", cols, rows, 16, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def make_header(length: int, host: bytes = b"127.0.0.1") -> bytes:
    """Make the header of a request whose body has that length."""
    return (
        b"POST /invocations HTTP/1.1\r\nhost: "
        + host
        + b"\r\n"
        + JSON_LINE
        + b"content-length: %d\r\n\r\n" % length
    )


def encode_chunks(body: bytes) -> bytes:
    """Encode a body in chunks of one byte."""
    return b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"


def post(body: bytes, headers: dict[str, str] = JSON_HEADERS) -> Attack:
    """Make an attack that sends a body in a correct request."""

    async def send(address: str, port: int) -> str:
        async with httpx.AsyncClient(timeout=120) as client:
            response = await client.post(f"{address}/invocations", content=body, headers=headers)
            return str(response.status_code)

    return send


def send_raw(content: bytes, hang_up: bool = False) -> Attack:
    """Make an attack that sends bytes; with `hang_up`, it does not wait for the answer."""

    async def send(address: str, port: int) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(content)
            await writer.drain()
            if hang_up:
                await asyncio.sleep(0.01)
                return "hung up"
            line = await reader.readline()
            return line.split()[1].decode() if line else "cut off"
        finally:
            writer.transport.abort()

    return send


def dawdle(content: bytes, seconds: float = 1.0) -> Attack:
    """Make an attack that sends a beginning and then a byte now and then, for some seconds."""

    async def send(address: str, port: int) -> str:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(content)
            for _ in range(5):
                await asyncio.sleep(seconds / 5)
                writer.write(b" ")
            return "dawdled"
        finally:
            writer.transport.abort()

    return send


def time_stop(process: subprocess.Popen[bytes], port: int) -> float:
    """Measure the seconds from SIGTERM to the server's end, with ten unfinished uploads."""
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(10)]
    for client in clients:
        client.sendall(make_header(1_000_000) + b"[" * 1000)
    time.sleep(0.5)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(120)
    for client in clients:
        client.close()
    return round(time.monotonic() - start, 2)


def find_leftovers(folder: Path) -> dict[str, Any]:
    """List what the server left in the temporary folder, and count tracebacks in its log."""
    return {
        "left": sorted(path.name for path in folder.glob("tfmammo_serving_*")),
        "tracebacks": (folder / "log.txt").read_text().count("Traceback"),
    }


if __name__ == "__main__":
    main()
