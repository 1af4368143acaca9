"""Other tools' data sets as folders of mammograms: nnU-Net, MONAI, Hugging Face datasets.

    nnU-Net         dataset.json with file_ending; imagesTr, labelsTr, imagesTs, labelsTs
    MONAI           dataset.json with the list training, and validation or test
    Hugging Face    train/metadata.jsonl, and validation/ or test/; file_name and objects

COCO is read by `folder` itself, YOLO by `yolo`. metadata.csv at the root tells patients and facts,
as of any folder; Hugging Face's metadata.jsonl has them itself.

Left open by the formats, and chosen here:
- A label map does not tell lesions apart that touch: each connected part is a lesion. Label maps
  are read at once, as nothing else says how many lesions there are.
- A subset `test` is held out, with `validation` among what is trained on; without `test`,
  `validation` is.
- Images without a label map are skipped.
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
from tfmammo.archives.findings import Finding, find_word
from tfmammo.archives.masks import check_region
from tfmammo.archives.named_files import PICTURES, find_files, make_key
from tfmammo.archives.notes import Notes
from tfmammo.archives.tables import read_json
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Found, Lost, Skipped, Split, hash_id, trace_lesions

# (name, rows, cols of an image) -> its lesions; ArchiveError where they can't be read
FindLesions = Callable[[str, int, int], list[Found]]

_MOST_REGIONS = 4096  # of one label map; noise has more
SUBSETS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class Layout:
    """A data set of another tool."""

    images: dict[str, Path]  # by name beneath the root, or beneath `images`, without the ending
    find_lesions: FindLesions
    subsets: dict[str, Split] = field(default_factory=dict)
    cells: dict[str, dict[str, str]] = field(default_factory=dict)  # by `folder`'s columns


def find_layout(notes: Notes) -> Layout | None:
    """Recognize another tool's data set; None of any other folder."""
    root = notes.root
    has_images = (root / "images").is_dir()
    if (root / "dataset.json").is_file():
        content = read_json(root / "dataset.json")
        if isinstance(content.get("training"), list):
            return _open_monai(notes, content)
        if "file_ending" in content:
            return _open_nnunet(notes, content)
        if not has_images:
            tools = "neither nnU-Net's (with file_ending) nor MONAI's (with training)"
            raise ArchiveError(f"{root / 'dataset.json'}: is {tools}")
    lists = [root / name / "metadata.jsonl" for name in SUBSETS]
    if not has_images and any(path.is_file() for path in lists):
        return _open_hugging_face(notes)
    return None


# Label maps


def _open_nnunet(notes: Notes, content: Mapping[str, Any]) -> Layout:
    path = notes.root / "dataset.json"
    if content["file_ending"] not in PICTURES:
        raise ArchiveError(f"{path}: its images are no pictures ({' '.join(PICTURES)})")
    labels = content.get("labels")
    if not isinstance(labels, dict) or not all(isinstance(value, int) for value in labels.values()):
        raise ArchiveError(f"{path}: its labels are not one number each")
    found = find_labels({value: name for name, value in labels.items()}, path, notes)
    cases: dict[str, tuple[Path, Path, str]] = {}
    for part, subset in (("Tr", "train"), ("Ts", "test")):
        label_maps = find_files(notes.root, f"labels{part}", PICTURES, notes.skipped)
        for name, file in find_files(notes.root, f"images{part}", PICTURES, notes.skipped).items():
            case, _, channel = name.rpartition("_")
            if channel != "0000":
                notes.note(file, "is no first channel: its name does not end in _0000")
            elif case not in label_maps:
                notes.note(file, f"has no label map in labels{part}")
            else:
                cases[f"images{part}/{name}"] = file, label_maps[case], subset
    return _make_layout(cases, found)


def _make_layout(
    cases: Mapping[str, tuple[Path, Path, str]], labels: Mapping[int, Finding | None]
) -> Layout:
    """Make a data set of images, each with its label map and subset."""
    images = {key: image for key, (image, _, _) in cases.items()}
    subsets = {key: subset for key, (_, _, subset) in cases.items()}

    def find(key: str, rows: int, cols: int) -> list[Found]:
        return _read_label_map(cases[key][1], labels, rows, cols)

    return Layout(images, find, assign_subsets(subsets))


def _open_monai(notes: Notes, content: Mapping[str, Any]) -> Layout:
    path = notes.root / "dataset.json"
    try:
        numbers = {int(value): str(name) for value, name in (content.get("labels") or {}).items()}
    except (AttributeError, TypeError, ValueError):
        raise ArchiveError(f"{path}: its labels are not numbers with names") from None
    found = find_labels(numbers, path, notes)
    cases: dict[str, tuple[Path, Path, str]] = {}
    others = 0
    for name, subset in SUBSETS.items():
        entries = content.get(name)
        for entry in entries if isinstance(entries, list) else ():
            listed = entry if isinstance(entry, dict) else {}
            image, label = (
                _find_listed(notes.root, path, listed.get(word)) for word in ("image", "label")
            )
            if image is None or label is None:
                others += 1
                continue
            key = make_key(image.relative_to(notes.root).as_posix())
            if key in cases:
                raise ArchiveError(f"{path}: lists an image twice")
            cases[key] = image, label, subset
    if others:
        notes.note(path, f"{others} of its images have no picture or no label map here")
    return _make_layout(cases, found)


def _find_listed(root: Path, path: Path, name: Any) -> Path | None:
    """Find a listed file; None where it is missing or no picture."""
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
    path: Path, labels: Mapping[int, Finding | None], rows: int, cols: int
) -> list[Found]:
    values = pictures.read_labels(path, rows, cols)
    present = np.unique(values[values > 0]).tolist()
    if unknown := [value for value in present if value not in labels]:
        raise ArchiveError(
            f"{path}: holds the label {unknown[0]}, which dataset.json does not name"
        )
    found: list[Found] = []
    for value in present:
        finding = labels[value]
        if finding is None:
            found.append(Lost())
        elif finding.kind is not None:
            region = (values == value).astype(np.uint8)
            check_region(region, path)
            if np.count_nonzero(np.diff(region, axis=1, prepend=0) == 1) > 2**18:
                raise ArchiveError(f"{path}: marks no lesions but noise")
            found += trace_lesions(finding.kind, region, kind_is_certain=finding.is_certain)
            if len(found) > _MOST_REGIONS:
                raise ArchiveError(f"{path}: marks more than {_MOST_REGIONS} regions")
    return found


# Lists of lesions


def _open_hugging_face(notes: Notes) -> Layout:
    images: dict[str, Path] = {}
    subsets: dict[str, str] = {}
    lines: dict[str, Mapping[str, Any]] = {}
    missing = 0
    for name, subset in SUBSETS.items():
        path = notes.root / name / "metadata.jsonl"
        if not path.is_file():
            continue
        pictures_here = find_files(notes.root, name, PICTURES, Skipped())
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
        notes.skipped.add("*/metadata.jsonl", f"{missing} of their {len(lines)} images are missing")
    cells = {
        key: {
            # pandas writes 12.0 for 12 where other lines of a column have no value
            name: str(int(value) if isinstance(value, float) and value.is_integer() else value)
            for name, value in lines[key].items()
            if isinstance(value, str | int | float) and not isinstance(value, bool)
            if value == value  # NaN is no value
        }
        for key in images
    }

    def find(key: str, rows: int, cols: int) -> list[Found]:
        # what is read later may be told in a log
        where = f"{notes.root}: the objects of {hash_id('folder', key)}"
        note = partial(notes.skipped.add, key)
        found: list[Found] = []
        for number, annotation in enumerate(_list_objects(lines[key], where), start=1):
            finding = find_word(str(annotation["attributes"]["category"]))
            if finding is None:
                note(f"object {number} is of a category that is not known")
            elif finding.kind is None:
                note(f"object {number} is no lesion of ours")
            if counts := annotation["attributes"]["counts"]:
                annotation["segmentation"] = {"size": [rows, cols], "counts": counts}
            make = partial(coco.make_lesion, annotation, rows, cols, where)
            found += coco.make_found(finding, make, note, f"object {number}")
        return found

    return Layout(images, find, assign_subsets(subsets), cells)


def _read_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    yield json.loads(line)
    except (OSError, ValueError, RecursionError) as error:
        raise ArchiveError(
            f"{path}: is not a JSON lines file ({error.__class__.__name__})"
        ) from None


def _list_objects(line: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """List the objects of an image as annotations of COCO, their other columns as attributes."""
    objects = line.get("objects") or {}
    try:
        boxes = list(objects["bbox"]) if objects else []
        columns = {
            name: list(objects.get(name) or [""] * len(boxes))
            for name in ("category", "counts", "pathology", "shape", "margin")
        }
        entries = list(zip(boxes, *columns.values(), strict=True))
    except (AttributeError, LookupError, TypeError, ValueError):
        raise ArchiveError(f"{where} are not lists of one length with bbox and category") from None
    return [
        {"bbox": box, "attributes": dict(zip(columns, cells, strict=True))}
        for box, *cells in entries
    ]


# What they share


def find_labels(names: Mapping[int, str], path: Path, notes: Notes) -> dict[int, Finding | None]:
    """Find what each label means; note those that give no lesion, the unknown by name."""
    labels = {number: find_word(name) for number, name in names.items()}
    known = sum(finding is not None and finding.kind is None for finding in labels.values())
    known -= names.get(0) == "background"
    if known:
        notes.note(path, f"{known} of its labels are no lesions of ours")
    if unknown := [repr(names[number][:40]) for number, label in labels.items() if label is None]:
        notes.note(path, f"labels that are not known: {', '.join(unknown[:10])}")
    return labels


def assign_subsets(subsets: Mapping[str, str]) -> dict[str, Split]:
    """Tell what is held out: `test`, else `validation`; nothing where there is one subset."""
    names = set(subsets.values())
    if len(names) < 2:
        return {}
    held_out = "test" if "test" in names else "validation"
    return {key: "test" if name == held_out else "train" for key, name in subsets.items()}
