"""A mammogram's intensities as its file stores them: some change, the others stay as they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfmammo.mammogram import Box

# rows looked up at a time: NumPy makes 64-bit indices of them, which should stay in the cache
_BAND = 64


@dataclass(frozen=True, eq=False)
class Stored:
    """What a file stores, and which intensity each of it means.

    Attributes:
        values: integer [rows, cols], native px, signed or not.
        bits: Bits of one value, 1 to 16.
        greys: float32 [2^bits], in [0, 1], of the values from `first` on.
        first: The lowest value, negative for signed ones.
        padding: bool [2^bits], which of them fill an image up to a rectangle.
        elements: Elements of a DICOM file that lead from value to grey, by keyword; None for other
            files, whose greys are value / (2^bits - 1).
    """

    values: NDArray[np.integer]
    bits: int
    greys: NDArray[np.float32]
    first: int = 0
    padding: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    elements: dict[str, Any] | None = None

    @staticmethod
    def of_image(image: NDArray[np.float32], bits: int) -> Stored:
        """Store a float32 [rows, cols, 1] in [0, 1] as rint(value * (2^bits - 1))."""
        most = np.float64(2**bits - 1)
        wide = np.uint8 if bits <= 8 else np.uint16
        greys = (np.arange(2**bits) / most).astype(np.float32)
        return Stored(np.rint(image[..., 0] * most).astype(wide), bits, greys)

    def image(self) -> NDArray[np.float32]:
        """Return float32 [rows, cols, 1] in [0, 1]: what the archive's reader gives."""
        values = self.values if self.first == 0 else self.values.astype(np.int32) - self.first
        return look_up(self.greys, values)

    def nearest_values(self, grey: NDArray[np.float32]) -> NDArray[np.integer]:
        """Return the stored value nearest to each intensity in [0, 1], never one of padding."""
        values, middles = self._by_grey
        return values[np.searchsorted(middles, grey)]

    def with_greys(
        self, image: NDArray[np.float32], parts: Iterable[tuple[Box, NDArray[np.float32]]]
    ) -> Stored:
        """Return the same file with other intensities in some boxes; equal ones keep their value.

        Args:
            image: What `image` gives.
            parts: Boxes that don't overlap, half-open, px, each with its float32 [rows, cols].
        """
        values = self.values.copy()
        for (top, left, bottom, right), grey in parts:
            moved = grey != image[top:bottom, left:right, 0]
            values[top:bottom, left:right][moved] = self.nearest_values(grey[moved])
        return replace(self, values=values)

    @property
    def picture_bits(self) -> int:
        """Bits of the values of `full_scale`."""
        return self.bits if self.elements is None else 8 if self.bits <= 8 else 16

    def full_scale(self) -> NDArray[np.integer]:
        """Return the values as a picture holds them: a DICOM's greys in 8 or 16 bits."""
        if self.elements is None:
            return self.values
        wide = np.uint16 if self.picture_bits == 16 else np.uint8
        table = np.rint(self.greys * np.float64(np.iinfo(wide).max)).astype(wide)
        return np.asarray(table[self.values.astype(np.int32) - self.first], wide)

    @cached_property
    def _by_grey(self) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
        """One value of each grey, rising, and the middles between their greys."""
        values = np.arange(self.first, self.first + len(self.greys)).astype(self.values.dtype)
        greys = self.greys
        if self.padding.any() and not self.padding.all():
            greys, values = greys[~self.padding], values[~self.padding]
        greys, places = np.unique(greys, return_index=True)  # the first value of each grey
        return values[places], ((greys[1:] + greys[:-1]) / 2).astype(np.float32)


def unused_range(highest: int, full: int) -> str | None:
    """Describe values up to `highest` that leave most of the range up to `full` unused; or None."""
    if not (0 < 4 * highest < full + 1 and full > 2**12):
        return None
    bits = max(8, 2 * -(-highest.bit_length() // 2))
    share = f"{100 * highest / full:.0f} % of {full.bit_length()} bits"
    return f"values use {share}; state bits={bits} in metadata.csv"


def look_up(greys: NDArray[np.float32], values: NDArray[np.integer]) -> NDArray[np.float32]:
    """Look up every value's grey, float32 [n] by integer [rows, cols]: float32 [rows, cols, 1]."""
    image = np.empty(values.shape, np.float32)
    for top in range(0, len(values), _BAND):
        np.take(greys, values[top : top + _BAND], out=image[top : top + _BAND], mode="clip")
    return image[..., np.newaxis]
