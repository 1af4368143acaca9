"""Overlap of masks for each image, with intervals and paired tests over patients.

With tn, fp, fn, tp the pixels of one image,

    accuracy = (tp + tn) / (tp + tn + fp + fn)
    Dice     = 2 tp / (2 tp + fp + fn)
    Jaccard  = tp / (tp + fp + fn)
    MCC      = (tp tn - fp fn) / sqrt((tp + fp)(tp + fn)(tn + fp)(tn + fn))

Two empty masks agree, so their Dice and Jaccard are 1. MCC is 0 where one of its denominator's
factors is 0: there the target or the output has one value only, and a correlation with a constant
says nothing, even if the two masks are equal.

The images of one patient resemble each other. Intervals and tests therefore draw whole patients.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tfmammo.metrics.significance import (
    FEWEST_PATIENTS,
    Estimate,
    bound_alike,
    is_point,
    percentile_interval,
)

BATCH = 1000  # draws of a bootstrap that are in memory at once
# tn, fp, fn, tp of n images
Counts = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def dice(target: ArrayLike, output: ArrayLike) -> float:
    """Compute twice the common area of two masks of one image over the sum of their areas.

    Args:
        target: The true mask, {0, 1}, bool or number.
        output: The other mask, of the same shape.

    Examples:
        >>> dice([1, 1, 0, 0], [1, 0, 0, 0])
        0.6666666666666666
    """
    pair = _to_binary(target, "target")[np.newaxis], _to_binary(output, "output")[np.newaxis]
    return float(_compute_all(_count_pixels(*pair))["dice"][0])


def per_image(
    targets: ArrayLike, probabilities: ArrayLike, threshold: float = 0.5
) -> dict[str, NDArray[np.float64]]:
    """Compute all four measures for each of n images.

    Args:
        targets: bool or number [n, ...], {0, 1}.
        probabilities: float [n, ...], in [0, 1].
        threshold: In (0, 1]; a pixel is mass where its probability reaches it.

    Returns:
        "accuracy", "dice", "jaccard", "mcc", in this order -> float64 [n].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], not at {threshold}")
    probabilities = np.asarray(probabilities)
    if not np.all((probabilities >= 0) & (probabilities <= 1)):
        raise ValueError("probabilities must be between 0 and 1")
    targets = _to_binary(targets, "targets")
    outputs = probabilities >= threshold
    if targets.ndim < 2:
        raise ValueError(f"targets must have shape [n, ...], not {targets.shape}")
    return _compute_all(_count_pixels(targets, outputs))


def bootstrap_interval(
    values: ArrayLike,
    groups: ArrayLike | None = None,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of the mean; groups are drawn whole.

    Args:
        values: Number [n], finite.
        groups: The patient of each value [n]; None makes each value its own group.
        samples: Number of draws.
        seed: Seed of the draws.
        level: Confidence level, in (0, 1).

    Returns:
        (low, high), in the values' unit; NaN where there are fewer than `FEWEST_PATIENTS` groups.

    Source:
        Davison & Hinkley, Bootstrap Methods (1997), 3.8, resampling of clusters.
    """
    sums, sizes = _sum_groups(values, groups)
    if len(sums) < FEWEST_PATIENTS:
        return float("nan"), float("nan")
    # The number of images varies from draw to draw, so that the mean is a ratio of two sums.
    interval = stats.bootstrap(
        (sums, sizes),
        lambda sums, sizes, axis: sums.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=samples,
        batch=BATCH,
        confidence_level=level,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def share_interval(
    values: ArrayLike,
    groups: ArrayLike | None = None,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Compute the interval of a share, a mean of values in [0, 1], as `bootstrap_interval`.

    Where all groups are alike, a bootstrap has no width, though other patients might differ. The
    interval then reaches as far as the rule of three says for so many patients.
    """
    low, high = bootstrap_interval(values, groups, samples, seed, level)
    if not is_point(low, high):
        return low, high
    sums, sizes = _sum_groups(values, groups)
    return bound_alike(float(sums.sum() / sizes.sum()), len(sums), level)


def crossed_interval(
    values: ArrayLike,
    first: Sequence[str],
    second: Sequence[str],
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Compute the bootstrap interval of the mean where each value is of two patients.

    Both, of a mammogram (`first`) and of a lesion in it (`second`), are drawn with replacement. A
    value counts as often as the product of their draws. Where both are the same person everywhere,
    this is `bootstrap_interval`; otherwise the result is as there.

    Source:
        Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007) 386.
    """
    if list(first) == list(second):
        return bootstrap_interval(values, first, samples, seed, level)
    numbers = np.asarray(values, np.float64)
    random = np.random.default_rng(seed)
    sides = [np.unique(np.asarray(names), return_inverse=True) for names in (first, second)]
    if min(len(patients) for patients, _ in sides) < FEWEST_PATIENTS:
        return float("nan"), float("nan")
    means = []
    for start in range(0, samples, BATCH):
        weights = np.ones((min(BATCH, samples - start), len(numbers)))
        for patients, places in sides:
            share = np.full(len(patients), 1 / len(patients))
            weights *= random.multinomial(len(patients), share, len(weights))[:, places]
        totals = weights.sum(axis=1)
        means.append(weights[totals > 0] @ numbers / totals[totals > 0])
    return percentile_interval(np.concatenate(means), level)


def paired_test(
    a: ArrayLike,
    b: ArrayLike,
    groups: ArrayLike | None = None,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Test whether two models differ in the mean over the same images; patients are flipped whole.

    If the models are exchangeable, each patient's summed difference could have the other sign as
    well. All combinations of signs are tried if there are at most `samples`, otherwise `samples`
    random ones. The smallest p of k patients is 2^(1-k).

    Args:
        a: One model's values, number [n], finite.
        b: The other model's values of the same images.
        groups: The patient of each image [n]; None makes each image its own group.
        samples: The most combinations of signs that are tried, and draws of the bootstrap.
        seed: Seed of the draws.
        level: Confidence level, in (0, 1).

    Returns:
        The difference of the means, a - b, with its bootstrap interval and the p of the test; NaN
        where there are fewer than `FEWEST_PATIENTS` patients.
    """
    a = np.asarray(a, np.float64)
    b = np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values must be equally many, not {a.shape} and {b.shape}")
    sums, sizes = _sum_groups(a - b, groups)
    p = np.nan
    if len(sums) >= FEWEST_PATIENTS:
        p = stats.permutation_test(
            (sums,),
            lambda sums, axis: sums.sum(axis=axis),
            permutation_type="samples",  # of one sample: the signs
            vectorized=True,
            n_resamples=samples,
            batch=BATCH,
            rng=np.random.default_rng(seed),
        ).pvalue
    return Estimate(
        float(sums.sum() / sizes.sum()),
        *bootstrap_interval(a - b, groups, samples, seed, level),
        float(p),
    )


def disc_dice(masks: ArrayLike) -> NDArray[np.float64]:
    """Compute the Dice of each mask with centred discs of radius 0.5 px, 1 px, 1.5 px and so on.

    A disc is as in `centred_disc`. The last one holds the whole patch.

    Args:
        masks: {0, 1}, shape ``[n, s, s, 1]``.

    Returns:
        Dice in [0, 1], float64 ``[n, radii]``, 0 for an empty mask.
    """
    masks = _to_binary(masks, "masks")
    if masks.ndim != 4 or masks.shape[1] != masks.shape[2] or masks.shape[3] != 1:
        raise ValueError(f"masks must have shape [n, s, s, 1], not {masks.shape}")
    # The radius, in half pixels, from which on a disc holds each pixel.
    needed = np.ceil(2 * _distance_to_middle(masks.shape[1])).astype(np.intp).ravel()
    area = np.cumsum(np.bincount(needed))[1:]
    lesions = masks.reshape(len(masks), -1)
    inside = [
        np.cumsum(np.bincount(needed[lesion], minlength=needed.max() + 1))[1:] for lesion in lesions
    ]
    overlap = np.reshape(inside, (len(masks), len(area)))
    return 2 * overlap / np.maximum(area + lesions.sum(axis=1)[:, np.newaxis], 1)


def centred_disc(size: int, radius: float) -> NDArray[np.float32]:
    """Draw a disc in the middle of a patch, float32 {0, 1} ``[size, size, 1]``.

    It holds the pixels whose centres are at most `radius` px from the middle.
    """
    return (_distance_to_middle(size) <= radius).astype(np.float32)[..., np.newaxis]


def _distance_to_middle(size: int) -> NDArray[np.float64]:
    rows, cols = np.mgrid[:size, :size] + 0.5 - size / 2
    return np.hypot(rows, cols)


def _to_binary(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    values = np.asarray(values)
    if values.dtype != np.bool_ and not np.all((values == 0) | (values == 1)):
        raise ValueError(f"{name} must hold nothing but 0 and 1")
    return values.astype(np.bool_)


def _count_pixels(targets: NDArray[np.bool_], outputs: NDArray[np.bool_]) -> Counts:
    if targets.shape != outputs.shape:
        raise ValueError(
            f"target and output must have one shape, not {targets.shape} and {outputs.shape}"
        )
    if targets.size == 0:
        raise ValueError("there is no pixel to compare")
    masks = (array.reshape(len(targets), -1) for array in (targets & outputs, targets, outputs))
    # float64, because MCC's product of four sums passes 2^63 from 256x256 pixels on.
    tp, positive, marked = (mask.sum(axis=1, dtype=np.float64) for mask in masks)
    fp = marked - tp
    fn = positive - tp
    return targets[0].size - tp - fp - fn, fp, fn, tp


def _compute_all(counts: Counts) -> dict[str, NDArray[np.float64]]:
    tn, fp, fn, tp = counts
    return {
        "accuracy": (tp + tn) / (tn + fp + fn + tp),
        "dice": _divide(2 * tp, 2 * tp + fp + fn, empty=1.0),
        "jaccard": _divide(tp, tp + fp + fn, empty=1.0),
        "mcc": _divide(
            tp * tn - fp * fn,
            # Two roots, because the root of the whole product rounds (x, x) to 0.9999999.
            np.sqrt((tp + fp) * (tn + fn)) * np.sqrt((tp + fn) * (tn + fp)),
            empty=0.0,
        ),
    }


def _divide(
    numerator: NDArray[np.float64], denominator: NDArray[np.float64], empty: float
) -> NDArray[np.float64]:
    return np.divide(
        numerator, denominator, out=np.full_like(numerator, empty), where=denominator != 0
    )


def _sum_groups(
    values: ArrayLike, groups: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the sum and the number of values of each group."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(
            f"values must be a list of at least one number, not of shape {values.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError("values must be finite")
    if groups is None:
        return values, np.ones_like(values)
    groups = np.asarray(groups)
    if groups.shape != values.shape:
        raise ValueError(f"there are {len(values)} values but groups of shape {groups.shape}")
    _, members = np.unique(groups, return_inverse=True)
    sums = np.bincount(members, weights=values)
    sizes = np.bincount(members)
    return sums.astype(np.float64), sizes.astype(np.float64)
