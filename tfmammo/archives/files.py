"""Walk an archive's folder, and name its files where their own names must not be told."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from tfmammo.mammogram import hash_id

log = logging.getLogger(__name__)

# which readers know by the archive's own names for them; any other name may be a patient's
TABLES = (".csv", ".xls", ".xlsx", ".txt")
PREDICTIONS = "predict.json"  # marks a folder that `tfmammo predict` wrote


def list_regular_files(root: Path, links: bool = True) -> Iterator[Path]:
    """List every regular file beneath a folder, sorted within each folder.

    Hidden files are skipped: macOS leaves "._" beside all it copies. Each folder is entered once,
    as a link (followed if `links`) to one above would never end. Pipes and devices are no files.
    Folders of predictions within are skipped: what a model found there is no lesion of an archive.
    """
    entered: set[str] = set()
    folders = [os.fspath(root)]
    while folders:
        folder = folders.pop()
        real = os.path.realpath(folder)
        if real in entered:
            continue
        entered.add(real)
        within: list[str] = []
        for entry in _list_entries(folder):
            with contextlib.suppress(OSError):  # links in a circle
                if entry.is_file() and not entry.name.startswith("."):
                    yield Path(entry.path)
                elif entry.is_dir(follow_symlinks=links) and not _holds_predictions(entry):
                    within.append(entry.path)
        folders += reversed(within)


def _holds_predictions(folder: os.DirEntry[str]) -> bool:
    return os.path.isfile(os.path.join(folder.path, PREDICTIONS))


def _list_entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            log.warning("a folder can't be read (%s): its files are missing", error.strerror)
        return []


def make_pseudonym(file: str) -> str:
    """Return what a file (its path beneath the archive) is called where its name must not be told.

    `tfmammo archives NAME DIR --list` leads back to it.
    """
    path = PurePosixPath(file)
    return path.name if path.suffix.lower() in TABLES else f"file-{hash_id('file', file)}"


def remove_names(reasons: Mapping[str, str], root: Path | None) -> dict[str, str]:
    """Return the reasons of `Skipped` as they may be logged or passed on, without file names.

    Args:
        reasons: Reasons by file or image_id.
        root: The archive's folder, which reasons may begin paths with.
    """
    return {
        make_pseudonym(name) if _is_file(name) else name: remove_paths(reason, root)
        for name, reason in reasons.items()
    }


def _is_file(name: str) -> bool:
    has_ending = re.fullmatch(r"\.[A-Za-z]\w*", PurePosixPath(name).suffix) is not None
    return "*" not in name and (len(PurePosixPath(name).parts) > 1 or has_ending)


def resolve_root(root: Path) -> Path:
    """Return an archive's folder as its files' paths begin: "." precedes no path."""
    return root if root != Path() else Path.cwd()


def remove_paths(reason: str, root: Path | None) -> str:
    """Replace paths beneath a folder by pseudonyms in a sentence; None leaves it as it is."""
    if root is None:
        return reason
    root = resolve_root(root)
    before, *after = reason.split(f"{root}{os.sep}")
    return before + "".join(_replace_path(rest, root) for rest in after)


def _replace_path(text: str, root: Path) -> str:
    """Replace the path beneath root that a text begins with by its pseudonym."""
    ends = [match.start() for match in re.finditer(r": |; |, |\)|\s|$", text)]
    for end in reversed(ends):
        if end and len(text[:end]) < 4096 and os.path.lexists(root / text[:end]):
            return make_pseudonym(text[:end]) + text[end:]
    # it is gone; its name may have blanks
    return "a file" + text[text.find(": ") if ": " in text else len(text) :]
