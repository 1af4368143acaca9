"""Files that survive a crash: flushed, written whole or not at all, locked, hashed."""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import portalocker

from tfmammo.errors import DataError

CACHE = "TFMAMMO_CACHE"


def flush(path: Path) -> None:
    """Flush a file, or a folder with all that it holds, to the disk.

    Until then a power loss can empty it.
    """
    if path.is_dir():
        for inner in path.iterdir():
            flush(inner)
        with contextlib.suppress(OSError):  # some network file systems can't do it for folders
            _synchronise(path)
    else:
        _synchronise(path)


def flush_names(folder: Path) -> None:
    """Flush the names of the files that a folder holds, and not the files."""
    with contextlib.suppress(OSError):
        _synchronise(folder)


def _synchronise(path: Path) -> None:
    # Windows flushes only what may be written to
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Write a file that takes its name when the body ends without an error.

    Of two attempts at once the last one stays. It has the permissions of the file that it replaces,
    or those of any new file.

    Args:
        path: The file's final path.

    Yields:
        The path to write to.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    part.touch(exist_ok=False)
    try:
        yield part
        with contextlib.suppress(OSError):  # there is none, or its file system has no permissions
            shutil.copymode(path, part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: str | bytes, durable: bool = True) -> None:
    """Write a whole file or none, and only where it changes.

    Args:
        path: The file.
        content: Text is written as UTF-8.
        durable: Flush it to the disk, so that it survives a power loss.
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


def move_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Move files into a folder, where none of another content is replaced.

    Args:
        source: The folder that they are in.
        target: The folder that they go to; it is made where it is missing.
        names: Their paths beneath both.

    Raises:
        DataError: One is there with another content; nothing is moved then.
    """
    for name in names:
        path = target / name
        if path.exists() and not filecmp.cmp(source / name, path, shallow=False):
            raise DataError(f"{path}: is another file, which is not replaced; name a new folder")
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).replace(target / name)


def take_lock(file: IO[str]) -> bool | None:
    """Lock an open file for this process, without waiting.

    Returns:
        True, or False where another process holds it, or None where the file system has no locks.
    """
    try:
        portalocker.lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
    except portalocker.AlreadyLocked:
        return False
    except portalocker.LockException:
        return None
    return True


def sha256(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal.

    Raises:
        DataError: It can't be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.__class__.__name__})") from None


def to_json(content: object) -> str:
    """Format JSON so that equal contents give equal text."""
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def find_cache() -> Path:
    """Return the folder for what can be made again."""
    if chosen := os.environ.get(CACHE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfmammo"


def is_first_time(what: str) -> bool:
    """Tell whether this is asked for the first time on this machine, and remember it.

    The cache keeps a hash of `what`. Where it can't be written, each time is the first.
    """
    mark = find_cache() / "told" / hashlib.sha256(what.encode()).hexdigest()[:16]
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        pass
    return True


def name_case(image_id: str) -> str:
    """Return the name of an image's files without the ending.

    Args:
        image_id: Of a mammogram, or the id of a patch.
    """
    return re.sub(r"[^A-Za-z0-9-]", "_", image_id)
