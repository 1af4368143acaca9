"""Processes that are measured beside each other: each answers a line of JSON with a line
of JSON, and waits meanwhile.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


class Side:
    """One of them. given: the words behind `python`. environment: its own; None: this process's.

    Attributes:
        start: Its, of time.perf_counter.
    """

    def __init__(self, *given: object, environment: Mapping[str, str] | None = None) -> None:
        self.start = time.perf_counter()
        command = [sys.executable, *map(str, given)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, what: Any) -> Any:
        """The answer."""
        self.send(what)
        return self.receive()

    def send(self, what: Any) -> None:
        """Ask, and let it work."""
        assert self.process.stdin
        self.process.stdin.write(f"{json.dumps(what)}\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        """Its next answer.

        Raises:
            SystemExit: It has ended.
        """
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args!r}: ended; what it said stands above")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def serve(made: Callable[[], Callable[[Any], Any]]) -> None:
    """Be one of them: make what answers, then answer until there are no more lines; "ready" with
    true.
    """
    # what libraries print is no answer
    answers = sys.stdout
    sys.stdout = sys.stderr
    answer = made()
    for line in sys.stdin:
        what = json.loads(line)
        answers.write(json.dumps(True if what == "ready" else answer(what)) + "\n")
        answers.flush()


def arrays(path: Path) -> dict[str, list[np.ndarray]]:
    """What a file of rooms.py holds: its "NAME/i" as lists by name."""
    found: dict[str, list[np.ndarray]] = {}
    with np.load(path) as known:
        for key in known.files:
            found.setdefault(key.rpartition("/")[0], []).append(known[key])
    return found
