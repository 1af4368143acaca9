"""Overlap of masks for each image.

With tn, fp, fn, tp the pixels of one image,

    accuracy = (tp + tn) / (tp + tn + fp + fn)
    Dice     = 2 tp / (2 tp + fp + fn)
    Jaccard  = tp / (tp + fp + fn)
    MCC      = (tp tn - fp fn) / sqrt((tp + fp)(tp + fn)(tn + fp)(tn + fn))

Two empty masks agree, so their Dice and Jaccard are 1. MCC is 0 where one of its denominator's
factors is 0: there the target or the output has one value only, and a correlation with a constant
says nothing, even if the two masks are equal.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# tn, fp, fn, tp of n images
Counts = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def accuracy(target: ArrayLike, output: ArrayLike) -> float:
    """Compute the share of pixels on which two masks of one image agree.

    Args:
        target: The true mask, {0, 1}, bool or number.
        output: The other mask, of the same shape.
    """
    return _measure("accuracy", target, output)


def dice(target: ArrayLike, output: ArrayLike) -> float:
    """Compute twice the common area of two masks of one image over the sum of their areas.

    Otherwise as `accuracy`.

    Examples:
        >>> dice([1, 1, 0, 0], [1, 0, 0, 0])
        0.6666666666666666
    """
    return _measure("dice", target, output)


def jaccard(target: ArrayLike, output: ArrayLike) -> float:
    """Compute the common area of two masks over that of their union, otherwise as `accuracy`."""
    return _measure("jaccard", target, output)


def mcc(target: ArrayLike, output: ArrayLike) -> float:
    """Compute Matthews' correlation of two masks of one image, otherwise as `accuracy`."""
    return _measure("mcc", target, output)


def _measure(name: str, target: ArrayLike, output: ArrayLike) -> float:
    pair = _to_binary(target, "target")[np.newaxis], _to_binary(output, "output")[np.newaxis]
    return float(_compute_all(_count_pixels(*pair))[name][0])


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
