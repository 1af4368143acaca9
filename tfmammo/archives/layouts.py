"""Other tools' data sets as folders of mammograms: nnU-Net, MONAI, YOLO, Hugging Face datasets.

    nnU-Net         dataset.json with file_ending; imagesTr, labelsTr, imagesTs, labelsTs
    MONAI           dataset.json with the list training, and validation or test
    YOLO            data.yaml with names; images/, labels/ with a text file an image
    Hugging Face    train/metadata.jsonl, and validation/ or test/; file_name and objects

COCO is read by `folder` itself. metadata.csv at the root tells patients and facts, as of any
folder; Hugging Face's metadata.jsonl has them itself.

Left open by the formats, and chosen here:
- A label map does not tell lesions apart that touch: each connected part is a lesion. Label maps
  are read at once, as nothing else says how many lesions there are.
- A subset `test` is held out, with `validation` among what is trained on; without `test`,
  `validation` is.
- Images without a label map are left out; an image without a text file has no lesion, as YOLO says.
- Of nnU-Net's channels the first is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tfmammo.archives import coco, pictures
from tfmammo.archives.named_files import PICTURES, find_files, make_key
from tfmammo.config import read_yaml
from tfmammo.errors import ArchiveError, ConfigError
from tfmammo.mammogram import Lesion, LesionKind, Skipped, Split, hash_id, trace_lesions

FindLesions = Callable[[str, int, int], list[Lesion]]

_LARGEST_YAML = 2**20  # bytes; YAML is slow to read
_LARGEST_TEXT = 2**24  # bytes of the labels of one image
_MOST_REGIONS = 4096  # of one label map; noise has more
_SUBSETS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class Layout:
    """A data set of another tool.

    Attributes:
        images: Files by their names beneath the root, or beneath `images`, without the ending.
        find_lesions: Reads an image's lesions: (its name, rows, cols) -> lesions. Raises
            ArchiveError where they can't be read.
        subsets: Of images that are in one.
        cells: What a table of its own says of an image, by `folder`'s columns.
    """

    images: dict[str, Path]
    find_lesions: FindLesions
    subsets: dict[str, Split] = field(default_factory=dict)
    cells: dict[str, dict[str, str]] = field(default_factory=dict)


def find_layout(root: Path, skipped: Skipped) -> Layout | None:
    """Recognize another tool's data set; None of any other folder.

    Args:
        root: The folder.
        skipped: Takes what is left out.

    Raises:
        ArchiveError: A file that lists images or names labels is damaged.
    """
    has_images = (root / "images").is_dir()
    if (root / "dataset.json").is_file():
        content = _read_json(root / "dataset.json")
        if isinstance(content.get("training"), list):
            return _open_monai(root, content, skipped)
        if "file_ending" in content:
            return _open_nnunet(root, content, skipped)
        if not has_images:
            raise ArchiveError(
                f"{root / 'dataset.json'}: is neither nnU-Net's (with file_ending) nor MONAI's "
                "(with training)"
            )
    if (root / "data.yaml").is_file() and has_images and (root / "labels").is_dir():
        return _open_yolo(root, skipped)
    lists = [root / name / "metadata.jsonl" for name in _SUBSETS]
    if not has_images and any(path.is_file() for path in lists):
        return _open_hugging_face(root, skipped)
    return None


# Label maps


def _open_nnunet(root: Path, content: Mapping[str, Any], skipped: Skipped) -> Layout:
    path = root / "dataset.json"
    if content["file_ending"] not in PICTURES:
        raise ArchiveError(f"{path}: its images are no pictures ({' '.join(PICTURES)})")
    labels = content.get("labels")
    if not isinstance(labels, dict) or not all(isinstance(value, int) for value in labels.values()):
        raise ArchiveError(f"{path}: its labels are not one number each")
    kinds = _name_kinds({value: name for name, value in labels.items()}, path, root, skipped)
    images: dict[str, Path] = {}
    maps: dict[str, Path] = {}
    subsets: dict[str, str] = {}
    for part, subset in (("Tr", "train"), ("Ts", "test")):
        label_maps = find_files(root, f"labels{part}", PICTURES, skipped)
        for name, file in find_files(root, f"images{part}", PICTURES, skipped).items():
            case, _, channel = name.rpartition("_")
            if channel != "0000":
                skipped.note(root, file, "is no first channel: its name does not end in _0000")
            elif case not in label_maps:
                skipped.note(root, file, f"has no label map in labels{part}")
            else:
                key = f"images{part}/{name}"
                images[key] = file
                maps[key] = label_maps[case]
                subsets[key] = subset
    return Layout(images, partial(_read_label_map, maps, kinds), _assign_subsets(subsets))


def _open_monai(root: Path, content: Mapping[str, Any], skipped: Skipped) -> Layout:
    path = root / "dataset.json"
    labels = content.get("labels")
    try:
        numbers = {int(value): str(name) for value, name in (labels or {}).items()}
    except (AttributeError, TypeError, ValueError):
        raise ArchiveError(f"{path}: its labels are not numbers with names") from None
    kinds = _name_kinds(numbers, path, root, skipped)
    images: dict[str, Path] = {}
    maps: dict[str, Path] = {}
    subsets: dict[str, str] = {}
    others = 0
    for name, subset in _SUBSETS.items():
        entries = content.get(name)
        for entry in entries if isinstance(entries, list) else ():
            image, label = (
                _find_listed(root, path, entry, word) if isinstance(entry, dict) else None
                for word in ("image", "label")
            )
            if image is None or label is None:
                others += 1
                continue
            key = make_key(image.relative_to(root).as_posix())
            if key in images:
                raise ArchiveError(f"{path}: lists an image twice")
            images[key] = image
            maps[key] = label
            subsets[key] = subset
    if others:
        skipped.note(root, path, f"{others} of its images have no picture or no label map here")
    return Layout(images, partial(_read_label_map, maps, kinds), _assign_subsets(subsets))


def _find_listed(root: Path, path: Path, entry: Mapping[str, Any], word: str) -> Path | None:
    """Find a listed file; None where it is missing or no picture."""
    name = entry.get(word)
    if not isinstance(name, str):
        return None
    try:
        make_key(name)
    except ValueError as error:
        raise ArchiveError(f"{path}: {error}") from None
    file = root / name
    try:
        is_picture = file.suffix.lower() in PICTURES and file.is_file() and not file.is_symlink()
    except OSError:  # no file has so long a name
        is_picture = False
    return file if is_picture else None


def _read_label_map(
    maps: Mapping[str, Path], kinds: Mapping[int, LesionKind | None], key: str, rows: int, cols: int
) -> list[Lesion]:
    path = maps[key]
    values = pictures.read_labels(path, rows, cols)
    present = np.unique(values[values > 0]).tolist()
    if unknown := [value for value in present if value not in kinds]:
        raise ArchiveError(
            f"{path}: holds the label {unknown[0]}, which dataset.json does not name"
        )
    lesions: list[Lesion] = []
    for value in present:
        kind = kinds[value]
        if kind is not None:
            region = (values == value).astype(np.uint8)
            if np.count_nonzero(np.diff(region, axis=1, prepend=0) == 1) > 2**18:
                raise ArchiveError(f"{path}: marks no lesions but noise")
            lesions += trace_lesions(kind, region)
            if len(lesions) > _MOST_REGIONS:
                raise ArchiveError(f"{path}: marks more than {_MOST_REGIONS} regions")
    return lesions


# Lists of lesions


def _open_yolo(root: Path, skipped: Skipped) -> Layout:
    path = root / "data.yaml"
    if path.stat().st_size > _LARGEST_YAML:
        raise ArchiveError(f"{path}: is too large to name labels")
    try:
        names = read_yaml(path).get("names")
    except ConfigError as error:
        raise ArchiveError(str(error)) from None
    listed = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(listed, dict) or not all(isinstance(number, int) for number in listed):
        raise ArchiveError(f"{path}: names no labels by their numbers")
    if not all(isinstance(name, str | int | float) for name in listed.values()):
        raise ArchiveError(f"{path}: a label's name is no word")
    kinds = _name_kinds(
        {number: str(name)[:80] for number, name in listed.items()}, path, root, skipped
    )
    images = find_files(root, "images", PICTURES, skipped)
    subsets = {key: _SUBSETS[part] for key in images if (part := key.partition("/")[0]) in _SUBSETS}
    return Layout(images, partial(_read_yolo_labels, root, images, kinds), _assign_subsets(subsets))


def _read_yolo_labels(
    root: Path,
    images: Mapping[str, Path],
    kinds: Mapping[int, LesionKind | None],
    key: str,
    rows: int,
    cols: int,
) -> list[Lesion]:
    name = images[key].relative_to(root / "images").with_suffix(".txt")
    path = root / "labels" / name
    if not path.is_file() or path.is_symlink():
        return []
    if path.stat().st_size > _LARGEST_TEXT:
        raise ArchiveError(f"{path}: is too large for the labels of an image")
    lesions = []
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{path}: can't be read ({error.__class__.__name__})") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                lesion = _parse_yolo_line(line.split(), kinds, rows, cols)
            except ValueError as error:
                raise ArchiveError(f"{path}: line {number}: {error}") from None
            lesions += [lesion] if lesion else []
    return lesions


def _parse_yolo_line(
    words: list[str], kinds: Mapping[int, LesionKind | None], rows: int, cols: int
) -> Lesion | None:
    """Parse a class with a box or a polygon; None where the class is no lesion of ours."""
    try:
        label = int(words[0])
        shares = np.array([float(word) for word in words[1:]])
    except (ValueError, OverflowError):
        raise ValueError("is not made of numbers") from None
    if label not in kinds:
        raise ValueError("its label has no name in data.yaml")
    if not np.isfinite(shares).all() or len(shares) < 4 or len(shares) % 2:
        raise ValueError("is neither a box of 4 numbers nor a polygon of 3 points or more")
    kind = kinds[label]
    if kind is None:
        return None
    if len(shares) == 4:
        x, y, width, height = (
            share * side
            for share, side in zip(shares.tolist(), (cols, rows, cols, rows), strict=True)
        )
        bbox = [x - width / 2, y - height / 2, width, height]
        return coco.lesion(kind, {"bbox": bbox}, rows, cols, {}, "")
    # Shares of 12 digits are off by less than this, and a point between two cells of the drawing's
    # grid would fall to either.
    with np.errstate(over="ignore"):  # what is infinite is refused below
        points = np.round(shares.reshape(-1, 2)[:, ::-1] * (rows, cols) - 0.5, 6)
    return Lesion.from_outline(kind, points, rows, cols)


def _open_hugging_face(root: Path, skipped: Skipped) -> Layout:
    images: dict[str, Path] = {}
    subsets: dict[str, str] = {}
    lines: dict[str, Mapping[str, Any]] = {}
    missing = 0
    for name, subset in _SUBSETS.items():
        path = root / name / "metadata.jsonl"
        if not path.is_file():
            continue
        pictures_here = find_files(root, name, PICTURES, Skipped())
        for number, line in enumerate(_read_lines(path), start=1):
            try:
                make_key(str(line["file_name"]))  # for its errors: it also strips a folder "images"
                full = make_key(f"{name}/{line['file_name']}")
            except (LookupError, TypeError, ValueError):
                raise ArchiveError(f"{path}: line {number} names no file of its folder") from None
            key = full.removeprefix(f"{name}/")
            if full in lines:
                raise ArchiveError(f"{path}: lists an image twice")
            lines[full] = line
            if key not in pictures_here:
                missing += 1
                continue
            images[full] = pictures_here[key]
            subsets[full] = subset
    if missing:
        skipped.add("*/metadata.jsonl", f"{missing} of their {len(lines)} images are missing")
    cells = {
        key: {
            name: _write_cell(value)
            for name, value in lines[key].items()
            if isinstance(value, str | int | float) and not isinstance(value, bool)
        }
        for key in images
    }
    return Layout(
        images, partial(_read_objects, root, lines, skipped), _assign_subsets(subsets), cells
    )


def _write_cell(value: str | int | float) -> str:
    # pandas writes 12.0 for 12 where other lines of a column have no value: the same patient
    is_whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if is_whole else value)


def _read_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    yield json.loads(line)
    except (OSError, ValueError, RecursionError) as error:
        raise ArchiveError(f"{path}: is no JSON lines file ({error.__class__.__name__})") from None


def _read_objects(
    root: Path,
    lines: Mapping[str, Mapping[str, Any]],
    skipped: Skipped,
    key: str,
    rows: int,
    cols: int,
) -> list[Lesion]:
    # what is read later may be told in a log
    where = f"{root}: the objects of {hash_id('folder', key)}"
    objects = lines[key].get("objects") or {}
    try:
        boxes = list(objects["bbox"]) if objects else []
        columns = {
            name: list(objects.get(name) or [""] * len(boxes))
            for name in ("category", "counts", "pathology", "shape", "margin")
        }
        if any(len(column) != len(boxes) for column in columns.values()):
            raise ValueError("columns of several lengths")
        entries = [
            (box, {name: column[number] for name, column in columns.items()})
            for number, box in enumerate(boxes)
        ]
    except (AttributeError, LookupError, TypeError, ValueError):
        raise ArchiveError(f"{where} are not lists of one length with bbox and category") from None
    lesions = []
    for number, (box, facts) in enumerate(entries, start=1):
        kind = coco.KINDS.get(str(facts["category"]).lower())
        if kind is None:
            skipped.add(key, f"object {number} is no lesion of ours")
            continue
        annotation: dict[str, Any] = {"bbox": box}
        if facts["counts"]:
            annotation["segmentation"] = {"size": [rows, cols], "counts": facts["counts"]}
        details = coco.parse_attributes(facts)
        try:
            lesions.append(coco.lesion(kind, annotation, rows, cols, details, where))
        except ValueError as error:
            skipped.add(key, f"object {number} left out: {error}")
    return lesions


# What they share


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArchiveError(f"{path}: is no JSON file ({error.__class__.__name__})") from None
    if not isinstance(content, dict):
        raise ArchiveError(f"{path}: holds no object")
    return content


def _name_kinds(
    names: Mapping[int, str], path: Path, root: Path, skipped: Skipped
) -> dict[int, LesionKind | None]:
    """Return the kind of lesion of each label; None of others, which are noted."""
    kinds: dict[int, LesionKind | None] = {
        number: coco.KINDS.get(str(name).strip().lower()) for number, name in names.items()
    }
    others = [
        name for number, name in names.items() if kinds[number] is None and name != "background"
    ]
    if others:
        skipped.note(root, path, f"{len(others)} of its labels are no lesions of ours")
    return kinds


def _assign_subsets(subsets: Mapping[str, str]) -> dict[str, Split]:
    """Tell what is held out: `test`, else `validation`; nothing where there is one subset."""
    names = set(subsets.values())
    held_out = next((name for name in ("test", "validation") if name in names), None)
    if held_out is None or len(names) == 1:
        return {}
    return {key: "test" if name == held_out else "train" for key, name in subsets.items()}
