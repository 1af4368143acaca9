"""Sets of patches as networks see them: LPIPS, FID and KID against real patches, with
intervals over patients.

The networks are downloaded, or files (python -m tfmammo.pretrained makes them), or random ones
("none"), which the names and headings of measures then say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tfmammo.errors import ConfigError
from tfmammo.metrics import perceptual
from tfmammo.metrics.segmentation import Paired
from tfmammo.metrics.summary import Compare, Measure, Row, opponents, versus

SMALLEST = 32  # px
SET_MEASURES = {
    "lpips_pairs": Measure("LPIPS to other real patches", "", 1, 4),
    "fid": Measure("FID", "", 1, 1),
    "kid": Measure("KID x 1000", "", 1000, 2),
}
OF_LPIPS = ("lpips", "lpips_pairs")
OF_INCEPTION = ("fid", "kid", "nearest_features", "copy")

Scores = dict[str, NDArray[np.float64]]
Statistic = Callable[[NDArray[np.intp]], float]


@dataclass(frozen=True, eq=False)
class Judge:
    """The networks that look at patches.

    Attributes:
        lpips: See tfmammo.metrics.perceptual.
        inception: See tfmammo.metrics.perceptual.
    """

    lpips: perceptual.LPIPS
    inception: perceptual.Inception

    @property
    def note(self) -> str:
        """What a table says of random networks and missing heads; "" where there is
        nothing to say.
        """
        notes = ", ".join(note for note in (self.lpips.note, self.inception.note) if note)
        return f"made with {notes}" if notes else ""

    def key(self, measure: str) -> str:
        """The measure's name, marked where the network behind it is random or has no calibrated
        heads.
        """
        note = (
            self.lpips.note
            if measure in OF_LPIPS
            else self.inception.note
            if measure in OF_INCEPTION
            else ""
        )
        return measure + ("_random" if "random" in note else "_without_heads" if note else "")

    def measures(self, measures: Mapping[str, Measure]) -> dict[str, Measure]:
        """A table's columns in order, marked in their headings too."""
        found = {}
        for name, measure in measures.items():
            mark = self.key(name).removeprefix(name).replace("_", " ").strip()
            heading = f"{measure.heading} ({mark})" if mark else measure.heading
            found[self.key(name)] = Measure(heading, measure.unit, measure.scale, measure.decimals)
        return found

    def marked(self, scores: Scores) -> Scores:
        """Scores under their marked names."""
        return {self.key(name): values for name, values in scores.items()}

    def statistics(
        self,
        real: NDArray[np.float32],
        features: NDArray[np.float32],
        sets: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32], bool]],
    ) -> dict[str, dict[str, Statistic]]:
        """SET_MEASURES -> set -> its number for some rows of the patches.

        Args:
            real: float32 [n, s, s, 1] in [0, 1].
            features: Theirs, by `inception`.
            sets: Name -> as many images, their features, and whether row i of both belongs to one
                real patch, so that it is no independent one.
        """
        found: dict[str, dict[str, Statistic]] = {name: {} for name in SET_MEASURES}
        for name, (images, seen, paired) in sets.items():
            found["lpips_pairs"][name] = partial(_off_diagonal, self.lpips.matrix(real, images))
            found["fid"][name] = partial(_of_rows, perceptual.fid, features, seen)
            found["kid"][name] = partial(
                _of_rows, partial(perceptual.mmd, paired=paired), features, seen
            )
        return found

    def rows(
        self,
        statistics: Mapping[str, Mapping[str, Statistic]],
        patient_ids: NDArray[np.str_],
        level: float,
        real: str,
        compare: Compare = "first",
    ) -> list[Row]:
        """A table's rows of what is known of whole sets alone, with jackknife intervals, and
        differences from other sets.

        Args:
            statistics: Measure -> set -> see `statistics`.
            patient_ids: str [n].
            level: Of intervals.
            real: The name of real patches, which are compared with nothing.
            compare: See `opponents`.
        """
        rows = []
        for measure, sets in statistics.items():
            counts = len(patient_ids), len(set(patient_ids.tolist()))
            found = {
                name: perceptual.jackknife(statistic, patient_ids, level)[:3]
                for name, statistic in sets.items()
            }
            alone = {
                name: Row(name, self.key(measure), *counts, *found[name], method="jackknife")
                for name in sets
            }
            for name, other in opponents([name for name in sets if name != real], compare):
                row = alone[name]
                if other:
                    value, low, high, p = perceptual.jackknife(
                        partial(_difference, sets[name], sets[other]), patient_ids, level
                    )
                    row = versus(row, other, Paired(value, low, high, p))
                rows.append(row)
            rows += [alone[real]] if real in alone else []
        return rows


def check_size(size: int) -> None:
    """Raise ConfigError where patches of so many px are too small for the networks."""
    if size < SMALLEST:
        raise ConfigError(f"data.size: LPIPS's network sees nothing in patches below {SMALLEST} px")


def _of_rows(
    measure: Callable[..., float],
    real: NDArray[np.float32],
    synthetic: NDArray[np.float32],
    rows: NDArray[np.intp],
) -> float:
    return measure(real[rows], synthetic[rows]) if len(rows) > 1 else np.nan


def _off_diagonal(matrix: NDArray[np.float64], rows: NDArray[np.intp]) -> float:
    part = matrix[np.ix_(rows, rows)]
    return (
        float((part.sum() - np.trace(part)) / (len(rows) * (len(rows) - 1)))
        if len(rows) > 1
        else np.nan
    )


def _difference(statistic: Statistic, reference: Statistic, rows: NDArray[np.intp]) -> float:
    return statistic(rows) - reference(rows)
