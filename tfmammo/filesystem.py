"""Files that survive a crash: flushed, written whole or not at all, one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def flush(path: Path) -> None:
    """Write a file, or a folder with all that it holds, through to the disk; until then a power
    loss can empty it.
    """
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


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A file that takes its name when the body has ended well.

    Two attempts at once don't meet: the last one stays.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # temporary files are for their owner alone
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: str | bytes, durable: bool = True) -> None:
    """Write a whole file or none, and only where it changes.

    Args:
        durable: Write it through to the disk, so that a power loss does not take it.
    """
    data = content.encode() if isinstance(content, str) else content
    if path.is_file() and path.read_bytes() == data:
        return
    with atomic_file(path) as part:
        part.write_bytes(data)
        if durable:
            flush(part)
    if durable:
        flush_names(path.parent)


def take_lock(file: IO[str]) -> bool | None:
    """Lock an open file for this process, without waiting.

    Returns:
        True; False where another process holds it; None where the file system knows no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
