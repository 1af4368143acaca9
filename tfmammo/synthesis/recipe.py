"""Recipes: what each synthetic item was made from, and what came out.

A recipe makes its item again. It holds pseudonyms and hashes, and nothing of its owner's disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import cv2
import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_serializer,
)

from tfmammo import __version__, archives
from tfmammo.archives import coco
from tfmammo.archives.files import remove_paths
from tfmammo.archives.stored import Stored
from tfmammo.config import DataConfig, Frozen, describe
from tfmammo.errors import ArchiveError, ConfigError, DataError
from tfmammo.filesystem import sha256
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
from tfmammo.synthesis.config import (
    KINDS,
    PatchSynthesisConfig,
    Sizes,
    SynthesisConfig,
    Target,
    UsedPart,
)
from tfmammo.tracking.export.card import remove_places

FORMAT: Final = 1
# Why an item can't be made. Any other ValueError is a bug.
REASONS = (DataError, ArchiveError)
AnyRecipe = TypeVar("AnyRecipe", bound="ItemRecipe")


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
    """Of a picture of it, where a DICOM's greys fill 8 or 16."""
    laterality: Laterality | None = None
    view: View | None = None
    density: str | None = None
    spacing: tuple[float, float] | None = None
    official_split: Split | None = None


class PatchSource(ItemSource):
    """The real patch that a synthetic one was made from."""

    patch: str
    """Id of the real patch."""
    place: Box
    """Its window in the preprocessed mammogram, px, half-open."""
    seed: NonNegativeInt
    """Seed of the generator's noise."""


class TransformRecord(Frozen):
    """Which real lesion was used, by pseudonym, and how it was transformed."""

    archive: str
    image_id: str
    patient_id: str
    number: NonNegativeInt
    """Its index in its mammogram."""
    sha256: str
    """Of its mammogram, as in ItemSource."""
    pathology: Pathology | None
    angle: float
    """Degrees that it was rotated by, counter-clockwise on the screen."""
    factor: PositiveFloat
    """Factor that it was scaled by, besides the ratio of mm per px."""
    mirrored: bool
    """Whether it was mirrored before that."""
    trained_on: bool | None
    """Whether the network was trained on its patient; None without a network."""
    used: UsedPart | None = None
    """The part that is used: its transformed outline, or its size alone; None for all of it."""


class InsertedLesion(Frozen):
    """One lesion that was inserted."""

    kind: LesionKind = "mass"
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
    identity: str
    """Hash of what decides the whole set."""
    number: NonNegativeInt
    repeat: NonNegativeInt = 0
    """How many items before it were made from the same mammogram."""
    config: SynthesisConfig | PatchSynthesisConfig
    """The set's config, without places and passwords."""
    versions: dict[str, str]
    """Versions of the libraries that computed it."""
    generator: dict[str, str]
    """Name, step and hash of the weights of the network; empty without one."""
    source: ItemSource | None = None
    left_out: str | None = None
    """Why there is no item."""
    notes: tuple[str, ...] = ()
    """What was asked for and not done."""
    files: dict[str, str] = {}
    """sha256 by path beneath the set's folder."""

    @field_serializer("config")
    def _redact_config(self, config: Frozen) -> dict[str, Any]:
        return dict(remove_places(config.model_dump(mode="json")))

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
    sizes: Sizes | None
    """The Gaussian that sizes were drawn from."""
    source: Source | None = None
    lesions: tuple[InsertedLesion, ...] = ()
    own: tuple[ExistingLesion, ...] = ()

    @property
    def grafts(self) -> list[TransformRecord]:
        """The real lesions that were used."""
        return [lesion.graft for lesion in self.lesions if lesion.graft]

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


class PatchRecipe(ItemRecipe):
    """The recipe of a patch."""

    config: PatchSynthesisConfig
    target: Target
    """What the generator adds or removes."""
    source: PatchSource | None = None
    discarded: NonNegativeInt = 0
    """Earlier draws that post-processing discarded."""
    unusable: NonNegativeInt = 0
    """Earlier draws without a patch, for too little tissue or another pathology."""
    area: NonNegativeFloat = 0.0
    """Part of the patch that the mask covers, 0 to 1."""

    @property
    def kind(self) -> str:
        """mass, calcification or normal."""
        return KINDS[self.target]

    @property
    def name(self) -> str:
        """KIND/NUMBER, of its files."""
        return f"{self.kind}/{self.number:06d}"


def hash_source(mammogram: Mammogram, read: Callable[[], NDArray]) -> str:
    """Hash a mammogram's file (SHA-256), or the values that `read` returns where it has none."""
    if mammogram.file:
        return sha256(mammogram.file)
    return hashlib.sha256(np.ascontiguousarray(read()).tobytes()).hexdigest()


def collect_versions() -> dict[str, str]:
    """Collect the versions of what computes an item."""
    return {
        "tfmammo": __version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }


def read_recipe(kind: type[AnyRecipe], path: Path) -> AnyRecipe:
    """Read a recipe; DataError where it is missing or damaged."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.__class__.__name__})") from None
    except ValidationError as error:
        raise DataError(
            f"{path}: is not a recipe of this version ({describe(error)[:300]})"
        ) from None


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


def check_root(data: DataConfig, key: str, archive: str, where: str = "") -> None:
    """Raise ConfigError where a section of a recipe's config names no folder."""
    if data.root is None and archive != "phantom":
        raise ConfigError(
            f"{where}recipes don't say where archives are; give --set {key}.root=DIR (of an "
            f"archive {archive})"
        )


def find_source(
    source: ItemSource, data: DataConfig, file: Path, indexes: ArchiveIndexes
) -> Mammogram:
    """Find the mammogram of a recipe (`file`) in an archive; a recipe does not say where that is.

    Raises:
        ConfigError: `data` names no folder either.
        DataError: The archive has no such mammogram.
    """
    check_root(data, "data", source.archive, f"{file}: ")
    for mammogram in indexes.read(data):
        if mammogram.image_id == source.image_id:
            return mammogram
    raise DataError(f"{file}: its source {source.image_id} is not in {data.archive_name}")


def describe_source(mammogram: Mammogram, stored: Stored) -> Source:
    """Describe the mammogram that an item starts from."""
    names = Source.model_fields.keys() - {"sha256", "bits"}
    return Source(
        sha256=hash_source(mammogram, lambda: stored.values),
        bits=stored.picture_bits,
        **{name: getattr(mammogram, name) for name in names},
    )


def describe_existing_lesions(mammogram: Mammogram) -> tuple[ExistingLesion, ...]:
    """Describe a mammogram's own lesions as annotations have them, of every kind."""
    rows, cols = mammogram.rows, mammogram.cols
    described = []
    for number, lesion in enumerate(mammogram.lesions):
        top, left, bottom, right = lesion.box
        if not (0 <= top < bottom <= rows and 0 <= left < right <= cols):
            raise DataError(f"lesion {number}: its box is empty or reaches beyond the mammogram")
        place = coco.describe(lesion, rows, cols)
        described.append(
            ExistingLesion(
                kind=lesion.kind,
                box=lesion.box,
                area=place["area"],
                region=place.get("segmentation"),
                pathology=lesion.pathology,
            )
        )
    return tuple(described)


def explain(error: Exception, places: Iterable[Path]) -> str:
    """Explain why an item can't be made.

    Pseudonyms replace the names of files beneath `places`, which may be patients' names.
    """
    reason = str(error) if isinstance(error, REASONS) else f"{type(error).__name__}: {error}"
    for place in places:
        reason = remove_paths(reason, place)
    return reason
