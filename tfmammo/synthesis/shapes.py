"""Lesion shapes: of a mask GAN, of files, named ones, outlines of real lesions."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo import archives
from tfmammo.archives import phantom
from tfmammo.data import jobs, sampling
from tfmammo.data.tfrecord import sha256
from tfmammo.errors import DataError
from tfmammo.mammogram import Lesion, Mammogram, Skipped
from tfmammo.models import mask_gan
from tfmammo.synthesis import lesion_bank
from tfmammo.synthesis.config import ShapeConfig, SynthesisConfig
from tfmammo.synthesis.generators import MaskGenerator
from tfmammo.synthesis.placement import cut

TRIES = 50  # shapes drawn for one mass
_RADIUS = 100  # px of a shape that is drawn by its name
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm")


def shape(
    config: SynthesisConfig, gan: MaskGenerator | None, random: np.random.Generator
) -> tuple[NDArray[np.uint8], str]:
    """One mass's shape, in its own box, and where it comes from.

    Args:
        config: Shapes and lesions are used.
        gan: The mask GAN, where there is one.

    Returns:
        (uint8 [height, width], 0 or 1, its origin in a few words).

    Raises:
        DataError: None can be had, the sentence says why.
    """
    reason = "there is none"
    for _ in range(TRIES):
        try:
            mask, origin = (
                (gan.made(random), "mask GAN") if gan else _without_network(config, random)
            )
            return cut(mask), origin
        except ValueError as error:
            reason = str(error)
    raise DataError(f"no shape for a mass: {reason}")


def shapes_described(config: SynthesisConfig, gan: MaskGenerator | None) -> dict[str, object]:
    """Where shapes come from, equal where they are equal."""
    if gan:
        return {"gan": gan.identity}
    if config.shapes.files:
        digests = "\n".join(sha256(path) for path in _pictures(config.shapes.files))
        return {"files": hashlib.sha256(digests.encode()).hexdigest()}
    if config.shapes.drawn:
        return {"drawn": config.shapes.drawn}
    return {"archive": jobs.fingerprint(found[0] for found in _outlined(config))}


def lesion_patients(config: SynthesisConfig) -> frozenset[str]:
    """The patients of all lesions that made-up masses may have their shapes or sizes from."""
    real = config.shapes == ShapeConfig() or not (config.sizes or config.size)
    return frozenset(found[0].patient_id for found in _outlined(config)) if real else frozenset()


def _without_network(
    config: SynthesisConfig, random: np.random.Generator
) -> tuple[NDArray[np.uint8], str]:
    if config.shapes.files:
        return _of_file(config, random)
    return _named(config.shapes.drawn, random) if config.shapes.drawn else _real(config, random)


def _named(shape: str, random: np.random.Generator) -> tuple[NDArray[np.uint8], str]:
    """A shape by its name, drawn large: it is scaled afterwards."""
    outline = phantom.contour(random, shape, "circumscribed", _RADIUS)
    return Lesion("mass", (0, 0, 0, 0), (outline + 2 * _RADIUS,)).mask(
        4 * _RADIUS, 4 * _RADIUS
    ), f"drawn, {shape}"


def _of_file(config: SynthesisConfig, random: np.random.Generator) -> tuple[NDArray[np.uint8], str]:
    assert config.shapes.files
    files = _pictures(config.shapes.files)
    path = files[random.integers(len(files))]
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise DataError(f"{path}: can't be read as a picture")
    region = mask_gan.clean(
        (picture > (127 if path.suffix.lower() in (".jpg", ".jpeg") else 0)).astype(np.uint8)[
            None, ..., None
        ]
    )
    try:
        cut(region[0, ..., 0])
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    return np.ascontiguousarray(region[0, ..., 0]), f"file {sha256(path)[:12]}"


@functools.cache
def _pictures(place: Path) -> tuple[Path, ...]:
    found = (
        (place,)
        if place.is_file()
        else tuple(sorted(path for path in place.glob("*") if path.suffix.lower() in _PICTURES))
    )
    if not found:
        raise DataError(f"shapes.files: {place} is no picture and holds none")
    return found


def _real(config: SynthesisConfig, random: np.random.Generator) -> tuple[NDArray[np.uint8], str]:
    known = _outlined(config)
    mammogram, number, lesion = known[random.integers(len(known))]
    region = mask_gan.clean(lesion.mask(mammogram.rows, mammogram.cols)[None, ..., None])
    return np.ascontiguousarray(
        region[0, ..., 0]
    ), f"{mammogram.archive} {mammogram.image_id}#{number}"


def _outlined(config: SynthesisConfig) -> tuple[tuple[Mammogram, int, Lesion], ...]:
    """(mammogram, number, lesion) of every wanted lesion of an archive, and of the patients asked
    for, that may have an outline.
    """
    return _all_outlined(config.sources)


@functools.cache
def _all_outlined(config: SynthesisConfig) -> tuple[tuple[Mammogram, int, Lesion], ...]:
    data = config.lesions or config.data
    found = lesion_bank.of_side(archives.mammograms(data, Skipped()), data, config)
    known = [
        (mammogram, number, lesion)
        for mammogram in found
        for number, lesion in sampling.wanted(mammogram, data).items()
    ]
    if not known:
        what = f"{' or '.join(data.kinds)}{config.whose}"
        raise DataError(
            f"{archives.archive_name(data)} holds no {what} to take shapes from; give shapes.gan "
            "or shapes.files"
        )
    return tuple(known)
