"""JAFROC: test whether two detectors differ in finding lesions on the same images.

The figure of merit is the probability that a lesion's rating exceeds the highest false positive of
an image; ties count one half. A lesion that is not found, and an image without false positives, are
rated below every score. JAFROC takes the false positives of normal images, because a false positive
beside a lesion depends on whether that lesion is found. JAFROC1 takes those of all images, for
where there are no normal ones, or all are one patient's. Cases are omitted one by one (jackknife),
and the two detectors' pseudo-values of the same cases are compared.

Source: Chakraborty and Berbaum, Observer studies involving detection and localization, Medical
Physics 31 (2004) 2313-2330; Chakraborty, Analysis of location specific observer performance data,
Academic Radiology 13 (2006) 1187-1193, for JAFROC1; Dorfman, Berbaum and Metz, Investigative
Radiology 27 (1992) 723-731, for pseudo-values. Deviations: a case is a patient with all images,
because images of one patient are not independent. There is one reader, a detector, on each side, so
that the analysis of variance is the paired t test. For a detector that was trained several times
(folds, seeds), the figures of merit of its runs are averaged, because each run has its
own scale of scores; a patient is omitted from all of them. Degrees of freedom are Welch's for
patients with lesions and without: with one less than all patients, as in the sources, 8 of 100
tests of equal detectors reject at 0.05 where six patients with lesions meet a hundred without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tfmammo.metrics.boxes import Matches
from tfmammo.metrics.detection import Found, check_pair
from tfmammo.metrics.significance import FEWEST_PATIENTS, bound_alike, welch_degrees

Merit = Literal["jafroc", "jafroc1"]


def choose_common_merit(patient_ids: Sequence[str], *detectors: Found) -> Merit:
    """Choose "jafroc" if every run of all detectors has images without lesions, else "jafroc1".

    In each run they must be of two patients at least, because the jackknife omits one. Over all
    runs they must be of `FEWEST_PATIENTS`: with fewer the test rejects too often.
    """
    for found in detectors:
        normal = [
            {patient_ids[row] for row in rows if not found.images[row].lesions}
            for rows in _list_runs(found)
        ]
        if min(map(len, normal)) < 2 or len(set().union(*normal)) < FEWEST_PATIENTS:
            return "jafroc1"
    return "jafroc"


@dataclass(frozen=True)
class JafrocTest:
    """How one detector's figure of merit differs from another's on the same images.

    Attributes:
        merit: The detector's figure of merit, in [0, 1].
        other: The other detector's, in [0, 1].
        difference: merit - other, with the bounds `low` and `high` of its interval.
        t: Statistic of the paired t test of pseudo-values, with `degrees` of freedom.
        p: Two-sided. Where the difference can't be tested, p, t, low and high are NaN and degrees
            is 0.
    """

    merit: float
    other: float
    difference: float
    low: float
    high: float
    t: float
    degrees: float
    p: float


def jafroc(images: Sequence[Matches], merit: Merit = "jafroc") -> float:
    """Compute the figure of merit of one detector, 0 to 1; 1/2 where nothing is found anywhere.

    theta = 1 / (N L) sum_ij psi(X_i, Y_j), where psi is 1 for X < Y, 1/2 for X = Y, 0 for X > Y;
    X_i the highest false positive of image i of N, Y_j the rating of lesion j of L, minus infinity
    where there is none.

    Args:
        images: The matches in each image, with lesions in some.
        merit: "jafroc" takes X from images without lesions, "jafroc1" from all.
    """
    return _Ratings(images, np.zeros(len(images), np.intp), merit).theta()


def jafroc_test(
    found: Found,
    other: Found,
    patient_ids: Sequence[str],
    merit: Merit = "jafroc",
    level: float = 0.95,
) -> JafrocTest:
    """Test whether two detectors have different figures of merit, by the jackknife over patients.

    The pseudo-value of patient k of K is K theta - (K - 1) theta(k), where theta(k) is without the
    patient; t is the difference of the figures over the standard error of the mean difference of
    pseudo-values, with Welch's degrees of freedom, K - 1 at most.

    Args:
        found: What one detector found; theta is the mean of its runs' figures of merit.
        other: What the other detector found in the same images.
        patient_ids: The patient of each image.

    Returns:
        The test. It is NaN where fewer than `FEWEST_PATIENTS` patients have a lesion, or where a
        run has no lesions or images without some patient. Where the two never differ, t is 0 and p
        is 1. Where they differ without variance, t is infinite, p is 2^(1-n) of n patients
        with a lesion, as of a test that flips signs, and the interval that of the rule of three.
    """
    check_pair(found, patient_ids, other)
    patients, rows = np.unique(np.asarray(patient_ids, np.str_), return_inverse=True)
    count = len(patients)
    ours, theirs = (_rank_runs(side, rows, merit) for side in (found, other))
    first, second = (float(np.mean([part.theta() for part in side])) for side in (ours, theirs))
    difference = first - second
    left = np.mean([part.leave_out(count) for part in ours], axis=0)
    left = left - np.mean([part.leave_out(count) for part in theirs], axis=0)
    is_diseased = np.bincount(rows, [image.lesions for image in found.images], count) > 0
    if is_diseased.sum() < FEWEST_PATIENTS or np.isnan(left).any():
        return JafrocTest(first, second, difference, np.nan, np.nan, np.nan, 0, np.nan)
    pseudo = count * difference - (count - 1) * left
    error = float(np.sqrt(pseudo.var(ddof=1) / count))
    squares = np.square(pseudo - pseudo.mean())
    groups = (is_diseased, ~is_diseased)
    degrees = welch_degrees(
        [float(squares[group].sum()) for group in groups],
        [int(group.sum()) for group in groups],
        count - 1,
    )
    if error < 1e-12 <= abs(difference):
        diseased = int(is_diseased.sum())
        low, high = bound_alike(difference, diseased, level, lowest=-1.0)
        t = float(np.copysign(np.inf, difference))
        p = 2.0 ** (1 - diseased)
        return JafrocTest(first, second, difference, low, high, t, degrees, p)
    t = difference / error if error >= 1e-12 else 0.0  # below is what rounding leaves of 0
    half = float(stats.t.ppf((1 + level) / 2, degrees)) * error
    low, high = difference - half, difference + half
    p = float(2 * stats.t.sf(abs(t), degrees))
    return JafrocTest(first, second, difference, low, high, t, degrees, p)


def _rank_runs(found: Found, patients: NDArray[np.intp], merit: Merit) -> list[_Ratings]:
    return [
        _Ratings([found.images[row] for row in rows], patients[rows], merit)
        for rows in _list_runs(found)
    ]


def _list_runs(found: Found) -> list[list[int]]:
    """List the images of each run, without runs that have no lesion if others do."""
    return [*found.rows_with_lesions().values()] or [list(range(len(found.images)))]


class _Ratings:
    """Lesions' ratings and images' highest false positives, each with its patient's number."""

    def __init__(self, images: Sequence[Matches], patients: NDArray[np.intp], merit: Merit) -> None:
        lesions = [
            np.append(image.hits, np.full(image.lesions - len(image.hits), -np.inf))
            for image in images
        ]
        self.lesions = np.concatenate([np.empty(0), *lesions])
        self.lesions_of = np.repeat(patients, [image.lesions for image in images])
        is_taken = np.array([merit == "jafroc1" or not image.lesions for image in images], np.bool_)
        highest = [image.false_positives.max(initial=-np.inf) for image in images]
        self.highest = np.array(highest, np.float64)[is_taken]
        self.highest_of = patients[is_taken]
        order = np.argsort(self.highest)  # as `_compute_theta` wants them
        self.highest, self.highest_of = self.highest[order], self.highest_of[order]
        if not len(self.lesions):
            raise ValueError("a figure of merit needs lesions, and there is none")
        if not len(self.highest):
            raise ValueError(
                "jafroc needs images without lesions, and there is none; jafroc1 takes the others"
            )

    def theta(self) -> float:
        """The figure of merit."""
        return _compute_theta(self.lesions, self.highest)

    def leave_out(self, count: int) -> NDArray[np.float64]:
        """Compute theta(k) without each of so many patients; NaN without any lesion or image."""
        return np.array(
            [
                _compute_theta(
                    self.lesions[self.lesions_of != patient],
                    self.highest[self.highest_of != patient],
                )
                for patient in range(count)
            ]
        )


def _compute_theta(lesions: NDArray[np.float64], highest: NDArray[np.float64]) -> float:
    """Compute the figure of merit of rising `highest`; NaN where either is empty."""
    if not (len(lesions) and len(highest)):
        return np.nan
    twice = sum(np.searchsorted(highest, lesions, side=side).sum() for side in ("left", "right"))
    return float(twice / (2 * len(lesions) * len(highest)))
