"""Ports for servers that tests start, and MLflow's servers."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path


def find_free_ports(count: int) -> list[int]:
    """Find as many ports, all different, that nobody listens on."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


def find_free_port() -> int:
    """Find a port that nobody listens on."""
    return find_free_ports(1)[0]


@contextlib.contextmanager
def run_mlflow(folder: Path, address: str, *arguments: str, **environment: str) -> Iterator[None]:
    """Run `python -m mlflow ARGUMENTS` in a folder until the block ends.

    The block begins when `address` answers; a server that ends before fails with its log.
    """
    # MLflow calls uvicorn by name
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    log = folder / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments],
            cwd=folder,
            env={**os.environ, "PATH": path, **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 300  # twenty seconds on an idle machine
        while not _answers(address):
            assert time.monotonic() < deadline and server.poll() is None, log.read_text()
            time.sleep(0.5)
        yield
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return False
    return True
