"""Measures of detected boxes: overlap, hits, recall, and the free-response ROC curve with its area.

Different trainings have different scales of scores. The detections of several trainings (the folds
and seeds of one detector) are therefore measured for each training, and the measures are averaged:
functions take `trainings`, the training behind the matches in each image.

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
Training = tuple[int, int]  # (fold, seed)
# As a number of false positives per image: recall of all detections, infilling paper's Eq. (6).
ALL_DETECTIONS = np.inf
FPPI = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


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

    def above(self, score: float) -> Matches:
        """Keep only detections of at least this score."""
        return replace(
            self,
            hits=self.hits[self.hits >= score],
            false_positives=self.false_positives[self.false_positives >= score],
        )

    def recall(self) -> float:
        """Compute the part of lesions that any detection hits, Eq. (6) of the infilling paper.

        Raises:
            ValueError: There is no lesion.
        """
        _check_counts(self.lesions, self.images)
        return len(self.hits) / self.lesions

    def froc(self, fppi: Sequence[float] = FPPI) -> NDArray[np.float64]:
        """Compute sensitivity at each number of false positives per image; see `froc`."""
        return froc([self], fppi).tpr


@dataclass(frozen=True, eq=False)
class Froc:
    """A free-response ROC curve, and its values at given false positives per image (FPPI).

    Attributes:
        fppi: The given numbers, float64 [k].
        tpr: Sensitivity there, float64 [k] in [0, 1].
        areas: Mean sensitivity from 0 to there, which is the partial area over its width, float64
            [k] in [0, 1].
        thresholds: Lowest scores of the operating points, falling from infinity, float64 [p].
        curve_fppi: False positives per image of the operating points, rising, float64 [p].
        curve_tpr: Sensitivity of the operating points, rising, float64 [p].
    """

    fppi: NDArray[np.float64]
    tpr: NDArray[np.float64]
    areas: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    curve_fppi: NDArray[np.float64]
    curve_tpr: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """The mean of `tpr`, which is the score of CAMELYON16 and LUNA16 at their own FPPI."""
        return float(self.tpr.mean())


def area(boxes: Floats) -> NDArray[np.float64]:
    """Compute the areas of boxes [..., 4]; 0 where a maximum lies below its minimum."""
    boxes = np.asarray(boxes, np.float64)
    return np.maximum(boxes[..., 2] - boxes[..., 0], 0) * np.maximum(
        boxes[..., 3] - boxes[..., 1], 0
    )


def intersection(boxes: Floats, others: Floats) -> NDArray[np.float64]:
    """Compute the area that every box shares with every other, float64 [n, m]; see `iou`."""
    a = np.asarray(boxes, np.float64).reshape(-1, 4, 1)
    b = np.asarray(others, np.float64).reshape(-1, 4).T
    rows = np.minimum(a[:, 2], b[2]) - np.maximum(a[:, 0], b[0])
    cols = np.minimum(a[:, 3], b[3]) - np.maximum(a[:, 1], b[1])
    return np.maximum(rows, 0) * np.maximum(cols, 0)


def iou(boxes: Floats, others: Floats) -> NDArray[np.float64]:
    """Compute the intersection over union of every box with every other.

    Args:
        boxes: [n, 4], [row_min, col_min, row_max, col_max], half-open.
        others: [m, 4], in the same unit.

    Returns:
        float64 [n, m] in [0, 1]; 0 for a box without area.
    """
    shared = intersection(boxes, others)
    union = np.reshape(area(boxes), (-1, 1)) + area(others) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def ior(boxes: Floats, others: Floats) -> NDArray[np.float64]:
    """Compute the part of each detection that lies in each lesion.

    This is the intersection over the detection's own region. Arguments and result are as for `iou`.
    """
    shared = intersection(boxes, others)
    own = np.reshape(area(boxes), (-1, 1))
    return np.divide(shared, own, out=np.zeros_like(shared), where=own > 0)


def overlap(boxes: Floats, truth: Floats, criterion: Criterion = "iou") -> NDArray[np.float64]:
    """Measure how well every detection hits every lesion.

    Args:
        boxes: Detections [n, 4].
        truth: Lesions [m, 4].
        criterion: "iou" and "ior": that number. "centre": the IoU where the detection's centre lies
            in the lesion's box, else 0.

    Returns:
        float64 [n, m] in [0, 1]; 0 for a box without area, whatever the criterion.

    Raises:
        ValueError: There is no such criterion.
    """
    if criterion == "ior":
        return ior(boxes, truth)
    overlaps = iou(boxes, truth)
    if criterion == "centre":
        a = np.asarray(boxes, np.float64).reshape(-1, 4, 1)
        b = np.asarray(truth, np.float64).reshape(-1, 4).T
        row = (a[:, 0] + a[:, 2]) / 2
        col = (a[:, 1] + a[:, 3]) / 2
        return overlaps * ((row >= b[0]) & (row < b[2]) & (col >= b[1]) & (col < b[3]))
    if criterion != "iou":
        raise ValueError(f"a criterion is iou, ior or centre, not {criterion}")
    return overlaps


def find_hits(
    boxes: Floats, truth: Floats, threshold: float, criterion: Criterion = "iou"
) -> NDArray[np.bool_]:
    """Tell which detections hit which lesions, whatever else hits them.

    Args:
        boxes: Detections [n, 4].
        truth: Lesions [m, 4].
        threshold: What the overlap must exceed, in [0, 1); "centre" has none.
        criterion: See `overlap`.

    Returns:
        bool [n, m].
    """
    return overlap(boxes, truth, criterion) > _get_limit(threshold, criterion)


def find_spared(
    boxes: Floats,
    wanted: Floats,
    unwanted: Floats,
    threshold: float,
    criterion: Criterion = "iou",
) -> NDArray[np.bool_]:
    """Tell which detections are neither right nor wrong: they hit unwanted lesions alone.

    Args:
        boxes: Detections [n, 4].
        wanted: Lesions that count [m, 4].
        unwanted: Lesions that are there and don't count [k, 4].
        threshold: See `find_hits`.
        criterion: See `overlap`.

    Returns:
        bool [n].
    """
    if not len(boxes) or not len(unwanted):
        return np.zeros(len(boxes), np.bool_)
    spared = np.any(find_hits(boxes, unwanted, threshold, criterion), axis=1)
    if len(wanted):
        spared = spared & ~np.any(find_hits(boxes, wanted, threshold, criterion), axis=1)
    return np.asarray(spared)


def _get_limit(threshold: float, criterion: Criterion) -> float:
    """Return what the overlap of a hit must exceed."""
    return 0 if criterion == "centre" else threshold


def recall_by(criterion: Criterion, threshold: float) -> str:
    """Name recall by a criterion, for headings."""
    descriptions: dict[Criterion, str] = {
        "iou": f"at IoU > {threshold:g}",
        "ior": f"at IoR > {threshold:g}",
        "centre": "by centres",
    }
    return f"recall {descriptions[criterion]}"


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
        truth: Lesions [m, 4], in the same unit.
        threshold: What the overlap of a hit must exceed, in [0, 1); "centre" has none.
        criterion: See `overlap`.

    Raises:
        ValueError: Scores are not as many as boxes, a value is not finite, or there is no such
            criterion.

    Source:
        The rule of the PASCAL VOC development kit, except that a detection may fall back on another
        lesion, as in COCO's. "Higher than 0.5" is the blending paper's threshold (section
        3), "exceeds 0.5" the infilling paper's (section 4.5).
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
        overlaps[overlaps <= _get_limit(threshold, criterion)] = 0
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
    judged: Collection[Any] | None = None,
) -> Matches:
    """Match the detections in one image kind by kind; see `match`.

    A mass that is detected as a calcification is a miss and a false positive.

    Args:
        boxes: As for `match`.
        scores: As for `match`.
        kinds: The kind of each detection [n], of any type.
        truth: As for `match`.
        true_kinds: The kind of each lesion [m], of the same type.
        threshold: As for `match`.
        criterion: As for `match`.
        judged: The kinds that count. Detections of other kinds are dropped, because nobody says
            whether they are right. None: all kinds.
    """
    kinds_ = np.asarray(kinds)
    true_kinds_ = np.asarray(true_kinds)
    counted = kinds_.tolist() if judged is None else judged
    parts = []
    for kind in {*counted, *true_kinds_.tolist()}:
        is_kind = kinds_ == kind
        lesions = truth[true_kinds_ == kind]
        parts.append(match(boxes[is_kind], scores[is_kind], lesions, threshold, criterion))
    return replace(Matches.join(parts), images=1)


def froc(images: Sequence[Matches], fppi: ArrayLike = FPPI) -> Froc:
    """Compute the FROC curve: sensitivity over false positives per image (FPPI).

    There is an operating point at every score, and one at (0, 0), where nothing is kept. The curve
    is linear between operating points and constant beyond the last one. A detector that finds
    nothing anywhere has a sensitivity of 0.

    Args:
        images: The matches in each image, normal images included.
        fppi: Where to evaluate sensitivity and area [k].

    Raises:
        ValueError: There is no lesion or no image, or a number of false positives is below 0.

    Examples:
        >>> image = Matches(np.array([0.9]), np.array([0.5]), lesions=2, images=1)
        >>> froc([image], fppi=[1.0]).tpr
        array([0.5])

    Source:
        MONAI's compute_froc_curve_data and compute_froc_score, except that the lowest score counts,
        too. The partial area is normalised, so that areas of different widths compare. The
        infilling paper's .172 is not normalised, and the paper names no width.
    """
    return _Ranked(images, np.zeros(len(images), np.intp)).froc(np.ones(1), fppi)


def froc_by_training(
    images: Sequence[Matches], trainings: Sequence[Training], fppi: ArrayLike = FPPI
) -> dict[Training, Froc]:
    """Compute the FROC curve of each training; one whose images show no lesion has none.

    Args:
        images: The matches in each image.
        trainings: The training behind the matches in each image.
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
    """Average values over trainings, and compute their standard deviation over folds.

    Args:
        values: Training -> float64 [k].

    Returns:
        (mean, deviation), float64 [k] each. The deviation is that of the folds' means over their
        seeds, with n - 1 degrees of freedom; it is NaN where there is one fold.
    """
    by_fold: dict[int, list[NDArray[np.float64]]] = {}
    for (fold, _), value in values.items():
        by_fold.setdefault(fold, []).append(value)
    folds = [np.mean(of_seeds, axis=0) for of_seeds in by_fold.values()]
    mean = np.mean([*values.values()], axis=0)
    if len(folds) < 2:
        return mean, np.full_like(mean, np.nan)
    return mean, np.std(folds, axis=0, ddof=1)


def false_positives_apart(
    images: Sequence[Matches], trainings: Sequence[Training], fppi: ArrayLike = FPPI
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Count false positives per normal image and per image with lesions, at given overall numbers.

    Both are read off each training's own curve, linear between operating points as sensitivity is,
    and averaged. Weighted by the numbers of images, a training's two numbers have the given mean,
    unless its curve ends before.

    Args:
        images: The matches in each image.
        trainings: The training behind the matches in each image.
        fppi: Numbers of false positives per image of either kind [k].

    Returns:
        (without, with), float64 [k] each; NaN where there is no such image.
    """
    rates = np.asarray(fppi, np.float64)
    without: list[NDArray[np.float64]] = []
    with_lesions: list[NDArray[np.float64]] = []
    for rows in rows_by_training(trainings, len(images)).values():
        part = [images[row] for row in rows]
        normal = [image for image in part if image.lesions == 0]
        if normal:
            without.append(_count_in_group(part, Matches.join(normal), rates))
        if len(normal) < len(part):
            others = [image for image in part if image.lesions]
            with_lesions.append(_count_in_group(part, Matches.join(others), rates))
    absent = np.full(rates.shape, np.nan)
    return (
        np.mean(without, axis=0) if without else absent,
        np.mean(with_lesions, axis=0) if with_lesions else absent,
    )


def _count_in_group(
    images: Sequence[Matches], group: Matches, fppi: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Count false positives per image of a group, at numbers per image of all images."""
    joined = Matches.join(images)
    scores = np.unique(joined.false_positives)
    of_all = _count_reaching(joined.false_positives, scores) / joined.images
    of_group = _count_reaching(group.false_positives, scores) / group.images
    return np.interp(fppi, of_all, of_group)


def _count_reaching(values: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.intp]:
    """Count the values that reach each score, from the highest score down, after a 0.

    Args:
        values: In any order.
        scores: Rising.
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
    """Compute the percentile bootstrap interval of a FROC curve; patients are drawn whole.

    Where there are several trainings, every draw is averaged over those that have an image with a
    lesion of a drawn patient.

    Args:
        images: The matches in each image.
        patient_ids: The patient of each image.
        fppi: Numbers of false positives per image [k].
        samples: Number of draws. A draw without any lesion is repeated.
        seed: Seed of the draws.
        level: Confidence level, in (0, 1).
        of: "tpr", sensitivity, or "areas", the partial area.
        against: Another detector's matches in the same images. The interval is then that of the
            difference, images - against, with the same patients drawn for both.
        trainings: The training behind each of `images`; None: all have one scale of scores.
        others_trainings: The training behind each of `against`; None: all have one scale of scores.
        fewest: The number of patients with a lesion below which there is no interval.

    Returns:
        (low, high), float64 [k] each; NaN where fewer patients than `fewest` have a lesion, or
        there is one patient alone.

    Raises:
        ValueError: No image has a lesion, or images, patients, trainings and `against` don't belong
            together.
    """
    check_pair(images, patient_ids, against)
    if not any(image.lesions for image in images):
        raise ValueError("a FROC curve needs lesions, and there is none")
    patients, rows = np.unique(np.asarray(patient_ids, np.str_), return_inverse=True)
    if len(patients) < 2 or count_diseased(images, patient_ids) < fewest:
        return np.full(np.shape(fppi), np.nan), np.full(np.shape(fppi), np.nan)
    ours = _Trainings(images, rows, trainings)
    theirs = None if against is None else _Trainings(against, rows, others_trainings)
    values = []
    for times in _draw_patients(ours.lesions, samples, seed):
        value = ours.mean(times, fppi, of)
        values.append(value if theirs is None else value - theirs.mean(times, fppi, of))
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values, [tail, 100 - tail], axis=0)
    return low, high


def count_diseased(images: Sequence[Matches], patient_ids: Sequence[str]) -> int:
    """Count the patients with a lesion in any of their images."""
    pairs = zip(images, patient_ids, strict=True)
    return len({patient for image, patient in pairs if image.lesions})


def rows_by_training(trainings: Sequence[Training] | None, count: int) -> dict[Training, list[int]]:
    """Group the indices of images by training.

    Args:
        trainings: The training of each image; None: one training has them all.
        count: Number of images.

    Raises:
        ValueError: There are not `count` trainings.
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
    """Refuse lists that can't belong to the same images.

    Raises:
        ValueError: Lengths differ, or an image's number of lesions does.
    """
    if len(images) != len(patient_ids):
        raise ValueError(f"{len(images)} images need as many patients, not {len(patient_ids)}")
    if others is not None and [image.lesions for image in images] != [
        image.lesions for image in others
    ]:
        raise ValueError(
            "two detectors must be evaluated on the same images, and theirs have different lesions"
        )


def parts_with_lesions(
    images: Sequence[Matches], trainings: Sequence[Training] | None
) -> dict[Training, list[Matches]]:
    """Group images by training, for the trainings that have an image with a lesion."""
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
        lesions: Number of lesions of each patient.
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
        """Average the trainings' curves, with each patient counted so many times.

        A training that is left without a lesion has no curve.
        """
        curves = [part.froc(times, fppi) for part in self.parts if times @ part.lesions]
        return np.asarray(np.mean([getattr(curve, of) for curve in curves], axis=0))


class _Ranked:
    """The detections of some patients in the order of their scores.

    They are sorted once, for all draws of patients.
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
        # The last detection of each score.
        self.ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)])
        self.thresholds = np.append(np.inf, ranked[self.ends])
        sizes = [
            [len(getattr(image, name)) for image in images] for name in ("hits", "false_positives")
        ]
        self.patient = np.concatenate([np.repeat(patients, size) for size in sizes])[order]

    def froc(self, times: NDArray[np.floating], fppi: ArrayLike) -> Froc:
        """Compute the curve with each patient counted so many times."""
        lesions = float(times @ self.lesions)
        images = float(times @ self.images)
        asked = np.asarray(fppi, np.float64)
        _check_counts(lesions, images)
        if not np.all(asked >= 0):
            raise ValueError("numbers of false positives per image must be 0 or more")
        weights = times[self.patient]
        hits = np.cumsum(weights * self.hit)[self.ends]
        false_positives = np.cumsum(weights * ~self.hit)[self.ends]
        x = np.append(0.0, false_positives / images)
        y = np.append(0.0, hits / lesions)
        # Of several points at one x, interp takes the last, which is the highest.
        tpr = np.interp(asked, x, y)
        return Froc(asked, tpr, _average_height(x, y, asked, tpr), self.thresholds, x, y)


def _average_height(
    x: NDArray, y: NDArray, limits: NDArray[np.float64], tpr: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Average the height of a curve from 0 to each limit.

    At limits of 0 and infinity this is the height there.
    """
    limits = np.where(np.isfinite(limits), limits, 0.0)
    last = np.searchsorted(x, limits, side="right") - 1
    whole = np.append(0.0, np.cumsum(np.diff(x) * (y[1:] + y[:-1]) / 2))[last]
    total = whole + (limits - x[last]) * (y[last] + tpr) / 2
    return np.divide(total, limits, out=tpr.copy(), where=limits > 0)


def _draw_patients(lesions: NDArray, samples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Draw patients with replacement, as many as there are, and count how often each is taken.

    Draws without a lesion are repeated.
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
