"""Map the stored values of a DICOM image to grey in [0, 1].

The grayscale pipeline of DICOM PS3.3 and PS3.4 (annex N.2), in its order: stored bits -> modality
LUT or rescale -> VOI LUT or window -> [0, 1] -> inversion of MONOCHROME1 -> padding to 0. The scale
is always the range that a stage can put out, never the extremes of the image at hand, so that equal
tissue stays equal between images. A stored pixel has 16 bits at most, so the pipeline is computed
once for every value that these can hold, in float64, and each pixel looks its own up.

Several VOI LUTs and windows are alternatives for the eye. The first VOI LUT is taken, else the
first window.

Deviation: the tables and windows are applied here and not by pydicom.pixels, because pydicom 3.0
wraps 12-bit pixels in an 8-bit VOI LUT, refuses modality LUTs of 10 to 14 bits and inverts a window
after a negative slope.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes

from tfmammo.archives.elements import Fault, fix_sign, items, numbers, text


def map_codes(dataset: FileDataset, window: bool) -> NDArray[np.float32]:
    """Return what a pixel's bits mean in the image: float32 [256 or 65536] in [0, 1]."""
    width = 16 if dataset.BitsAllocated == 16 else 8
    # pydicom fills the bits above BitsStored with the sign for these two; in all others they may
    # hold anything.
    extended = (*JPEG2000TransferSyntaxes, *JPEGLSTransferSyntaxes)
    is_extended = dataset.file_meta.TransferSyntaxUID in extended
    bits = width if is_extended else dataset.BitsStored
    stored = np.arange(2**bits)
    if dataset.PixelRepresentation:
        stored[2 ** (bits - 1) :] -= 2**bits
    grey = _map_values(dataset, stored, window)
    if text(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        grey = 1 - grey
    grey[find_padding(dataset, stored)] = 0
    if not np.isfinite(grey).all():
        raise Fault("its rescale or window has a number that is not finite")
    return np.tile(grey.astype(np.float32), 2 ** (width - bits))


def _map_values(
    dataset: FileDataset, stored: NDArray[np.integer], window: bool
) -> NDArray[np.float64]:
    """Map stored values to [0, 1] by modality and VOI; not inverted or padded yet."""
    values = stored.astype(np.float64)
    low = -(2.0 ** (dataset.BitsStored - 1)) if dataset.PixelRepresentation else 0.0
    high = low + 2.0**dataset.BitsStored - 1
    slope = numbers(dataset, "RescaleSlope")
    intercept = numbers(dataset, "RescaleIntercept")
    if tables := items(dataset, "ModalityLUTSequence"):
        values, low, high = _look_up(dataset, values, low, tables[0])
    elif slope and intercept:
        values = values * slope[0] + intercept[0]
        low, high = sorted((low * slope[0] + intercept[0], high * slope[0] + intercept[0]))
    chosen_window = choose_window(dataset, window)
    if isinstance(chosen_window, Dataset):
        values, low, high = _look_up(dataset, values, low, chosen_window)
    elif chosen_window is not None:
        function = text(dataset, "VOILUTFunction").upper() or "LINEAR"
        values, low, high = _apply_window(values, *chosen_window, function), 0.0, 1.0
    if not low < high:
        raise Fault(f"the pixel range {low:g} to {high:g} is empty")
    return np.clip((values - low) / (high - low), 0, 1)


def choose_window(dataset: FileDataset, window: bool) -> Dataset | tuple[float, float] | None:
    """Choose the first VOI LUT, else the first window (centre, width); None without `window`."""
    numbered = numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth")
    choices: list[Any] = [*items(dataset, "VOILUTSequence"), *zip(*numbered, strict=False)]
    return choices[0] if window and choices else None


def _look_up(
    dataset: FileDataset, values: NDArray[np.float64], low: float, item: Dataset
) -> tuple[NDArray, float, float]:
    """Look values up in one LUT, whose ends go on for ever; return its output range."""
    entries, first, bits = (int(number) for number in numbers(item, "LUTDescriptor"))
    entries = fix_sign(entries, is_signed=False) or 2**16  # 0 means 65536
    first = fix_sign(first, is_signed=low < 0)
    table: Any = item.LUTData
    if isinstance(table, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        table = np.frombuffer(table, np.uint8 if len(table) < 2 * entries else f"{order}u2")
    table = np.atleast_1d(table)[:entries]
    index = np.clip(np.rint(values) - first, 0, len(table) - 1).astype(np.int64)
    return table[index].astype(np.float64), 0.0, 2.0**bits - 1


def _apply_window(
    values: NDArray[np.float64], center: float, width: float, function: str
) -> NDArray[np.float64]:
    """Apply a window: 0 at its lower end and below, 1 at its upper end and above."""
    if not width >= (1 if function == "LINEAR" else np.finfo(np.float32).tiny):
        raise Fault(f"a window of width {width:g} is empty")
    if function == "LINEAR":  # C.11.2.1.2.1; a window of width 1 is a step
        return (values - (center - 0.5)) / max(width - 1, 1e-6) + 0.5
    if function == "LINEAR_EXACT":  # C.11.2.1.3.2
        return (values - center) / width + 0.5
    if function == "SIGMOID":  # C.11.2.1.3.1
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -80, 80)))
    raise Fault("its VOI LUT function is none of LINEAR, LINEAR_EXACT and SIGMOID")


def find_padding(dataset: FileDataset, stored: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Find where the image was padded to a rectangle; MONOCHROME1 would turn it bright."""
    if not (padding := numbers(dataset, "PixelPaddingValue")):
        return np.zeros(stored.shape, bool)
    ends = (padding[0], (numbers(dataset, "PixelPaddingRangeLimit") or padding)[0])
    low, high = sorted(fix_sign(int(end), dataset.PixelRepresentation) for end in ends)
    return (stored >= low) & (stored <= high)
