"""Sources: the mammograms and the real lesions of archives that a synthesis may use.

An archive is indexed once and a split is read once, however often a synthesis asks for them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tfmammo import archives
from tfmammo.config import DataConfig
from tfmammo.data import sampling, splits
from tfmammo.errors import ConfigError, DataError, name_key
from tfmammo.mammogram import Lesion, Mammogram, Skipped
from tfmammo.synthesis.config import PatientsConfig, Sizes, SynthesisConfig


class ArchiveIndexes:
    """What archives state of their mammograms; each archive is read once."""

    def __init__(self) -> None:
        self._mammograms: dict[DataConfig, list[Mammogram]] = {}

    def read(self, data: DataConfig, skipped: Skipped | None = None) -> list[Mammogram]:
        """Return the mammograms of an archive; ConfigError or ArchiveError where there is none."""
        if data not in self._mammograms:
            self._mammograms[data] = archives.read_mammograms(
                data, Skipped() if skipped is None else skipped
            )
        return self._mammograms[data]


@dataclass(frozen=True, eq=False)
class SourceLesion:
    """A lesion of an archive."""

    mammogram: Mammogram
    number: int

    @property
    def lesion(self) -> Lesion:
        """The lesion itself; a mask in a file is not read yet."""
        return self.mammogram.lesions[self.number]


@dataclass(frozen=True, eq=False)
class PatientSubset:
    """Patients on one side of a split, or everybody."""

    config: PatientsConfig | None = None
    split: splits.SavedSplit | None = None

    @staticmethod
    def load(config: PatientsConfig | None, archive_names: Collection[str]) -> PatientSubset:
        """Read the split that a config names, which must be of one of the archives."""
        if config is None:
            return PatientSubset()
        file = config.split_file
        with name_key("patients.split_file"):
            split = splits.load(file)
        if split.archive not in archive_names:
            names = " or ".join(sorted(set(archive_names)))
            raise DataError(f"{file}: is of {split.archive}, not of {names}")
        if split.split == "paper":
            raise DataError(
                f"{file}: is a split of the kind paper, which no patient's side follows from"
            )
        return PatientSubset(config, split)

    @property
    def identity(self) -> dict[str, object] | None:
        """What is equal for equal subsets; None for everybody."""
        if self.config is None or self.split is None:
            return None
        fold, side = self.config.fold, self.config.side
        return {"sha256": self.split.digest(), "fold": fold, "side": side}

    def select(self, mammograms: Sequence[Mammogram], archive_name: str) -> list[Mammogram]:
        """Select the mammograms of the patients.

        All mammograms of an archive that the split is not of are selected.
        """
        if self.config is None or self.split is None or self.split.archive != archive_name:
            return list(mammograms)
        facts: dict[str, object] = {"split": self.split.split, "fold": self.config.fold}
        section = DataConfig().model_copy(update={**facts, "split_file": self.config.split_file})
        patient_ids = np.array([mammogram.patient_id for mammogram in mammograms], np.str_)
        train, held_out = splits.split_by_file(patient_ids, self.split, section)
        return [mammograms[row] for row in (train if self.config.side == "train" else held_out)]


class Sources:
    """What a synthesis takes from archives. Each part is read when it is first asked for, once."""

    def __init__(self, config: SynthesisConfig) -> None:
        self.config = config
        self.skipped = Skipped()
        self._indexes = ArchiveIndexes()

    @cached_property
    def patients(self) -> PatientSubset:
        """The patients whose mammograms and lesions are used."""
        names = (self.config.data.archive_name, self.config.lesion_data.archive_name)
        return PatientSubset.load(self.config.patients, names)

    @cached_property
    def mammograms(self) -> list[Mammogram]:
        """The mammograms to insert into."""
        config = self.config
        every = self._indexes.read(config.data, self.skipped)
        suitable = [mammogram for mammogram in every if _is_suitable(mammogram, config)]
        suitable = self.patients.select(suitable, config.data.archive_name)
        if config.only:
            by_id = {mammogram.image_id: mammogram for mammogram in suitable}
            if missing := [name for name in config.only if name not in by_id]:
                raise ConfigError(
                    f"only: {missing[0]} is none of the {len(suitable)} mammograms "
                    f"(mammograms={config.mammograms})"
                )
            suitable = [by_id[name] for name in config.only]
        if not suitable:
            if config.mammograms == "normal":
                condition = "is normal: without any lesion, and called normal by its archive"
            else:
                condition = "has lesions of certain kind alone (data.mixed_findings=false)"
            raise DataError(f"none of {len(every)} mammograms{config.of_patients} {condition}")
        return suitable

    @cached_property
    def lesions(self) -> tuple[SourceLesion, ...]:
        """The lesions that are inserted, or give shapes or sizes. There may be none."""
        data = self.config.lesion_data
        with name_key("lesions" if self.config.lesions else "data"):
            mammograms = self._indexes.read(data)
        return select_lesions(self.patients.select(mammograms, data.archive_name), data)


def _is_suitable(mammogram: Mammogram, config: SynthesisConfig) -> bool:
    """Return whether lesions may be inserted into a mammogram. No file is read."""
    if config.mammograms == "normal":
        return sampling.is_normal(mammogram)
    is_certain = all(lesion.kind_is_certain for lesion in mammogram.lesions)
    return not mammogram.lacks() and (config.data.mixed_findings or is_certain)


def select_lesions(mammograms: Iterable[Mammogram], data: DataConfig) -> tuple[SourceLesion, ...]:
    """Select every lesion of the kinds that a section asks for. No file is read."""
    return tuple(
        SourceLesion(mammogram, number)
        for mammogram in mammograms
        for number in sampling.select_lesions(mammogram, data)
    )


def fit_sizes(lesions: Iterable[SourceLesion], skipped: Skipped) -> Sizes:
    """Fit the Gaussian of lesions' sizes, in mm where all spacings are known, else in px.

    Args:
        skipped: Notes lesions whose mask can't be read, and those over half an image high or wide,
            which outline no single mass.
    """
    sizes = []
    spacings = []
    for source in lesions:
        mammogram = source.mammogram
        name = f"lesion {source.number}"
        try:
            top, left, bottom, right = source.lesion.box
        except ValueError as error:
            skipped.add(mammogram.image_id, f"{name}: {error}")
            continue
        if 2 * (bottom - top) > mammogram.rows or 2 * (right - left) > mammogram.cols:
            skipped.add(mammogram.image_id, f"{name}: is over half the image high or wide")
            continue
        sizes.append((bottom - top, right - left))
        spacings.append(mammogram.spacing)
    if len(sizes) < 2:
        raise DataError(
            f"sizes can't be fitted on {len(sizes)} lesions, which must be two at least; give "
            "size=[HEIGHT,WIDTH], or sizes.height and sizes.width"
        )
    stated = [spacing for spacing in spacings if spacing]
    in_mm = len(stated) == len(spacings)
    values = np.array(sizes) * (np.array(stated) if in_mm else 1.0)
    deviations = values.std(axis=0, ddof=1).tolist()
    height, width = zip(values.mean(axis=0).tolist(), deviations, strict=True)
    covariance = np.cov(values, rowvar=False)[0, 1]
    correlation = covariance / max(height[1] * width[1], 1e-12)
    return Sizes(
        unit="mm" if in_mm else "px",
        height=height,
        width=width,
        correlation=float(np.clip(correlation, -1, 1)),
        count=len(sizes),
    )
