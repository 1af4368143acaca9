"""Provenance: what each synthetic item was made from, and what came out (its recipe)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

import cv2
import keras
import numpy as np
import tensorflow as tf
from pydantic import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_serializer,
)

from tfmammo import __version__
from tfmammo.archives import coco
from tfmammo.archives.files import remove_paths
from tfmammo.archives.stored import Stored
from tfmammo.config import DataConfig, Frozen, describe
from tfmammo.errors import ArchiveError, ConfigError, DataError
from tfmammo.filesystem import sha256
from tfmammo.mammogram import (
    Box,
    Laterality,
    Lesion,
    LesionKind,
    Mammogram,
    Pathology,
    Split,
    View,
)
from tfmammo.synthesis.config import Kind, PatchSynthesisConfig, Sizes, SynthesisConfig, UsedPart
from tfmammo.synthesis.sources import ArchiveIndexes
from tfmammo.tracking.export.card import remove_places

FORMAT: Final = 1
# Why an item can't be made. Any other ValueError is a fault of this code.
REASONS = (DataError, ArchiveError)


class ItemSource(Frozen):
    """The mammogram that an item was made from, by pseudonym."""

    archive: str
    image_id: str
    patient_id: str
    sha256: str
    """Hash of its file, or of its pixels where there is none."""


class Source(ItemSource):
    """The mammogram that lesions were inserted into."""

    rows: PositiveInt
    cols: PositiveInt
    bits: PositiveInt
    laterality: Laterality | None = None
    view: View | None = None
    density: str | None = None
    spacing: tuple[float, float] | None = None
    official_split: Split | None = None


class TransformRecord(Frozen):
    """How a real lesion was transformed, and which one it is, by pseudonym."""

    archive: str
    image_id: str
    patient_id: str
    number: NonNegativeInt
    """Its index in its mammogram."""
    sha256: str
    """Of its mammogram, as Source's."""
    pathology: Pathology | None
    angle: float
    """Degrees that it was rotated by, counter-clockwise on the screen."""
    factor: PositiveFloat
    """Factor that it was scaled by, besides the ratio of mm per px."""
    mirrored: bool
    """Whether it was mirrored before that."""
    trained_on: bool | None
    """Whether its patient was in the network's training; None without a network."""
    used: UsedPart | None = None
    """The part that is used: its transformed outline, or its size alone; None for all of it."""


class InsertedLesion(Frozen):
    """One mass that was inserted."""

    kind: LesionKind = "mass"
    """Kind of the lesion."""
    box: Box
    """Of its mask, native px, half-open."""
    window: Box
    """Of its patch, native px, half-open."""
    area: PositiveInt
    """Of its mask, px."""
    region: dict[str, Any]
    """Its mask as COCO's RLE."""
    seed: NonNegativeInt
    """Seed of the noise that its network is given."""
    shape: str
    """Where its shape comes from."""
    graft: TransformRecord | None = None
    """The real lesion that it is, or whose outline or size it has."""


class ExistingLesion(Frozen):
    """A lesion that the mammogram had before."""

    kind: LesionKind
    """Kind of the lesion."""
    box: Box
    """Native px, half-open."""
    area: PositiveInt
    """Of its mask, or of its box, px."""
    region: dict[str, Any] | None = None
    """Its mask as COCO's RLE; None where the archive gives its box alone."""
    pathology: Pathology | None = None
    """None where not stated."""


class ItemRecipe(Frozen):
    """What makes one item of a set again, and what came out."""

    format: Literal[1] = FORMAT
    """Version of this format."""
    identity: str
    """Hash of what decides a whole set."""
    number: NonNegativeInt
    """Number of the item."""
    config: SynthesisConfig | PatchSynthesisConfig
    """The set's config, as `redact` leaves it."""
    versions: dict[str, str]
    """Versions of the libraries that computed it."""
    generator: dict[str, str]
    """Name, step and weights of the network; empty without one. The weights are hashed by
    export.load_identified.
    """
    source: ItemSource | None = None
    """The mammogram that it was made from."""
    left_out: str | None = None
    """Why there is no item."""
    files: dict[str, str] = {}
    """sha256 by path beneath the set's folder."""

    @field_serializer("config")
    def _redact_config(self, config: Frozen) -> dict[str, Any]:
        return redact(config)

    @property
    def name(self) -> str:
        """Name of the item, and of its files."""
        return f"{self.number:06d}"

    def find_path(self, folder: Path) -> Path:
        """Return the path of the recipe beneath a set's folder."""
        return folder / "recipes" / f"{self.name}.json"

    def is_whole(self, folder: Path) -> bool:
        """Return whether all its files are in the folder as they were written."""
        try:
            return all(sha256(folder / file) == digest for file, digest in self.files.items())
        except DataError:
            return False


class Recipe(ItemRecipe):
    """The recipe of a mammogram with lesions."""

    config: SynthesisConfig
    """The set's config, as `redact` leaves it."""
    sizes: Sizes | None
    """The Gaussian that sizes were drawn from."""
    source: Source | None = None
    """The mammogram that it was made from."""
    lesions: tuple[InsertedLesion, ...] = ()
    """Those that were inserted."""
    own: tuple[ExistingLesion, ...] = ()
    """Those that were there before."""
    notes: tuple[str, ...] = ()
    """What was asked for and not done."""
    repeat: NonNegativeInt = 0
    """How many items before it were made from the same mammogram."""

    def make_key(self) -> str:
        """Hash the content: equal wherever and however often an item is made."""
        assert self.source
        content = {
            "source": self.source.model_dump(mode="json"),
            "feather": self.config.feather,
            "whole_patch": self.config.whole_patch,
            "generator": self.generator.get("weights", self.config.renderer),
            "lesions": [lesion.model_dump(mode="json") for lesion in self.lesions],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def hash_source(mammogram: Mammogram, stored: Stored) -> str:
    """Hash a mammogram's file (SHA-256), or its stored values where there is none."""
    file = mammogram.file
    return (
        sha256(file)
        if file
        else hashlib.sha256(np.ascontiguousarray(stored.values).tobytes()).hexdigest()
    )


def collect_versions() -> dict[str, str]:
    """Collect the versions of what computes an item."""
    return {
        "tfmammo": __version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }


def read_recipe(kind: type[Kind], path: Path) -> Kind:
    """Read a recipe.

    Args:
        kind: Its class.
        path: Its file.

    Raises:
        DataError: It is missing or damaged.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.__class__.__name__})") from None
    except ValidationError as error:
        raise DataError(f"{path}: is no recipe of this version ({describe(error)[:300]})") from None


def find_source(
    archive: str, image_id: str, data: DataConfig, file: Path, indexes: ArchiveIndexes
) -> Mammogram:
    """Find the mammogram that a recipe starts from.

    Args:
        archive: Of the recipe's source.
        image_id: Of the recipe's source.
        data: The archive's section. A recipe does not say where the archive lies.
        file: The recipe.
        indexes: Archives that were read already.

    Raises:
        DataError: The mammogram is not in the archive.
        ConfigError: No such archive, or nobody said where it lies.
        ArchiveError: No such archive.
    """
    if data.root is None and archive != "phantom":
        raise ConfigError(
            f"{file}: recipes don't say where archives lie; give --set data.root=DIR (of an "
            f"archive {archive})"
        )
    mammograms = {mammogram.image_id: mammogram for mammogram in indexes.read(data)}
    if image_id not in mammograms:
        raise DataError(f"{file}: its source {image_id} is not in {data.archive_name}")
    return mammograms[image_id]


def describe_source(mammogram: Mammogram, stored: Stored) -> Source:
    """Describe the mammogram that an item starts from."""
    names = (
        "archive",
        "image_id",
        "patient_id",
        "rows",
        "cols",
        "laterality",
        "view",
        "density",
        "spacing",
        "official_split",
    )
    return Source(
        sha256=hash_source(mammogram, stored),
        bits=stored.bits,
        **{name: getattr(mammogram, name) for name in names},
    )


def describe_existing_lesions(mammogram: Mammogram) -> tuple[ExistingLesion, ...]:
    """Describe a mammogram's lesions as annotations have them, of every kind.

    Raises:
        DataError: A box is empty or reaches beyond the mammogram.
        ArchiveError: A mask can't be read.
    """
    return tuple(
        _describe_lesion(number, lesion, mammogram)
        for number, lesion in enumerate(mammogram.lesions)
    )


def _describe_lesion(number: int, lesion: Lesion, mammogram: Mammogram) -> ExistingLesion:
    top, left, bottom, right = lesion.box
    rows = mammogram.rows
    cols = mammogram.cols
    if not (0 <= top < bottom <= rows and 0 <= left < right <= cols):
        raise DataError(f"lesion {number}: its box is empty or reaches beyond the mammogram")
    region = None
    area = (bottom - top) * (right - left)
    if lesion.outlines:
        mask = lesion.mask(rows, cols)[top:bottom, left:right]
        region = coco.encode(mask, lesion.box, rows, cols)
        area = int(mask.sum())
    return ExistingLesion(
        kind=lesion.kind, box=lesion.box, area=area, region=region, pathology=lesion.pathology
    )


def redact(config: Frozen) -> dict[str, Any]:
    """Redact a config for a recipe, which others may be given: `export.card.remove_places`."""
    content = remove_places(config.model_dump(mode="json"))
    assert isinstance(content, dict)
    return content


def explain(error: Exception, places: Iterable[Path]) -> str:
    """Explain why an item can't be made, in a sentence without the files of archives.

    Their names may be patients', so that pseudonyms take their places.

    Args:
        error: What was raised.
        places: The archives' folders.
    """
    reason = str(error)
    if not isinstance(error, REASONS):
        reason = f"{error.__class__.__name__}: {error}"
    for place in places:
        reason = remove_paths(reason, place)
    return reason
