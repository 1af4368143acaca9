"""The config of a synthesis, and the recipe of each of its items: what it was made from,
and what came out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import cv2
import keras
import numpy as np
import tensorflow as tf
from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_serializer,
)

from tfmammo import __version__, archives
from tfmammo.archives import source_file
from tfmammo.archives.stored import Stored
from tfmammo.config import DataConfig, Frozen, describe
from tfmammo.data.tfrecord import sha256
from tfmammo.errors import ArchiveError, ConfigError, DataError
from tfmammo.mammogram import (
    Box,
    Laterality,
    LesionKind,
    Mammogram,
    Pathology,
    Skipped,
    Split,
    View,
)
from tfmammo.synthesis.config import Kind, Sizes, SynthesisConfig, Used

FORMAT: Final = 1
# why an item can't be made; any other ValueError is a fault of ours
REASONS = (DataError, ArchiveError)


class Source(Frozen):
    """The mammogram that an item was made from, by pseudonym;"""

    archive: str
    image_id: str
    patient_id: str
    sha256: str
    """Of its file, or of its pixels where there is none."""
    rows: PositiveInt
    cols: PositiveInt
    bits: PositiveInt
    laterality: Laterality | None = None
    view: View | None = None
    density: str | None = None
    spacing: tuple[float, float] | None = None
    official_split: Split | None = None


class Graft(Frozen):
    """A real lesion, by pseudonym, and what was done to it."""

    archive: str
    image_id: str
    patient_id: str
    number: NonNegativeInt
    """Its index in its mammogram, which sha256 is of, as Source's."""
    sha256: str
    pathology: Pathology | None
    angle: float
    """Degrees that it was turned by, counter-clockwise as shown."""
    factor: PositiveFloat
    """That it was scaled by, beside what mm per px ask for."""
    mirrored: bool
    """Before that."""
    trained_on: bool | None
    """Whether its patient was in the network's training; None where no network paints."""
    used: Used | None = None
    """What of it is used, its outline, so turned and scaled, or its size alone; None: all of it."""


class Planted(Frozen):
    """One mass."""

    kind: LesionKind = "mass"
    box: Box
    """Of its mask, window: of its patch, native px, half-open."""
    window: Box
    area: PositiveInt
    """px."""
    region: dict[str, Any]
    """Its mask as COCO's RLE."""
    seed: NonNegativeInt
    """Of the noise that its network is given."""
    shape: str
    """Where its shape comes from."""
    graft: Graft | None = None
    """The real lesion that it is, or whose outline or size it has."""


class OwnLesion(Frozen):
    """A lesion that the mammogram had before."""

    kind: LesionKind
    box: Box
    """Native px, half-open."""
    area: PositiveInt
    """Of the mask, or of the box, px."""
    region: dict[str, Any] | None = None
    """Its mask as COCO's RLE, None where the archive gives its box alone."""
    pathology: Pathology | None = None


class Recipe(Frozen):
    """What makes one item again, and what came out."""

    format: Literal[1] = FORMAT
    identity: str
    """Hash of what decides a whole set."""
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")  # files are called by it
    """Of the item."""
    number: NonNegativeInt
    """Of the item."""
    config: SynthesisConfig
    """Written as `passed_on` leaves it."""
    versions: dict[str, str]
    """Of what computed it."""
    generator: dict[str, str]
    """Name, step and weights of the network that painted, where there is one; see
    export.load_whole. Earlier versions wrote sha256, of the export's files.
    """
    sizes: Sizes | None
    source: Source | None = None
    lesions: tuple[Planted, ...] = ()
    """Those set in, own: those that were there."""
    own: tuple[OwnLesion, ...] = ()
    notes: tuple[str, ...] = ()
    """What was asked for and not done."""
    left_out: str | None = None
    """Why there is no item."""
    files: dict[str, str] = {}
    """Sha256 by path beneath the output folder."""

    @field_serializer("config")
    def _passed_on(self, chosen: SynthesisConfig) -> dict[str, Any]:
        return passed_on(chosen)

    def key(self) -> str:
        """Equal for equal content, wherever and however often it is made."""
        assert self.source
        content = {
            "source": self.source.model_dump(mode="json"),
            "feather": self.config.feather,
            "generator": self.generator.get("weights")
            or self.generator.get("sha256", self.config.painter),
            "lesions": [
                lesion.model_dump(mode="json", exclude_none=True) for lesion in self.lesions
            ],
        }
        if self.config.whole_patch:
            content["whole_patch"] = True
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def is_whole(self, folder: Path) -> bool:
        """Whether all its files are in the folder as they were written."""
        return as_written(folder, self.files)


def as_written(folder: Path, files: Mapping[str, str]) -> bool:
    """Whether all files are in the folder and have the contents they should.

    Args:
        files: Sha256 by path beneath it.
    """
    try:
        return all(sha256(folder / file) == digest for file, digest in files.items())
    except DataError:
        return False


def digest(mammogram: Mammogram, stored: Stored) -> str:
    """SHA-256 of a mammogram's file, or of its values where there is none."""
    file = source_file(mammogram)
    return (
        sha256(file)
        if file
        else hashlib.sha256(np.ascontiguousarray(stored.values).tobytes()).hexdigest()
    )


def versions() -> dict[str, str]:
    """Of what computes an item."""
    return {
        "tfmammo": __version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }


def read_recipe(path: Path) -> Recipe:
    """A recipe.

    Raises:
        DataError: It is missing or damaged.
    """
    return read(Recipe, path, "recipe")


def read(kind: type[Kind], path: Path, what: str) -> Kind:
    """A recipe of either kind.

    Args:
        what: It is, for the message.

    Raises:
        DataError: It is missing or damaged.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.__class__.__name__})") from None
    except ValidationError as error:
        raise DataError(f"{path}: is no {what} of this version ({describe(error)[:300]})") from None


def source_of(archive: str, image_id: str, data: DataConfig, file: Path) -> Mammogram:
    """The mammogram that a recipe starts from.

    Args:
        archive: Of the recipe's source.
        image_id: Of the recipe's source.
        data: The archive, of which a recipe does not say where it lies.
        file: The recipe.

    Raises:
        DataError: It is not there, or nobody said where the archive lies.
        ConfigError: No such archive.
        ArchiveError: No such archive.
    """
    if data.root is None and archive != "phantom":
        raise ConfigError(
            f"{file}: recipes don't say where archives lie; give --set data.root=DIR (of an "
            f"archive {archive})"
        )
    found = {one.image_id: one for one in archives.mammograms(data, Skipped())}
    if image_id not in found:
        raise DataError(f"{file}: its source {image_id} is not in {archives.archive_name(data)}")
    return found[image_id]


def passed_on(chosen: Frozen) -> dict[str, Any]:
    """A config as a recipe keeps it, which others may be given.

    It says nothing of where archives lie, nor of a store's address, which may hold a password: keys
    named root and tracking_uri are null. Of any other path that leads out of the current folder
    only the last part is left.

    Returns:
        What JSON can hold.
    """
    content = _without_places(chosen.model_dump(mode="json"))
    assert isinstance(content, dict)
    return content


def _without_places(content: object, key: str = "") -> object:
    if isinstance(content, dict):
        return {name: _without_places(value, name) for name, value in content.items()}
    if isinstance(content, list):
        return [_without_places(value, key) for value in content]
    if key in ("root", "tracking_uri"):
        return None
    leads_out = isinstance(content, str) and (
        Path(content).is_absolute() or content.startswith(("~", ".."))
    )
    return Path(content).name if leads_out else content  # type: ignore[arg-type]


def explained(error: Exception, places: Iterable[Path]) -> str:
    """Why an item can't be made, in a sentence without the folders of archives.

    Args:
        places: Those folders.
    """
    said = str(error) if isinstance(error, REASONS) else f"{error.__class__.__name__}: {error}"
    for place in places:
        said = said.replace(f"{place}{os.sep}", "")
    return said
