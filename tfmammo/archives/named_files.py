"""Find images by their names beneath a folder, and by what tables and label tools call them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from tfmammo.archives.files import list_regular_files
from tfmammo.mammogram import Skipped, normalize_spelling

PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".pgm", ".bmp")
DICOMS = (".dcm", ".dicom")
# what tools add to an image's name: a_mask, a_mask_1, a_seg, a-label
_MASK = re.compile(
    r"(.+?)[_-](?:masks?|seg|segmentation|labels?|gt|roi)(?:[_-]?([0-9]{1,9}))?",
    re.IGNORECASE | re.DOTALL,
)


def find_files(
    root: Path, name: str, endings: tuple[str, ...], skipped: Skipped, others: Container[str] = ()
) -> dict[str, Path]:
    """Find files of these endings by their names beneath `name`, in order.

    Names are in one spelling and without the ending. Among DICOMs, a file of another ending or of
    none is one by its bytes, and its whole name counts. `others` in the folder are passed over.
    """
    files: dict[str, Path] = {}
    unknown = 0
    for path in sorted(list_regular_files(root / name, links=False)):
        relative = path.relative_to(root / name)
        if relative.parts[0].lower() in others:
            continue
        is_named = path.suffix.lower() in endings
        key = normalize_spelling((relative.with_suffix("") if is_named else relative).as_posix())
        # a name in no known encoding can't be hashed
        if not key.isprintable() or not (
            is_named or (set(DICOMS) <= set(endings) and has_dicom_bytes(path))
        ):
            unknown += 1
        elif key in files:
            skipped.add(
                path.relative_to(root).as_posix(),
                "another file has the same name and another ending or spelling",
            )
        else:
            files[key] = path
    if unknown:
        skipped.add(
            f"{name}/*",
            f"{unknown} files of other kinds than {' '.join(endings)}, or with unprintable names",
        )
    return files


def has_dicom_bytes(path: Path) -> bool:
    """Whether a file begins as a DICOM does, with the head of Part 10 or without."""
    try:
        with path.open("rb") as file:
            return is_dicom_head(file.read(132))
    except OSError:
        return False


def is_dicom(path: Path) -> bool:
    """Whether a file is a DICOM by its ending or its first bytes; False where it can't be read."""
    return path.is_file() and (path.suffix.lower() in DICOMS or has_dicom_bytes(path))


def is_dicom_head(head: bytes) -> bool:
    """Whether the first 132 bytes are a DICOM's.

    Without the head of Part 10 a file begins with an element of group 8, or of group 2 that says
    how it is written.
    """
    return head[128:] == b"DICM" or bool(
        re.match(rb"[\x02\x08]\0[\0-\xff]\0([A-Z]{2}|[\0-\xff]{2}\0\0)", head, re.DOTALL)
    )


def split_mask_name(name: str) -> tuple[str, int] | None:
    """Split a name that ends as tools call masks: the image's name and the mask's number, or -1."""
    match = _MASK.fullmatch(name)
    return (match[1], int(match[2] or -1)) if match else None


class Names:
    """Finds files by what tables and label tools call them.

    A name is matched as it is, else by its last part, if only one file has that: label tools name
    places of their own (..\\..\\media\\upload\\4\\a.png, /data/upload/a.png), and put eight digits
    before the name. With `folders_matter`, folders that both a file and its name state must agree.
    """

    def __init__(self, names: Iterable[str], folders_matter: bool) -> None:
        self._folders_matter = folders_matter
        self._names = set(names)
        self._by_base: dict[str, list[str]] = defaultdict(list)
        for name in self._names:
            self._by_base[name.rpartition("/")[2]].append(name)
        self.guessed = 0  # names that were not matched as they are

    def find(self, text: str) -> str | None:
        """Find the file of a name; None where none or several have it."""
        stated = unquote(normalize_spelling(text)).replace("\\", "/").rpartition("?d=")[2].strip()
        path = PurePosixPath(stated)
        path = path.with_suffix("") if path.suffix.lower() in PICTURES + DICOMS else path
        for exact in (str(path), str(path).removeprefix("images/")):
            if exact in self._names:
                return exact
        for base in (path.name, re.sub(r"^[0-9a-f]{8}-", "", path.name)):
            files = [name for name in self._by_base.get(base, ()) if self._may_be(name, path)]
            if len(files) == 1:
                self.guessed += 1
                return files[0]
        return None

    def _may_be(self, name: str, path: PurePosixPath) -> bool:
        folders = PurePosixPath(name).parts[-2::-1], path.parts[-2::-1]
        return not self._folders_matter or all(a == b for a, b in zip(*folders, strict=False))


def make_key(name: str) -> str:
    """Turn what a table calls a file into its name beneath images or masks, without the ending."""
    name = normalize_spelling(name)
    path = PurePosixPath(name.strip().replace("\\", "/"))
    leads_out = path.is_absolute() or ".." in path.parts or re.match(r"\s*[A-Za-z]:", name)
    if leads_out or not name.isprintable():
        raise ValueError(f"the file name {name[:80]!r} leads out of the folder")
    if len(path.parts) > 1 and path.parts[0] in ("images", "masks"):
        path = PurePosixPath(*path.parts[1:])
    return str(path.with_suffix("") if path.suffix.lower() in PICTURES + DICOMS else path)
