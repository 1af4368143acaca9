"""What lies beneath a folder: how readers walk an archive, and how its files are called
where their names must not be told.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from tfmammo.mammogram import hashed_id

# which readers know by the archive's own names for them; any other name may be a patient's
TABLES = (".csv", ".xls", ".txt")


def beneath(root: Path, links: bool = True) -> Iterator[Path]:
    """Every regular file beneath a folder, sorted within each folder, hidden ones left out (macOS
    leaves "._" beside all it copies).

    Each folder is entered once: a link to one above would never end. Pipes and devices, which can
    be read for ever, are no files.

    Args:
        links: Follow linked folders.
    """
    seen: set[str] = set()
    folders = [os.fspath(root)]
    while folders:
        folder = folders.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        entries = _entries(folder)
        yield from (
            Path(entry.path)
            for entry in entries
            if _is(entry.is_file) and not entry.name.startswith(".")
        )
        folders += [
            entry.path
            for entry in reversed(entries)
            if _is(partial(entry.is_dir, follow_symlinks=links))
        ]


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:  # nobody may look into it, or it went
        return []


def _is(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except OSError:  # links in a circle
        return False


def pseudonym(file: str) -> str:
    """What a file is called where its name must not be told: `python -m tfmammo.archives NAME DIR
    --list` leads back to it.

    Args:
        file: Its path beneath the archive, with slashes.
    """
    path = PurePosixPath(file)
    return path.name if path.suffix.lower() in TABLES else f"file-{hashed_id('file', file)}"


def without_names(reasons: Mapping[str, str], root: Path | None) -> dict[str, str]:
    """Reasons of `Skipped` as they may be logged or passed on: files are called by their
    pseudonyms.

    Args:
        reasons: By file or image_id.
        root: The archive's folder, which reasons may begin paths with.
    """
    return {_called(file): _scrubbed(reason, root) for file, reason in reasons.items()}


def _called(file: str) -> str:
    path = PurePosixPath(file)
    is_file = "*" not in file and (
        len(path.parts) > 1 or bool(re.fullmatch(r"\.[A-Za-z]\w*", path.suffix))
    )
    return pseudonym(file) if is_file else file


def _scrubbed(reason: str, root: Path | None) -> str:
    if root is None:
        return reason
    before, *after = reason.split(f"{root}{os.sep}")
    return before + "".join(_without_first_name(rest, root) for rest in after)


def _without_first_name(text: str, root: Path) -> str:
    """A text that begins with a path beneath root, its pseudonym in place of that."""
    ends = [match.start() for match in re.finditer(r": |; |, |\)|\s|$", text)]
    for end in reversed(ends):
        if end and len(text[:end]) < 4096 and os.path.lexists(root / text[:end]):
            return pseudonym(text[:end]) + text[end:]
    # it is gone; its name may have blanks
    return "a file" + text[text.find(": ") if ": " in text else len(text) :]
