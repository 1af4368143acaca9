"""The networks and shapes that a synthesis draws from: an infilling's or a blending's export, and masks of a mask GAN, of files or
of real masses; a contextual GAN's lesions."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tfmammo import archives, export
from tfmammo.config import DataConfig
from tfmammo.data import jobs, sampling
from tfmammo.data.preprocess import DataError
from tfmammo.data.tfrecord import sha256
from tfmammo.insertion import cut, training_data
from tfmammo.models import mask_gan
from tfmammo.models.contextual import ContextualConfig, scalars
from tfmammo.postprocessing import PostprocessConfig, Refined, postprocess
from tfmammo.recipe import SynthesisConfig
from tfmammo.record import Lesion, Mammogram, Skipped

TRIES = 50  # shapes drawn for one mass
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm")


@dataclass(frozen=True)
class Generator:
    """An infilling or a blending. call: (tri_label float32 [n, size, size, 2 or 3], or pasted [n, size, size, 3]) -> {"image": [n,
    size, size, 1]}. margin: of a tri-label of three channels, as in models.infilling. data: how its training patches were made.
    patients: those a blending was trained on.
    """

    call: Callable[..., dict[str, NDArray[np.float32]]]
    size: int
    margin: int | None
    data: DataConfig
    patients: frozenset[str] = frozenset()


@functools.cache
def generator(folder: Path, takes: str = "tri_label") -> Generator:
    """The infilling of an export, or with takes="pasted" the blending, read once in each process.

    Raises:   ExportError: there is none. DataError: its patches can't be put back, or its card does not say how they were made.
    """
    function, card = export.find(folder, {takes}, {"image"}), export.read_card(folder)
    shape = card["functions"][function]["inputs"][takes]["shape"]
    needed = "config.data, train_patients" if takes == "pasted" else "config.data, config.model.margin"
    try:
        data = training_data(card["config"]["data"], str(folder))
        patients = frozenset(card["train_patients"] if takes == "pasted" else ())
        margin = card["config"]["model"]["margin"] if takes == "tri_label" else None
    except (KeyError, TypeError, ValidationError):
        raise DataError(f"{folder}: its card does not say how its training patches were made ({needed})") from None
    return Generator(export.load(folder, function), shape[1], margin if shape[3] == 3 else None, data, patients)


@dataclass(frozen=True)
class LesionGenerator:
    """A contextual GAN. call: (image float32 [n, size, size, 1] in [0, 1], noise float32 [n, scalars] in [-1, 1]) -> {"lesion":
    float32 [n, size, size, 1] in [-1, 1]}. target: mass, calcification or removal. positives: malignant or lesion, what it adds
    or takes away. data: how its training patches were made. refine: its post-processing. patients: those it was trained on.
    """

    call: Callable[..., dict[str, NDArray[np.float32]]]
    size: int
    scalars: int
    target: str
    positives: str
    data: DataConfig
    refine: PostprocessConfig
    patients: frozenset[str]

    @property
    def removes(self) -> bool:
        """Whether it takes lesions away."""
        return self.target == "removal"

    def wants(self, pathology: str) -> bool:
        """Whether a lesion of that pathology ("" unknown) is one that it takes away."""
        return self.positives == "lesion" or pathology == "malignant"

    def made(self, image: NDArray[np.float32], seed: int) -> Refined:
        """One patch with its lesion added or removed, post-processed.

        Args:     image: float32 [size, size, 1] in [0, 1]. seed: of its random numbers.
        """
        noise = scalars(1, self.scalars, seed)
        return postprocess(image[None], self.call(image=image[None], noise=noise)["lesion"], self.refine, self.removes)


@functools.cache
def lesion_generator(folder: Path) -> LesionGenerator:
    """The contextual GAN of an export, read once in each process.

    Raises:   ExportError: there is none. DataError: its card does not say how it was trained.
    """
    function, card = export.find(folder, {"image", "noise"}, {"lesion"}), export.read_card(folder)
    inputs = card["functions"][function]["inputs"]
    try:
        data, model = DataConfig.model_validate(card["config"]["data"]), ContextualConfig.model_validate(card["config"]["model"])
        patients = frozenset(card["train_patients"])
    except (KeyError, TypeError, ValidationError):
        raise DataError(f"{folder}: its card does not say how and on whom it was trained (config, train_patients)") from None
    size, count = inputs["image"]["shape"][1], inputs["noise"]["shape"][1]
    return LesionGenerator(export.load(folder, function), size, count, model.target, model.positives, data, model.postprocess, patients)


def resolved(handle: str, tracking_uri: str | None) -> Path:
    """The folder of a handle. Raises: ConfigError, TrackingError: there is none."""
    from tfmammo.training import tracking  # MLflow takes seconds to import, and no worker needs it

    return tracking.resolve(handle, tracking_uri)


def described(folder: Path, source: str | Collection[str], target: str) -> dict[str, str]:
    """Name, step and sha256 of the function of an export that leads from source, or several, to target."""
    sources = {source} if isinstance(source, str) else source
    function, card = export.find(folder, sources, {target}), export.read_card(folder)
    content, place = hashlib.sha256(), export.located(folder) / function
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        content.update(f"{path.relative_to(place).as_posix()} {sha256(path)}\n".encode())
    return {"name": str(card["name"]), "step": str(card.get("step", "")), "sha256": content.hexdigest()}


def shape(config: SynthesisConfig, gan: Path | None, random: np.random.Generator) -> tuple[NDArray[np.uint8], str]:
    """One mass's shape, in its own box, and where it comes from.

    Args:     config: shapes and lesions are used. gan: the mask GAN's export, where there is one.
    Returns:  (uint8 [height, width], 0 or 1, its origin in a few words).
    Raises:   DataError: none can be had, the sentence says why.
    """
    reason = "there is none"
    for _ in range(TRIES):
        try:
            mask, origin = _drawn(gan, random) if gan else _of_file(config, random) if config.shapes.files else _real(config, random)
            return cut(mask), origin
        except ValueError as error:
            reason = str(error)
    raise DataError(f"no shape for a mass: {reason}")


def shapes_described(config: SynthesisConfig, gan: Path | None) -> dict[str, object]:
    """Where shapes come from, equal where they are equal."""
    if gan:
        return {"gan": described(gan, "noise", "mask")}
    if config.shapes.files:
        digests = "\n".join(sha256(path) for path in _pictures(config.shapes.files))
        return {"files": hashlib.sha256(digests.encode()).hexdigest()}
    return {"archive": jobs.fingerprint(found[0] for found in _outlined(config.lesions or config.data))}


def _drawn(gan: Path, random: np.random.Generator) -> tuple[NDArray[np.uint8], str]:
    call, z, limits = _gan(gan)
    mask = mask_gan.clean(call(noise=random.uniform(-1, 1, (1, z)).astype(np.float32))["mask"])
    if limits and not mask_gan.plausible(mask, limits)[0]:
        raise DataError("the mask GAN's masks look like no training mask")
    return np.ascontiguousarray(mask[0, ..., 0]), "mask GAN"


@functools.cache
def _gan(folder: Path) -> tuple[Callable[..., dict[str, NDArray[np.float32]]], int, mask_gan.Plausibility | None]:
    function = export.find(folder, {"noise"}, {"mask"})
    z = export.read_card(folder)["functions"][function]["inputs"]["noise"]["shape"][1]
    path = export.located(folder) / mask_gan.LIMITS
    limits = mask_gan.Plausibility.model_validate_json(path.read_bytes()) if path.is_file() else None
    return export.load(folder, function), z, limits


def _of_file(config: SynthesisConfig, random: np.random.Generator) -> tuple[NDArray[np.uint8], str]:
    assert config.shapes.files
    files = _pictures(config.shapes.files)
    path = files[random.integers(len(files))]
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise DataError(f"{path}: can't be read as a picture")
    region = mask_gan.clean((picture > (127 if path.suffix.lower() in (".jpg", ".jpeg") else 0)).astype(np.uint8)[None, ..., None])
    try:
        cut(region[0, ..., 0])
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    return np.ascontiguousarray(region[0, ..., 0]), f"file {sha256(path)[:12]}"


@functools.cache
def _pictures(place: Path) -> tuple[Path, ...]:
    found = (place,) if place.is_file() else tuple(sorted(path for path in place.glob("*") if path.suffix.lower() in _PICTURES))
    if not found:
        raise DataError(f"shapes.files: {place} is no picture and holds none")
    return found


def _real(config: SynthesisConfig, random: np.random.Generator) -> tuple[NDArray[np.uint8], str]:
    known = _outlined(config.lesions or config.data)
    mammogram, number, lesion = known[random.integers(len(known))]
    region = mask_gan.clean(lesion.mask(mammogram.rows, mammogram.cols)[None, ..., None])
    return np.ascontiguousarray(region[0, ..., 0]), f"{mammogram.archive} {mammogram.image_id}#{number}"


@functools.cache
def _outlined(data: DataConfig) -> tuple[tuple[Mammogram, int, Lesion], ...]:
    """(mammogram, number, lesion) of every wanted lesion of an archive that may have an outline."""
    found = archives.mammograms(data, Skipped())
    known = [(mammogram, number, lesion) for mammogram in found for number, lesion in sampling.wanted(mammogram, data).items()]
    if not known:
        raise DataError(
            f"{archives.archive_name(data)} holds no {' or '.join(data.kinds)} to take shapes from; give shapes.gan or shapes.files"
        )
    return tuple(known)
