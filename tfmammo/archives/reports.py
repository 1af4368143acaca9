"""Regions of structured reports: TID 1500's measurement groups and Mammography CAD (TID 4000).

From TID 1500 the image regions, next to their numbers or, as OHIF writes them, beneath; from CAD
the outlines of single image findings: closed polylines, circles and ellipses.

highdicom's readers refuse reports that stray from the template, as those of viewers do.

Source: DICOM PS3.3 C.18.6 (spatial coordinates); PS3.16 TID 300, 320, 1410, 1500 and 4000.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from tfmammo.archives.elements import items, numbers, text
from tfmammo.archives.findings import Finding, find_coded
from tfmammo.archives.region_types import (
    Image,
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
_AREA = ("42798000", "G-A166")
# those of TID 4000, 4006
_SINGLE_FINDING = "111059"
_OUTLINE = "111041"
_INTENT = "111056"
_HIDDEN = "111152"  # not for presentation: the device rejected it
_CIRCLE = 180  # points of a drawn circle or ellipse
_BEYOND = 0.02  # of an image's longer side that a region may reach over the border


def list_findings(path: Path, dataset: Dataset, unusable: Counter[str]) -> Iterator[Region]:
    """List the image regions of every measurement group, wherever in the tree it is."""
    for group in _find(dataset, _GROUP):
        content = items(group, "ContentSequence")
        finding = find_coded(_list_values(content, _FINDING), "")
        named = [text(item, "UID") for item in content if _name_concept(item) == _TRACKING]
        tracking = "".join(named)
        taken = set()
        for item, is_area in _list_coordinates(content):
            if text(item, "ValueType") == "SCOORD3D":
                unusable["have coordinates in space, which no mammogram has"] += 1
                continue
            for region in _take_graphic(path, dataset, item, finding, tracking, unusable, is_area):
                # several numbers may be of one region
                shape = (region.image, text(item, "GraphicType"), *numbers(item, "GraphicData"))
                if shape not in taken:
                    yield region
                taken.add(shape)


def list_marks(path: Path, dataset: Dataset, unusable: Counter[str]) -> Iterator[Region]:
    """List the outlines of a CAD device's findings, without those that it rejected."""
    for finding in _find(dataset, _SINGLE_FINDING):
        content = items(finding, "ContentSequence")
        outlines = [item for item in content if _name_concept(item) == _OUTLINE]
        kind = find_coded(list_codes(finding, "ConceptCodeSequence"), "")
        if any(code == _HIDDEN for code, _ in _list_values(content, _INTENT)):
            unusable["are marked as not for presentation"] += 1
            continue
        if not outlines:
            unusable["are points, not areas"] += 1
        for item in outlines:
            yield from _take_graphic(path, dataset, item, kind, "", unusable)


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


def _list_coordinates(content: list[Dataset]) -> Iterator[tuple[Dataset, bool]]:
    """List the regions of a group, next to its numbers and beneath; True where one is an area's."""
    for item in content:
        form = text(item, "ValueType")
        if form == "SCOORD3D" or (form == "SCOORD" and _name_concept(item) == _REGION):
            yield item, False
        elif form == "NUM":
            for child in items(item, "ContentSequence"):
                if text(child, "ValueType") in ("SCOORD", "SCOORD3D"):
                    yield child, _name_concept(item) in _AREA


def _take_graphic(
    path: Path,
    dataset: Dataset,
    item: Dataset,
    finding: Finding | None,
    tracking: str,
    unusable: Counter[str],
    is_area: bool = False,
) -> Iterator[Region]:
    """Take the region of one item of coordinates, if it can be used; an area's may be open."""
    # the image that it was selected from, whose item may be elsewhere
    children = [_follow(dataset, child) for child in items(item, "ContentSequence")]
    images = [child for child in children if text(child, "ValueType") == "IMAGE"]
    named = set().union(*(list_references(child, "ReferencedSOPSequence") for child in images))
    if len(named) != 1:
        unusable["name no image, or several"] += 1
    elif not count_unusable(finding, unusable):
        graphic = text(item, "GraphicType").upper()
        points = tuple(numbers(item, "GraphicData"))
        if is_area and graphic == "POLYLINE" and points[:2] != points[-2:]:
            points += points[:2]
        draw = partial(_draw_graphic, graphic, points)
        yield Region(path, named.pop(), finding, draw, tracking)


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


def _draw_graphic(
    graphic: str,
    values: tuple[float, ...],
    image: Image,
    kind: LesionKind,
    details: dict[str, Any],
) -> Lesion:
    """Draw coordinates that count from the image's corner, column first."""
    points = np.array(values[: len(values) // 2 * 2], np.float64).reshape(-1, 2)[:, ::-1] - 0.5
    if len(values) % 2 or not np.isfinite(points).all():
        raise ValueError("have coordinates that are not points")
    # what reaches a little over the border is cut there; more was drawn on another image
    beyond = _BEYOND * max(image.rows, image.cols)
    last = np.array((image.rows, image.cols)) + beyond
    if (points < -1 - beyond).any() or (points > last).any():
        raise ValueError("reach beyond their image")
    return enclose(_outline_graphic(graphic, points), image, kind, details)


def _outline_graphic(graphic: str, points: NDArray[np.float64]) -> NDArray[np.float64]:
    angles = np.linspace(0, 2 * np.pi, _CIRCLE, endpoint=False)[:, np.newaxis]
    if graphic == "POLYLINE":
        if len(points) < 4 or not np.allclose(points[0], points[-1], rtol=0, atol=1e-3):
            raise ValueError("are lines that enclose nothing")
        return points[:-1]
    if graphic == "CIRCLE" and len(points) == 2:
        radius = points[1] - points[0]
        across = radius[::-1] * (1, -1)
        return points[0] + radius * np.cos(angles) + across * np.sin(angles)
    if graphic == "ELLIPSE" and len(points) == 4:
        centre = (points[0] + points[1]) / 2
        long = (points[1] - points[0]) / 2
        short = (points[3] - points[2]) / 2
        return centre + long * np.cos(angles) + short * np.sin(angles)
    raise ValueError("are points, not areas")
