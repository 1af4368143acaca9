"""Find pictures by their names beneath a folder, and read such names in tables."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from tfmammo.archives.files import list_regular_files
from tfmammo.mammogram import Skipped, normalize_spelling

PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".pgm", ".bmp")
DICOMS = (".dcm", ".dicom")


def find_files(
    root: Path, name: str, endings: tuple[str, ...], skipped: Skipped
) -> dict[str, Path]:
    """Find files of these endings by their names beneath `name`, in order.

    Names are in one spelling and without the ending.
    """
    files: dict[str, Path] = {}
    others = 0
    for path in sorted(list_regular_files(root / name, links=False)):
        key = normalize_spelling(path.relative_to(root / name).with_suffix("").as_posix())
        # a name in no known encoding can't be hashed
        if path.suffix.lower() not in endings or not key.isprintable():
            others += 1
        elif key in files:
            skipped.add(
                path.relative_to(root).as_posix(),
                "another file has the same name and another ending or spelling",
            )
        else:
            files[key] = path
    if others:
        skipped.add(
            f"{name}/*",
            f"{others} files of other kinds than {' '.join(endings)}, or with unprintable names",
        )
    return files


def make_key(name: str) -> str:
    """Turn what a table calls a file into its name beneath images or masks, without the ending.

    Raises ValueError outside of them.
    """
    name = normalize_spelling(name)
    path = PurePosixPath(name.strip().replace("\\", "/"))
    if (
        path.is_absolute()
        or ".." in path.parts
        or re.match(r"\s*[A-Za-z]:", name)
        or not name.isprintable()
    ):
        raise ValueError(f"the file name {name[:80]!r} leads out of the folder")
    path = (
        PurePosixPath(*path.parts[1:])
        if len(path.parts) > 1 and path.parts[0] in ("images", "masks")
        else path
    )
    return str(path.with_suffix("") if path.suffix.lower() in PICTURES + DICOMS else path)
