"""Lesion shapes: from a mask GAN, from files, by name, or the outlines of real lesions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo import archives
from tfmammo.archives import phantom_anatomy
from tfmammo.config import DataConfig
from tfmammo.data import sampling
from tfmammo.errors import DataError
from tfmammo.filesystem import sha256
from tfmammo.mammogram import fill_outlines
from tfmammo.models import mask_gan
from tfmammo.synthesis.config import ShapeName
from tfmammo.synthesis.generators import MaskGenerator
from tfmammo.synthesis.lesion_bank import SourceLesion
from tfmammo.synthesis.placement import crop_to_mask

TRIES = 50  # shapes drawn for one mass
_RADIUS = 100  # px of a named shape
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm")
Shape = tuple[NDArray[np.uint8], str]  # mask [rows, cols], 0 or 1, and its origin in a few words


class ShapeSource(Protocol):
    """Where the shapes of made-up masses come from."""

    @property
    def identity(self) -> dict[str, object]:
        """What is equal for equal sources."""

    def draw(self, random: np.random.Generator) -> Shape:
        """Draw a mask."""


@dataclass(frozen=True, eq=False)
class GeneratedShapes:
    """Masks of a mask GAN."""

    network: MaskGenerator
    plausible: bool = True

    @property
    def identity(self) -> dict[str, object]:
        """The network's, and which of its masks are used."""
        return {"gan": self.network.identity, "plausible": self.plausible}

    def draw(self, random: np.random.Generator) -> Shape:
        """Generate a mask."""
        return self.network.generate(random, self.plausible), "mask GAN"


@dataclass(frozen=True, eq=False)
class NamedShapes:
    """Contours of one named shape, as the phantom's masses have them."""

    name: ShapeName

    @property
    def identity(self) -> dict[str, object]:
        """The name."""
        return {"drawn": self.name}

    def draw(self, random: np.random.Generator) -> Shape:
        """Draw a large contour, because it is scaled afterwards."""
        outline = phantom_anatomy.contour(random, self.name, "circumscribed", _RADIUS)
        mask = fill_outlines([outline + 2 * _RADIUS], 4 * _RADIUS, 4 * _RADIUS)
        return mask, f"drawn, {self.name}"


@dataclass(frozen=True, eq=False)
class ShapeFiles:
    """Mask pictures, one region each."""

    files: tuple[Path, ...]

    @staticmethod
    def find(place: Path) -> ShapeFiles:
        """Find a picture, or the pictures of a folder."""
        if place.is_file():
            return ShapeFiles((place,))
        files = sorted(path for path in place.glob("*") if path.suffix.lower() in _PICTURES)
        if not files:
            raise DataError(f"shapes.files: {place} is neither a picture nor a folder of pictures")
        return ShapeFiles(tuple(files))

    @cached_property
    def identity(self) -> dict[str, object]:
        """A hash of the files."""
        digests = "\n".join(sha256(path) for path in self.files)
        return {"files": hashlib.sha256(digests.encode()).hexdigest()}

    def draw(self, random: np.random.Generator) -> Shape:
        """Read one of the pictures."""
        path = self.files[random.integers(len(self.files))]
        picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
        if picture is None:
            raise DataError(f"shapes.files: {path.name}: can't be read as a picture")
        threshold = 127 if path.suffix.lower() in (".jpg", ".jpeg") else 0
        region = _clean((picture > threshold).astype(np.uint8))
        try:
            crop_to_mask(region)
        except ValueError as error:
            raise DataError(f"shapes.files: {path.name}: {error}") from None
        return region, f"file {sha256(path)[:12]}"


@dataclass(frozen=True, eq=False)
class RealOutlines:
    """Outlines of real lesions."""

    lesions: tuple[SourceLesion, ...]

    @staticmethod
    def select(
        lesions: tuple[SourceLesion, ...], data: DataConfig, of_patients: str = ""
    ) -> RealOutlines:
        """Take the outlines of an archive's lesions."""
        if not lesions:
            raise DataError(
                f"{data.archive_name} has no {sampling.describe_wanted(data)}{of_patients} to "
                "take shapes from; give shapes.gan or shapes.files"
            )
        return RealOutlines(lesions)

    @cached_property
    def identity(self) -> dict[str, object]:
        """A hash of what the archive states."""
        return {"archive": archives.fingerprint(lesion.mammogram for lesion in self.lesions)}

    def draw(self, random: np.random.Generator) -> Shape:
        """Draw the outline of one of the lesions."""
        lesion = self.lesions[random.integers(len(self.lesions))]
        mammogram = lesion.mammogram
        region = _clean(lesion.lesion.mask(mammogram.rows, mammogram.cols))
        return region, f"{mammogram.archive} {mammogram.image_id}#{lesion.number}"


def draw_shape(source: ShapeSource, random: np.random.Generator) -> Shape:
    """Draw the shape of one mass: uint8 [height, width], 0 or 1, its own box, and its origin."""
    reason = "there is none"
    for _ in range(TRIES):
        try:
            mask, origin = source.draw(random)
            return crop_to_mask(mask), origin
        except ValueError as error:
            reason = str(error)
    raise DataError(f"no shape for a mass: {reason}")


def _clean(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Keep one region without holes. A median filter would take thin parts off."""
    return np.ascontiguousarray(mask_gan.clean(mask[None, ..., None], median=1)[0, ..., 0])
