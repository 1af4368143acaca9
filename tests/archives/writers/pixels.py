"""Intensities as archives store them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfmammo.archives.writers.dicom import write_dicom
from tfmammo.mammogram import Mammogram


def quantize(mammogram: Mammogram, bits: int) -> NDArray[np.uint16]:
    """Return rint(value * (2^bits - 1)) of every pixel, uint16 [rows, cols]; bits is 1 to 16."""
    grey = mammogram.pixels()[..., 0].astype(np.float64)
    return np.rint(grey * (2**bits - 1)).astype(np.uint16)


def write_mammogram(path: Path, mammogram: Mammogram, bits: int, **elements: Any) -> None:
    """Write a DICOM file whose header states the spacing at the imager where it is known."""
    spacing = list(mammogram.spacing) if mammogram.spacing else None
    stored = quantize(mammogram, bits)
    write_dicom(path, stored, bits, ImagerPixelSpacing=spacing, **elements)
