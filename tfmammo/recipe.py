"""The config of a synthesis, and the recipe of each of its items: what it was made from, and what came out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import cv2
import keras
import numpy as np
import tensorflow as tf
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_serializer,
    model_validator,
)

from tfmammo import __version__, archives
from tfmammo.archives import source_file
from tfmammo.archives.stored import Stored
from tfmammo.config import ConfigError, DataConfig, Frozen, describe
from tfmammo.data.preprocess import DataError
from tfmammo.data.tfrecord import sha256
from tfmammo.insertion import Sizes
from tfmammo.record import ArchiveError, Box, Laterality, LesionKind, Mammogram, Pathology, Skipped, Split, View

FORMAT: Final = 1
REASONS = (DataError, ArchiveError)  # why an item can't be made; any other ValueError is a fault of ours
Kind = TypeVar("Kind", bound=Frozen)
Painter = Literal["infilling", "can", "blending", "vanilla", "paste", "poisson", "mixed", "opencv", "opencv_mixed"]
# Painters with a network, and what theirs is given.
THROUGH_NETWORKS = {"infilling": "tri_label", "can": "mask", "blending": "pasted", "vanilla": "noise"}
Used = Literal["outline", "size"]  # what of a real lesion is used, where it is not all of it


class ShapeConfig(Frozen):
    """Where the shapes of masses come from: gan, the handle of a mask GAN; files, a mask picture or a folder of them, one region
    each; drawn, a shape by name, as the phantom's masses have it; with none of them the real outlines of `lesions`.
    """

    gan: str | None = None
    files: Path | None = None
    drawn: Literal["irregular", "lobular", "oval", "round"] | None = None

    @model_validator(mode="after")
    def _one(self) -> ShapeConfig:
        if sum(value is not None for value in (self.gan, self.files, self.drawn)) > 1:
            raise ValueError("give one of gan, files and drawn")
        return self


class PatientsConfig(Frozen):
    """Whose lesions and mammograms are taken, be lesions set in or sizes and shapes taken from them. split_file: a split.json of a
    training. fold: which of its folds is held out; for a split by patient. side: train or held_out.
    """

    split_file: Path
    fold: NonNegativeInt = 0
    side: Literal["train", "held_out"] = "train"


class SynthesisConfig(Frozen):
    """A config file of `python -m tfmammo.synthesis`.

    data: the mammograms to insert into; name, root, and for the phantom phantoms and seed are used. mammograms: those called
    normal, or all; a lesion that is there is never overlapped, and is written into the annotations as one of the mammogram's own. With
    data.mixed_findings=false a mammogram is not taken that holds one of uncertain kind, which annotations can't say. only: image ids, to
    take no others.
    painter: what makes grey values: infilling, or can (the generator of train/can.py or train/pix2pix.py), of a shape and size; of a
    real lesion the network of train/blending.py, or a method of baselines.poisson; or vanilla, the network of train/vanilla_gan.py,
    which makes lesion and tissue from noise, as large as a real lesion. generator: handle of that network: a training's folder, an
    export, models:/NAME@ALIAS. tracking_uri: the store of the last.
    lesions: the archive whose lesions are set in, or give sizes and, where `shapes` is empty, shapes; null: that of `data`. kinds
    and mixed_findings are used too. sizes: the Gaussian; null fits it on `lesions`. shapes: see ShapeConfig.
    resize, rotate: of real lesions: range of the factor they are scaled by, beside what mm per px ask for, and degrees, each way, that
    they are turned by at most. patients: whose mammograms, and whose lesions, be they set in or sizes and shapes taken from them; see
    PatientsConfig; null: everybody's. A network's own training, a mask GAN's too, is not checked: patients.json says whom it was on.
    masses: how many in one mammogram, from and to; each number is equally likely. size: (height, width) of each, native px,
    instead of a draw. centre: (row, col) of the one mass, native px, instead of a draw. feather: px of the generator's patch over
    which what it changes fades beyond the margin; of a patch that is set in whole, over which it fades out at its border, and 0 for none.
    whole_patch: whether the patch of an infilling or a blending network takes the tissue's place, as in Shen et al., section 4.3,
    and with feather=0 to a hard border; else what it changes is added. A CAN's or vanilla GAN's is always set in whole.
    count: of items; they are spread evenly over the mammograms. seed: of everything that is drawn.
    format: dicom, png (of 8 or 16 bits, as the source) or tfrecord. pathology: of all masses, where the generator's were all so; real
    lesions of no other are taken then.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    data: DataConfig = DataConfig()
    mammograms: Literal["normal", "all"] = "normal"
    only: tuple[str, ...] = ()
    painter: Painter = "infilling"
    generator: str | None = None
    tracking_uri: str | None = None
    lesions: DataConfig | None = None
    sizes: Sizes | None = None
    shapes: ShapeConfig = ShapeConfig()
    resize: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.2)
    rotate: float = Field(default=180.0, ge=0, le=180)
    patients: PatientsConfig | None = None
    masses: tuple[PositiveInt, PositiveInt] = (1, 1)
    size: tuple[PositiveInt, PositiveInt] | None = None
    centre: tuple[NonNegativeInt, NonNegativeInt] | None = None
    feather: NonNegativeFloat = 16.0
    whole_patch: bool = False
    count: PositiveInt = 100
    seed: NonNegativeInt = 0
    format: Literal["dicom", "png", "tfrecord"] = "dicom"
    pathology: Literal["benign", "malignant"] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> SynthesisConfig:
        if self.masses[0] > self.masses[1]:
            raise ValueError("masses must be two numbers, the smaller first")
        if self.centre and self.masses != (1, 1):
            raise ValueError("centre places one mass; masses must be [1, 1]")
        if self.resize[0] > self.resize[1]:
            raise ValueError("resize must be two factors, the smaller first")
        if self.painter in THROUGH_NETWORKS and not self.generator:
            raise ValueError(f"painter={self.painter} needs a generator")
        if not self.feather and not (self.whole_patch or self.painter in ("can", "vanilla")):
            raise ValueError("feather=0 leaves no room to fade in what a network changes; it is for whole_patch=true")
        unused: tuple[str, ...] = ("resize", "rotate") if not self.real_lesions else ("shapes", "sizes", "size")
        unused += () if self.painter in THROUGH_NETWORKS else ("generator", "tracking_uri", "feather")
        unused += () if self.painter in ("infilling", "blending") else ("whole_patch",)
        for key in unused:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is not used by painter={self.painter}; leave it out")
        return self

    @property
    def real_lesions(self) -> bool:
        """Whether real lesions are drawn, to be set in or to say how large one is, and not masses made up."""
        return self.painter not in ("infilling", "can")

    @property
    def sources(self) -> SynthesisConfig:
        """Whose lesions may be taken and nothing else: equal for all items, whatever is asked of them, so that archives are read once."""
        chosen = {key: getattr(self, key) for key in ("data", "lesions", "patients", "pathology")}
        return SynthesisConfig(name="sources", painter="paste", **chosen)

    @property
    def places(self) -> tuple[Path, ...]:
        """Folders of this machine that a message may name, and that nobody needs to be told of."""
        roots = (self.data.root, self.lesions.root if self.lesions else None, self.shapes.files.parent if self.shapes.files else None)
        return tuple(root for root in roots if root)

    @property
    def whose(self) -> str:
        """Whose lesions and mammograms are taken, for messages; nothing where everybody's are."""
        return f" of patients on the {self.patients.side} side" if self.patients else ""


class Source(Frozen):
    """The mammogram that an item was made from, by pseudonym; sha256: of its file, or of its pixels where there is none."""

    archive: str
    image_id: str
    patient_id: str
    sha256: str
    rows: PositiveInt
    cols: PositiveInt
    bits: PositiveInt
    laterality: Laterality | None = None
    view: View | None = None
    density: str | None = None
    spacing: tuple[float, float] | None = None
    official_split: Split | None = None


class Graft(Frozen):
    """A real lesion, by pseudonym, and what was done to it. number: its index in its mammogram, which sha256 is of, as Source's.
    angle: degrees that it was turned by, counter-clockwise as shown. factor: that it was scaled by, beside what mm per px ask for.
    mirrored: before that. trained_on: whether its patient was in the network's training; None where no network paints. used: what of it
    is used, its outline, so turned and scaled, or its size alone; None: all of it.
    """

    archive: str
    image_id: str
    patient_id: str
    number: NonNegativeInt
    sha256: str
    pathology: Pathology | None
    angle: float
    factor: PositiveFloat
    mirrored: bool
    trained_on: bool | None
    used: Used | None = None


class Planted(Frozen):
    """One mass. box: of its mask, window: of its patch, native px, half-open. area: px. region: its mask as COCO's RLE. seed: of
    the noise that its network is given. shape: where its shape comes from. graft: the real lesion that it is, or whose outline or size
    it has.
    """

    kind: LesionKind = "mass"
    box: Box
    window: Box
    area: PositiveInt
    region: dict[str, Any]
    seed: NonNegativeInt
    shape: str
    graft: Graft | None = None


class OwnLesion(Frozen):
    """A lesion that the mammogram had before. box: native px, half-open. region: its mask as COCO's RLE, None where the archive gives
    its box alone. area: of the mask, or of the box, px.
    """

    kind: LesionKind
    box: Box
    area: PositiveInt
    region: dict[str, Any] | None = None
    pathology: Pathology | None = None


class Recipe(Frozen):
    """What makes one item again, and what came out.

    identity: hash of what decides a whole set. name, number: of the item. config: written as `passed_on` leaves it. versions: of what
    computed it. generator: name, step and weights of the network that painted, where there is one; see export.load_whole. Earlier versions
    wrote sha256, of the export's files. lesions: those set in, own: those that were there. left_out: why there is no item. notes: what
    was asked for and not done. files: sha256 by path beneath the output folder.
    """

    format: Literal[1] = FORMAT
    identity: str
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")  # files are called by it
    number: NonNegativeInt
    config: SynthesisConfig
    versions: dict[str, str]
    generator: dict[str, str]
    sizes: Sizes | None
    source: Source | None = None
    lesions: tuple[Planted, ...] = ()
    own: tuple[OwnLesion, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: str | None = None
    files: dict[str, str] = {}

    @field_serializer("config")
    def _passed_on(self, chosen: SynthesisConfig) -> dict[str, Any]:
        return passed_on(chosen)

    def key(self) -> str:
        """Equal for equal content, wherever and however often it is made."""
        assert self.source
        content = {
            "source": self.source.model_dump(mode="json"), "feather": self.config.feather,
            "generator": self.generator.get("weights") or self.generator.get("sha256", self.config.painter),
            "lesions": [lesion.model_dump(mode="json", exclude_none=True) for lesion in self.lesions],
        }  # fmt: skip
        if self.config.whole_patch:
            content["whole_patch"] = True
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def is_whole(self, folder: Path) -> bool:
        """Whether all its files are in the folder as they were written."""
        return as_written(folder, self.files)


def as_written(folder: Path, files: Mapping[str, str]) -> bool:
    """Whether all files are in the folder and have the contents they should. Args: files: sha256 by path beneath it."""
    try:
        return all(sha256(folder / file) == digest for file, digest in files.items())
    except DataError:
        return False


def digest(mammogram: Mammogram, stored: Stored) -> str:
    """SHA-256 of a mammogram's file, or of its values where there is none."""
    file = source_file(mammogram)
    return sha256(file) if file else hashlib.sha256(np.ascontiguousarray(stored.values).tobytes()).hexdigest()


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

    Raises:   DataError: it is missing or damaged.
    """
    return read(Recipe, path, "recipe")


def read(kind: type[Kind], path: Path, what: str) -> Kind:
    """A recipe of either kind.

    Args:     what: it is, for the message.
    Raises:   DataError: it is missing or damaged.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.__class__.__name__})") from None
    except ValidationError as error:
        raise DataError(f"{path}: is no {what} of this version ({describe(error)[:300]})") from None


def source_of(archive: str, image_id: str, data: DataConfig, file: Path) -> Mammogram:
    """The mammogram that a recipe starts from.

    Args:     archive, image_id: of the recipe's source. data: the archive, of which a recipe does not say where it lies. file: the recipe.

    Raises:   DataError: it is not there, or nobody said where the archive lies. ConfigError, ArchiveError: no such archive.
    """
    if data.root is None and archive != "phantom":
        raise ConfigError(f"{file}: recipes don't say where archives lie; give --set data.root=DIR (of an archive {archive})")
    found = {one.image_id: one for one in archives.mammograms(data, Skipped())}
    if image_id not in found:
        raise DataError(f"{file}: its source {image_id} is not in {archives.archive_name(data)}")
    return found[image_id]


def passed_on(chosen: Frozen) -> dict[str, Any]:
    """A config as a recipe keeps it, which others may be given.

    It says nothing of where archives lie, nor of a store's address, which may hold a password: keys named root and tracking_uri are
    null. Of any other path that leads out of the current folder only the last part is left.

    Returns:  what JSON can hold.
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
    leads_out = isinstance(content, str) and (Path(content).is_absolute() or content.startswith(("~", "..")))
    return Path(content).name if leads_out else content  # type: ignore[arg-type]


def explained(error: Exception, places: Iterable[Path]) -> str:
    """Why an item can't be made, in a sentence without the folders of archives. Args: places: those folders."""
    said = str(error) if isinstance(error, REASONS) else f"{error.__class__.__name__}: {error}"
    for place in places:
        said = said.replace(f"{place}{os.sep}", "")
    return said
