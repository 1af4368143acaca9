"""Overlap of boxes, and which detections in an image hit a lesion.

Boxes are [n, 4], [row_min, col_min, row_max, col_max], half-open, in any one unit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Criterion = Literal["iou", "ior", "centre"]


@dataclass(frozen=True, eq=False)
class Matches:
    """Which detections in some images hit a lesion.

    Attributes:
        hits: Scores of the detections that hit a lesion, float64 [hits].
        false_positives: Scores of the other detections, float64 [others].
        lesions: Number of lesions.
        images: Number of images.
    """

    hits: NDArray[np.float64]
    false_positives: NDArray[np.float64]
    lesions: int
    images: int

    @staticmethod
    def join(parts: Sequence[Matches]) -> Matches:
        """Join the matches of several images."""
        empty = np.empty(0)
        return Matches(
            np.concatenate([empty, *(part.hits for part in parts)]),
            np.concatenate([empty, *(part.false_positives for part in parts)]),
            sum(part.lesions for part in parts),
            sum(part.images for part in parts),
        )


def area(boxes: Floats) -> NDArray[np.float64]:
    """Compute the areas of boxes [..., 4]; 0 where a maximum is below its minimum."""
    boxes = np.asarray(boxes, np.float64)
    return np.maximum(boxes[..., 2] - boxes[..., 0], 0) * np.maximum(
        boxes[..., 3] - boxes[..., 1], 0
    )


def intersection(boxes: Floats, others: Floats) -> NDArray[np.float64]:
    """Compute the area that every box shares with every other, float64 [n, m]."""
    a, b = _pair(boxes, others)
    rows = np.minimum(a[:, 2], b[2]) - np.maximum(a[:, 0], b[0])
    cols = np.minimum(a[:, 3], b[3]) - np.maximum(a[:, 1], b[1])
    return np.maximum(rows, 0) * np.maximum(cols, 0)


def iou(boxes: Floats, others: Floats) -> NDArray[np.float64]:
    """Compute the intersection over union of every box with every other; 0 without area."""
    shared = intersection(boxes, others)
    union = np.reshape(area(boxes), (-1, 1)) + area(others) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def ior(boxes: Floats, others: Floats) -> NDArray[np.float64]:
    """Compute the intersection over each detection's own region; otherwise as `iou`."""
    shared = intersection(boxes, others)
    own = np.reshape(area(boxes), (-1, 1))
    return np.divide(shared, own, out=np.zeros_like(shared), where=own > 0)


def overlap(boxes: Floats, truth: Floats, criterion: Criterion = "iou") -> NDArray[np.float64]:
    """Measure how well every detection [n, 4] hits every lesion [m, 4], float64 [n, m] in [0, 1].

    Criteria "iou" and "ior" are that number, "centre" the IoU where the detection's centre is in
    the lesion's box, else 0. A box without area hits nothing, whatever the criterion.
    """
    if criterion == "ior":
        return ior(boxes, truth)
    overlaps = iou(boxes, truth)
    if criterion == "centre":
        a, b = _pair(boxes, truth)
        row = (a[:, 0] + a[:, 2]) / 2
        col = (a[:, 1] + a[:, 3]) / 2
        return overlaps * ((row >= b[0]) & (row < b[2]) & (col >= b[1]) & (col < b[3]))
    return overlaps


def find_hits(
    boxes: Floats, truth: Floats, threshold: float, criterion: Criterion = "iou"
) -> NDArray[np.bool_]:
    """Mark which detections [n, 4] hit which lesions [m, 4], whatever else hits them, bool [n, m].

    The overlap must exceed `threshold`, in [0, 1); "centre" has none.
    """
    return overlap(boxes, truth, criterion) > (0 if criterion == "centre" else threshold)


def find_spared(
    boxes: Floats,
    wanted: Floats,
    unwanted: Floats,
    threshold: float,
    criterion: Criterion = "iou",
) -> NDArray[np.bool_]:
    """Mark detections that are neither right nor wrong, bool [n].

    They hit only unwanted lesions, which exist and don't count; otherwise as `find_hits`.
    """
    hits_unwanted, hits_wanted = (
        find_hits(boxes, lesions, threshold, criterion).any(axis=1)
        for lesions in (unwanted, wanted)
    )
    return np.asarray(hits_unwanted & ~hits_wanted)


def recall_by(criterion: Criterion, threshold: float) -> str:
    """Name recall by a criterion, for headings."""
    descriptions: dict[Criterion, str] = {
        "iou": f"recall at IoU > {threshold:g}",
        "ior": f"recall at IoR > {threshold:g}",
        "centre": "recall by centres",
    }
    return descriptions[criterion]


def match(
    boxes: Floats,
    scores: Floats,
    truth: Floats,
    threshold: float = 0.5,
    criterion: Criterion = "iou",
) -> Matches:
    """Find which detections in one image hit a lesion.

    From the highest score down, each detection takes the lesion that it overlaps most among those
    not taken. Where that overlap does not exceed the threshold, the detection is a false positive.
    So is a second detection of one lesion. A detection without area, or outside the image, hits
    nothing, and a lesion without area can't be hit.

    Args:
        boxes: Detections [n, 4].
        scores: Of the detections [n].
        truth: Lesions [m, 4].

    Source:
        PASCAL VOC's development kit, but a detection may fall back on another lesion, as in COCO.
        "Higher than 0.5" is the blending paper's threshold (section 3), "exceeds 0.5" the infilling
        paper's (section 4.5).
    """
    boxes, scores, truth = (np.asarray(values, np.float64) for values in (boxes, scores, truth))
    if scores.shape != (len(boxes),):
        raise ValueError(f"{len(boxes)} boxes need as many scores, not {scores.shape}")
    if not (np.isfinite(scores).all() and np.isfinite(boxes).all() and np.isfinite(truth).all()):
        raise ValueError("a box or a score is not finite")
    order = np.argsort(-scores, kind="stable")
    hit = np.zeros(len(scores), np.bool_)
    if len(truth) and len(boxes):
        overlaps = overlap(boxes, truth, criterion)
        overlaps[overlaps <= (0 if criterion == "centre" else threshold)] = 0
        # Only these can hit a lesion, whatever is taken before.
        for row in order[overlaps.max(axis=1)[order] > 0]:
            lesion = overlaps[row].argmax()
            if overlaps[row, lesion] > 0:
                hit[row] = True
                overlaps[:, lesion] = 0
                if hit.sum() == len(truth):
                    break
    scores = scores[order]
    hit = hit[order]
    return Matches(scores[hit], scores[~hit], len(truth), 1)


def match_kinds(
    boxes: Floats,
    scores: Floats,
    kinds: Sequence[Any],
    truth: Floats,
    true_kinds: Sequence[Any],
    threshold: float = 0.5,
    criterion: Criterion = "iou",
    annotated: Collection[Any] | None = None,
) -> Matches:
    """Match the detections in one image kind by kind; otherwise as `match`.

    A mass that is detected as a calcification is a miss and a false positive.

    Args:
        kinds: The kind of each detection [n], of any type.
        true_kinds: The kind of each lesion [m], of the same type.
        annotated: Kinds whose truth is known; detections of others are dropped. None: all kinds.
    """
    kinds_ = np.asarray(kinds)
    true_kinds_ = np.asarray(true_kinds)
    counted = kinds_.tolist() if annotated is None else annotated
    parts = []
    for kind in {*counted, *true_kinds_.tolist()}:
        is_kind = kinds_ == kind
        lesions = truth[true_kinds_ == kind]
        parts.append(match(boxes[is_kind], scores[is_kind], lesions, threshold, criterion))
    return replace(Matches.join(parts), images=1)


def _pair(boxes: Floats, others: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shape two lists of boxes so that their columns broadcast, [n, 4, 1] and [4, m]."""
    return (
        np.asarray(boxes, np.float64).reshape(-1, 4, 1),
        np.asarray(others, np.float64).reshape(-1, 4).T,
    )
