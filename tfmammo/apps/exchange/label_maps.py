"""Data sets with a label map for each image: nnU-Net's raw format and MONAI's data list.

A label map is an 8-bit PNG: 0 is background, 1 the first of data.kinds, 2 the second. Where lesions
overlap, the kind that is named first gets the pixel. Lesions that touch become one region.

Images are PNG and not NIfTI: PNG keeps 8 and 16 bits, and nnU-Net (NaturalImage2DIO) and MONAI
(PILReader) read it. A PNG states no spacing, so mammograms of several machines should share one:
data.preprocess.spacing.

Source: nnU-Net, documentation/dataset_format.md and manual_data_splits.md; Medical Segmentation
Decathlon, dataset.json, as monai.data.load_decathlon_datalist reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfmammo.apps.exchange.cases import Case
from tfmammo.archives.writers.synthetic import encode_png
from tfmammo.config import DataConfig
from tfmammo.filesystem import to_json
from tfmammo.mammogram import Lesion


class NNUNet:
    """nnU-Net's raw format, version 2, for 2D images.

    imagesTr has every patient of a split by patient, and splits_final.json its folds. An official
    test set is in imagesTs and labelsTs; the folds then divide the training patients.
    """

    needs_masks = True
    splits_by_folds = True

    def __init__(self, config: DataConfig, folds: int) -> None:
        self.kinds = config.kinds
        self.folds: list[dict[str, list[str]]] = [{"train": [], "val": []} for _ in range(folds)]
        self.count = 0

    def image_path(self, case: Case) -> str:
        """Return the path of its image; 0000 is the channel."""
        return f"images{_name_part(case)}/{case.name}_0000.png"

    def add(self, case: Case, lesions: Sequence[Lesion]) -> dict[str, bytes]:
        """Add a case; return its label map."""
        if case.fold is not None:
            self.count += 1
            for number, fold in enumerate(self.folds):
                fold["val" if number == case.fold else "train"].append(case.name)
        label = f"labels{_name_part(case)}/{case.name}.png"
        return {label: _encode_label_map(case, lesions, self.kinds)}

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


class Monai:
    """A data list in the form of the Medical Segmentation Decathlon.

    "training" has the training patients, "validation" the held-out fold, or "test" the official
    test set. Each entry also has the fold that validates on it.
    """

    needs_masks = True
    splits_by_folds = False

    def __init__(self, config: DataConfig) -> None:
        self.kinds = config.kinds
        self.held_out = "test" if config.split == "official" else "validation"
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
        return {label: _encode_label_map(case, lesions, self.kinds)}

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


def _name_part(case: Case) -> str:
    return "Tr" if case.fold is not None else "Ts"


def _encode_label_map(case: Case, lesions: Sequence[Lesion], kinds: Sequence[str]) -> bytes:
    rows, cols = case.mammogram.rows, case.mammogram.cols
    labels = np.zeros((rows, cols), np.uint8)
    for lesion in sorted(lesions, key=lambda lesion: kinds.index(lesion.kind), reverse=True):
        labels[lesion.mask(rows, cols) > 0] = kinds.index(lesion.kind) + 1
    return encode_png(labels)
