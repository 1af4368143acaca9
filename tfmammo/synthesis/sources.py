"""Sources: what a synthesis config names, opened.

Mammograms, patients, networks, real lesions, shapes and sizes. An archive is indexed once and a
split is read once, however often a synthesis asks for them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tfmammo.config import DataConfig
from tfmammo.data import sampling, splits
from tfmammo.errors import ConfigError, DataError, name_key
from tfmammo.mammogram import Mammogram, Skipped
from tfmammo.synthesis.config import PatientsConfig, Sizes, SynthesisConfig
from tfmammo.synthesis.generators import MaskGenerator, load_mask_generator, resolve_handle
from tfmammo.synthesis.lesion_bank import LesionBank, SourceLesion, select_lesions
from tfmammo.synthesis.recipe import ArchiveIndexes
from tfmammo.synthesis.renderers import Renderer, make_renderer
from tfmammo.synthesis.shapes import (
    GeneratedShapes,
    NamedShapes,
    RealOutlines,
    ShapeFiles,
    ShapeSource,
)

log = logging.getLogger(__name__)

Folders = tuple[Path | None, Path | None]  # of the renderer's network, and of the mask GAN
HINT = "; train it first, or insert real masses without a network: renderer=poisson generator=null"


def find_networks(config: SynthesisConfig) -> Folders:
    """Find the networks of a config."""

    def resolve(key: str, handle: str | None, hint: str = "") -> Path | None:
        try:
            return resolve_handle(handle, config.tracking_uri) if handle else None
        except ValueError as error:
            raise ConfigError(f"{key}: {error}{hint}") from None

    generator = resolve("generator", config.generator, HINT)
    return generator, resolve("shapes.gan", config.shapes.gan)


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
    """What a config names. Each part is opened when it is first asked for, once.

    Networks alone are opened anew where an export was replaced.

    Args:
        folders: Where the networks are; else they are found.

    Attributes:
        skipped: Notes what of the archives can't be used.
    """

    def __init__(self, config: SynthesisConfig, folders: Folders | None = None) -> None:
        self.config = config
        self.folders = folders or find_networks(config)
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
            # a split knows no patient who has neither a lesion nor a normal mammogram
            mammograms = [each for each in self._indexes.read(data) if each.lesions]
        return select_lesions(self.patients.select(mammograms, data.archive_name), data)

    @property
    def renderer(self) -> Renderer:
        """What renders lesions."""
        config = self.config
        folder = self.folders[0]
        return make_renderer(config.renderer, folder, config.feather, config.whole_patch)

    @property
    def mask_gan(self) -> MaskGenerator | None:
        """The network that shapes come from, if any."""
        folder = self.folders[1]
        return load_mask_generator(folder) if folder else None

    @cached_property
    def lesion_bank(self) -> LesionBank | None:
        """The real lesions to insert; None where masses are made up."""
        config = self.config
        if not config.real_lesions:
            return None
        data = config.lesion_data
        return LesionBank.select(self.lesions, data, config.pathology, config.of_patients)

    @property
    def shapes(self) -> ShapeSource | None:
        """The shapes of made-up masses; None where lesions are real."""
        network = None if self.config.real_lesions else self.mask_gan
        return GeneratedShapes(network, self.config.shapes.plausible) if network else self._shapes

    @cached_property
    def _shapes(self) -> ShapeSource | None:
        config = self.config
        if config.real_lesions:
            return None
        if config.shapes.files:
            return ShapeFiles.find(config.shapes.files)
        if config.shapes.drawn:
            return NamedShapes(config.shapes.drawn)
        return RealOutlines.select(self.lesions, config.lesion_data, config.of_patients)

    @cached_property
    def sizes(self) -> Sizes | None:
        """The Gaussian of sizes; None where they are given, or the lesions' own."""
        if not self.config.fits_sizes:
            return self.config.sizes
        sizes = fit_sizes(self.lesions, self.skipped)
        means = "{:.3g} (SD {:.3g}) x {:.3g} (SD {:.3g})".format(*sizes.height, *sizes.width)
        log.info("mean size of %d lesions: %s %s", sizes.count, means, sizes.unit)
        return sizes

    @property
    def size_patients(self) -> frozenset[str]:
        """Patients whose lesions may have given shapes or sizes to made-up masses."""
        if self.config.fits_sizes or isinstance(self.shapes, RealOutlines):
            return frozenset(source.mammogram.patient_id for source in self.lesions)
        return frozenset()


def _is_suitable(mammogram: Mammogram, config: SynthesisConfig) -> bool:
    """Return whether lesions may be inserted into a mammogram. No file is read."""
    if config.mammograms == "normal":
        return sampling.is_normal(mammogram)
    is_certain = all(lesion.kind_is_certain for lesion in mammogram.lesions)
    return not mammogram.lacks() and (config.data.mixed_findings or is_certain)


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
