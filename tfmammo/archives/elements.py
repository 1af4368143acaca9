"""Read single elements of a DICOM header without quoting faulty content.

Whatever is asked for may be anything in a damaged or careless header, a patient's name too. So
numbers are read as numbers, words are compared with those of the standard, and nothing else is
passed on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.valuerep import DSfloat

# Elements that hold numbers, how they are written, and words that an element may hold.
_DECIMALS = ("RescaleSlope", "RescaleIntercept", "EstimatedRadiographicMagnificationFactor")
_PAIRS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")
_WORDS = {
    "PhotometricInterpretation": ("MONOCHROME1", "MONOCHROME2"),
    "PixelSpacingCalibrationType": ("GEOMETRY", "FIDUCIAL"),
    "BurnedInAnnotation": ("YES", "NO"),
    "VOILUTFunction": ("LINEAR", "LINEAR_EXACT", "SIGMOID"),
}


class Fault(Exception):
    """What is wrong with a file, in words that quote no text of it."""


def text(dataset: Dataset, key: str) -> str:
    """Return a value as text, "" where it is absent."""
    return str(value(dataset, key) or "").strip()


def items(dataset: Dataset, key: str) -> list[Dataset]:
    """Return a sequence's items."""
    return list(value(dataset, key) or ())


def integer(dataset: Dataset, key: str, absent: int) -> int:
    """Return the first number of a value, `absent` where there is none."""
    values = numbers(dataset, key)
    return int(values[0]) if values else absent


def numbers(dataset: Dataset, key: str) -> list[float]:
    """Return a value as numbers."""
    content = value(dataset, key)
    try:
        return [] if content is None else [float(number) for number in np.atleast_1d(content)]
    except (TypeError, ValueError):
        raise Fault(f"its {key} is no number") from None


def value(dataset: Dataset, key: str) -> Any:
    """Return a value, None where it is absent."""
    try:
        return dataset.get(key)
    except Exception:  # the value is converted now, and what is raised quotes it
        raise Fault(f"its {key} can't be read") from None


def rendition(dataset: Dataset, window: Dataset | tuple[float, float] | None) -> dict[str, Any]:
    """Copy the elements that decide how stored values are shown and measured, by keyword.

    Of the VOI LUTs and windows (centre, width) only `window` is kept.
    """
    stated = {key: numbers(dataset, key) for key in (*_DECIMALS, *_PAIRS, *_PADDING)}
    elements: dict[str, Any] = {
        key: text(dataset, key) for key, words in _WORDS.items() if text(dataset, key) in words
    }
    elements |= {key: _decimal(stated[key][0]) for key in _DECIMALS if stated[key]}
    elements |= {key: [*map(_decimal, stated[key])] for key in _PAIRS if len(stated[key]) == 2}
    for key in _PADDING:
        if stated[key]:
            elements[key] = fix_sign(int(stated[key][0]), dataset.PixelRepresentation)
    if tables := items(dataset, "ModalityLUTSequence"):
        elements["ModalityLUTSequence"] = [_copy_table(tables[0])]
        elements["ModalityLUTSequence"][0].ModalityLUTType = "US"
    if isinstance(window, Dataset):
        elements["VOILUTSequence"] = [_copy_table(window)]
    elif window is not None:
        elements["WindowCenter"], elements["WindowWidth"] = map(_decimal, window)
    if not isinstance(window, tuple):
        elements.pop("VOILUTFunction", None)
    return elements


def fix_sign(number: int, is_signed: bool) -> int:
    """Return a number of 16 bits that may have been read with the wrong sign."""
    return (number + 2**15) % 2**16 - 2**15 if is_signed else number % 2**16


def _decimal(number: float) -> DSfloat:
    return DSfloat(number, auto_format=True)  # at most 16 characters


def _copy_table(item: Dataset) -> Dataset:
    """Copy a LUT without its explanation, which is free text."""
    copy = Dataset()
    for key in ("LUTDescriptor", "LUTData"):
        copy.add(item[key])
    return copy
