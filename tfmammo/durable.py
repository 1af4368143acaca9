"""What a power loss must not take: files written through to the disk."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def flush(path: Path) -> None:
    """Write a file, or a folder with all that it holds, through to the disk; until then a power loss can empty it."""
    if path.is_dir():
        for inner in path.iterdir():
            flush(inner)
        with contextlib.suppress(OSError):  # some network file systems can't do it for folders
            _synchronise(path)
    else:
        _synchronise(path)


def flush_names(folder: Path) -> None:
    """Write through which files a folder holds, and not the files."""
    with contextlib.suppress(OSError):
        _synchronise(folder)


def _synchronise(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
