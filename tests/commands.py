"""Commands of the package, run in a process of their own or in this one."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

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


def run_module_here(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` in this process, which saves the imports of another one.

    Args:
        module: Its dotted name.
        arguments: Its arguments.
    """
    command = [module, *map(str, arguments)]
    run = lambda: runpy.run_module(module, run_name="__main__", alter_sys=True)  # noqa: E731
    return _run_here(command, run)


def run_script_here(path: str | Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `python PATH ARGUMENTS` in this process.

    Args:
        path: Of the script.
        arguments: Its arguments.
    """
    command = [str(path), *map(str, arguments)]
    return _run_here(command, lambda: runpy.run_path(str(path), run_name="__main__"))


def refuse(capsys: pytest.CaptureFixture[str], call: Callable[..., object], *arguments) -> str:
    """Call what ends with exit code 2, and return what it says: one line beside usage and log."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        call(*arguments)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    (said,) = (line for line in lines if not re.match(r"usage: | |\d\d:\d\d:\d\d ", line))
    return said


def _run_here(command: list[str], run) -> subprocess.CompletedProcess[str]:
    out = io.StringIO()
    err = io.StringIO()
    code = 0
    root = logging.getLogger()
    handlers = list(root.handlers)  # pytest's, which a command replaces by its own
    with (
        mock.patch.object(sys, "argv", command),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        # runpy's, of a module that is imported already
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            run()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        finally:
            root.handlers[:] = handlers
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())
