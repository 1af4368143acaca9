"""Intensities as archives store them."""

import numpy as np
from numpy.typing import NDArray

from tfmammo.mammogram import Mammogram


def quantize(mammogram: Mammogram, bits: int) -> NDArray[np.uint16]:
    """Return rint(value * (2^bits - 1)) of every pixel, uint16 [rows, cols]; bits is 1 to 16."""
    grey = mammogram.pixels()[..., 0].astype(np.float64)
    return np.rint(grey * (2**bits - 1)).astype(np.uint16)
