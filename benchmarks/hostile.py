"""The model server under attack, on this machine alone: what it refuses, what it still
answers, how much memory it takes.

python benchmarks/hostile.py [--requests 3000] [--at-once 16] [--minutes 20]

It serves the segmentation network of a CAN of small width, as benchmarks/serving.py does, and sends
`requests` hostile requests, `at-once` under way, between them valid ones; some clients dawdle, hang
up or break the protocol. All the while it asks /health over new connections.

It prints one JSON line: requests by kind and status; valid ones lost or wrong (must be 0); the
slowest /health in seconds (must be below 2), and the slowest before the attack, which is the
machine's; memory of the server before, at most, and after, in MB (after must be within 200 of
before); the seconds from SIGTERM to its end with uploads still open (10 at most). "broken" names
the bounds that do not hold; the exit code is 1 then. Nothing leaves 127.0.0.1, and it ends by
itself.
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
from serving import KINDS, distance, exported, ready, requests_of

LIMIT = 16  # MB, of the server's requests
HEALTH = 2.0  # s
QUIET = 5.0  # s of nothing but /health
MEMORY = 200  # MB
JSON = {"content-type": "application/json"}
Attack = Callable[[str, int], Awaitable[str]]


def main() -> None:
    """Print the measured line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=20, help="after which nothing new is sent")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "TMPDIR": folder}
        bodies, expected = requests_of(exported(Path(folder)))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "tfmammo.serving",
            "run",
            "--model",
            "models:/tfmammo-served@best",
        ]
        with (Path(folder) / "log.txt").open("w") as log:
            process = subprocess.Popen(
                [*command, "--port", str(port), "--limit", str(LIMIT)], cwd=folder, stderr=log
            )
        try:
            siege = Siege(
                port, process.pid, bodies, expected, time.monotonic() + 60 * chosen.minutes
            )
            found = asyncio.run(siege.run(chosen.requests, chosen.at_once))
            assert process.poll() is None, "the server is gone"
            found |= {"stopped_s": stopped(process, port)} | remains(Path(folder))
        finally:
            process.kill()
            process.wait(60)
    bounds = {
        "nothing lost": found["lost"] == 0 and found["wrong"] == 0,
        "health": found["health_s"] < HEALTH,
        "memory": found["memory_mb"][2] - found["memory_mb"][0] < MEMORY,
        "stopped": found["stopped_s"] < 10,
        "nothing left": found["left"] == [],
        "no traceback": found["tracebacks"] == 0,
    }
    print(json.dumps(found | {"broken": [name for name, holds in bounds.items() if not holds]}))
    sys.exit(0 if all(bounds.values()) else 1)


class Siege:
    """The server's answers to all of it. until: time.monotonic() after which nothing
    new is sent.
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
        attacks = list(kinds())
        turn = asyncio.Semaphore(at_once)
        async with httpx.AsyncClient(timeout=120) as client:
            await ready(client, self.address)
            for number in range(2 * KINDS):
                await self.ask(client, number)
            before = self.memory()
            watch = threading.Thread(target=self.look)
            watch.start()
            await asyncio.sleep(QUIET)
            quiet = max(self.health)
            self.health = [0.0]

            async def one(number: int) -> None:
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
                await asyncio.gather(*(one(number) for number in range(count + count // 4)))
            finally:
                self.done = True
                await asyncio.to_thread(watch.join)
            await asyncio.sleep(5)
            after = self.memory()
        sent = sum(sum(found.values()) for found in self.statuses.values())
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
                name: dict(sorted(found.items())) for name, found in sorted(self.statuses.items())
            },
        }

    async def ask(self, client: httpx.AsyncClient, number: int) -> None:
        """A valid request, whose answer is known."""
        self.valid += 1
        try:
            answer = await client.post(
                f"{self.address}/invocations", content=self.bodies[number % KINDS], headers=JSON
            )
            if answer.status_code != 200:
                self.lost += 1
                print(f"lost: {answer.status_code} {answer.text[:200]}", file=sys.stderr)
            elif distance(answer.json(), self.expected[number % KINDS]) > 1e-5:
                self.wrong += 1
        except httpx.HTTPError as error:
            self.lost += 1
            print(f"lost: {type(error).__name__}", file=sys.stderr)

    def look(self) -> None:
        """Ask for the server's health and look at its memory, in a thread that no attack keeps
        waiting.
        """
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
        """MB of the server and its children."""
        total = 0
        for process in (self.server, *self.server.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:  # a child that has just ended
                continue
        return total // 2**20


def kinds() -> Iterator[tuple[str, Attack]]:
    """All attacks, by name."""
    for name, body in bodies_of().items():
        yield name, posted(body)
    valid = json.dumps({"inputs": [{"pixels": [[0.5] * 64] * 64}]}).encode()
    yield "no content type", posted(valid, {"content-type": "text/csv"})
    yield "gzip", posted(zlib.compress(valid), JSON | {"content-encoding": "gzip"})
    chunked = b"transfer-encoding: chunked\r\n\r\n" + chunks(valid)
    yield "chunks", raw(b"POST /invocations HTTP/1.1\r\nhost: 127.0.0.1\r\n" + JSON_LINE + chunked)
    yield "two lengths", raw(header(len(valid))[:-2] + b"content-length: 3\r\n\r\n" + valid)
    yield "length and chunks", raw(header(len(valid))[:-2] + chunked)
    yield (
        "header flood",
        raw(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n" + b"x-flood: 1\r\n" * 20_000 + b"\r\n"),
    )
    yield "no http", raw(os.urandom(2000))
    yield "another host", raw(header(len(valid), b"evil.example") + valid)
    yield "pipeline", raw((header(len(valid)) + valid) * 20, hang_up=True)
    yield "hangs up in the body", raw(header(10_000_000) + b"[" * 100_000, hang_up=True)
    yield "hangs up after it", raw(header(len(valid)) + valid, hang_up=True)
    yield "half a header", dawdle(b"POST /invocations HTTP/1.1\r\nhost: 127")
    yield "a slow body", dawdle(header(10_000_000) + b'{"inputs": ')


JSON_LINE = b"content-type: application/json\r\n"


def bodies_of() -> dict[str, bytes]:
    """Bodies that nobody should send."""

    def picture(content: bytes, count: int = 1) -> bytes:
        one = json.dumps({"image": base64.b64encode(content).decode()})
        return f'{{"inputs": [{", ".join([one] * count)}]}}'.encode()

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
        "too large": b" " * (LIMIT * 2**20 + 1),
        "no base64": b'{"inputs": [{"image": "*"}]}',
        "no picture": picture(os.urandom(4000)),
        "a whole mammogram": picture(png(1024, 832)),
        "another shape": picture(png(32, 64)),
        "a bomb": picture(png(8192, 8192)),
        "a larger bomb": picture(png(30_000, 30_000, 1000)),
        "many pictures": picture(png(64, 64), 1100),
        "many bombs": picture(png(8192, 8192), 40),
        "a dicom of noise": picture(b"\0" * 128 + b"DICM" + os.urandom(500)),
        "an unknown key": b'{"inputs": [{"pixels": [[0.5]], "patient": "DOE^JANE"}]}',
        "params": b'{"inputs": [], "params": "x"}',
    }


def png(rows: int, cols: int, written: int | None = None) -> bytes:
    """A black PNG of 16 bits, of which only `written` rows are there."""

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


def header(length: int, host: bytes = b"127.0.0.1") -> bytes:
    """The head of a request whose body has that length."""
    return (
        b"POST /invocations HTTP/1.1\r\nhost: "
        + host
        + b"\r\n"
        + JSON_LINE
        + b"content-length: %d\r\n\r\n" % length
    )


def chunks(body: bytes) -> bytes:
    """A body in chunks of one byte."""
    return b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"


def posted(body: bytes, headers: dict[str, str] = JSON) -> Attack:
    """A body, sent as it should be."""

    async def send(address: str, port: int) -> str:
        async with httpx.AsyncClient(timeout=120) as client:
            return str(
                (
                    await client.post(f"{address}/invocations", content=body, headers=headers)
                ).status_code
            )

    return send


def raw(content: bytes, hang_up: bool = False) -> Attack:
    """Bytes over a connection. hang_up: without waiting for the answer."""

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
    """A client that begins and sends a byte now and then.

    It ends by itself; the next one comes soon.
    """

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


def stopped(process: subprocess.Popen[bytes], port: int) -> float:
    """Seconds from SIGTERM to the server's end, while ten uploads are unfinished."""
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(10)]
    for client in clients:
        client.sendall(header(1_000_000) + b"[" * 1000)
    time.sleep(0.5)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(120)
    for client in clients:
        client.close()
    return round(time.monotonic() - start, 2)


def remains(folder: Path) -> dict[str, Any]:
    """What the server has left in the temporary folder, and tracebacks in its log."""
    return {
        "left": sorted(path.name for path in folder.glob("tfmammo_serving_*")),
        "tracebacks": (folder / "log.txt").read_text().count("Traceback"),
    }


if __name__ == "__main__":
    main()
