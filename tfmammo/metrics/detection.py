"""The free-response ROC curve (FROC) with its area, and bootstrap intervals over patients.

Different training runs have different scales of scores. The detections of several runs (the folds
and seeds of one detector) are therefore measured for each run, and the measures are averaged:
functions take `Found`, which knows the run behind the matches in each image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfmammo.metrics.boxes import Matches
from tfmammo.metrics.significance import FEWEST_PATIENTS

Measured = Literal["tpr", "areas"]
Run = tuple[int, int]  # (fold, seed)
# As a number of false positives per image: recall of all detections, infilling paper's Eq. (6).
ALL_DETECTIONS = np.inf
FPPI = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, eq=False)
class Found:
    """What a detector found in some images.

    Attributes:
        images: The matches in each image, normal images included.
        runs: The run behind each of them.
    """

    images: Sequence[Matches]
    runs: Sequence[Run]

    def __post_init__(self) -> None:
        """Refuse lists of different lengths."""
        if len(self.images) != len(self.runs):
            raise ValueError(f"{len(self.images)} images need as many runs, not {len(self.runs)}")

    @staticmethod
    def by_one_run(images: Sequence[Matches]) -> Found:
        """Take all matches for those of one run, whose scores have one scale."""
        return Found(images, [(0, 0)] * len(images))

    def rows_by_run(self) -> dict[Run, list[int]]:
        """Group the indices of images by run."""
        rows: dict[Run, list[int]] = {}
        for row, run in enumerate(self.runs):
            rows.setdefault(run, []).append(row)
        return rows

    def rows_with_lesions(self) -> dict[Run, list[int]]:
        """Group the indices of images by run, for the runs that have an image with a lesion."""
        return {
            run: rows
            for run, rows in self.rows_by_run().items()
            if any(self.images[row].lesions for row in rows)
        }

    def parts(self) -> dict[Run, list[Matches]]:
        """Group images as `rows_with_lesions` does."""
        return {
            run: [self.images[row] for row in rows]
            for run, rows in self.rows_with_lesions().items()
        }

    def count_diseased(self, patient_ids: Sequence[str]) -> int:
        """Count the patients with a lesion in any of their images; one is named for each image."""
        pairs = zip(self.images, patient_ids, strict=True)
        return len({patient for image, patient in pairs if image.lesions})


class Froc(NamedTuple):
    """A free-response ROC curve at given numbers of false positives per image (FPPI).

    Attributes:
        tpr: Sensitivity there, float64 [k] in [0, 1].
        areas: Mean sensitivity from 0 to there, which is the partial area over its width [k].
    """

    tpr: NDArray[np.float64]
    areas: NDArray[np.float64]


def froc(images: Sequence[Matches], fppi: ArrayLike = FPPI) -> Froc:
    """Compute the FROC curve: sensitivity over false positives per image (FPPI).

    There is an operating point at every score, and one at (0, 0), where nothing is kept. The curve
    is linear between operating points and constant beyond the last one. A detector that finds
    nothing anywhere has a sensitivity of 0.

    Args:
        images: The matches in each image, normal images included.
        fppi: Where to evaluate sensitivity and area [k], 0 or more.

    Examples:
        >>> image = Matches(np.array([0.9]), np.array([0.5]), lesions=2, images=1)
        >>> froc([image], fppi=[1.0]).tpr
        array([0.5])

    Source:
        MONAI's compute_froc_curve_data and compute_froc_score, except that the lowest score counts,
        too. The partial area is normalised, so that areas of different widths compare. The
        infilling paper names no width of its area, .172, and does not say whether it is normalised.
    """
    return _Ranked(images, np.zeros(len(images), np.intp), 1).froc(np.ones(1), fppi)


def froc_by_run(found: Found, fppi: ArrayLike = FPPI) -> dict[Run, Froc]:
    """Compute the FROC curve of each run that has a lesion in its images."""
    parts = found.parts()
    if not parts:
        raise ValueError("a FROC curve needs lesions, and there is none")
    return {run: froc(part, fppi) for run, part in parts.items()}


def over_folds(
    values: Mapping[Run, NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average values [k] over runs, and compute the deviation of folds' means (NaN of one fold)."""
    by_fold: dict[int, list[NDArray[np.float64]]] = {}
    for (fold, _), value in values.items():
        by_fold.setdefault(fold, []).append(value)
    folds = [np.mean(of_seeds, axis=0) for of_seeds in by_fold.values()]
    mean = np.mean([*values.values()], axis=0)
    if len(folds) < 2:
        return mean, np.full_like(mean, np.nan)
    return mean, np.std(folds, axis=0, ddof=1)


def false_positives_apart(
    found: Found, fppi: ArrayLike = FPPI
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Count false positives per image without and with lesions, at given overall numbers per image.

    Both are read off each run's own curve, linear between operating points as sensitivity is, and
    averaged. Weighted by the numbers of images, a run's two numbers have the given mean, unless its
    curve ends before.

    Returns:
        (without, with), float64 [k] each; NaN where there is no such image.
    """
    rates = np.asarray(fppi, np.float64)
    counts: tuple[list[NDArray[np.float64]], ...] = ([], [])
    for rows in found.rows_by_run().values():
        images = [found.images[row] for row in rows]
        joined = Matches.join(images)
        scores = np.unique(joined.false_positives)
        of_all = _count_reaching(joined, scores)
        for has_lesions in (False, True):
            group = [image for image in images if bool(image.lesions) == has_lesions]
            if group:
                of_group = _count_reaching(Matches.join(group), scores)
                counts[has_lesions].append(np.interp(rates, of_all, of_group))
    without, with_lesions = (
        np.mean(part, axis=0) if part else np.full(rates.shape, np.nan) for part in counts
    )
    return without, with_lesions


def scores_at(images: Sequence[Matches], fppi: ArrayLike = FPPI) -> NDArray[np.float64]:
    """Find the least score from which on a run has at most so many false positives per image.

    Args:
        images: The matches of one run in each image, normal images included.
        fppi: Numbers of false positives per image [k].

    Returns:
        The lowest score of a detection that is kept, float64 [k]; NaN where none can be kept.
    """
    joined = Matches.join(images)
    worst = np.sort(joined.false_positives)[::-1]
    scores = np.sort(np.concatenate([joined.hits, worst]))
    found = np.full(np.shape(fppi), np.nan)
    for place, rate in enumerate(np.asarray(fppi, np.float64)):
        allowed = rate * joined.images
        above = scores[scores > worst[int(allowed)]] if allowed < len(worst) else scores
        if len(above):
            found[place] = above[0]
    return found


def _count_reaching(matches: Matches, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Count false positives per image from each score up, the highest score first, after a 0."""
    values = matches.false_positives
    below = np.searchsorted(np.sort(values), scores, side="left")
    return np.append(0, len(values) - below[::-1]) / matches.images


def froc_interval(
    found: Found,
    patient_ids: Sequence[str],
    fppi: ArrayLike = FPPI,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    of: Measured = "tpr",
    against: Found | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the percentile bootstrap interval of a FROC curve; patients are drawn whole.

    Where there are several runs, every draw is averaged over those that have an image with a lesion
    of a drawn patient.

    Args:
        found: What the detector found.
        patient_ids: The patient of each image.
        fppi: Numbers of false positives per image [k].
        samples: Number of draws. A draw without any lesion is repeated.
        of: "tpr", sensitivity, or "areas", the partial area.
        against: What another detector found in the same images. The interval is then that of the
            difference, found - against, with the same patients drawn for both.

    Returns:
        (low, high), float64 [k] each; NaN where fewer than `FEWEST_PATIENTS` patients have a
        lesion.
    """
    check_pair(found, patient_ids, against)
    diseased = found.count_diseased(patient_ids)
    if not diseased:
        raise ValueError("a FROC curve needs lesions, and there is none")
    patients, numbers = np.unique(np.asarray(patient_ids, np.str_), return_inverse=True)
    count = len(patients)
    if diseased < FEWEST_PATIENTS:
        return np.full(np.shape(fppi), np.nan), np.full(np.shape(fppi), np.nan)

    def rank(detector: Found) -> list[_Ranked]:
        return [
            _Ranked([detector.images[row] for row in rows], numbers[rows], count)
            for rows in detector.rows_with_lesions().values()
        ]

    def average(parts: list[_Ranked], times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Average the curves of the runs that are left with a lesion."""
        curves = [part.froc(times, fppi) for part in parts if times @ part.lesions]
        return np.asarray(np.mean([getattr(curve, of) for curve in curves], axis=0))

    ours = rank(found)
    theirs = None if against is None else rank(against)
    lesions = np.sum([part.lesions for part in ours], axis=0)
    random = np.random.default_rng(seed)
    values = []
    for _ in range(samples):
        times = np.zeros(count)  # how often each patient is drawn
        while not times @ lesions:
            times = np.bincount(random.integers(count, size=count), minlength=count).astype(float)
        value = average(ours, times)
        values.append(value if theirs is None else value - average(theirs, times))
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values, [tail, 100 - tail], axis=0)
    return low, high


def check_pair(found: Found, patient_ids: Sequence[str], other: Found | None = None) -> None:
    """Refuse lists of different lengths, or with different numbers of lesions, with ValueError."""
    images = found.images
    if len(images) != len(patient_ids):
        raise ValueError(f"{len(images)} images need as many patients, not {len(patient_ids)}")
    if other is not None and [image.lesions for image in images] != [
        image.lesions for image in other.images
    ]:
        raise ValueError(
            "two detectors must be evaluated on the same images, and theirs have different lesions"
        )


class _Ranked:
    """The detections of `count` patients by score, sorted once for all draws of patients."""

    def __init__(self, images: Sequence[Matches], patients: NDArray[np.intp], count: int) -> None:
        self.lesions, self.images = (
            np.bincount(patients, np.array(numbers, np.float64), count)
            for numbers in ([one.lesions for one in images], [one.images for one in images])
        )
        joined = Matches.join(images)
        scores = np.concatenate([joined.hits, joined.false_positives])
        order = np.argsort(-scores)
        ranked = scores[order]
        self.hit = order < len(joined.hits)
        # The last detection of each score.
        self.ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)])
        sizes = [
            [len(getattr(image, name)) for image in images] for name in ("hits", "false_positives")
        ]
        self.patient = np.concatenate([np.repeat(patients, size) for size in sizes])[order]

    def froc(self, times: NDArray[np.floating], fppi: ArrayLike) -> Froc:
        """Compute the curve with each patient counted so many times."""
        lesions = float(times @ self.lesions)
        images = float(times @ self.images)
        asked = np.asarray(fppi, np.float64)
        if lesions < 1 or images < 1:
            raise ValueError(
                f"a FROC curve needs lesions and images, and there are {lesions:g} and {images:g}"
            )
        weights = times[self.patient]
        hits = np.cumsum(weights * self.hit)[self.ends]
        false_positives = np.cumsum(weights * ~self.hit)[self.ends]
        x = np.append(0.0, false_positives / images)
        y = np.append(0.0, hits / lesions)
        # Of several points at one x, interp takes the last, which is the highest.
        tpr = np.interp(asked, x, y)
        return Froc(tpr, _average_height(x, y, asked, tpr))


def _average_height(
    x: NDArray, y: NDArray, limits: NDArray[np.float64], tpr: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Average the height of a curve from 0 to each limit; at 0 and infinity, the height there."""
    limits = np.where(np.isfinite(limits), limits, 0.0)
    last = np.searchsorted(x, limits, side="right") - 1
    whole = np.append(0.0, np.cumsum(np.diff(x) * (y[1:] + y[:-1]) / 2))[last]
    total = whole + (limits - x[last]) * (y[last] + tpr) / 2
    return np.divide(total, limits, out=tpr.copy(), where=limits > 0)
