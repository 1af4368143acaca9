"""Signals that stop a training run, which first saves."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


@contextmanager
def collect_stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT while inside; a second one takes effect at once.

    Yields:
        The list that they are appended to.
    """
    signals: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore_handlers() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def collect(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        restore_handlers()
        log.info("saving, then stopping (once more to stop at once)")

    for number in handlers:
        signal.signal(number, collect)
    try:
        yield signals
    finally:
        restore_handlers()
