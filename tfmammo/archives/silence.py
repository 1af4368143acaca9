"""Keep pydicom and highdicom from quoting a header in logs and warnings."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def silence() -> Iterator[None]:
    """Drop the warnings and log lines of pydicom and highdicom.

    Values against the standard are common; those that matter are checked here.
    """
    _silence.enter()
    try:
        yield
    finally:
        _silence.leave()


class _Silence:
    """Silences warnings and loggers, which belong to the process.

    The first thread that comes silences them, the last one that goes undoes it.

    So no file waits for the decoding of another.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._undo = ExitStack()

    def enter(self) -> None:
        """Silence them, unless another thread has."""
        with self._lock:
            if self._inside == 0:
                self._begin()
            self._inside += 1

    def leave(self) -> None:
        """Undo it, unless another thread is still inside."""
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._undo.close()

    def _begin(self) -> None:
        log = logging.getLogger("pydicom")
        writer = logging.getLogger("highdicom")
        self._undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        self._undo.callback(setattr, log, "disabled", log.disabled)
        self._undo.callback(setattr, log, "propagate", log.propagate)
        self._undo.callback(writer.setLevel, writer.level)
        # itself, and the loggers beneath it
        log.disabled = True
        log.propagate = False
        # these have a logger for each module, which takes its level
        writer.setLevel(logging.CRITICAL + 1)


_silence = _Silence()
