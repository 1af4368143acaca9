"""What a user is told who gave no data: that phantoms are used, how long it will take, and what to do instead."""

from __future__ import annotations

import shlex
import sys

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from tfmammo.config import DataConfig

QUICKSTART = "python train/can.py --config configs/quickstart.yaml"


def without_data(data: DataConfig) -> bool:
    """Whether the phantom stands in for an archive that was named, but has no folder."""
    return data.name != "phantom" and data.root is None and data.records is None


def announce(data: DataConfig) -> None:
    """Say in a frame that the phantom stands in for data, if it does."""
    if without_data(data):
        framed(
            "No data: data.root is not set, so the built-in phantom is used (synthetic mammograms).\n"
            "Time:           measured here over the first steps, and told then\n"
            f"Your own data:  {_command()} --set data.name={data.name} data.root=DIR\n"
            f"Ten minutes:    {QUICKSTART}"
        )


def _command() -> str:
    """What was called, without its overrides, which may be many."""
    words = sys.argv[: sys.argv.index("--set")] if "--set" in sys.argv else sys.argv
    return shlex.join(["python", *words])


def announce_duration(steps: int, seconds_a_step: float) -> None:
    """Say in a frame how long a whole training on the phantom takes on this machine."""
    framed(
        f"No data: this training on the built-in phantom takes about {duration(steps * seconds_a_step)} here "
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


def framed(text: str) -> None:
    """Print lines on stderr in a frame as wide as they are, up to 140 columns, so that commands can be copied whole."""
    width = min(max(map(len, text.splitlines())) + 4, 140)
    Console(stderr=True, width=width).print(Panel(Text(text)))
