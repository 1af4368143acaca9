"""Boxes against boxes: overlap, which detections hit, and the free-response ROC curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
FPPI = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, eq=False)
class Matches:
    """What the detections of some images hit. hits: float64 [lesions found], their scores. false_positives: float64
    [others], their scores. lesions, images: how many there were."""

    hits: NDArray[np.float64]
    false_positives: NDArray[np.float64]
    lesions: int
    images: int

    @staticmethod
    def join(parts: Sequence[Matches]) -> Matches:
        """The same of several images."""
        none = np.empty(0)
        hits, false = (np.concatenate([none, *(getattr(part, name) for part in parts)]) for name in ("hits", "false_positives"))
        return Matches(hits, false, sum(part.lesions for part in parts), sum(part.images for part in parts))

    def froc(self, at: Sequence[float] = FPPI) -> NDArray[np.float64]:
        """Sensitivity at each number of false positives per image; see `froc`."""
        return froc(self.false_positives, self.hits, self.lesions, self.images, at)


def iou(boxes: Floats, others: Floats) -> NDArray[np.float64]:
    """Intersection over union of every box with every other.

    Args:     boxes: [n, 4], others: [m, 4], [row_min, col_min, row_max, col_max], half-open, in one unit.
    Returns:  float64 [n, m] in [0, 1]; 0 for a box without area.
    """
    a, b = np.asarray(boxes, np.float64).reshape(-1, 1, 4), np.asarray(others, np.float64).reshape(1, -1, 4)
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    shared = sides.prod(axis=-1)
    union = area(a) + area(b) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def area(boxes: Floats) -> NDArray[np.float64]:
    """Areas of boxes [..., 4]; 0 where one is turned inside out."""
    return np.clip(np.asarray(boxes, np.float64)[..., 2:] - np.asarray(boxes, np.float64)[..., :2], 0, None).prod(axis=-1)


def match(boxes: Floats, scores: Floats, truth: Floats, threshold: float = 0.5) -> Matches:
    """Which detections of one image hit a lesion.

    From the highest score down each detection takes the lesion that it overlaps most among those not taken; where that is
    less than the threshold it is a false positive, and so is a second one on a lesion.

    Args:     boxes: [n, 4], truth: [m, 4], in one unit. scores: [n]. threshold: the least IoU of a hit.
    Source:   the PASCAL VOC development kit's rule, but that a detection may fall back on another lesion, as in COCO's.
    """
    overlaps, free = iou(boxes, truth), np.ones(len(truth), bool)
    hits, false = [], []
    for row in np.argsort(-np.asarray(scores, np.float64), kind="stable"):
        candidates = np.where(free, overlaps[row], -1.0)
        best = int(candidates.argmax()) if len(truth) else -1
        if best >= 0 and candidates[best] >= threshold:
            free[best] = False
            hits.append(scores[row])
        else:
            false.append(scores[row])
    return Matches(np.array(hits, np.float64), np.array(false, np.float64), len(truth), 1)


def match_kinds(
    boxes: Floats, scores: Floats, kinds: Sequence[Any], truth: Floats, true_kinds: Sequence[Any], threshold: float = 0.5
) -> Matches:
    """`match` of one image kind by kind: a mass that is taken for a calcification is a miss and a false positive.

    Args:     kinds: n, true_kinds: m, of any one type; the others as for `match`.
    """
    kinds_, true_kinds_ = np.asarray(kinds), np.asarray(true_kinds)
    parts = []
    for kind in {*kinds_.tolist(), *true_kinds_.tolist()}:
        mine, theirs = kinds_ == kind, true_kinds_ == kind
        parts.append(match(boxes[mine], scores[mine], truth[theirs], threshold))
    return replace(Matches.join(parts), images=1)


def froc_interval(
    images: Sequence[Matches],
    patient_ids: Sequence[str],
    at: Sequence[float] = FPPI,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile bootstrap interval of a FROC curve, drawing whole patients with replacement.

    Args:     images: of each image its matches. patient_ids: of each image. at: numbers of false positives per image.
              samples: draws; those without any lesion are drawn again. level: of confidence, in (0, 1).
    Returns:  (low, high), float64 [len(at)] each; NaN where all images are of one patient, which bounds nothing.
    Raises:   ValueError: no image has a lesion.
    """
    if not any(image.lesions for image in images):
        raise ValueError("a FROC curve needs lesions, and there is none")
    patients, rows = np.unique(np.asarray(patient_ids, np.str_), return_inverse=True)
    if len(patients) < 2:
        return np.full(len(at), np.nan), np.full(len(at), np.nan)
    groups = [Matches.join([images[row] for row in np.flatnonzero(rows == number).tolist()]) for number in range(len(patients))]
    random = np.random.default_rng(seed)
    curves: list[NDArray[np.float64]] = []
    while len(curves) < samples:
        drawn = Matches.join([groups[number] for number in random.integers(len(groups), size=len(groups)).tolist()])
        if drawn.lesions:
            curves.append(drawn.froc(at))
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(curves, [tail, 100 - tail], axis=0)
    return low, high


def froc(false_positives: Floats, hits: Floats, lesions: int, images: int, at: Sequence[float] = FPPI) -> NDArray[np.float64]:
    """Sensitivity at given numbers of false positives per image (FPPI), linear between operating points.

    An operating point stands at every score but the lowest, and one at 0, 0 where nothing is kept; beyond the last one its
    sensitivity holds on.

    Args:     false_positives: scores of detections that hit nothing. hits: scores of those that hit a lesion, one per lesion
              (a 0 stands for a miss). lesions, images: how many there are. at: numbers of false positives per image.
    Returns:  float64 [len(at)] in [0, 1].
    Raises:   ValueError: there is no lesion or no image.
    Source:   MONAI's compute_froc_curve_data and compute_froc_score, but that the lowest score counts where it is above 0.
    """
    if lesions < 1 or images < 1:
        raise ValueError(f"a FROC curve needs lesions and images, and there are {lesions} and {images}")
    false_positives, hits = np.asarray(false_positives, np.float64), np.asarray(hits, np.float64)
    thresholds = np.unique(np.concatenate([false_positives, hits]))[::-1]
    thresholds = thresholds[thresholds > 0]
    fppi, sensitivity = _kept(false_positives, thresholds) / images, _kept(hits, thresholds) / lesions
    return np.interp(at, np.append(0.0, fppi), np.append(0.0, sensitivity))


def _kept(scores: Floats, thresholds: Floats) -> NDArray[np.intp]:
    """How many scores are at least each threshold."""
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")
