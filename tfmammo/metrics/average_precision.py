"""COCO's average precision, computed by COCO's own code (pycocotools, imported on use)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfmammo.errors import DataError
from tfmammo.metrics.boxes import Floats

MOST = 100


@dataclass(frozen=True, eq=False)
class Boxes:
    """One image's detections and lesions.

    Attributes:
        boxes: Detections [n, 4], [row_min, col_min, row_max, col_max], half-open.
        scores: Of the detections [n].
        kinds: Of the detections [n], of a type that can be sorted.
        truth: Lesions [m, 4], in the same unit.
        true_kinds: Of the lesions [m], of the same type.
    """

    boxes: Floats
    scores: Floats
    kinds: Sequence[Any]
    truth: Floats
    true_kinds: Sequence[Any]


def average_precision(images: Sequence[Boxes]) -> dict[str, float]:
    """Compute COCO's measures of boxes, averaged over the kinds of lesions.

    All sizes of boxes count together; of each kind in an image the MOST with the highest scores do.

    Args:
        images: Detections and lesions of each image, normal images included.

    Returns:
        "ap": mean of IoU 0.5, 0.55, ... 0.95. "ap50", "ap75": at that IoU. "ar": recall with all
        those detections, mean of the same IoU. All in [0, 1]; 0 for a detector that finds nothing.
        COCO counts a hit from the IoU on, while `match` requires more than it.

    Raises:
        DataError: pycocotools is missing, there is no lesion, or a number is not finite.

    Source:
        Lin et al., Microsoft COCO (2014), and its evaluation code.
    """
    COCO, COCOeval = import_coco()
    kinds = sorted({kind for image in images for kind in image.true_kinds})
    if not kinds:
        raise DataError("average precision needs lesions, and there is none")
    numbers = {kind: number for number, kind in enumerate(kinds, 1)}
    truth = [(image.truth, np.ones(len(image.truth)), image.true_kinds) for image in images]
    found = [(image.boxes, image.scores, image.kinds) for image in images]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(
            _fill_index(COCO(), numbers, truth), _fill_index(COCO(), numbers, found), "bbox"
        )
        evaluation.params.maxDets = [MOST]
        evaluation.params.areaRng = [[0, np.inf]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    # [IoU, recall, kind], [IoU, kind]
    precision = evaluation.eval["precision"][..., 0, 0]
    recall = evaluation.eval["recall"][..., 0, 0]
    # IoU 0.5, 0.55, ... 0.95; nothing is undefined (-1), as there is a lesion of each kind.
    values = {"ap": precision, "ap50": precision[0], "ap75": precision[5], "ar": recall}
    return {name: float(value.mean()) for name, value in values.items()}


def import_coco() -> tuple[Any, Any]:
    """Import pycocotools' classes COCO and COCOeval, or say that it is missing."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise DataError(
            "COCO's average precision needs pycocotools; install it: pip install pycocotools"
        ) from None
    return COCO, COCOeval


def _fill_index(
    index: Any,
    numbers: dict[Any, int],
    images: Sequence[tuple[Floats, Floats, Sequence[Any]]],
) -> Any:
    """Fill an index of pycocotools with each image's boxes, scores and kinds that have a number."""
    annotations: list[dict[str, Any]] = []
    for image, (boxes, scores, kinds) in enumerate(images, 1):
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise DataError("a box or a score is not finite")
        corners = np.asarray(boxes, float).tolist()
        for corner, score, kind in zip(corners, np.asarray(scores).tolist(), kinds, strict=True):
            if kind not in numbers:
                continue
            top, left, bottom, right = corner
            height, width = max(0.0, bottom - top), max(0.0, right - left)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": numbers[kind],
                    "bbox": [left, top, width, height],
                    "area": height * width,
                    "score": score,
                    "iscrowd": 0,
                }
            )
    index.dataset = {
        "images": [{"id": image} for image in range(1, len(images) + 1)],
        "categories": [{"id": number, "name": str(kind)} for kind, number in numbers.items()],
        "annotations": annotations,
    }
    index.createIndex()
    return index
