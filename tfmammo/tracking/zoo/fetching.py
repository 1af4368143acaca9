"""From the name of a network of the zoo to an export on this machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tfmammo.errors import ExportError
from tfmammo.filesystem import CACHE, find_cache, sha256
from tfmammo.tracking.zoo.entries import FOLDER, PREFIX, Entry, read_entry


def fetch(name: str) -> Path:
    """Unpack a network of the zoo, once for all processes, and return its export.

    Exports are in the folder of TFMAMMO_CACHE, by default the user's cache. Their folders are named
    after the SHA-256 of the packed file, so that a newer version of the package can't meet an older
    network.

    Args:
        name: "can", or "models:/zoo/can".
    """
    entry = read_entry(name)
    short = name.removeprefix(PREFIX)
    folder = find_cache() / "zoo" / f"{short}-{entry.sha256[:16]}"
    if folder.is_dir():
        return folder
    # imports TensorFlow, which an unpacked one does not need
    from tfmammo.tracking.zoo.packing import unpack

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as place:
            unpack(find_file(short, entry), Path(place) / short)
            try:
                (Path(place) / short).replace(folder)
            except OSError:
                if not folder.is_dir():  # else another process has put its own there meanwhile
                    raise
    except OSError as error:
        reason = error.strerror or error
        raise ExportError(
            f"{folder.parent}: can't be written ({reason}); {CACHE} can name another folder"
        ) from None
    return folder


def find_file(name: str, entry: Entry) -> Path:
    """Return the packed file of a network, checked against its entry."""
    path = FOLDER / entry.file
    if not path.is_file():
        raise ExportError(f"{path}: is missing; install the package again")
    found = sha256(path)
    if found != entry.sha256:
        raise ExportError(
            f"{path}: has the SHA-256 {found[:16]}..., not {entry.sha256[:16]}...; the file of "
            f"{name} is damaged or was replaced"
        )
    return path
