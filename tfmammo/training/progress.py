"""A progress bar with ETA and losses in a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Shows how far a training run is.

    Time is measured from the end of the first round of steps, which also builds the graph.

    Args:
        name: The system's.
        start: Steps already taken.
        total: Steps of the whole training.
    """

    def __init__(self, name: str, start: int, total: int) -> None:
        self.total = total
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

    def __exit__(self, *_: object) -> None:
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
            remaining = ""
            if seconds_a_step is not None and step < self.total:
                seconds = seconds_a_step * (self.total - step)
                remaining = f", about {format_duration(seconds)} left"
            log.info("step %s of %s%s: %s", f"{step:,}", f"{self.total:,}", remaining, text)

    def _measure(self, step: int, now: float) -> float | None:
        """Compute the seconds a step has taken since the first round, with all work in between."""
        if self.measured_from is None:
            self.measured_from = step, now
            return None
        first_step, start = self.measured_from
        return (now - start) / (step - first_step)

    def log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Log a line with the held-out metrics."""
        log.info(
            "step %s, held out: %s",
            f"{step:,}",
            "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()),
        )


def format_duration(seconds: float) -> str:
    """Format a time in the unit that fits it.

    Examples:
        >>> [format_duration(seconds) for seconds in (40, 1500, 126_000, 600_000)]
        ['40 s', '25 min', '35 h', '7 days']
    """
    for unit, length, longest in (("s", 1, 90), ("min", 60, 5_400), ("h", 3_600, 172_800)):
        if seconds < longest:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"
