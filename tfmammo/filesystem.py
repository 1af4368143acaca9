"""Files and folders that survive a crash: flushed, written whole or not at all, locked, hashed."""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import portalocker

from tfmammo.errors import ConfigError, DataError

log = logging.getLogger(__name__)

LOCK = ".lock"  # of a folder that one process works in
ARCHIVES_CONTENT = "content of the archive (a file or its annotations)"
IN_WORDS = {  # keys of identities that are not a config's
    "archive": ARCHIVES_CONTENT,
    "archive.mammograms": ARCHIVES_CONTENT,
    "archive.records": ARCHIVES_CONTENT,
    "archive.name": "archive",
    "tfmammo": "version of tfmammo",
}

CACHE = "TFMAMMO_CACHE"


def flush(path: Path) -> None:
    """Flush a file, or a folder with all that it holds, so that a power loss can't empty it."""
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
    """Write a file, to the path given, that takes its name when the body ends without an error.

    Of two attempts at once the last one stays. It has the permissions of the file that it replaces,
    or those of any new file.
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
    """Write a whole file (text as UTF-8) or none, and only where it changes.

    A durable one is flushed to the disk, so that it survives a power loss.
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
    """Move files by their names into a folder, where none of another content is replaced.

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
    """Lock an open file for this process, without waiting: False if another process holds it, None
    where the file system has no locks.
    """
    try:
        portalocker.lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
    except portalocker.AlreadyLocked:
        return False
    except portalocker.LockException:
        return None
    return True


def lock_folder(folder: Path, file: IO[str]) -> bool:
    """Lock a folder's open file for this process, without waiting: False if another holds it.

    Where the file system has no locks, a warning says so.
    """
    locked = take_lock(file)
    if locked is None:
        log.warning("%s: its file system has no locks; start no other work there meanwhile", folder)
    return locked is not False


@contextlib.contextmanager
def claim_folder(output: Path, identity: Mapping[str, Any], file: str) -> Iterator[None]:
    """Reserve a folder for one job, and keep other processes out while the body runs.

    Half-written files of killed workers are removed. The lock ends with the process.

    Args:
        output: A new folder, or one of an earlier run.
        identity: Everything that decides the contents. Runs with an equal identity may use the
            folder one after the other.
        file: Name of the file that keeps the identity.

    Raises:
        ConfigError: The folder belongs to another job (the message names the keys that differ),
            holds other files or can't be used; or another process is at work in it.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        # What a kill at the first write leaves is the command's own.
        own = re.compile(rf"{re.escape(LOCK)}|\.{re.escape(file)}\.\w+\.part")
        is_foreign = not (output / file).exists() and any(
            not own.fullmatch(path.name) for path in output.iterdir()
        )
        if is_foreign:  # before the lock, which would leave a file in somebody's folder
            raise ConfigError(
                f"{output}: is not empty and no output of this command; name a new folder"
            )
        lock = (output / LOCK).open("a")  # which leaves its time as it is
    except OSError as error:
        raise _explain_unusable(output, error) from None
    with lock:
        if not lock_folder(output, lock):
            raise ConfigError(
                f"{output}: another process is at work there; wait for its end, or name a new "
                "folder"
            )
        _check_identity(output, identity, file)
        for path in output.rglob(".*.part"):  # of a worker that was killed
            path.unlink(missing_ok=True)
        try:
            yield
        except KeyboardInterrupt:
            log.info("%s: stopped; the same command goes on where it was", output)
            raise


def _explain_unusable(output: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{output}: can't be used ({error.__class__.__name__}: {str(error)[:200]})")


def _check_identity(output: Path, identity: Mapping[str, Any], file: str) -> None:
    """Write the identity into a new folder, or compare it with that of an earlier run."""
    try:
        if not (output / file).exists():
            write_atomically(output / file, to_json(identity))
        recorded = json.loads((output / file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _explain_unusable(output, error) from None
    before = flatten(recorded)
    now = flatten(identity)
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if differing:
        names = dict.fromkeys(IN_WORDS.get(key, key.removeprefix("config.")) for key in differing)
        raise ConfigError(
            f"{output}: what is there differs in {', '.join(names)}; name a new folder"
        )


def flatten(content: object, name: str = "") -> dict[str, object]:
    """Flatten nested dicts: ``{"a": {"b": 1}}`` -> ``{"a.b": 1}``."""
    if not isinstance(content, dict) or not content:
        return {name: content}
    return {
        key: value
        for part, inner in content.items()
        for key, value in flatten(inner, f"{name}.{part}".lstrip(".")).items()
    }


def sha256(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal; DataError if it can't be read."""
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


def name_case(image_id: str) -> str:
    """Return the name of an image's or a patch's files without the ending."""
    return re.sub(r"[^A-Za-z0-9-]", "_", image_id)
