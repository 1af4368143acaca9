"""From the name of a network of the zoo to an export on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from tfmammo import filesystem
from tfmammo.errors import ExportError
from tfmammo.filesystem import CACHE, find_cache
from tfmammo.tracking.zoo.entries import FOLDER, PREFIX, Entry, read_entry

TIMEOUT = 30  # s without a byte of a download
PIECE = 2**20  # bytes


def fetch(name: str) -> Path:
    """Unpack a network of the zoo, once for all processes, and return its export.

    Exports lie in the folder of TFMAMMO_CACHE, by default the user's cache. Their folders are named
    after the SHA-256 of the packed file, so that a newer version of the package can't meet an older
    network.

    Args:
        name: "can", or "models:/zoo/can".

    Raises:
        ConfigError: The zoo has no such network.
        ExportError: The packed file is damaged or can't be downloaded, or the cache can't be
            written.
    """
    entry = read_entry(name)
    short = name.removeprefix(PREFIX)
    folder = find_cache() / "zoo" / f"{short}-{entry.sha256[:16]}"
    if folder.is_dir():
        return folder
    from tfmammo.tracking.zoo.packing import (
        unpack,  # imports TensorFlow, which an unpacked one needs not
    )

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as place:
            unpack(find_file(short, entry), Path(place) / short)
            with contextlib.suppress(OSError):  # another process has put its own there meanwhile
                (Path(place) / short).replace(folder)
    except OSError as error:
        reason = error.strerror or error
        raise ExportError(
            f"{folder.parent}: can't be written ({reason}); {CACHE} can name another folder"
        ) from None
    return folder


def find_file(name: str, entry: Entry) -> Path:
    """Return the packed file of a network, downloaded if it does not come with the package.

    Raises:
        ExportError: It is missing, is not the one of the entry, or can't be downloaded.
    """
    if entry.url is None:
        path = FOLDER / entry.file
        if not path.is_file():
            raise ExportError(f"{path}: is missing; install the package again")
        _check(path, entry)
        return path
    path = find_cache() / "zoo" / entry.file
    if not path.is_file():
        _download(name, entry, path)
    _check(path, entry)
    return path


def _check(path: Path, entry: Entry) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != entry.sha256:
        raise ExportError(
            f"{path}: has the SHA-256 {found[:16]}..., not {entry.sha256[:16]}...; "
            "the file is damaged or was replaced"
        )


def _download(name: str, entry: Entry, path: Path) -> None:
    """Download a packed file whole or not at all, and no more of it than the entry says."""
    url = entry.url or ""
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1"):
        raise ExportError(f"{PREFIX}{name}: {url} is no https address")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT) as answer,
            filesystem.atomic_file(path) as part,
            part.open("wb") as file,
        ):
            left = entry.size
            while piece := answer.read(PIECE):
                left -= len(piece)
                if left < 0:
                    raise ExportError("the download is larger than the zoo's entry says")
                file.write(piece)
            if left:
                raise ExportError("the download is shorter than the zoo's entry says")
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise ExportError(f"{PREFIX}{name}: {url} can't be downloaded ({error})") from None
