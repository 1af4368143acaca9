"""The files of nnU-Net, MONAI, COCO, YOLO and Hugging Face datasets.

A label map is an 8-bit PNG: 0 is background, 1 the first of data.kinds, 2 the second. Where lesions
overlap, the kind that is named first gets the pixel. Lesions that touch become one region. A PNG
states no spacing, so mammograms of several machines should share one: data.preprocess.spacing.

Coordinates count from the image's corner, px: the centre of the first pixel is (0.5, 0.5).

Source: nnU-Net, documentation/dataset_format.md and manual_data_splits.md; Medical Segmentation
Decathlon, dataset.json, as monai.data.load_decathlon_datalist reads it; cocodataset.org, Data
format; Ultralytics, Datasets overview (detect, segment); Hugging Face datasets, ImageFolder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfmammo.apps.exchange.cases import Case, ExchangeConfig
from tfmammo.archives import coco
from tfmammo.archives.writers.synthetic import encode_png
from tfmammo.filesystem import to_json
from tfmammo.mammogram import Lesion

_FACTS = ("pathology", "shape", "margin")


class Format:
    """The files of a format; paths are relative to the data set's folder."""

    needs_masks = False  # it cannot state a lesion without an outline
    splits_by_folds = False  # its own files list all folds, so that no case is held out
    fold_name = "validation"  # its word for a held-out fold; an official test set is "test"

    def __init__(self, config: ExchangeConfig, folds: int) -> None:
        self.kinds = config.data.kinds
        self.boxes = config.exchange.boxes
        self.held_out = "test" if config.data.split == "official" else self.fold_name
        self.folds: list[dict[str, list[str]]] = [{"train": [], "val": []} for _ in range(folds)]

    def name_subset(self, case: Case) -> str:
        """Name the subset of a case."""
        return self.held_out if case.is_held_out else "train"

    def image_path(self, case: Case) -> str:
        """Return the path of a case's image."""
        raise NotImplementedError

    def add(self, case: Case, lesions: Sequence[Lesion]) -> dict[str, bytes]:
        """Add a case; return its other files by their paths."""
        raise NotImplementedError

    def finish(self) -> dict[str, str]:
        """Return the files that list all cases, the one that others look for first last."""
        raise NotImplementedError

    def encode_label_map(self, case: Case, lesions: Sequence[Lesion]) -> bytes:
        """Draw the lesions of a case as a PNG."""
        rows, cols = case.mammogram.rows, case.mammogram.cols
        labels = np.zeros((rows, cols), np.uint8)
        for lesion in sorted(lesions, key=lambda each: self.kinds.index(each.kind), reverse=True):
            labels[lesion.mask(rows, cols) > 0] = self.kinds.index(lesion.kind) + 1
        return encode_png(labels)


class NNUNet(Format):
    """nnU-Net's raw format, version 2, for 2D images.

    imagesTr has every patient of a split by patient, and splits_final.json its folds. An official
    test set is in imagesTs and labelsTs; the folds then divide the training patients.
    """

    needs_masks = True
    splits_by_folds = True
    count = 0

    def image_path(self, case: Case) -> str:
        """Return the path of its image; 0000 is the channel."""
        return f"images{'Ts' if case.fold is None else 'Tr'}/{case.name}_0000.png"

    def add(self, case: Case, lesions: Sequence[Lesion]) -> dict[str, bytes]:
        """Add a case; return its label map."""
        if case.fold is not None:
            self.count += 1
            for number, fold in enumerate(self.folds):
                fold["val" if number == case.fold else "train"].append(case.name)
        label = f"labels{'Ts' if case.fold is None else 'Tr'}/{case.name}.png"
        return {label: self.encode_label_map(case, lesions)}

    def finish(self) -> dict[str, str]:
        """Return the files that list all cases."""
        labels = {kind: number for number, kind in enumerate(self.kinds, 1)}
        dataset: dict[str, Any] = {
            "channel_names": {"0": "mammogram"},
            "labels": {"background": 0, **labels},
            "numTraining": self.count,
            "file_ending": ".png",
            "overwrite_image_reader_writer": "NaturalImage2DIO",
        }
        return {"splits_final.json": to_json(self.folds), "dataset.json": to_json(dataset)}


class Monai(Format):
    """A data list in the form of the Medical Segmentation Decathlon.

    "training" has the training patients, "validation" the held-out fold, or "test" the official
    test set. Each entry also has the fold that validates on it.
    """

    needs_masks = True

    def __init__(self, config: ExchangeConfig, folds: int) -> None:
        super().__init__(config, folds)
        self.lists: dict[str, list[dict[str, Any]]] = {"training": [], self.held_out: []}

    def image_path(self, case: Case) -> str:
        """Return the path of its image."""
        return f"images{'Ts' if case.is_held_out else 'Tr'}/{case.name}.png"

    def add(self, case: Case, lesions: Sequence[Lesion]) -> dict[str, bytes]:
        """Add a case; return its label map."""
        image = self.image_path(case)
        label = image.replace("images", "labels", 1)
        entry: dict[str, Any] = {"image": f"./{image}", "label": f"./{label}"}
        if case.fold is not None:
            entry["fold"] = case.fold
        self.lists[self.held_out if case.is_held_out else "training"].append(entry)
        return {label: self.encode_label_map(case, lesions)}

    def finish(self) -> dict[str, str]:
        """Return the files that list all cases."""
        labels = {str(number): kind for number, kind in enumerate(self.kinds, 1)}
        dataset = {
            "name": "tfmammo",
            "description": "mammograms with lesions; research only, not for diagnosis",
            "tensorImageSize": "2D",
            "modality": {"0": "mammogram"},
            "labels": {"0": "background", **labels},
            "numTraining": len(self.lists["training"]),
            "numTest": len(self.lists.get("test", ())),
            **self.lists,
        }
        return {"dataset.json": to_json(dataset)}


class Coco(Format):
    """COCO's object detection and segmentation.

    annotations.json has all images; annotations_train.json and _val.json, or _test.json of an
    official test set, those of one subset. Regions are compressed run-length encodings, which keep
    every pixel.
    """

    fold_name = "val"

    def __init__(self, config: ExchangeConfig, folds: int) -> None:
        super().__init__(config, folds)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.subsets: dict[str, set[int]] = {"train": set(), self.held_out: set()}

    def image_path(self, case: Case) -> str:
        """Return the path of its image."""
        return f"images/{case.name}.png"

    def add(self, case: Case, lesions: Sequence[Lesion]) -> dict[str, bytes]:
        """Add a case; it has no further files."""
        number = len(self.images) + 1
        rows, cols = case.mammogram.rows, case.mammogram.cols
        image = {"id": number, "file_name": f"{case.name}.png", "height": rows, "width": cols}
        self.images.append(image)
        self.subsets[self.name_subset(case)].add(number)
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
        categories = [
            {"id": number, "name": kind, "supercategory": "lesion"}
            for number, kind in enumerate(self.kinds, 1)
        ]
        files = {f"annotations_{name}.json": part for name, part in self.subsets.items()}
        files["annotations.json"] = set.union(*self.subsets.values())
        return {
            file: json.dumps(
                {
                    "images": [image for image in self.images if image["id"] in numbers],
                    "annotations": [
                        entry for entry in self.annotations if entry["image_id"] in numbers
                    ],
                    "categories": categories,
                }
            )
            for file, numbers in files.items()
        }


class Yolo(Format):
    """Ultralytics' format: an image's lesions in a text file of the same name, and data.yaml.

    A line is the class, then a polygon through the centres of the border's pixels, or with `boxes`
    the box's centre and size, all over the image's size. A lesion of several parts has a line for
    each.
    """

    fold_name = "val"

    def __init__(self, config: ExchangeConfig, folds: int) -> None:
        super().__init__(config, folds)
        self.needs_masks = not self.boxes

    def image_path(self, case: Case) -> str:
        """Return the path of its image."""
        return f"images/{self.name_subset(case)}/{case.name}.png"

    def add(self, case: Case, lesions: Sequence[Lesion]) -> dict[str, bytes]:
        """Add a case; return its label file."""
        size = np.array([case.mammogram.cols, case.mammogram.rows])
        lines = ""
        for lesion in lesions:
            for part in self._list_parts(lesion):
                values = (part / size).ravel().tolist()
                numbers = [str(self.kinds.index(lesion.kind)), *(f"{each:.12g}" for each in values)]
                lines += f"{' '.join(numbers)}\n"
        return {f"labels/{self.name_subset(case)}/{case.name}.txt": lines.encode()}

    def _list_parts(self, lesion: Lesion) -> list[np.ndarray]:
        """List a lesion's polygons, or the centre and size of its box: [n, 2] of (x, y), px."""
        if self.boxes:
            top, left, bottom, right = lesion.box
            middle = ((left + right) / 2, (top + bottom) / 2)
            return [np.array([middle, (right - left, bottom - top)])]
        outlines = [
            # a line of two points would be read as a box
            outline if len(outline) >= 3 else outline[[0, *range(len(outline)), -1]]
            for outline in lesion.outlines
        ]
        return [outline[:, ::-1].astype(float) + 0.5 for outline in outlines]

    def finish(self) -> dict[str, str]:
        """Return the files that list all cases."""
        subsets = f"train: images/train\nval: images/{self.held_out}\n"
        if self.held_out == "test":
            subsets += "test: images/test\n"
        names = "".join(f"  {number}: {kind}\n" for number, kind in enumerate(self.kinds))
        return {"data.yaml": f"{subsets}names:\n{names}"}


class HuggingFace(Format):
    """An image folder: train/ and validation/ or test/, each with its metadata.jsonl.

    A line has the image's facts and `objects`: box [x, y, width, height], kind, run-length encoding
    as COCO's ("" without an outline), pathology, shape and margin of each lesion.
    """

    def __init__(self, config: ExchangeConfig, folds: int) -> None:
        super().__init__(config, folds)
        self.lines: dict[str, list[str]] = {}  # by subset

    def image_path(self, case: Case) -> str:
        """Return the path of its image."""
        return f"{self.name_subset(case)}/{case.name}.png"

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
        line = {"file_name": f"{case.name}.png"} | case.make_row() | {"objects": objects}
        self.lines.setdefault(self.name_subset(case), []).append(f"{json.dumps(line)}\n")
        return {}

    def finish(self) -> dict[str, str]:
        """Return the files that list all cases."""
        return {f"{subset}/metadata.jsonl": "".join(lines) for subset, lines in self.lines.items()}


FORMATS: dict[str, type[Format]] = {
    "nnunet": NNUNet,
    "coco": Coco,
    "yolo": Yolo,
    "hf": HuggingFace,
    "monai": Monai,
}
