"""Regions of structured reports: TID 1500's measurement groups and Mammography CAD (TID 4000).

From TID 1500 the image regions, next to their numbers or, as OHIF writes them, beneath; from CAD
the outlines of single image findings: closed polylines, circles and ellipses. The areas of a group,
and of groups with one tracking UID, are one lesion. Its diameters and points are no areas.

highdicom's readers refuse reports that stray from the template, as those of viewers do.

Source: DICOM PS3.3 C.18.6 (spatial coordinates); PS3.16 TID 300, 320, 1410, 1500 and 4000.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from tfmammo.archives import coco
from tfmammo.archives.elements import items, numbers, text
from tfmammo.archives.findings import Finding, find_coded
from tfmammo.archives.region_types import (
    Image,
    NoAreaError,
    Region,
    count_unusable,
    enclose,
    list_codes,
    list_references,
)
from tfmammo.mammogram import Lesion, LesionKind

# code values of TID 1500's concepts (DCM)
_GROUP = "125007"
_FINDING = "121071"
_REGION = "111030"
_TRACKING = "112040"
_COMMENT = "121106"
_SITES = ("363698007", "G-C0E3")
_FREE_TEXT = "CORNERSTONEFREETEXT"
_AREA = ("42798000", "G-A166")
# those of TID 4000, 4006
_SINGLE_FINDING = "111059"
_OUTLINE = "111041"
_INTENT = "111056"
_HIDDEN = "111152"  # not for presentation: the device rejected it
_CIRCLE = 180  # points of a drawn circle or ellipse
_Graphic: TypeAlias = tuple[str, tuple[float, ...]]  # its type; column, row, column, row ...
_BEYOND = 0.02  # of an image's longer side that a region may reach over the border


def list_findings(path: Path, dataset: Dataset, unusable: Counter[str]) -> Iterator[Region]:
    """List a region for each lesion and image: what groups with one tracking UID draw there."""
    lesions: dict[tuple[str, str], tuple[Finding | None, str, list[_Graphic]]] = {}
    for number, group in enumerate(_find(dataset, _GROUP)):
        content = items(group, "ContentSequence")
        finding = find_coded(_list_values(content, _FINDING), _read_label(content))
        tracking = "".join(
            text(item, "UID") for item in content if _name_concept(item) == _TRACKING
        )
        drawn = _list_coordinates(content, unusable)
        for image, graphics in _sort_by_image(dataset, drawn, unusable).items():
            key = image, tracking or str(number)
            lesions.setdefault(key, (finding, tracking, []))[2].extend(graphics)
    for (image, _), (finding, tracking, graphics) in lesions.items():
        if not count_unusable(finding, unusable):
            yield Region(path, image, finding, partial(_draw_graphics, graphics), tracking)


def list_marks(path: Path, dataset: Dataset, unusable: Counter[str]) -> Iterator[Region]:
    """List the outlines of a CAD device's findings, without those that it rejected."""
    for finding in _find(dataset, _SINGLE_FINDING):
        content = items(finding, "ContentSequence")
        outlines = [(item, False) for item in content if _name_concept(item) == _OUTLINE]
        kind = find_coded(list_codes(finding, "ConceptCodeSequence"), "")
        if any(code == _HIDDEN for code, _ in _list_values(content, _INTENT)):
            unusable["are marked as not for presentation"] += 1
            continue
        if not outlines:
            unusable["are points, not areas"] += 1
        for image, graphics in _sort_by_image(dataset, outlines, unusable).items():
            if not count_unusable(kind, unusable):
                yield Region(path, image, kind, partial(_draw_graphics, graphics))


def _find(item: Dataset, concept: str) -> Iterator[Dataset]:
    """Find the content items of a concept at any depth."""
    for child in items(item, "ContentSequence"):
        if _name_concept(child) == concept:
            yield child
        yield from _find(child, concept)


def _name_concept(item: Dataset) -> str:
    return next((code for code, _ in list_codes(item, "ConceptNameCodeSequence")), "")


def _list_values(content: list[Dataset], concept: str) -> list[tuple[str, str]]:
    """List the codes that items of a concept have as their values."""
    return [
        code
        for item in content
        if _name_concept(item) == concept
        for code in list_codes(item, "ConceptCodeSequence")
    ]


def _read_label(content: list[Dataset]) -> str:
    """Read what the user of a viewer typed: OHIF's comment, or a site or finding without a code."""
    sites = [code for site in _SITES for code in _list_values(content, site)]
    comments = [text(item, "TextValue") for item in content if _name_concept(item) == _COMMENT]
    return " ".join([*comments, *(meaning for code, meaning in sites if code == _FREE_TEXT)])


def _list_coordinates(
    content: list[Dataset], unusable: Counter[str]
) -> Iterator[tuple[Dataset, bool]]:
    """List the regions of a group, next to its numbers and beneath; True where one is an area's."""
    for item in content:
        form = text(item, "ValueType")
        for part in items(item, "ContentSequence") if form == "NUM" else [item]:
            kind = text(part, "ValueType")
            if kind == "SCOORD3D":
                unusable["have coordinates in space, which no mammogram has"] += 1
            elif kind == "SCOORD" and (form == "NUM" or _name_concept(part) == _REGION):
                # without a value OHIF writes the area of an open contour
                values = items(item, "MeasuredValueSequence")
                has_value = any(numbers(value, "NumericValue") for value in values)
                yield part, has_value and _name_concept(item) in _AREA


def _sort_by_image(
    dataset: Dataset, drawn: Iterable[tuple[Dataset, bool]], unusable: Counter[str]
) -> dict[str, list[_Graphic]]:
    """Sort what items of coordinates draw by the image that it was selected from."""
    found: dict[str, list[_Graphic]] = {}
    for item, is_area in drawn:
        # the image's item may be elsewhere
        children = [_follow(dataset, child) for child in items(item, "ContentSequence")]
        named = set().union(
            *(
                list_references(child, "ReferencedSOPSequence")
                for child in children
                if text(child, "ValueType") == "IMAGE"
            )
        )
        if len(named) != 1:
            unusable["name no image, or several"] += 1
            continue
        form = text(item, "GraphicType").upper()
        points = tuple(numbers(item, "GraphicData"))
        if is_area and form == "POLYLINE" and points[:2] != points[-2:]:
            points += points[:2]
        found.setdefault(named.pop(), []).append((form, points))
    return found


def _follow(dataset: Dataset, item: Dataset) -> Dataset:
    """Follow a reference to another item: 1 is the root, each number behind it a child."""
    place = [int(number) for number in numbers(item, "ReferencedContentItemIdentifier")]
    if place[:1] != [1]:
        return item
    found = dataset
    for number in place[1:]:
        children = items(found, "ContentSequence")
        if not 1 <= number <= len(children):
            return Dataset()
        found = children[number - 1]
    return found


def _draw_graphics(
    graphics: list[_Graphic], image: Image, kind: LesionKind, details: dict[str, Any]
) -> Lesion:
    """Draw the areas of one lesion; where it has none, raise ValueError with what it has."""
    parts = []
    faults = []
    for graphic in dict.fromkeys(graphics):  # several numbers may be of one area
        try:
            parts.append(_draw_graphic(graphic, image, kind, details))
        except NoAreaError as error:
            faults.append(error)
    if not parts:
        raise faults[0]
    return coco.unite(parts, details)


def _draw_graphic(
    graphic: _Graphic, image: Image, kind: LesionKind, details: dict[str, Any]
) -> Lesion:
    """Draw coordinates that count from the image's corner, column first."""
    form, values = graphic
    points = np.array(values[: len(values) // 2 * 2], np.float64).reshape(-1, 2)[:, ::-1] - 0.5
    if len(values) % 2 or not np.isfinite(points).all():
        raise ValueError("have coordinates that are not points")
    # what reaches a little over the border is cut there; more was drawn on another image
    beyond = _BEYOND * max(image.rows, image.cols)
    last = np.array((image.rows, image.cols)) + beyond
    if (points < -1 - beyond).any() or (points > last).any():
        raise ValueError("reach beyond their image")
    try:
        outline = _outline_graphic(form, points)
    except ValueError as error:
        raise NoAreaError(str(error), points) from None
    return enclose(outline, image, kind, details)


def _outline_graphic(form: str, points: NDArray[np.float64]) -> NDArray[np.float64]:
    angles = np.linspace(0, 2 * np.pi, _CIRCLE, endpoint=False)[:, np.newaxis]
    if form == "POLYLINE":
        if len(points) < 4 or not np.allclose(points[0], points[-1], rtol=0, atol=1e-3):
            raise ValueError("are lines that enclose nothing")
        return points[:-1]
    if form == "CIRCLE" and len(points) == 2:
        radius = points[1] - points[0]
        across = radius[::-1] * (1, -1)
        return points[0] + radius * np.cos(angles) + across * np.sin(angles)
    if form == "ELLIPSE" and len(points) == 4:
        centre = (points[0] + points[1]) / 2
        long = (points[1] - points[0]) / 2
        short = (points[3] - points[2]) / 2
        return centre + long * np.cos(angles) + short * np.sin(angles)
    raise ValueError("are points, not areas")
