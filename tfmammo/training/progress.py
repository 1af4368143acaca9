"""A progress bar with ETA and losses in a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from tfmammo.datasets import QUICKSTART, framed

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 30.0
SECONDS_TO_MEASURE = 5.0  # of steps, before the whole is told


class Progress:
    """Shows how far a training is.

    Time is measured from the end of the first round of steps, which also builds the graph.

    Args:
        name: Of the system.
        start: Steps done and to do.
        total: Steps done and to do.
        tell: Is called once, with the total and the seconds that a step takes, when they are known.
    """

    def __init__(
        self, name: str, start: int, total: int, tell: Callable[[int, float], None] | None = None
    ) -> None:
        self.name = name
        self.total = total
        self.tell = tell
        self.last_line = -SECONDS_BETWEEN_LINES
        self.console = Console(stderr=True)
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Bar(
            *columns,
            TextColumn("{task.fields[losses]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(name, total=total, completed=start, losses="")
        self.measured_from: tuple[int, float] | None = None  # step, time

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def update(self, step: int, losses: dict[str, float]) -> None:
        """Move to `step` and show the losses."""
        text = "  ".join(
            f"{name.removesuffix('_loss')} {value:.3g}"
            for name, value in losses.items()
            if name.endswith("_loss")
        )
        self.bar.update(self.task, completed=step, losses=text)
        now = time.monotonic()
        seconds_a_step = self._measure(step, now)
        if not self.console.is_terminal and (
            now - self.last_line > SECONDS_BETWEEN_LINES or step == self.total
        ):
            self.last_line = now
            left = (
                ""
                if seconds_a_step is None
                else f", about {duration(seconds_a_step * (self.total - step))} left"
            )
            log.info("step %s of %s%s: %s", f"{step:,}", f"{self.total:,}", left, text)

    def _measure(self, step: int, now: float) -> float | None:
        """Seconds a step, with what is done between them, since the first round; None before there
        is a second one.
        """
        if self.measured_from is None:
            self.measured_from = step, now
            return None
        first, began = self.measured_from
        seconds_a_step = (now - began) / (step - first)
        if self.tell and (now - began > SECONDS_TO_MEASURE or step == self.total):
            self.tell(self.total, seconds_a_step)
            self.tell = None
        return seconds_a_step

    def note(self, step: int, metrics: dict[str, float]) -> None:
        """Leave a line about the held-out metrics."""
        log.info(
            "step %s, held out: %s",
            f"{step:,}",
            "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()),
        )


def announce_duration(steps: int, seconds_a_step: float) -> None:
    """Say in a frame how long a whole training on the phantom takes on this machine."""
    framed(
        "No data: this training on the built-in phantom takes about "
        f"{duration(steps * seconds_a_step)} here "
        f"({steps:,} steps of {seconds_a_step:.2g} s).\n"
        "Ctrl-C stops it, and the same command goes on. With your own data: --set data.root=DIR\n"
        f"Ten minutes:    {QUICKSTART}"
    )


def duration(seconds: float) -> str:
    """A time in the unit that fits it.

    Example:
        >>> duration(40), duration(1500), duration(126_000), duration(600_000)
        ('40 s', '25 min', '35 h', '7 days')
    """
    for unit, length, longest in (("s", 1, 90), ("min", 60, 5_400), ("h", 3_600, 172_800)):
        if seconds < longest:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"
