"""YOLO's data sets as Ultralytics reads them.

    images/, labels/            at any depth; a text file an image, with a line a lesion
    train/images, train/labels  and valid, test: as Roboflow writes them
    NAME.yaml or classes.txt    names the labels; without them each is a mass of uncertain kind

`train`, `val` and `test` of the YAML may name folders, or text files that list images, beneath the
YAML's own folder or its `path`; what is elsewhere is not read. An image without a text file has
no lesion, as YOLO says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfmammo.archives import coco
from tfmammo.archives.files import list_regular_files
from tfmammo.archives.findings import LESION, Finding
from tfmammo.archives.layouts import SUBSETS, Layout, assign_subsets, find_labels
from tfmammo.archives.named_files import PICTURES, find_files
from tfmammo.archives.notes import Notes
from tfmammo.config import read_yaml
from tfmammo.errors import ArchiveError, ConfigError
from tfmammo.mammogram import Found, Lesion, LesionKind, Skipped, normalize_spelling

_LARGEST_YAML = 2**20  # bytes; YAML is slow to read
_LARGEST_TEXT = 2**24  # bytes of the labels of one image
_NO_LABELS = ("classes.txt", "notes.txt", "readme.txt")


def find_yolo(notes: Notes) -> Layout | None:
    """Recognize a YOLO data set; None of any other folder."""
    root = notes.root
    names_file = _find_names_file(root)
    names = _read_yaml(names_file) if names_file and names_file.suffix != ".txt" else {}
    places = list(_find_places(root, names))
    stated = {path: subset for place, subset in places for path in _list_images(root, place)}
    folders = [
        f"{name}images"
        for name in ("", *(f"{name}/" for name in SUBSETS))
        if (root / name / "images").is_dir() and (root / name / "labels").is_dir()
    ]
    found = [
        path for it in folders for path in find_files(root, it, PICTURES, notes.skipped).values()
    ]
    images: dict[str, Path] = {}
    label_files: dict[str, Path] = {}
    for path in dict.fromkeys([*stated, *found]):
        relative = path.relative_to(root)
        key = normalize_spelling(_name_folder(relative, "").with_suffix("").as_posix())
        images[key] = path
        label_files[key] = root / _name_folder(relative, "labels").with_suffix(".txt")
    label_folders = {path.parent for path in label_files.values()}
    label_folders |= {root / _name_folder(Path(it) / "x", "labels").parent for it in folders}
    in_folders = [
        path for folder in label_folders for path in list_regular_files(folder, links=False)
    ]
    texts = {
        path for path in in_folders if path.suffix == ".txt" and path.name.lower() not in _NO_LABELS
    } - {place for place, _ in places}
    are_masks = any(path.suffix.lower() in PICTURES for path in in_folders)
    if not texts and (are_masks or not (names_file and images)):
        return None
    for other in ("annotations.json", "masks"):
        if (root / other).exists():
            raise ArchiveError(f"{root}: has both label files and {other}, keep one of them")
    unused = len(texts - set(label_files.values()))
    if texts and unused == len(texts):
        raise ArchiveError(f"{root}: none of its {unused} label files has the name of an image")
    if unused:
        notes.skipped.add("labels/*", f"{unused} label files have the name of no image")
    subsets = {
        key: subset
        for key, path in images.items()
        if (subset := stated.get(path) or SUBSETS.get(key.partition("/")[0]))
    }
    labels = _name_labels(notes, names_file, names)

    def find(key: str, rows: int, cols: int) -> list[Found]:
        found: list[Found] = []
        path = label_files[key]
        for number, finding, shares in _read_labels(path, labels):
            make = partial(_make_lesion, shares, rows, cols)
            found += coco.make_found(finding, make, partial(notes.note, path), f"line {number}")
        return found

    return Layout(images, find, assign_subsets(subsets))


def _name_folder(path: Path, name: str) -> Path:
    """Give the last folder "images" of a path another name; "" takes it out."""
    parts = list(path.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = name
            break
    return Path(*parts)


def _find_places(root: Path, names: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Find the folders and lists beneath the root that the YAML names, each with its subset."""
    bases = [root / str(names.get("path") or "."), root]
    for name, subset in SUBSETS.items():
        stated = names.get(name)
        for entry in stated if isinstance(stated, list) else [stated]:
            place = _resolve(root, bases, entry) if isinstance(entry, str) else None
            if place and (place.is_dir() or (place.is_file() and place.suffix == ".txt")):
                yield place, subset


def _list_images(root: Path, place: Path) -> list[Path]:
    if place.is_dir():
        files = find_files(root, place.relative_to(root).as_posix(), PICTURES, Skipped())
        return list(files.values())
    if place.stat().st_size > _LARGEST_TEXT:
        raise ArchiveError(f"{place}: is too large for a list of images")
    lines = place.read_text(encoding="utf-8", errors="replace").splitlines()
    paths = [_resolve(root, [place.parent, root], line.strip()) for line in lines if line.strip()]
    return [path for path in paths if path and path.is_file() and path.suffix.lower() in PICTURES]


def _resolve(root: Path, bases: list[Path], name: str) -> Path | None:
    """Find a path beneath one of several folders, itself beneath the root."""
    for base in bases:
        try:
            path = (base / name).resolve()
            if path.exists() and path.is_relative_to(root.resolve()):
                return root / path.relative_to(root.resolve())
        except (OSError, ValueError):  # no file has such a name
            continue
    return None


def _find_names_file(root: Path) -> Path | None:
    """Find the file that names the labels; any YAML with names will do, data.yaml first."""
    files = sorted([*root.glob("*.yaml"), *root.glob("*.yml")], key=lambda path: path.name)
    for path in sorted(files, key=lambda path: path.name != "data.yaml"):
        if path.name == "data.yaml" or "names" in _read_yaml(path, strict=False):
            return path
    classes = [root / "classes.txt", root / "labels" / "classes.txt"]
    return next((path for path in classes if path.is_file()), None)


def _read_yaml(path: Path, strict: bool = True) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_YAML:
            raise ConfigError(f"{path}: is too large to name labels")
        return read_yaml(path)
    except (OSError, ConfigError) as error:
        if strict:
            reason = error if isinstance(error, ConfigError) else f"{path}: can't be read"
            raise ArchiveError(str(reason)) from None
        return {}


def _name_labels(
    notes: Notes, path: Path | None, content: Mapping[str, Any]
) -> Mapping[int, Finding | None] | None:
    """Find what each label means; None where nothing names them."""
    if path is None:
        notes.skipped.add("labels/*", "nothing names the labels: each is a mass of uncertain kind")
        return None
    names: Any = content.get("names")
    if path.suffix == ".txt":
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        names = [line.strip() for line in text.splitlines() if line.strip()]
    listed = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(listed, dict) or not all(isinstance(number, int) for number in listed):
        raise ArchiveError(f"{path}: names no labels by their numbers")
    if not all(isinstance(name, str | int | float) for name in listed.values()):
        raise ArchiveError(f"{path}: a label's name is no word")
    words = {number: str(name)[:80] for number, name in listed.items()}
    return find_labels(words, path, notes)


def _read_labels(
    path: Path, labels: Mapping[int, Finding | None] | None
) -> Iterator[tuple[int, Finding | None, NDArray[np.float64]]]:
    """Read the lines of an image's text file: their numbers, what they mean, and their shares."""
    if not path.is_file():
        return
    if path.stat().st_size > _LARGEST_TEXT:
        raise ArchiveError(f"{path}: is too large for the labels of an image")
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{path}: can't be read ({error.__class__.__name__})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            label, shares = _parse_line(line.split())
            if labels is not None and label not in labels:
                raise ValueError("its label has no name")
        except ValueError as error:
            raise ArchiveError(f"{path}: line {number}: {error}") from None
        yield number, LESION if labels is None else labels[label], shares


def _parse_line(words: list[str]) -> tuple[int, NDArray[np.float64]]:
    """Parse a class with the numbers of a box or a polygon."""
    try:
        label = float(words[0])
        shares = np.array([float(word) for word in words[1:]])
    except (ValueError, OverflowError):
        raise ValueError("is not made of numbers") from None
    if not label.is_integer():  # some tools write 0.0
        raise ValueError("its label is no whole number")
    if not np.isfinite(shares).all() or len(shares) < 4 or len(shares) % 2:
        raise ValueError("is neither a box of 4 numbers nor a polygon of 3 points or more")
    return int(label), shares


def _make_lesion(
    shares: NDArray[np.float64], rows: int, cols: int, kind: LesionKind, details: dict[str, Any]
) -> Lesion:
    """Draw a box (centre, size) or a polygon in shares of the image's sides."""
    with np.errstate(over="ignore"):  # what is infinite is refused below
        places = shares.reshape(-1, 2) * (cols, rows)
    if len(shares) == 4:
        ((x, y), (width, height)) = places.tolist()
        bbox = [x - width / 2, y - height / 2, width, height]
        return coco.make_lesion({"bbox": bbox}, rows, cols, "", kind, details)
    # Shares of 12 digits are off by less than this, and a point between two cells of the drawing's
    # grid would fall to either.
    points = np.round(places[:, ::-1] - 0.5, 6)
    return Lesion.from_outline(kind, points, rows, cols, **details)
