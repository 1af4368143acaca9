"""What all tests share: how few patients are too few, and Holm's correction for several comparisons. NumPy.

Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979) 65.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# A test that flips signs or swaps models by patient has 2^n equally likely outcomes for n patients.
# Its smallest two-sided p is 2^(1 - n): 0.0625 for five patients, 0.031 for six.
FEWEST_PATIENTS = 6


def smallest_p(patients: int, comparisons: int = 1) -> float:
    """Smallest two-sided p of a test that flips whole patients, after Holm's correction.

    Args:
        patients: How many patients are flipped.
        comparisons: How many tests the correction covers.

    Returns:
        ``comparisons * 2^(1 - patients)``, at most 1.
    """
    return float(min(1.0, comparisons * 2.0 ** (1 - patients)))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjust p values of several comparisons so that the chance of any false rejection is bounded.

    The k-th smallest of m values is multiplied by m - k + 1. No adjusted value lies below that of a smaller p.

    Args:
        p_values: Two-sided p in [0, 1], shape ``[m]``. NaN is no comparison and stays NaN.

    Returns:
        Adjusted p in the same order, float64 ``[m]``, at most 1.

    Raises:
        ValueError: The values are no list, or one lies outside [0, 1].
    """
    values = np.asarray(p_values, np.float64)
    made = ~np.isnan(values)
    if values.ndim != 1 or not np.all((values[made] >= 0) & (values[made] <= 1)):
        raise ValueError("p values must be a list of numbers from 0 to 1")
    order = np.argsort(values[made], kind="stable")
    factors = np.arange(len(order), 0, -1)
    raised = np.maximum.accumulate(values[made][order] * factors)
    adjusted = np.full(len(values), np.nan)
    adjusted[np.flatnonzero(made)[order]] = np.minimum(raised, 1.0)
    return adjusted
