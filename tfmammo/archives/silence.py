"""Keep pydicom and highdicom from quoting a header in logs and warnings."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# Warnings and loggers belong to the process: the first thread that comes silences them, the last
# one that goes undoes it. So no file waits for the decoding of another.
_lock = threading.Lock()
_undo = ExitStack()
_inside = 0


@contextmanager
def silence() -> Iterator[None]:
    """Drop the warnings and log lines of pydicom and highdicom.

    Values against the standard are common; those that matter are checked here.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _begin()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _undo.close()


def _begin() -> None:
    log = logging.getLogger("pydicom")
    writer = logging.getLogger("highdicom")
    _undo.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    _undo.callback(setattr, log, "disabled", log.disabled)
    _undo.callback(setattr, log, "propagate", log.propagate)
    _undo.callback(writer.setLevel, writer.level)
    # itself, and the loggers beneath it
    log.disabled = True
    log.propagate = False
    # these have a logger for each module, which takes its level
    writer.setLevel(logging.CRITICAL + 1)
