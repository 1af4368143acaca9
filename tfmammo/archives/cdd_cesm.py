"""CDD-CESM: JPEGs, a VIA table of hand-drawn regions and a clinical table -> Mammograms.

Regions outline every finding of an image, and only the image has findings: "Architectural
distortion and high density mass". The table's regions are in the originals' px; a scaled copy has
`masks/NAME.jpg` beside its images, and each connected part of a mask is a region instead.

docs/archives/cdd_cesm.md has the choices.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.archives.findings import list_kinds, parse_pathology
from tfmammo.archives.notes import Notes
from tfmammo.archives.pictures import open_picture
from tfmammo.archives.tables import Row, read_table
from tfmammo.archives.views import parse_side, parse_view
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import (
    Found,
    Lesion,
    Lost,
    Mammogram,
    Skipped,
    hash_id,
    normalize_spelling,
    sort_found,
    trace_borders,
)

REGIONS = "Radiology_hand_drawn_segmentations_v2.csv"
CLINICAL = "Radiology-manual-annotations.csv"
MASKS = "masks"
# of the square of its length; a region with less area is a band: thickened skin, a duct, or a mass
# that its outline joins with one. The least of the scaled copy's 79 certain masses has 0.24.
BAND = 0.15
BEYOND = 1.1  # times rows or columns; no outline of the originals reaches beyond them at all
LONGEST = 2**14  # px; no mammogram has a longer side
SPECK = 16  # px; parts of a mask that are smaller are none of the radiologist's
MOST_PARTS = 1000

_SIDE = re.compile(r"_([lrLR])$")
_NAME = re.compile(r"(P\d+)_([LR])_(DM|CM)_(CC|MLO)", re.ASCII)
_PATHOLOGY = "pathology_classification/_follow_up"
_REGION_COLUMNS = ("#filename", "region_id", "region_shape_attributes")
_CLINICAL_COLUMNS = ("image_name", "findings", "birads", "breast_density_(acr)", _PATHOLOGY)

_OTHER = (
    r"edema|scar\b|operative|\bducts?\b|ductal|\bimln\b|retraction|\bskin\b|\bflap\b|\bclips?\b"
    r"|bulge|densities"
)
_MARGINS = {
    "spiculated": r"\bsp[ei]culated",
    "circumscribed": r"\bcircumsc?ribed",
    "indistinct": r"\bindistinct|\bill[- ]defined",
    "microlobulated": r"\bmicrolobulated",
    "obscured": r"\bobscured",
}
_SHAPES = {
    "oval": r"\boval\b",
    "round": r"\bround(ed)?\b",
    "irregular": r"\birregular\b",
    "lobulated": r"\blobulated\b",
}
_OPEN = ("point", "polyline", "line", "rect")  # shapes of VIA that are no outlines
_Region = tuple[str, Callable[[], NDArray[np.floating]]]  # what it is called, its outline


def read(root: Path, skipped: Skipped | None = None) -> list[Mammogram]:
    """Read tables and headers, and of a scaled copy its masks, in the order of the names."""
    notes = Notes(root, skipped, "CDD-CESM")
    names = [(name, name.replace(".csv", ".xlsx")) for name in (REGIONS, CLINICAL)]
    paths, tables = notes.find((".jpg", ".jpeg", ".png"), *names)
    annotations: dict[str, list[Row]] = defaultdict(list)
    for _, row in read_table(tables[0], _REGION_COLUMNS):
        annotations[Path(normalize_spelling(row["#filename"])).stem].append(row)
    clinical = {
        normalize_spelling(row["image_name"]): row
        for _, row in read_table(tables[1], _CLINICAL_COLUMNS)
    }
    masks = {path.stem: path for path in paths if path.parent.name == MASKS}
    images = sorted(
        path for path in paths if path.parent.name != MASKS and path.suffix.lower() != ".png"
    )
    named = dict(_find_low_energy(notes, images))
    normal = [path for path in images if _is_normal(path)]
    mammograms = []
    for path in (*named, *normal):
        with notes.leaving_out(path):
            name = named.get(path)
            if name is None:
                mammograms.append(_make_normal(path))
                continue
            if name[0] not in clinical:
                raise ArchiveError(f"{path}: {CLINICAL} does not name it")
            regions = masks.get(name[0], annotations[name[0]])
            mammograms.append(_make_mammogram(notes, path, name, clinical[name[0]], regions))
    return notes.finish(mammograms)


def _find_low_energy(notes: Notes, paths: list[Path]) -> Iterator[tuple[Path, re.Match[str]]]:
    names = set()
    for path in paths:
        name = _NAME.fullmatch(path.stem)
        if not name:
            if not _is_normal(path):
                reason = "its name says no patient, side and view"
                notes.note(path, f"{reason}, so it can't be split by patient")
        elif name[3] == "CM":
            notes.count("*_CM_*.jpg", "contrast-enhanced images, which are no mammograms")
        elif name[0] in names:
            notes.note(path, "another file has the same name")
        else:
            names.add(name[0])
            yield path, name


def _make_mammogram(
    notes: Notes, path: Path, name: re.Match[str], row: Row, annotations: list[Row] | Path
) -> Mammogram:
    facts = _read_facts(path)
    rows, cols = facts["rows"], facts["cols"]
    if isinstance(annotations, Path):
        regions = _trace_parts(annotations, rows, cols)
    else:
        regions = [
            (f"region {each['region_id']}", partial(_parse_outline, shape))
            for each in annotations
            # VIA writes one row with an empty shape for an image without regions
            if (shape := each["region_shape_attributes"]) not in ("", "{}")
        ]
    patient = hash_id("cdd_cesm", name[1])
    density = row["breast_density_(acr)"]
    return Mammogram(
        archive="cdd_cesm",
        patient_id=patient,
        image_id=f"{patient}_{name[2]}_{name[4]}",
        laterality=parse_side(name[2]),
        view=parse_view(name[4])[1],
        pathology=parse_pathology(row[_PATHOLOGY]),
        **sort_found(_make_lesions(notes, path, row, regions, rows, cols)),
        birads=row["birads"] or None,
        density=None if density in ("", "_") else density,
        **facts,
    )


def _is_normal(path: Path) -> bool:
    return path.parent.name.lower() == "normal" and not _NAME.fullmatch(path.stem)


def _make_normal(path: Path) -> Mammogram:
    side = _SIDE.search(path.stem)
    return Mammogram(
        archive="cdd_cesm",
        patient_id=hash_id("cdd_cesm", "normal, patient unknown"),
        image_id=f"normal_{hash_id('cdd_cesm', path.stem)}",
        laterality=parse_side(side[1]) if side else None,
        pathology="normal",
        **_read_facts(path),
    )


def _read_facts(path: Path) -> dict[str, Any]:
    with open_picture(path) as image:
        facts = {"rows": image.height, "cols": image.width, "is_lossy": image.format == "JPEG"}
    return {**facts, "read": partial(_read_pixels, path), "file": path, "bits": 8}


# Regions


def _trace_parts(path: Path, rows: int, cols: int) -> list[_Region]:
    mask = _read_pixels(path)[..., 0] > 0.5
    if mask.shape != (rows, cols):
        raise ArchiveError(
            f"its mask has {mask.shape[0]} x {mask.shape[1]} px, itself {rows} x {cols}"
        )
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    large = [part for part in range(1, count) if statistics[part, cv2.CC_STAT_AREA] >= SPECK]
    if len(large) > MOST_PARTS:
        raise ArchiveError(f"its mask has {len(large)} parts, which no radiologist drew")
    return [
        (f"part {part}", partial(_trace_border, labels, part, *statistics[part, :4].tolist()))
        for part in large
    ]


def _trace_border(
    labels: NDArray[np.int32], part: int, left: int, top: int, width: int, height: int
) -> NDArray[np.float32]:
    (outline,) = trace_borders(labels[top : top + height, left : left + width] == part)
    return outline + np.array([top, left], np.float32)


def _make_lesions(
    notes: Notes, path: Path, row: Row, regions: list[_Region], rows: int, cols: int
) -> Iterator[Found]:
    findings = row["findings"]
    kinds = list_kinds(findings)
    if not kinds:
        if regions:
            reason = f"its {len(regions)} regions outline none of our lesions"
            notes.note(path, f"{reason} (findings: {findings!r})")
        return
    certain = len(kinds) == 1 and not re.search(_OTHER, findings.lower())
    details: dict[str, Any] = {"kind_is_certain": certain}
    pathology = parse_pathology(row[_PATHOLOGY])
    if pathology == "benign" or len(regions) == 1:
        details["pathology"] = pathology
    if certain and kinds == ["mass"]:
        details["shape"] = _find_only(_SHAPES, findings)
        details["margin"] = _find_only(_MARGINS, findings)
    kind = "mass" if "mass" in kinds else kinds[0]
    for region, outline in regions:
        try:
            points = outline()
            _check_scale(points, rows, cols)
            lesion = Lesion.from_outline(kind, points, rows, cols, **details)
        except ArchiveError:
            raise
        except ValueError as error:
            notes.note(path, f"{region}: {error}")
            yield Lost(kind if certain else None)
            continue
        if not certain and _is_band(lesion):
            notes.note(path, f"{region}: a band, of skin or a duct")
        else:
            yield lesion


def _check_scale(points: NDArray[np.floating], rows: int, cols: int) -> None:
    if not len(points):
        return
    row, col = points.max(axis=0)
    is_beyond = row > BEYOND * rows or col > BEYOND * cols
    if is_beyond and max(row, col) < LONGEST:  # else it is no outline of any mammogram
        raise ArchiveError(
            f"its outline reaches row {row:.0f} and column {col:.0f} of {rows} x {cols} px: a "
            f"scaled copy needs {MASKS}/NAME.jpg beside its images"
        )


def _is_band(lesion: Lesion) -> bool:
    (outline,) = lesion.outlines
    length = max(cv2.minAreaRect(outline)[1])
    return bool(cv2.contourArea(outline) < BAND * length**2)


def _find_only(words: dict[str, str], findings: str) -> str | None:
    named = [word for word, pattern in words.items() if re.search(pattern, findings.lower())]
    return named[0] if len(named) == 1 else None


def _parse_outline(attributes: str) -> NDArray[np.float64]:
    try:
        shape = json.loads(attributes)
        name = shape["name"]
        if name == "polygon":
            points = zip(shape["all_points_y"], shape["all_points_x"], strict=True)
            return np.asarray(list(points), np.float64)
        if name in ("ellipse", "circle"):
            return _draw_ellipse(shape)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise ValueError("its shape is not what VIA writes") from None
    raise ValueError(f"a {name if name in _OPEN else 'shape of unknown name'} encloses nothing")


def _draw_ellipse(shape: dict[str, Any]) -> NDArray[np.float64]:
    radii = [shape["r"]] * 2 if shape["name"] == "circle" else [shape["rx"], shape["ry"]]
    if min(radii) <= 0:
        raise ValueError
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    turned = shape.get("theta", 0.0)
    along = radii[0] * np.cos(angle)
    across = radii[1] * np.sin(angle)
    col = shape["cx"] + along * np.cos(turned) - across * np.sin(turned)
    row = shape["cy"] + along * np.sin(turned) + across * np.cos(turned)
    return np.stack([row, col], axis=1)


def _read_pixels(path: Path) -> NDArray[np.float32]:
    # OpenCV fills the rest of a truncated JPEG with grey and says nothing
    with open_picture(path) as image:
        return np.asarray(image.convert("L"), np.float32)[..., None] / np.float32(255)
