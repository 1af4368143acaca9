"""What lies beneath a folder: how readers walk an archive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def beneath(root: Path) -> Iterator[Path]:
    """Every file beneath a folder, sorted within each folder, hidden ones left out (macOS leaves "._" beside all it copies).

    Linked folders are followed, but each folder is entered once: a link to one above would never end.
    """
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))
