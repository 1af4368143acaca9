"""Processes that are measured in turns: each answers one line of JSON with another, then waits."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


class MeasuredProcess:
    """A Python process that answers questions.

    Args:
        arguments: What stands after `python` on its command line.
        environment: Its environment variables; None: those of this process.

    Attributes:
        start: When it was started, by time.perf_counter.
    """

    def __init__(self, *arguments: object, environment: Mapping[str, str] | None = None) -> None:
        self.start = time.perf_counter()
        command = [sys.executable, *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, question: Any) -> Any:
        """Ask, and wait for the answer."""
        self.send(question)
        return self.receive()

    def send(self, question: Any) -> None:
        """Ask without waiting."""
        assert self.process.stdin
        self.process.stdin.write(f"{json.dumps(question)}\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        """Wait for the next answer.

        Raises:
            SystemExit: The process has ended.
        """
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args!r}: ended; its messages stand above")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def serve(prepare: Callable[[], Callable[[Any], Any]]) -> None:
    """Be such a process: answer questions until there are no more lines.

    Args:
        prepare: Makes the function from questions to answers. The question "ready" is answered with
            true.
    """
    # What libraries print is no answer.
    answers = sys.stdout
    sys.stdout = sys.stderr
    answer = prepare()
    for line in sys.stdin:
        question = json.loads(line)
        answers.write(json.dumps(True if question == "ready" else answer(question)) + "\n")
        answers.flush()


def load_arrays(path: Path) -> dict[str, list[np.ndarray]]:
    """Load a file of benchmarks/models.py: its arrays "NAME/i" as lists by name."""
    arrays: dict[str, list[np.ndarray]] = {}
    with np.load(path) as content:
        for key in content.files:
            arrays.setdefault(key.rpartition("/")[0], []).append(content[key])
    return arrays


def peak_megabytes() -> float:
    """Return the most MB that this process has held."""
    try:  # getrusage's peak would include that of the process that started this one
        status = Path("/proc/self/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
