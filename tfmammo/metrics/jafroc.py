"""JAFROC: do two detectors differ on the same images, when lesions must be found as well
as called? Numpy.

The figure of merit is the probability that a lesion's rating exceeds the highest false positive of
an image, ties counting one half. A lesion that is not found, and an image without false positives,
are rated below every score. JAFROC takes normal images for the false positives, as a false positive
beside a lesion depends on that lesion's finding; JAFROC1 takes all images, for where there are no
normal ones. Cases are left out one by one (jackknife), and the two detectors' pseudo-values of the
same cases compared.

Source: Chakraborty and Berbaum, Observer studies involving detection and localization, Medical
Physics 31 (2004) 2313-2330; Chakraborty, Analysis of location specific observer performance data,
Academic Radiology 13 (2006) 1187-1193, for JAFROC1; Dorfman, Berbaum and Metz, Investigative
Radiology 27 (1992) 723-731, for pseudo-values. Departures: a case is a patient with all images,
since images of one patient are not independent; the readers are one detector each, whose analysis
of variance is the paired t test. A detector that was trained several times (folds, seeds) has the
mean of its trainings' figures of merit, with every patient left out of all of them: each training
has a scale of scores of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tfmammo.metrics.detection import (
    Matches,
    Training,
    check_pair,
    parts_with_lesions,
    rows_by_training,
)
from tfmammo.metrics.significance import FEWEST_PATIENTS

Merit = Literal["jafroc", "jafroc1"]


def merit_for(images: Sequence[Matches], trainings: Sequence[Training] | None = None) -> Merit:
    """The merit "jafroc" where every training has images without lesions to take false positives
    from, else "jafroc1".
    """
    parts = parts_with_lesions(images, trainings).values()
    return (
        "jafroc" if all(any(not image.lesions for image in part) for part in parts) else "jafroc1"
    )


@dataclass(frozen=True)
class JafrocTest:
    """How one detector's figure of merit differs from another's on the same images.

    Attributes:
        merit: In [0, 1].
        other: In [0, 1].
        difference: Merit - other.
        low: Its interval.
        high: Its interval.
        t: Of the paired t test of pseudo-values.
        degrees: Of the paired t test of pseudo-values.
        p: Two-sided. Where it can't be tested, all but the first three are NaN, degrees 0.
    """

    merit: float
    other: float
    difference: float
    low: float
    high: float
    t: float
    degrees: int
    p: float


def jafroc(images: Sequence[Matches], merit: Merit = "jafroc") -> float:
    """The figure of merit of one detector.

    theta = 1 / (N L) sum_ij psi(X_i, Y_j), where psi is 1 for X < Y, 1/2 for X = Y, 0 for X > Y;
    X_i the highest false positive of image i of N, Y_j the rating of lesion j of L, minus infinity
    where there is none.

    Args:
        images: Of each image its matches.
        merit: "jafroc" takes X from images without lesions, "jafroc1" from all.

    Returns:
        0 to 1; 1/2 of a detector that finds nothing anywhere.

    Raises:
        ValueError: There is no lesion, or no image to take X from.

    Source:
        Chakraborty and Berbaum (2004), the figure of merit; Chakraborty (2006), JAFROC1.
    """
    return _Ratings(images, np.zeros(len(images), np.intp), merit).theta()


def jafroc_test(
    images: Sequence[Matches],
    others: Sequence[Matches],
    patient_ids: Sequence[str],
    merit: Merit = "jafroc",
    level: float = 0.95,
    trainings: Sequence[Training] | None = None,
    others_trainings: Sequence[Training] | None = None,
    fewest: int = FEWEST_PATIENTS,
) -> JafrocTest:
    """Whether two detectors of the same images have different figures of merit, by the jackknife
    over patients.

    Of patient k of K the pseudo-value is K theta - (K - 1) theta(k), where theta(k) is without the
    patient; t is the difference of the figures over the standard error of the mean difference of
    pseudo-values, with K - 1 degrees of freedom.

    Args:
        images: Of each image its matches by either detector.
        others: Of each image its matches by either detector.
        patient_ids: Of each image.
        merit: As for `jafroc`.
        level: Of confidence, in (0, 1).
        trainings: Of each image the training that answered, of `images` and of `others`; theta is
            the mean of their figures of merit. None: all on one scale.
        others_trainings: Of each image the training that answered, of `images` and of `others`;
            theta is the mean of their figures of merit. None: all on one scale.
        fewest: Patients below which nothing is tested.

    Returns:
        JafrocTest; untested (NaN) where there are fewer patients than `fewest`, or without some
        patient a training has no lesion or no image left. Where the two never differ t is 0 and p
        1; where they differ without variance t is infinite and p 0.

    Raises:
        ValueError: As `jafroc`, of any training, or images, others, patients and trainings don't
            belong together.
    """
    check_pair(images, patient_ids, others)
    patients, rows = np.unique(np.asarray(patient_ids, np.str_), return_inverse=True)
    count = len(patients)
    ours = _ratings(images, rows, merit, trainings)
    theirs = _ratings(others, rows, merit, others_trainings)
    first, other = (float(np.mean([part.theta() for part in side])) for side in (ours, theirs))
    difference = first - other
    left = np.mean([part.left_out(count) for part in ours], axis=0) - np.mean(
        [part.left_out(count) for part in theirs], axis=0
    )
    if count < fewest or np.isnan(left).any():
        return JafrocTest(first, other, difference, np.nan, np.nan, np.nan, 0, np.nan)
    pseudo = count * difference - (count - 1) * left
    error = float(np.sqrt(pseudo.var(ddof=1) / count))
    degrees = count - 1
    t = difference / error if error >= 1e-12 else 0.0  # below is what rounding leaves of 0
    if error < 1e-12 <= abs(difference):
        t = float(np.copysign(np.inf, difference))
    half = float(stats.t.ppf((1 + level) / 2, degrees)) * error
    p = float(2 * stats.t.sf(abs(t), degrees))
    return JafrocTest(first, other, difference, difference - half, difference + half, t, degrees, p)


def _ratings(
    images: Sequence[Matches],
    patients: NDArray[np.intp],
    merit: Merit,
    trainings: Sequence[Training] | None,
) -> list[_Ratings]:
    """Each training's, but for one that judged no lesion, where others did."""
    places = rows_by_training(trainings, len(images)).values()
    some = [rows for rows in places if any(images[row].lesions for row in rows)] or [
        list(range(len(images)))
    ]
    return [_Ratings([images[row] for row in rows], patients[rows], merit) for rows in some]


class _Ratings:
    """Lesions' ratings and images' highest false positives, each with its patient's number."""

    def __init__(self, images: Sequence[Matches], patients: NDArray[np.intp], merit: Merit) -> None:
        if merit not in ("jafroc", "jafroc1"):
            raise ValueError(f"a figure of merit is jafroc or jafroc1, not {merit}")
        lesions = [
            np.append(image.hits, np.full(image.lesions - len(image.hits), -np.inf))
            for image in images
        ]
        self.lesions = np.concatenate([np.empty(0), *lesions])
        self.lesions_of = np.repeat(patients, [image.lesions for image in images])
        taken = np.array([merit == "jafroc1" or not image.lesions for image in images], np.bool_)
        highest = np.array(
            [image.false_positives.max(initial=-np.inf) for image in images], np.float64
        )
        self.highest = highest[taken]
        self.highest_of = patients[taken]
        if not len(self.lesions):
            raise ValueError("a figure of merit needs lesions, and there is none")
        if not len(self.highest):
            raise ValueError(
                "jafroc needs images without lesions, and there is none; jafroc1 takes the others"
            )

    def theta(self) -> float:
        """The figure of merit."""
        return float(self._outscored().sum()) / (2 * len(self.lesions) * len(self.highest))

    def left_out(self, count: int) -> NDArray[np.float64]:
        """theta(k) without each of so many patients: float64 [count], NaN where no lesion or no
        image is left.

        Of the sum of 2 psi over all pairs those of the patient's lesions and those of the patient's
        images are taken away, and what was taken twice is given back: n log n in all.
        """
        images, lesions = (
            np.bincount(of, minlength=count) for of in (self.highest_of, self.lesions_of)
        )
        of_lesions = self._outscored()
        ranks = np.sort(self.lesions)
        below = sum(np.searchsorted(ranks, self.highest, side=side) for side in ("left", "right"))
        taken = np.bincount(self.lesions_of, of_lesions, count) + np.bincount(
            self.highest_of, 2 * len(ranks) - below, count
        )
        left = (len(self.highest) - images) * (len(self.lesions) - lesions)
        with np.errstate(invalid="ignore"):
            return np.where(
                left > 0, of_lesions.sum() - taken + self._own(images, count), np.nan
            ) / (2 * left)

    def _outscored(self) -> NDArray[np.float64]:
        """Of each lesion the sum of 2 psi over all images."""
        highest = np.sort(self.highest)
        return np.asarray(
            sum(np.searchsorted(highest, self.lesions, side=side) for side in ("left", "right")),
            np.float64,
        )

    def _own(self, images: NDArray[np.intp], count: int) -> NDArray[np.float64]:
        """Of each patient the sum of 2 psi over pairs of own lesions and own images."""
        partners = images[self.lesions_of]  # of each lesion
        lesion = np.repeat(np.arange(len(self.lesions)), partners)
        nth = np.arange(len(lesion)) - np.repeat(np.cumsum(partners) - partners, partners)
        first = (np.cumsum(images) - images)[self.lesions_of[lesion]]
        x = self.highest[np.argsort(self.highest_of, kind="stable")][first + nth]
        y = self.lesions[lesion]
        return np.bincount(self.lesions_of[lesion], 1.0 * (x < y) + (x <= y), count).astype(
            np.float64
        )
