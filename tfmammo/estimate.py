"""How long a data build or a bulk synthesis would take, and what it would write, before it
is begun.

    python -m tfmammo.estimate build --config configs/build.yaml --mammograms 1000000 --workers 64
    [--sample 8] [--set KEY=VALUE ...]
    python -m tfmammo.estimate synthesis --config configs/synthesis_full.yaml --mammograms 1000000
    --workers 64 [--sample 8] [--set ...]

A few mammograms of your own archive are really made, by one process in a temporary folder, and the
rest is arithmetic: so many seconds and bytes each, parts dealt out evenly. Nothing is kept. Workers
are taken to be as fast as this process by itself; several on one machine share its disk and memory,
which a plan does not know.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tfmammo import (
    _tensorflow,  # noqa: F401  # the first to import TensorFlow, because it keeps that quiet
    archives,
    cli,
    config,
)
from tfmammo.data import build, sampling
from tfmammo.errors import DataError
from tfmammo.mammogram import Skipped
from tfmammo.synthesis import mammograms as synthesis
from tfmammo.synthesis.config import SynthesisConfig

console = Console()


@dataclass(frozen=True)
class Rate:
    """What was measured.

    Attributes:
        seconds: Of one mammogram.
        bytes: Of one mammogram.
        index: Seconds to read one's entry in the archive's tables and headers, which one process
            does for all before the others begin.
        part: Mammograms that one worker makes at a time.
        sample: Mammograms measured.
    """

    seconds: float
    bytes: float
    index: float
    part: int
    sample: int


@dataclass(frozen=True)
class Plan:
    """What follows.

    Attributes:
        parts: Shards, or items of a synthesis.
        hours: With all workers.
        single: Hours with one.
        bytes: On disk.
    """

    parts: int
    hours: float
    single: float
    bytes: float


def planned(rate: Rate, mammograms: int, workers: int) -> Plan:
    """The work of so many mammograms: whole parts are dealt out, so the last round may keep only
    some of the workers busy.

    hours = (n index + ceil(parts / workers) part seconds) / 3600,  parts = ceil(n / part)
    """
    parts = math.ceil(mammograms / rate.part)
    index = mammograms * rate.index
    each = rate.part * rate.seconds

    def hours(many: int) -> float:
        return (index + math.ceil(parts / many) * each) / 3600

    return Plan(
        parts, hours(workers), (index + mammograms * rate.seconds) / 3600, mammograms * rate.bytes
    )


def of_build(path: str, overrides: Sequence[str], sample: int, folder: Path) -> Rate:
    """The rate of `python -m tfmammo.data.build`: shards of mammograms that lie evenly in the
    archive, after one to warm up.

    Raises as `build.build`.

    Raises:
        DataError: There are fewer mammograms than are to be measured.
    """
    chosen = config.parse(build.BuildConfig, path, overrides)
    start = time.perf_counter()
    found = archives.mammograms(chosen.data, Skipped())
    index = (time.perf_counter() - start) / max(1, len(found))
    counts = sampling.quota(found, chosen.data)
    by_lesion = chosen.data.patches == "lesion"
    work = [
        (one, None if by_lesion else counts[one.image_id]) for one in found if counts[one.image_id]
    ]
    if len(work) <= sample:
        raise DataError(
            f"{len(work)} mammograms give patches, and --sample {sample} needs one more than "
            "that; take fewer"
        )
    some = [work[place] for place in np.linspace(0, len(work) - 1, sample + 1).astype(int)]
    names = (f"shard-0000{number}-of-00002.tfrecord" for number in range(2))
    first, rest = (
        build.Shard(folder, name, "", chosen.data, tuple(part))
        for name, part in zip(names, (some[:1], some[1:]), strict=True)
    )
    build.make(first)
    start = time.perf_counter()
    build.make(rest)
    seconds = time.perf_counter() - start
    written = sum(path.stat().st_size for path in folder.glob("shard-00001-*"))
    return Rate(seconds / sample, written / sample, index, chosen.build.shard_mammograms, sample)


def of_synthesis(path: str, overrides: Sequence[str], sample: int, folder: Path) -> Rate:
    """The rate of `python -m tfmammo.synthesis`: its first items, by the times at which they were
    done, after one to warm up.

    Raises as `synthesis.synthesise`.
    """
    chosen = config.parse(SynthesisConfig, path, [*overrides, f"count={sample + 1}"])
    start = time.perf_counter()
    found = archives.mammograms(chosen.data, Skipped())
    index = (time.perf_counter() - start) / max(1, len(found))
    synthesis.synthesise(chosen, folder)
    done = sorted(path.stat().st_mtime_ns for path in (folder / "recipes").iterdir())
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Rate((done[-1] - done[0]) / 1e9 / sample, written / (sample + 1), index, 1, sample)


RATES: dict[str, Callable[[str, Sequence[str], int, Path], Rate]] = {
    "build": of_build,
    "synthesis": of_synthesis,
}


def table(what: str, rate: Rate, mammograms: int, workers: int) -> Table:
    """The plan as it is printed."""
    found = planned(rate, mammograms, workers)
    shown = Table(
        title=f"{what} of {mammograms:,} mammograms with {workers:,} workers, from "
        f"{rate.sample:,} measured here"
    )
    shown.add_column("")
    shown.add_column(what, justify="right")
    for name, value in (
        ("a mammogram", f"{rate.seconds:.3g} s, {_size(rate.bytes)}"),
        ("shards" if what == "build" else "items", f"{found.parts:,}"),
        ("hours, all workers", f"{found.hours:,.2f}"),
        ("hours, one worker", f"{found.single:,.2f}"),
        ("of these, reading the archive's tables", f"{mammograms * rate.index / 3600:,.2f}"),
        ("on disk", _size(found.bytes)),
    ):
        shown.add_row(name, value)
    return shown


def _size(count: float) -> str:
    """Bytes as people read them: powers of 1,000."""
    power = 0 if count < 1 else min(5, int(math.log10(count)) // 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[power]}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: what goes wrong becomes one line on stderr and exit code 2."""
    parser = cli.Parser(
        prog="python -m tfmammo.estimate",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=tuple(RATES))
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="of the command that is planned"
    )
    parser.add_overrides()
    parser.add_argument(
        "--mammograms",
        type=_positive,
        default=1_000_000,
        metavar="N",
        help="that there will be (1,000,000)",
    )
    parser.add_argument(
        "--workers", type=_positive, default=1, metavar="N", help="that will be at it (1)"
    )
    parser.add_argument(
        "--sample", type=_positive, default=8, metavar="N", help="mammograms that are measured (8)"
    )
    chosen = parser.parse_args(arguments)

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            rate = RATES[chosen.what](chosen.config, chosen.set, chosen.sample, Path(folder))
        console.print(table(chosen.what, rate, chosen.mammograms, chosen.workers))

    cli.run(work)


def _positive(text: str) -> int:
    number = int(text.replace(",", ""))
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


if __name__ == "__main__":
    # Workers must find everything under its real name; what runs as __main__ has another.
    from tfmammo import estimate as module

    module.main()
