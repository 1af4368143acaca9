"""COCO annotations -> lesions: polygons, run-length encodings (RLE, compressed or not) and boxes.

Coordinates count from the image's corner: the first pixel's centre is (0.5, 0.5) there and (0, 0)
here. RLE is decoded without pycocotools, a compiled package that a plain install would need for
this alone; tests compare both.

Source: cocodataset.org, Data format; common/maskApi.c of the COCO API for the compressed RLE.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.archives.findings import Finding, find_word, parse_pathology
from tfmammo.errors import ArchiveError, EmptyMask, MaskSize
from tfmammo.mammogram import Box, Found, Lesion, LesionKind, Lost, MaskedLesion, cut_box

# (kind, further fields of Lesion) -> a lesion; ValueError with the reason why it is none
MakeLesion = Callable[[LesionKind, dict[str, Any]], Lesion]


class Contradiction(ArchiveError):
    """The annotations are of another size than their image, so that none can be trusted."""


@dataclass
class Listed:
    """One image of a COCO file: its stated (rows, cols), its annotations and their findings."""

    size: tuple[int, int] | None
    annotations: list[tuple[Finding | None, dict[str, Any]]] = field(default_factory=list)

    def check_size(self, rows: int, cols: int, place: str) -> None:
        """Raise Contradiction if another size than the image's is stated; `place` names both."""
        if self.size not in (None, (rows, cols)):
            raise Contradiction(
                f"{place} has {(rows, cols)} rows and columns there, but {self.size} is stated"
            )


def load(path: Path, key: Callable[[str], str], note: Callable[[str], None]) -> dict[str, Listed]:
    """Read the images of a COCO file, each with its annotations.

    Args:
        path: The JSON file.
        key: Turns a file_name into the image's key.
        note: Takes what was skipped: annotations of findings that are no lesions of ours, or of
            images that are not listed. Unknown categories are noted, and kept.

    Raises:
        ArchiveError: No COCO file, or an image or id that is listed twice.
    """
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, list):
            reason = "COCO results alone, which name no files; add them as annotations to the file "
            raise ArchiveError(f"{path}: has {reason}that lists the images")
        names = {entry["id"]: str(entry["name"]).strip() for entry in content["categories"]}
        images = [
            (entry["id"], key(str(entry["file_name"])), _parse_size(entry))
            for entry in content["images"]
        ]
        listed = {name: Listed(size) for _, name, size in images}
        by_id: dict[Any, Listed] = {number: listed[name] for number, name, _ in images}
        annotations = [
            (by_id.get(entry["image_id"]), names[entry["category_id"]], entry)
            for entry in content["annotations"]
        ]
    except ArchiveError:
        raise
    except Exception as error:  # JSON of other forms raises exceptions of many classes
        raise ArchiveError(f"{path}: is no COCO file ({error.__class__.__name__})") from None
    if not len(listed) == len(by_id) == len(images):
        raise ArchiveError(f"{path}: lists an image or its id twice")
    others: Counter[str] = Counter()
    for image, category, annotation in annotations:
        if image is None:
            others["of images that it does not list"] += 1
            continue
        finding = find_word(category)
        if finding is None:
            others[f"of the category {category[:40]!r}, which is not known"] += 1
        elif finding.kind is None:
            others[f"of the category {category[:40]!r}, which is no lesion of ours"] += 1
            continue
        image.annotations.append((finding, annotation))
    for reason, count in others.items():
        note(f"{count} annotations {reason}")
    return listed


def _parse_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    rows, cols = entry.get("height"), entry.get("width")
    return (int(rows), int(cols)) if rows is not None and cols is not None else None


def make_found(
    finding: Finding | None, make: MakeLesion, note: Callable[[str], None], name: str
) -> list[Found]:
    """Make what a label states: nothing where that is no lesion of ours, a lost lesion if unknown.

    A lesion that can't be made is lost as well, and `note` takes the reason, beginning with `name`.
    """
    if finding is None:
        return [Lost()]
    if finding.kind is None:
        return []
    try:
        return [make(finding.kind, {"kind_is_certain": finding.is_certain})]
    except Contradiction:
        raise
    except ValueError as error:
        note(f"{name} skipped: {error}")
        return [Lost(finding.certain_kind)]


def make_lesion(
    annotation: dict[str, Any],
    rows: int,
    cols: int,
    where: str,
    kind: LesionKind,
    details: dict[str, Any],
) -> Lesion:
    """Make a lesion of one annotation; an RLE is decoded when it is wanted.

    Args:
        annotation: Its "segmentation" counts; where that encloses nothing, its "bbox". "attributes"
            may have shape, margin and pathology.
        rows: Rows of the image.
        cols: Columns of the image.
        where: Names the annotation in errors that an RLE raises when it is decoded.
        kind: What its category means.
        details: Further fields of Lesion.

    Raises:
        ValueError: Why it is no lesion. Contradiction: the RLE is of another size.
    """
    details = _parse_attributes(annotation.get("attributes")) | details
    region = annotation.get("segmentation")
    if isinstance(region, dict):
        if region.get("size") != [rows, cols]:
            raise Contradiction(f"its RLE is of another size than the image's {rows} x {cols} px")
        return MaskedLesion(
            kind, partial(_decode_rle, where, region.get("counts"), rows, cols), **details
        )
    outlines = _parse_outlines(region) if region else []
    if not outlines:
        return Lesion(kind, _parse_box(annotation.get("bbox"), rows, cols), **details)
    parts: list[Lesion] = []
    fault = ValueError()
    for outline in outlines:
        try:
            parts.append(Lesion.from_outline(kind, outline, rows, cols, **details))
        except ValueError as error:  # a part may be outside the image
            fault = error
    if not parts:
        raise fault
    return unite(parts, details)


def unite(parts: list[Lesion], details: dict[str, Any]) -> Lesion:
    """Make one lesion of parts with outlines on one image; the first one's kind counts."""
    tops, lefts, bottoms, rights = zip(*(part.box for part in parts), strict=True)
    outlines = tuple(outline for part in parts for outline in part.outlines)
    box = (min(tops), min(lefts), max(bottoms), max(rights))
    return Lesion(parts[0].kind, box, outlines, **details)


def _parse_attributes(attributes: Any) -> dict[str, Any]:
    if not isinstance(attributes, dict):
        return {}
    details: dict[str, Any] = {
        name: text.strip().lower()
        for name in ("shape", "margin", "pathology")
        if isinstance(text := attributes.get(name), str) and 0 < len(text.strip()) <= 64
    }
    details["pathology"] = parse_pathology(details.get("pathology", ""))
    return details


def _parse_outlines(region: Any) -> list[NDArray[np.float64]]:
    try:
        parts = [np.asarray(part, np.float64) for part in region]
    except (TypeError, ValueError, OverflowError):
        parts = []
    if not parts or any(part.ndim != 1 or len(part) % 2 for part in parts):
        raise ValueError("its polygon is no list of x, y, x, y ...")
    # some tools leave parts of one or two points, or none
    return [part.reshape(-1, 2)[:, ::-1] - 0.5 for part in parts if len(part) >= 6]


def _parse_box(numbers: Any, rows: int, cols: int) -> Box:
    """Parse x, y, width and height; what reaches beyond the image is cut off."""
    try:
        x, y, width, height = map(float, numbers)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("it has neither a segmentation nor a bbox of four numbers") from None
    if not all(math.isfinite(number) for number in (x, y, x + width, y + height)):
        raise ValueError("its bbox is not finite")
    # halves upwards: round() takes them to even numbers, so that a box of one pixel vanishes
    top, left, bottom, right = (math.floor(edge + 0.5) for edge in (y, x, y + height, x + width))
    return cut_box((top, left, bottom, right), rows, cols)


# Run lengths


def encode(mask: NDArray[np.uint8], box: Box, rows: int, cols: int) -> dict[str, Any]:
    """Encode a region, uint8 [height, width] of its box, as COCO's compressed RLE.

    Returns:
        {"size": [rows, cols], "counts": text}, which `decode` and pycocotools read.
    """
    top, left = box[:2]
    # a 0 behind each column ends its last run
    columns = np.zeros((mask.shape[1], mask.shape[0] + 1), np.int8)
    columns[:, :-1] = mask.T
    steps = np.diff(columns.ravel(), prepend=0)
    places = np.flatnonzero(steps)
    column, row = np.divmod(places, mask.shape[0] + 1)
    borders = (left + column) * rows + top + row
    # columns that go on at the next one's top
    again = np.flatnonzero((borders[1:] == borders[:-1]) & (steps[places[1:]] == 1))
    borders = np.delete(borders, np.concatenate([again, again + 1]))
    runs = np.diff(borders, prepend=0, append=rows * cols).tolist()
    return {"size": [rows, cols], "counts": _encode_runs(runs if runs[-1] else runs[:-1])}


def describe(lesion: Lesion, rows: int, cols: int, boxes: bool = False) -> dict[str, Any]:
    """Describe where a lesion is: bbox, area and, unless `boxes`, segmentation if outlined."""
    top, left, bottom, right = lesion.box
    place: dict[str, Any] = {
        "bbox": [left, top, right - left, bottom - top],
        "area": (bottom - top) * (right - left),
    }
    if lesion.outlines and not boxes:
        mask = lesion.mask(rows, cols)[top:bottom, left:right]
        place["area"] = int(mask.sum())
        place["segmentation"] = encode(mask, lesion.box, rows, cols)
    return place


def decode(region: dict[str, Any], where: str) -> NDArray[np.uint8]:
    """Decode what `encode` made: uint8 [rows, cols]; errors begin with `where`."""
    return _decode_rle(where, region["counts"], *region["size"])


def _decode_rle(where: str, counts: Any, rows: int, cols: int) -> NDArray[np.uint8]:
    """Draw runs of 0 and 1 in turn, down the columns: uint8 [rows, cols]."""
    try:
        runs = np.array(_decode_runs(counts) if isinstance(counts, str) else counts, np.int64)
    except (TypeError, ValueError, OverflowError):
        raise ArchiveError(f"{where}: its RLE can't be decoded") from None
    if (
        runs.ndim != 1
        or runs.min(initial=0) < 0
        or runs.max(initial=0) > rows * cols
        or runs.sum() != rows * cols
    ):
        raise MaskSize(f"{where}: its RLE does not fill {rows} x {cols} px")
    if not runs[1::2].any():
        raise EmptyMask(f"{where}: its RLE marks nothing")
    columns = np.repeat((np.arange(len(runs)) % 2).astype(np.uint8), runs).reshape(cols, rows)
    return cv2.transpose(columns)  # in blocks; whatever reads NumPy's view takes four times as long


def _encode_runs(runs: list[int]) -> str:
    """Encode run lengths: the inverse of `_decode_runs`."""
    codes = []
    for place, run in enumerate(runs):
        value = run - (runs[place - 2] if place > 2 else 0)
        more = True
        while more:
            code = value & 31
            value >>= 5
            more = value != (-1 if code & 16 else 0)
            codes.append(chr(48 + code + 32 * more))
    return "".join(codes)


def _decode_runs(text: str) -> list[int]:
    """Decode compressed run lengths.

    A character holds 5 bits, the least first; the fourth and later lengths are differences to the
    last but one.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0  # the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError
    return runs
