"""Estimate the time and disk space of a data build or a bulk synthesis before it starts.

    tfmammo estimate build --config configs/build.yaml --mammograms 1000000 --workers 64
    [--sample 8] [--set KEY=VALUE ...]
    tfmammo estimate synthesis --config configs/synthesis_full.yaml --mammograms 1000000
    --workers 64 [--sample 8] [--set ...]

One process makes a few mammograms of your own archive in a temporary folder, and extrapolates their
seconds and bytes. Nothing is kept. It assumes that every worker is as fast as this process alone,
although workers on one machine share its disk and memory.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from tfmammo import archives, cli, config
from tfmammo.data import build
from tfmammo.errors import DataError
from tfmammo.mammogram import Mammogram, Skipped
from tfmammo.synthesis import mammograms as synthesis
from tfmammo.synthesis.config import SynthesisConfig


@dataclass(frozen=True)
class Rate:
    """What was measured, for one mammogram."""

    seconds: float  # to make it
    bytes: float  # on disk
    index: float  # seconds to read its tables and headers, by one process before the others start
    part: int  # mammograms behind what one worker makes at a time: a shard of a build
    sample: int  # mammograms measured

    def count_parts(self, mammograms: int) -> int:
        """Count the shards of a build, or the items of a synthesis."""
        return math.ceil(mammograms / self.part)

    def estimate_hours(self, mammograms: int, workers: int) -> float:
        """Estimate the hours that a number of mammograms take.

        Workers take whole parts, so the last round may keep only some of them busy:

        hours = (n index + ceil(parts / workers) part seconds) / 3600,  parts = ceil(n / part)
        """
        rounds = math.ceil(self.count_parts(mammograms) / workers)
        each = self.part * rounds if workers > 1 else mammograms
        return (mammograms * self.index + each * self.seconds) / 3600


def measure_build(path: str, overrides: Sequence[str], sample: int, folder: Path) -> Rate:
    """Measure `tfmammo build` on a sample spread evenly over the archive; one more warms up."""
    build_config = config.parse(build.BuildConfig, path, overrides)
    data = build_config.data
    mammograms, index = _time_index(data)
    jobs = build.list_work(mammograms, data)
    if len(jobs) <= sample:
        raise DataError(
            f"--sample {sample}: only {len(jobs)} mammograms give patches, and one warms up"
        )
    rows = np.linspace(0, len(jobs) - 1, sample + 1).astype(int)
    first, *rest = (jobs[row] for row in rows)
    names = (f"shard-0000{number}-of-00002.tfrecord" for number in range(2))
    warm_up, measured = (
        build.Shard(folder, name, "", data, tuple(part))
        for name, part in zip(names, ([first], rest), strict=True)
    )
    build.make(warm_up)
    start = time.perf_counter()
    build.make(measured)
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in folder.glob("shard-00001-*"))
    part = build_config.build.shard_mammograms
    share = len(jobs) / len(mammograms)
    each = share / sample
    return Rate(seconds * each, size * each, index, round(part / share), sample)


def measure_synthesis(path: str, overrides: Sequence[str], sample: int, folder: Path) -> Rate:
    """Measure `tfmammo synthesize` by the times of its first recipes; one more item warms up."""
    synthesis_config = config.parse(SynthesisConfig, path, [*overrides, f"count={sample + 1}"])
    _, index = _time_index(synthesis_config.data)
    synthesis.synthesize(synthesis_config, folder)
    times = sorted(path.stat().st_mtime_ns for path in (folder / "recipes").iterdir())
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Rate((times[-1] - times[0]) / 1e9 / sample, size / (sample + 1), index, 1, sample)


def _time_index(data: config.DataConfig) -> tuple[Sequence[Mammogram], float]:
    """List an archive's mammograms, and measure the seconds for each."""
    start = time.perf_counter()
    mammograms = archives.read_mammograms(data, Skipped())
    return mammograms, (time.perf_counter() - start) / max(1, len(mammograms))


RATES: dict[str, Callable[[str, Sequence[str], int, Path], Rate]] = {
    "build": measure_build,
    "synthesis": measure_synthesis,
}


def make_table(command: str, rate: Rate, mammograms: int, workers: int) -> Table:
    """Tabulate the estimate of a command, which is a key of RATES."""
    table = Table(
        title=f"{command} of {mammograms:,} mammograms with {workers:,} workers, from "
        f"{rate.sample:,} measured here"
    )
    table.add_column("")
    table.add_column(command, justify="right")
    for name, value in (
        ("a mammogram", f"{rate.seconds:.3g} s, {_format_size(rate.bytes)}"),
        ("shards" if command == "build" else "items", f"{rate.count_parts(mammograms):,}"),
        ("hours, all workers", f"{rate.estimate_hours(mammograms, workers):,.2f}"),
        ("hours, one worker", f"{rate.estimate_hours(mammograms, 1):,.2f}"),
        ("of these, reading the archive's tables", f"{mammograms * rate.index / 3600:,.2f}"),
        ("on disk", _format_size(mammograms * rate.bytes)),
    ):
        table.add_row(name, value)
    return table


def _format_size(count: float) -> str:
    """Format bytes in powers of 1,000."""
    power = 0 if count < 1 else min(5, int(math.log10(count)) // 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[power]}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error becomes one line on stderr and exit code 2."""
    parser = cli.make_command_parser("estimate", __doc__)
    parser.add_argument("what", choices=tuple(RATES))
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="the config of the command to estimate"
    )
    parser.add_overrides()
    parser.add_argument(
        "--mammograms",
        type=_parse_grouped,
        default=1_000_000,
        metavar="N",
        help="mammograms of the whole archive or set (1,000,000)",
    )
    parser.add_argument("--workers", type=_parse_grouped, default=1, metavar="N", help="(1)")
    parser.add_argument(
        "--sample", type=_parse_grouped, default=8, metavar="N", help="mammograms to measure (8)"
    )
    options = parser.parse_args(arguments)

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            rate = RATES[options.what](options.config, options.set, options.sample, Path(folder))
        cli.console.print(make_table(options.what, rate, options.mammograms, options.workers))

    cli.run(work)


def _parse_grouped(text: str) -> int:
    """Parse a count such as 10000 or 10,000."""
    return cli.parse_count(text.replace(",", ""))


if __name__ == "__main__":
    # Workers must find everything under its real name; what runs as __main__ has another.
    from tfmammo.apps import estimate as module

    module.main()
