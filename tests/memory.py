"""A pytest plugin: the peak memory of every test process, and --max-memory to limit it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PEAK = "peak_gb"
RISES = "rises"
LARGE = 0.25  # GB by which a test raises its process's peak, above which it is named


def read_peak() -> float:
    """Read the peak of this process's resident memory in GB; 0 on systems that don't tell.

    getrusage would do no good: a process inherits its peak from the one that started it.
    """
    status = Path("/proc/self/status")
    match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return int(match[1]) / 1e6 if match else 0.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --max-memory GB."""
    parser.addoption(
        "--max-memory",
        type=float,
        metavar="GB",
        help="fail if a test process needs more memory",
    )


class Peaks:
    """Collects the peaks of all test processes, and fails the session of one that is too large.

    Args:
        config: pytest's.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.limit: float | None = config.getoption("--max-memory")
        self.peaks: dict[str, float] = {}
        self.rises: list[tuple[float, str]] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        """Note a test that raises the peak of its process by much."""
        before = read_peak()
        try:
            return (yield)
        finally:
            rise = read_peak() - before
            if rise > LARGE:
                self.rises.append((rise, item.nodeid))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error) -> None:
        """Take the peak of a worker of pytest-xdist that ends."""
        if PEAK in getattr(node, "workeroutput", {}):
            self.peaks[node.gateway.id] = node.workeroutput[PEAK]
            self.rises += map(tuple, node.workeroutput[RISES])

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Take this process's own peak; a worker hands it to the process that started it."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[PEAK] = read_peak()
            session.config.workeroutput[RISES] = self.rises
            return
        self.peaks["main"] = read_peak()
        if self.limit and max(self.peaks.values()) > self.limit and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter) -> None:
        """Print all peaks, and the tests that raised them most."""
        peaks = ", ".join(f"{name} {peak:.2f} GB" for name, peak in sorted(self.peaks.items()))
        terminalreporter.write_line(f"peak memory: {peaks}")
        for rise, test in sorted(self.rises, reverse=True)[:10]:
            terminalreporter.write_line(f"  +{rise:.2f} GB {test}")
        if self.limit and max(self.peaks.values()) > self.limit:
            terminalreporter.write_line(f"more than --max-memory {self.limit:g} GB", red=True)


def pytest_configure(config: pytest.Config) -> None:
    """Register the collector."""
    config.pluginmanager.register(Peaks(config), "peaks")
