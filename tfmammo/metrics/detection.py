"""Boxes against boxes: overlap, which detections hit, recall, and the free-response ROC
curve with its partial area.

Scores of different trainings lie on scales of their own. What several trainings found (the folds
and seeds of one detector) is therefore measured training by training, and the measures are
averaged: the functions take `trainings`, of each image which one.

`metrics.jafroc` tests two detectors on the same images, `metrics.average_precision` has COCO's
measure, `metrics.figures` draws.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfmammo.metrics.significance import FEWEST_PATIENTS

Floats = NDArray[np.floating]
Criterion = Literal["iou", "ior", "centre"]
Measured = Literal["tpr", "areas"]
Training = tuple[int, int]  # (fold, seed): which training answered
# as a number of false positives per image: recall of whatever was found, Eq. (6) of the infilling
# paper
ALL_DETECTIONS = np.inf
FPPI = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, eq=False)
class Matches:
    """What the detections of some images hit.

    Attributes:
        hits: float64 [lesions found], their scores.
        false_positives: float64 [others], their scores.
        lesions: How many there were.
        images: How many there were.
    """

    hits: NDArray[np.float64]
    false_positives: NDArray[np.float64]
    lesions: int
    images: int

    @staticmethod
    def join(parts: Sequence[Matches]) -> Matches:
        """The same of several images."""
        none = np.empty(0)
        hits, false = (
            np.concatenate([none, *(getattr(part, name) for part in parts)])
            for name in ("hits", "false_positives")
        )
        return Matches(
            hits, false, sum(part.lesions for part in parts), sum(part.images for part in parts)
        )

    def above(self, score: float) -> Matches:
        """The same with detections of at least this score alone."""
        return replace(
            self,
            hits=self.hits[self.hits >= score],
            false_positives=self.false_positives[self.false_positives >= score],
        )

    def recall(self) -> float:
        """The part of lesions that any detection hits, Eq. (6) of the infilling paper.

        Raises:
            ValueError: There is no lesion.
        """
        _check_counts(self.lesions, self.images)
        return len(self.hits) / self.lesions

    def froc(self, fppi: Sequence[float] = FPPI) -> NDArray[np.float64]:
        """Sensitivity at each number of false positives per image; see `froc`."""
        return froc([self], fppi).tpr


@dataclass(frozen=True, eq=False)
class Froc:
    """A free-response ROC curve, and what it says at given numbers of false positives per image
    (FPPI).

    Attributes:
        fppi: float64 [k], as asked.
        tpr: float64 [k] in [0, 1], sensitivity there.
        areas: float64 [k] in [0, 1], the mean sensitivity from 0 to there, which is the partial
            area over its width.
        thresholds: float64 [p], falling from infinity, the operating points' least scores.
        curve_fppi: float64 [p], rising, the operating points.
        curve_tpr: float64 [p], rising, the operating points.
    """

    fppi: NDArray[np.float64]
    tpr: NDArray[np.float64]
    areas: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    curve_fppi: NDArray[np.float64]
    curve_tpr: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """The mean of `tpr`: the score of CAMELYON16 and LUNA16 at their own numbers of false
        positives.
        """
        return float(self.tpr.mean())


def area(boxes: Floats) -> NDArray[np.float64]:
    """Areas of boxes [..., 4]; 0 where one is turned inside out."""
    boxes = np.asarray(boxes, np.float64)
    return np.maximum(boxes[..., 2] - boxes[..., 0], 0) * np.maximum(
        boxes[..., 3] - boxes[..., 1], 0
    )


def intersection(boxes: Floats, others: Floats) -> NDArray[np.float64]:
    """The area that every box shares with every other, float64 [n, m]; arguments as for `iou`."""
    a = np.asarray(boxes, np.float64).reshape(-1, 4, 1)
    b = np.asarray(others, np.float64).reshape(-1, 4).T
    rows = np.minimum(a[:, 2], b[2]) - np.maximum(a[:, 0], b[0])
    cols = np.minimum(a[:, 3], b[3]) - np.maximum(a[:, 1], b[1])
    return np.maximum(rows, 0) * np.maximum(cols, 0)


def iou(boxes: Floats, others: Floats) -> NDArray[np.float64]:
    """Intersection over union of every box with every other.

    Args:
        boxes: [n, 4], others: [m, 4], [row_min, col_min, row_max, col_max], half-open, in one unit.

    Returns:
        float64 [n, m] in [0, 1]; 0 for a box without area.
    """
    shared = intersection(boxes, others)
    union = np.reshape(area(boxes), (-1, 1)) + area(others) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def ior(boxes: Floats, others: Floats) -> NDArray[np.float64]:
    """Intersection over each box's own region: how much of a detection lies in a lesion; arguments
    and result as for `iou`.
    """
    shared = intersection(boxes, others)
    own = np.reshape(area(boxes), (-1, 1))
    return np.divide(shared, own, out=np.zeros_like(shared), where=own > 0)


def overlap(boxes: Floats, truth: Floats, criterion: Criterion = "iou") -> NDArray[np.float64]:
    """By how much every detection hits every lesion.

    Args:
        boxes: [n, 4], detections.
        truth: [m, 4], lesions.
        criterion: "iou" and "ior": that number. "centre": the IoU where the detection's centre lies
            in the lesion's box, else 0.

    Returns:
        float64 [n, m] in [0, 1]; 0 for a box without area, whatever the criterion.

    Raises:
        ValueError: There is no such criterion.
    """
    if criterion == "ior":
        return ior(boxes, truth)
    found = iou(boxes, truth)
    if criterion == "centre":
        a = np.asarray(boxes, np.float64).reshape(-1, 4, 1)
        b = np.asarray(truth, np.float64).reshape(-1, 4).T
        row = (a[:, 0] + a[:, 2]) / 2
        col = (a[:, 1] + a[:, 3]) / 2
        return found * ((row >= b[0]) & (row < b[2]) & (col >= b[1]) & (col < b[3]))
    if criterion != "iou":
        raise ValueError(f"a criterion is iou, ior or centre, not {criterion}")
    return found


def recall_by(criterion: Criterion, threshold: float) -> str:
    """What recall is by a criterion, in words, for headings."""
    return (
        "recall "
        + {
            "iou": f"at IoU > {threshold:g}",
            "ior": f"at IoR > {threshold:g}",
            "centre": "by centres",
        }[criterion]
    )


def match(
    boxes: Floats,
    scores: Floats,
    truth: Floats,
    threshold: float = 0.5,
    criterion: Criterion = "iou",
) -> Matches:
    """Which detections of one image hit a lesion.

    From the highest score down each detection takes the lesion that it overlaps most among those
    not taken; where that is no more than the threshold it is a false positive, and so is a second
    one on a lesion. A detection without area, or outside the image, where no lesion is, hits
    nothing; a lesion without area is one that nothing can hit.

    Args:
        boxes: [n, 4], truth: [m, 4], in one unit.
        scores: [n].
        threshold: What the overlap of a hit must exceed, in [0, 1); "centre" has none.
        criterion: See `overlap`.

    Raises:
        ValueError: Scores are not as many as boxes, or one of all these is no finite number; or no
            such criterion.

    Source:
        The PASCAL VOC development kit's rule, but that a detection may fall back on another lesion,
        as in COCO's; "higher than 0.5" is the blending paper's (3.2), "exceeds 0.5" the infilling
        paper's (4.3).
    """
    boxes, scores, truth = (np.asarray(values, np.float64) for values in (boxes, scores, truth))
    if scores.shape != (len(boxes),):
        raise ValueError(f"{len(boxes)} boxes need as many scores, not {scores.shape}")
    if not (np.isfinite(scores).all() and np.isfinite(boxes).all() and np.isfinite(truth).all()):
        raise ValueError("a box or a score is no finite number")
    order = np.argsort(-scores, kind="stable")
    hit = np.zeros(len(scores), np.bool_)
    if len(truth) and len(boxes):
        overlaps = overlap(boxes, truth, criterion)
        overlaps[overlaps <= (0 if criterion == "centre" else threshold)] = 0
        # few: all others hit nothing, whatever is taken before
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
    judged: Collection[Any] | None = None,
) -> Matches:
    """`match` of one image kind by kind: a mass that is taken for a calcification is a miss and a
    false positive.

    Args:
        kinds: N, true_kinds: m, of any one type.
        judged: The kinds that are looked for; detections of others are dropped, since nobody says
            whether they are right. None: all. The others as for `match`.
    """
    kinds_ = np.asarray(kinds)
    true_kinds_ = np.asarray(true_kinds)
    parts = []
    for kind in (
        {*kinds_.tolist(), *true_kinds_.tolist()}
        if judged is None
        else {*judged, *true_kinds_.tolist()}
    ):
        mine = kinds_ == kind
        theirs = true_kinds_ == kind
        parts.append(match(boxes[mine], scores[mine], truth[theirs], threshold, criterion))
    return replace(Matches.join(parts), images=1)


def froc(images: Sequence[Matches], fppi: ArrayLike = FPPI) -> Froc:
    """The FROC curve of some images: sensitivity over false positives per image (FPPI), linear
    between operating points.

    An operating point stands at every score, and one at 0, 0 where nothing is kept; beyond the last
    one its sensitivity holds on. So a detector that finds nothing anywhere has a sensitivity of 0.

    Args:
        images: Of each image, normal ones too, its matches.
        fppi: [k], at which numbers to state sensitivity and area.

    Raises:
        ValueError: There is no lesion or no image, or a number of false positives is below 0.

    Source:
        MONAI's compute_froc_curve_data and compute_froc_score, but that the lowest score counts
        too. The partial area is normalised, so that it compares between widths; the infilling
        paper's .172 is not, and names no width.
    """
    return _Ranked(images, np.zeros(len(images), np.intp)).froc(np.ones(1), fppi)


def froc_by_training(
    images: Sequence[Matches], trainings: Sequence[Training], fppi: ArrayLike = FPPI
) -> dict[Training, Froc]:
    """Each training's own FROC curve, by training; one that judged no lesion has none.

    Args:
        images: Of each image its matches.
        trainings: Of each image.
        fppi: As for `froc`.

    Raises:
        ValueError: As `froc`, or images and trainings don't belong together.
    """
    if not any(image.lesions for image in images):
        raise ValueError("a FROC curve needs lesions, and there is none")
    return {
        training: froc(part, fppi)
        for training, part in parts_with_lesions(images, trainings).items()
    }


def over_folds(
    values: Mapping[Training, NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean over trainings, and standard deviation over folds of each fold's mean over its seeds.

    Args:
        values: Training -> float64 [k].

    Returns:
        (mean, deviation), float64 [k] each; the deviation, of n - 1 degrees of freedom, is NaN
        where there is one fold.
    """
    by_fold: dict[int, list[NDArray[np.float64]]] = {}
    for (fold, _), value in values.items():
        by_fold.setdefault(fold, []).append(value)
    folds = [np.mean(of_seeds, axis=0) for of_seeds in by_fold.values()]
    mean = np.mean([*values.values()], axis=0)
    return mean, np.std(folds, axis=0, ddof=1) if len(folds) > 1 else np.full_like(mean, np.nan)


def false_positives_apart(
    images: Sequence[Matches], trainings: Sequence[Training], fppi: ArrayLike = FPPI
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False positives per image without lesions and per image with lesions, where all images
    together have so many.

    Both are read off each training's own curve, linear between operating points as sensitivity is,
    and averaged. So, weighted by the numbers of images, one training's two numbers have the mean
    that was asked for, unless its curve ends before.

    Args:
        images: Of each image its matches.
        trainings: Of each image.
        fppi: [k], numbers of false positives per image.

    Returns:
        (without, with), float64 [k] each; NaN where there is no such image.
    """
    sides = []
    for normal in (True, False):
        found = []
        for rows in rows_by_training(trainings, len(images)).values():
            part = [images[row] for row in rows]
            chosen = [image for image in part if (image.lesions == 0) == normal]
            if chosen:
                found.append(_at(part, Matches.join(chosen), np.asarray(fppi, np.float64)))
        sides.append(np.mean(found, axis=0) if found else np.full(np.shape(fppi), np.nan))
    return sides[0], sides[1]


def _at(images: Sequence[Matches], some: Matches, fppi: NDArray[np.float64]) -> NDArray[np.float64]:
    """False positives per image of `some` of the images where all of them have so many."""
    everything = Matches.join(images)
    scores = np.unique(everything.false_positives)
    of_all, of_some = (
        _counted(part.false_positives, scores) / part.images for part in (everything, some)
    )
    return np.interp(fppi, of_all, of_some)


def _counted(values: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.intp]:
    """How many values reach each of some rising scores, the highest score first, and a
    0 before it.
    """
    below = np.searchsorted(np.sort(values), scores, side="left")
    return np.append(0, len(values) - below[::-1])


def froc_interval(
    images: Sequence[Matches],
    patient_ids: Sequence[str],
    fppi: ArrayLike = FPPI,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    of: Measured = "tpr",
    against: Sequence[Matches] | None = None,
    trainings: Sequence[Training] | None = None,
    others_trainings: Sequence[Training] | None = None,
    fewest: int = FEWEST_PATIENTS,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile bootstrap interval of a FROC curve, drawing whole patients with replacement.

    Of several trainings every draw has the mean over the trainings that judged a lesion of the
    patients drawn.

    Args:
        images: Of each image its matches.
        patient_ids: Of each image.
        fppi: [k], numbers of false positives per image.
        samples: Draws; those without any lesion are drawn again.
        level: Of confidence, in (0, 1).
        of: Sensitivity or partial area.
        against: Another detector's matches of the same images: the interval is of the difference,
            images - against, the same patients being drawn for both.
        trainings: Of each image the training that answered, of `images` and of `against`; None: all
            on one scale.
        others_trainings: Of each image the training that answered, of `images` and of `against`;
            None: all on one scale.
        fewest: Patients below which nothing is bounded.

    Returns:
        (low, high), float64 [k] each; NaN where there are fewer patients than `fewest`, or one
        alone.

    Raises:
        ValueError: No image has a lesion, or images, patients, trainings and `against` don't belong
            together.
    """
    check_pair(images, patient_ids, against)
    if not any(image.lesions for image in images):
        raise ValueError("a FROC curve needs lesions, and there is none")
    patients, rows = np.unique(np.asarray(patient_ids, np.str_), return_inverse=True)
    if len(patients) < max(2, fewest):
        return np.full(np.shape(fppi), np.nan), np.full(np.shape(fppi), np.nan)
    ours = _Trainings(images, rows, trainings)
    theirs = None if against is None else _Trainings(against, rows, others_trainings)
    values = []
    for times in _draws(ours.lesions, samples, seed):
        value = ours.mean(times, fppi, of)
        values.append(value if theirs is None else value - theirs.mean(times, fppi, of))
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values, [tail, 100 - tail], axis=0)
    return low, high


def rows_by_training(trainings: Sequence[Training] | None, count: int) -> dict[Training, list[int]]:
    """The places of each training's images among all; None: one training has them all.

    Raises:
        ValueError: They are not `count`.
    """
    if trainings is not None and len(trainings) != count:
        raise ValueError(f"{count} images need as many trainings, not {len(trainings)}")
    rows: dict[Training, list[int]] = {}
    for row in range(count):
        rows.setdefault((0, 0) if trainings is None else trainings[row], []).append(row)
    return rows


def check_pair(
    images: Sequence[Matches], patient_ids: Sequence[str], others: Sequence[Matches] | None = None
) -> None:
    """Refuse lists that can't be of the same images.

    Raises:
        ValueError: Lengths differ, or an image's number of lesions does.
    """
    if len(images) != len(patient_ids):
        raise ValueError(f"{len(images)} images need as many patients, not {len(patient_ids)}")
    if others is not None and [image.lesions for image in images] != [
        image.lesions for image in others
    ]:
        raise ValueError(
            "two detectors must be judged on the same images, and theirs have different lesions"
        )


def parts_with_lesions(
    images: Sequence[Matches], trainings: Sequence[Training] | None
) -> dict[Training, list[Matches]]:
    """Each training's images, of the trainings that judged a lesion."""
    parts = {
        training: [images[row] for row in rows]
        for training, rows in rows_by_training(trainings, len(images)).items()
    }
    return {
        training: part for training, part in parts.items() if any(image.lesions for image in part)
    }


class _Trainings:
    """The ranked detections of each training; patients are numbered across all of them.

    Attributes:
        lesions: Of each patient.
    """

    def __init__(
        self,
        images: Sequence[Matches],
        patients: NDArray[np.intp],
        trainings: Sequence[Training] | None,
    ) -> None:
        places = rows_by_training(trainings, len(images))
        count = int(patients.max(initial=0)) + 1
        self.parts = [
            _Ranked([images[row] for row in rows], patients[rows], count)
            for rows in places.values()
        ]
        self.lesions = np.sum([part.lesions for part in self.parts], axis=0)

    def mean(
        self, times: NDArray[np.float64], fppi: ArrayLike, of: Measured
    ) -> NDArray[np.float64]:
        """The mean of the trainings' curves where each patient is taken so many times; those
        without a lesion then have none.
        """
        curves = [part.froc(times, fppi) for part in self.parts if times @ part.lesions]
        return np.asarray(np.mean([getattr(curve, of) for curve in curves], axis=0))


class _Ranked:
    """The detections of some patients in the order of their scores: sorted once, whatever is drawn
    of the patients afterwards.
    """

    def __init__(
        self, images: Sequence[Matches], patients: NDArray[np.intp], count: int | None = None
    ) -> None:
        count = int(patients.max(initial=0)) + 1 if count is None else count
        self.lesions = np.bincount(
            patients, np.array([image.lesions for image in images], np.float64), count
        )
        self.images = np.bincount(
            patients, np.array([image.images for image in images], np.float64), count
        )
        joined = Matches.join(images)
        scores = np.concatenate([joined.hits, joined.false_positives])
        order = np.argsort(-scores)
        ranked = scores[order]
        self.hit = order < len(joined.hits)
        # the last of each score
        self.ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)])
        self.thresholds = np.append(np.inf, ranked[self.ends])
        sizes = [
            [len(getattr(image, name)) for image in images] for name in ("hits", "false_positives")
        ]
        self.patient = np.concatenate([np.repeat(patients, size) for size in sizes])[order]

    def froc(self, times: NDArray[np.floating], fppi: ArrayLike) -> Froc:
        """The curve where each patient is taken so many times."""
        lesions = float(times @ self.lesions)
        images = float(times @ self.images)
        asked = np.asarray(fppi, np.float64)
        _check_counts(lesions, images)
        if not np.all(asked >= 0):
            raise ValueError("numbers of false positives per image must be 0 or more")
        weights = times[self.patient]
        found, false = (np.cumsum(weights * side)[self.ends] for side in (self.hit, ~self.hit))
        x = np.append(0.0, false / images)
        y = np.append(0.0, found / lesions)
        # of several points at one x it takes the last, which is the highest
        tpr = np.interp(asked, x, y)
        return Froc(asked, tpr, _areas(x, y, asked, tpr), self.thresholds, x, y)


def _areas(
    x: NDArray, y: NDArray, limits: NDArray[np.float64], tpr: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The mean height of a curve from 0 to each limit; at limits of 0 and infinity the height
    there.
    """
    limits = np.where(np.isfinite(limits), limits, 0.0)
    last = np.searchsorted(x, limits, side="right") - 1
    whole = np.append(0.0, np.cumsum(np.diff(x) * (y[1:] + y[:-1]) / 2))[last]
    total = whole + (limits - x[last]) * (y[last] + tpr) / 2
    return np.divide(total, limits, out=tpr.copy(), where=limits > 0)


def _draws(lesions: NDArray, samples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each patient is taken, in draws of as many patients with replacement that have a
    lesion.
    """
    random = np.random.default_rng(seed)
    count = len(lesions)
    for _ in range(samples):
        times = np.zeros(count)
        while not times @ lesions:
            times = np.bincount(random.integers(count, size=count), minlength=count).astype(
                np.float64
            )
        yield times


def _check_counts(lesions: float, images: float) -> None:
    if lesions < 1 or images < 1:
        raise ValueError(
            f"a FROC curve needs lesions and images, and there are {lesions:g} and {images:g}"
        )
