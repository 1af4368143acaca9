"""Psychometric functions: from which contrast or size on a lesion is found.

With x the logarithm of a stimulus (a contrast, a size), the probability of a hit is

    P(x) = guess + (1 - guess - lapse) F(slope (x - middle))

F is the logistic distribution function. `guess` is the share of hits where nothing
was inserted, which `blanks` observe, and 1 - lapse the share of hits of the plainest stimuli.

The parameter of interest is the stimulus at which P is 0.5: of lesions like it every second one is
found. It takes the place of `middle`, so that its likelihood can be profiled. Unlike the middle
between guess and ceiling, it hardly depends on how `lapse` and `slope` share what they explain.

Pairs of one patient resemble each other, so that the likelihood of single pairs is too sure. The
profile's fall is therefore divided by the ratio of two variances of the estimate: by patients
(sandwich), and of independent pairs. It is compared with Student's t of (patients - 1) degrees.

Source: Wichmann and Hill, The psychometric function I, Perception & Psychophysics 63 (2001) 1293.
    Chandler and Bate, Inference for clustered data using the independence loglikelihood, Biometrika
    94 (2007) 167; here of one parameter, along its profile.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from tfmammo.metrics.significance import FEWEST_PATIENTS

Array = NDArray[np.float64]

MOST = 0.45  # of guess and of lapse: both must leave P = 0.5 between them
SLOPES = (0.3, 30.0)  # from "rises over a factor of a thousand" to "a step"
SLOPES_TRIED = (1.5, 6.0)  # where the search begins
EDGE = 1e-6  # nearer to a bound, a parameter counts as fixed there
TINY = 1e-9


@dataclass(frozen=True)
class Psychometric:
    """A fitted psychometric function.

    Attributes:
        threshold: The stimulus at which every second lesion is found. It is infinite where the
            curve reaches a half at none of the tested stimuli, 0 where it is above at all of them.
        low: Lower bound of its interval, like `high`; 0 and infinite where the tested stimuli don't
            bound it, NaN where there are fewer than `FEWEST_PATIENTS` patients.
        slope: Of F, per factor e of the stimulus.
        guess: Share of hits where nothing was inserted, in [0, 0.45].
        lapse: Share of misses of the plainest stimuli, in [0, 0.45].
        level: Confidence level of the interval.
        inflation: The ratio of variances, see the module; 1 of independent pairs.
    """

    threshold: float
    low: float
    high: float
    slope: float
    guess: float
    lapse: float
    level: float
    patients: int
    inflation: float

    def predict(self, stimuli: ArrayLike) -> Array:
        """Compute the probability of a hit at stimuli > 0; NaN where the threshold is unbounded."""
        stimuli = np.asarray(stimuli, np.float64)
        if not 0 < self.threshold < np.inf:
            return np.full(stimuli.shape, np.nan)
        parameters = np.array(
            [np.log(self.threshold), np.log(self.slope), self.guess, self.lapse], np.float64
        )
        return _compute_curve(parameters, np.log(stimuli))[0]


@dataclass(frozen=True, eq=False)
class _Data:
    """Checked observations: logarithms of stimuli, hits, and the patients' numbers."""

    x: Array
    hits: Array
    members: NDArray[np.intp]
    blanks: Array
    blank_members: NDArray[np.intp]
    patients: int


def fit(
    stimuli: ArrayLike,
    hits: ArrayLike,
    patients: ArrayLike,
    blanks: ArrayLike = (),
    blank_patients: ArrayLike = (),
    level: float = 0.95,
    interval: bool = True,
) -> Psychometric:
    """Fit a psychometric function by maximum likelihood.

    Args:
        stimuli: Contrasts or sizes, above 0, shape ``[n]``; two different ones at least.
        hits: 0 or 1, whether each was found, shape ``[n]``.
        patients: The patient of each, shape ``[n]``.
        blanks: 0 or 1, whether something was found where nothing had been inserted, shape ``[m]``.
            Without any, `guess` is 0.
        blank_patients: The patient of each, shape ``[m]``.
        interval: Whether to compute it; else its bounds are NaN, and the fit takes milliseconds.
    """
    data = _check(stimuli, hits, patients, blanks, blank_patients)
    best, loss = _search(data)
    inflation = _compare_variances(best, data)
    low = high = np.nan
    if interval and data.patients >= FEWEST_PATIENTS:
        quantile = stats.t.ppf(0.5 + level / 2, data.patients - 1)
        fall = 0.5 * quantile**2 * inflation
        low, high = _profile(best, loss + fall, data)
    threshold = float(np.exp(best[0]))
    if best[0] > data.x.max():  # beyond what was tested
        threshold = np.inf
    elif best[0] < data.x.min():
        threshold = 0.0
    slope, guess, lapse = (float(value) for value in (np.exp(best[1]), *best[2:]))
    return Psychometric(threshold, low, high, slope, guess, lapse, level, data.patients, inflation)


def _check(
    stimuli: ArrayLike,
    hits: ArrayLike,
    patients: ArrayLike,
    blanks: ArrayLike,
    blank_patients: ArrayLike,
) -> _Data:
    values = np.asarray(stimuli, np.float64)
    found = np.asarray(hits, np.float64)
    of_blanks = np.asarray(blanks, np.float64)
    names = np.concatenate([np.asarray(patients, np.str_), np.asarray(blank_patients, np.str_)])
    if not (np.isfinite(values).all() and np.all(values > 0)):
        raise ValueError("a stimulus must be above 0, as its logarithm is fitted")
    if len(np.unique(values)) < 2:
        raise ValueError("a curve needs two different stimuli at least")
    unique_names, members = np.unique(names, return_inverse=True)
    places = np.split(members, [len(values)])
    return _Data(np.log(values), found, places[0], of_blanks, places[1], len(unique_names))


def _compute_curve(parameters: Array, x: Array) -> tuple[Array, Array]:
    """Compute P(x) [n] and its derivatives by the parameters [n, 4].

    These are the logarithms of threshold and slope, guess and lapse; x are logarithms of stimuli.
    """
    threshold, log_slope, guess, lapse = parameters
    height = 1 - guess - lapse
    share = (0.5 - guess) / height  # of F at the threshold
    shift = special.logit(share)
    slope = np.exp(log_slope)
    z = slope * (x - threshold) + shift
    cumulative = special.expit(z)
    density = height * (cumulative * (1 - cumulative))
    # of the shift, by guess and lapse
    turn = 1 / (share * (1 - share) * height**2)
    derivatives = np.stack(
        [
            -density * slope,
            density * slope * (x - threshold),
            1 - cumulative + density * turn * (lapse - 0.5),
            -cumulative + density * turn * (0.5 - guess),
        ],
        axis=-1,
    )
    return np.clip(guess + height * cumulative, TINY, 1 - TINY), derivatives


def _compute_loss(parameters: Array, data: _Data) -> tuple[float, Array]:
    """Compute minus the logarithm of the likelihood, and its gradient [4]."""
    p, derivatives = _compute_curve(parameters, data.x)
    guess = float(np.clip(parameters[2], TINY, 1 - TINY))
    blanks = data.blanks.sum()
    others = len(data.blanks) - blanks
    loss = -np.sum(np.where(data.hits == 1, np.log(p), np.log1p(-p)))
    loss -= blanks * np.log(guess) + others * np.log1p(-guess)
    gradient = -((data.hits - p) / (p * (1 - p))) @ derivatives
    gradient[2] -= blanks / guess - others / (1 - guess)
    return float(loss), gradient


def _list_bounds(data: _Data) -> list[tuple[float, float]]:
    reach = data.x.max() - data.x.min()
    most_guess = MOST if len(data.blanks) else 0.0
    return [
        (data.x.min() - reach, data.x.max() + reach),
        (np.log(SLOPES[0]), np.log(SLOPES[1])),
        (0.0, most_guess),
        (0.0, MOST),
    ]


def _search(data: _Data) -> tuple[Array, float]:
    """Find the most likely parameters, and the loss there."""
    bounds = _list_bounds(data)
    guess = float(np.clip(data.blanks.mean() if len(data.blanks) else 0, 0.0, bounds[2][1]))
    # Where a line through the hits crosses a half, roughly.
    middle = float(np.quantile(data.x, np.clip(1 - data.hits.mean(), 0.02, 0.98)))
    results = [
        optimize.minimize(
            _compute_loss,
            np.array([middle, np.log(slope), guess, 0.05]),
            (data,),
            "L-BFGS-B",
            jac=True,
            bounds=bounds,
        )
        for slope in SLOPES_TRIED
    ]
    best = min(results, key=lambda result: float(result.fun))
    return np.asarray(best.x, np.float64), float(best.fun)


def _profile(best: Array, limit: float, data: _Data) -> tuple[float, float]:
    """Find the stimuli (low, high) between which the profile's loss is below a limit.

    They are 0 and infinity where the tested stimuli don't bound them.
    """
    bounds = _list_bounds(data)
    last = best[1:].copy()  # where the last search ended

    @functools.cache  # a search that begins elsewhere ends elsewhere, and roots need one sign
    def exceed(threshold: float) -> float:
        """Return the profile's loss at the logarithm of a threshold, less the limit."""

        def compute(others: Array) -> tuple[float, Array]:
            loss, gradient = _compute_loss(np.concatenate([[threshold], others]), data)
            return loss, gradient[1:]

        results = [
            optimize.minimize(compute, start, method="L-BFGS-B", jac=True, bounds=bounds[1:])
            for start in (last.copy(), best[1:])
        ]
        nearest = min(results, key=lambda result: float(result.fun))
        last[:] = nearest.x
        return float(nearest.fun) - limit

    smallest, largest = float(data.x.min()), float(data.x.max())
    inside = float(np.clip(best[0], smallest, largest))
    if exceed(inside) > 0:  # the estimate is beyond what was tested, and so is its interval
        beyond = best[0] > largest
        return (float(np.exp(largest)), np.inf) if beyond else (0.0, float(np.exp(smallest)))
    low, high = 0.0, float("inf")
    if exceed(smallest) > 0:
        low = float(np.exp(optimize.brentq(exceed, smallest, inside, xtol=1e-3)))
    if exceed(largest) > 0:
        high = float(np.exp(optimize.brentq(exceed, inside, largest, xtol=1e-3)))
    return low, high


def _compare_variances(best: Array, data: _Data) -> float:
    """Divide the threshold's variance by patients by that of independent pairs.

    Parameters at a bound are taken as known.
    """
    bounds = np.array(_list_bounds(data))
    free = (best > bounds[:, 0] + EDGE) & (best < bounds[:, 1] - EDGE)
    if not free[0] or data.patients < 2:
        return 1.0
    p, derivatives = _compute_curve(best, data.x)
    weights = 1 / (p * (1 - p))
    information = (derivatives * weights[:, None]).T @ derivatives
    scores = np.zeros((data.patients, 4))
    np.add.at(scores, data.members, derivatives * ((data.hits - p) * weights)[:, None])
    if len(data.blanks):
        guess = float(np.clip(best[2], TINY, 1 - TINY))
        weight = 1 / (guess * (1 - guess))
        information[2, 2] += len(data.blanks) * weight
        np.add.at(scores[:, 2], data.blank_members, (data.blanks - guess) * weight)
    information = information[np.ix_(free, free)]
    scores = scores[:, free]
    inverse = np.linalg.pinv(information)
    independent = inverse[0, 0]
    factor = data.patients / (data.patients - 1)
    clustered = factor * np.sum((scores @ inverse[:, 0]) ** 2)
    return float(clustered / independent) if independent > 0 and clustered > 0 else 1.0
