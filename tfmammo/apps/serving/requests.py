"""The images of a request: their keys, and the mammograms in them."""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import NonNegativeInt, ValidationError, model_validator

from tfmammo import config as configuration
from tfmammo.errors import ArchiveError, ConfigError, TfmammoError
from tfmammo.mammogram import Mammogram, hash_id, hold_pixels
from tfmammo.synthesis.config import LARGEST
from tfmammo.synthesis.editor import EditRequest, GivenFacts, open_mammogram


class ImageRequest(GivenFacts):
    """The keys of every request."""

    image: str | None = None
    """A file in base64."""
    pixels: Any = None
    """Rows of intensities in [0, 1]."""

    @model_validator(mode="after")
    def _one(self) -> ImageRequest:
        if (self.image is None) == (self.pixels is None):
            raise ValueError("give image or pixels")
        return self


class PipelineRequest(ImageRequest):
    """A request to a CAD pipeline."""

    overlay: bool = False
    """Also answer with the image with its findings drawn over it."""


class EditorRequest(ImageRequest, EditRequest):
    """A request to an editor."""

    centre: tuple[NonNegativeInt, NonNegativeInt]
    """(row, col), native px."""
    format: Literal["png", "dicom"] = "png"
    """Format of the image in the answer."""


def parse_request(kind: type[ImageRequest], item: Mapping[str, Any]) -> ImageRequest:
    """Parse an image of a request; a missing or wrong key is a ConfigError."""
    try:
        return kind.model_validate(item)
    except ValidationError as error:
        raise ConfigError(configuration.describe(error)[:500]) from None


def read_mammogram(request: ImageRequest, path: Path) -> Mammogram:
    """Read the image of a request; a file is written to `path` and must stay while it is used."""
    if request.image is None:
        return request.add_to(_wrap_pixels(request.pixels))
    # Clients write base64 on one line or several, with or without a data URI.
    text = re.sub(r"^data:[^,]{0,80};base64,", "", request.image.strip())
    try:
        path.write_bytes(base64.b64decode("".join(text.split()), validate=True))
    except ValueError:
        raise ConfigError("image is not in base64") from None
    try:
        mammogram = request.add_to(open_mammogram(path))
    except ArchiveError as error:
        raise ArchiveError(str(error).removeprefix(f"{path}: ")) from None
    # The id of a file follows from its path, and seeds follow from the id.
    return replace(mammogram, image_id=hash_id("folder", ""))


def _wrap_pixels(pixels: Any) -> Mammogram:
    try:
        values = np.asarray(pixels)
    except ValueError:
        values = np.empty(0)
    if values.ndim != 2 or not values.size or values.dtype.kind not in "iuf":
        raise ConfigError("pixels must be rows of equal length, of numbers")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is refused below
        image = values.astype(np.float32, copy=False)[..., np.newaxis]
    rows, cols = image.shape[:2]
    if image.size > LARGEST:
        raise ConfigError(f"pixels: {rows} x {cols} px are more than {LARGEST}")
    if not (image.min() >= 0 and image.max() <= 1):  # written so that NaN fails too
        raise ConfigError(
            f"pixels must be in [0, 1], but reach from {image.min():g} to {image.max():g}"
        )
    unknown = hash_id("folder", "")
    return Mammogram("folder", unknown, unknown, rows, cols, hold_pixels(image))


@contextmanager
def numbering_errors(number: int) -> Iterator[None]:
    """Make errors of this package name the image's number, and not its temporary file."""
    try:
        yield
    except TfmammoError as error:
        kind: Any = type(error)
        place = rf"{re.escape(tempfile.gettempdir())}[\w./-]*"
        raise kind(f"inputs[{number}]: {re.sub(place, 'the file', str(error))}") from None
