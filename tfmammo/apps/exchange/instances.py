"""Data sets with a list of lesions for each image: COCO, YOLO, Hugging Face datasets.

Coordinates count from the image's corner, px: the centre of the first pixel is (0.5, 0.5).

Source: cocodataset.org, Data format; Ultralytics, Datasets overview (detect, segment); Hugging
Face datasets, Create an image dataset (ImageFolder).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tfmammo.apps.exchange.cases import Case
from tfmammo.archives import coco
from tfmammo.config import DataConfig
from tfmammo.mammogram import Lesion

_FACTS = ("pathology", "shape", "margin")


class Coco:
    """COCO's object detection and segmentation.

    annotations.json has all images; annotations_train.json and _val.json, or _test.json of an
    official test set, those of one subset. Regions are compressed run-length encodings, which keep
    every pixel.
    """

    needs_masks = False
    splits_by_folds = False

    def __init__(self, config: DataConfig, boxes: bool) -> None:
        self.kinds = config.kinds
        self.boxes = boxes
        self.held_out = name_held_out(config)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.held_out_images: set[int] = set()

    def image_path(self, case: Case) -> str:
        """Return the path of its image."""
        return f"images/{case.name}.png"

    def add(self, case: Case, lesions: Sequence[Lesion]) -> dict[str, bytes]:
        """Add a case; it has no further files."""
        number = len(self.images) + 1
        rows, cols = case.mammogram.rows, case.mammogram.cols
        image = {"id": number, "file_name": f"{case.name}.png", "height": rows, "width": cols}
        self.images.append(image)
        if case.is_held_out:
            self.held_out_images.add(number)
        for lesion in lesions:
            entry = coco.describe(lesion, rows, cols, self.boxes)
            entry |= {
                "id": len(self.annotations) + 1,
                "image_id": number,
                "category_id": self.kinds.index(lesion.kind) + 1,
                "iscrowd": 0,
                "attributes": {name: getattr(lesion, name) or "" for name in _FACTS},
            }
            self.annotations.append(entry)
        return {}

    def finish(self) -> dict[str, str]:
        """Return the files that list all cases."""
        everything = {image["id"] for image in self.images}
        return {
            "annotations_train.json": self._format(everything - self.held_out_images),
            f"annotations_{self.held_out}.json": self._format(self.held_out_images),
            "annotations.json": self._format(everything),
        }

    def _format(self, numbers: set[int]) -> str:
        return json.dumps(
            {
                "images": [image for image in self.images if image["id"] in numbers],
                "annotations": [
                    entry for entry in self.annotations if entry["image_id"] in numbers
                ],
                "categories": [
                    {"id": number, "name": kind, "supercategory": "lesion"}
                    for number, kind in enumerate(self.kinds, 1)
                ],
            }
        )


class Yolo:
    """Ultralytics' format: an image's lesions in a text file of the same name, and data.yaml.

    A line is the class, then a polygon through the centres of the border's pixels, or with `boxes`
    the box's centre and size, all over the image's size. A lesion of several parts has a line for
    each.
    """

    splits_by_folds = False

    def __init__(self, config: DataConfig, boxes: bool) -> None:
        self.kinds = config.kinds
        self.needs_masks = not boxes
        self.held_out = name_held_out(config)

    def image_path(self, case: Case) -> str:
        """Return the path of its image."""
        return f"images/{self.held_out if case.is_held_out else 'train'}/{case.name}.png"

    def add(self, case: Case, lesions: Sequence[Lesion]) -> dict[str, bytes]:
        """Add a case; return its label file."""
        lines = "".join(self._format(case, lesion) for lesion in lesions)
        path = self.image_path(case).replace("images/", "labels/", 1)
        return {f"{path.removesuffix('.png')}.txt": lines.encode()}

    def _format(self, case: Case, lesion: Lesion) -> str:
        rows, cols = case.mammogram.rows, case.mammogram.cols
        number = self.kinds.index(lesion.kind)
        if not self.needs_masks:
            top, left, bottom, right = lesion.box
            middle = ((left + right) / 2 / cols, (top + bottom) / 2 / rows)
            return _format_line(number, [*middle, (right - left) / cols, (bottom - top) / rows])
        lines = []
        for outline in lesion.outlines:
            if len(outline) < 3:  # a line of two points would be read as a box
                outline = outline[[0, *range(len(outline)), -1]]
            points = (outline[:, ::-1].astype(float) + 0.5) / [cols, rows]
            lines.append(_format_line(number, points.ravel().tolist()))
        return "".join(lines)

    def finish(self) -> dict[str, str]:
        """Return the files that list all cases."""
        subsets = f"train: images/train\nval: images/{self.held_out}\n"
        if self.held_out == "test":
            subsets += "test: images/test\n"
        names = "".join(f"  {number}: {kind}\n" for number, kind in enumerate(self.kinds))
        return {"data.yaml": f"{subsets}names:\n{names}"}


class HuggingFace:
    """An image folder: train/ and validation/ or test/, each with its metadata.jsonl.

    A line has the image's facts and `objects`: box [x, y, width, height], kind, run-length encoding
    as COCO's ("" without an outline), pathology, shape and margin of each lesion.
    """

    needs_masks = False
    splits_by_folds = False

    def __init__(self, config: DataConfig) -> None:
        self.held_out = "test" if config.split == "official" else "validation"
        self.lines: dict[str, list[str]] = {"train": [], self.held_out: []}

    def image_path(self, case: Case) -> str:
        """Return the path of its image."""
        return f"{self.held_out if case.is_held_out else 'train'}/{case.name}.png"

    def add(self, case: Case, lesions: Sequence[Lesion]) -> dict[str, bytes]:
        """Add a case; it has no further files."""
        rows, cols = case.mammogram.rows, case.mammogram.cols
        regions = [coco.describe(lesion, rows, cols) for lesion in lesions]
        objects: dict[str, list[Any]] = {
            "bbox": [region["bbox"] for region in regions],
            "category": [lesion.kind for lesion in lesions],
            "counts": [region.get("segmentation", {"counts": ""})["counts"] for region in regions],
        }
        objects |= {name: [getattr(lesion, name) or "" for lesion in lesions] for name in _FACTS}
        line = {"file_name": f"{case.name}.png"} | case.make_row()
        subset = self.held_out if case.is_held_out else "train"
        self.lines[subset].append(json.dumps(line | {"objects": objects}))
        return {}

    def finish(self) -> dict[str, str]:
        """Return the files that list all cases."""
        return {
            f"{subset}/metadata.jsonl": "".join(f"{line}\n" for line in lines)
            for subset, lines in self.lines.items()
            if lines
        }


def name_held_out(config: DataConfig) -> str:
    """Name the held-out subset: a fold validates, an official test set tests."""
    return "test" if config.split == "official" else "val"


def _format_line(number: int, values: Sequence[float]) -> str:
    return " ".join([str(number), *(f"{value:.12g}" for value in values)]) + "\n"
