"""A progress bar with ETA and losses in a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Shows how far a training is. name: of the system. start, total: steps done and to do."""

    def __init__(self, name: str, start: int, total: int) -> None:
        self.name, self.total, self.last_line = name, total, 0.0
        self.console = Console(stderr=True)
        columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.bar = Bar(*columns, TextColumn("{task.fields[losses]}"), console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(name, total=total, completed=start, losses="")
        self.start, self.started = start, time.monotonic()

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def update(self, step: int, losses: dict[str, float]) -> None:
        """Move to `step` and show the losses."""
        text = "  ".join(f"{name.removesuffix('_loss')} {value:.3g}" for name, value in losses.items() if name.endswith("_loss"))
        self.bar.update(self.task, completed=step, losses=text)
        now = time.monotonic()
        if not self.console.is_terminal and (now - self.last_line > SECONDS_BETWEEN_LINES or step == self.total):
            self.last_line = now
            left = (now - self.started) / max(step - self.start, 1) * (self.total - step)
            log.info("step %s of %s, about %.0f min left: %s", f"{step:,}", f"{self.total:,}", left / 60, text)

    def note(self, step: int, metrics: dict[str, float]) -> None:
        """Leave a line about the held-out metrics."""
        log.info("step %s, held out: %s", f"{step:,}", "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
