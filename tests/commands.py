"""Commands of the package, run in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def run_module(
    module: str, *arguments: object, cwd: Path | None = None, timeout: float = 500
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` without a GPU, and return what it said.

    Args:
        module: Its dotted name.
        arguments: Its arguments.
        cwd: Its working directory; the test's own where it is None.
        timeout: Seconds.
    """
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
