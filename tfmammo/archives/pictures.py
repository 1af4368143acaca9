"""Read mammograms and masks as PNG, TIFF, JPEG, PGM or BMP."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from tfmammo.archives.named_files import split_mask_name
from tfmammo.archives.stored import unused_range
from tfmammo.errors import ArchiveError, MaskSize
from tfmammo.mammogram import MOST_PIXELS

log = logging.getLogger(__name__)
_advised: set[str] = set()  # topics of which something was said already

# Pillow knows many more, some of which run other programs
_FORMATS = ("PNG", "TIFF", "JPEG", "PPM", "BMP")
# Pillow's modes of 8 bits
_ONE_CHANNEL = ("1", "L")
_CHANNELS = ("LA", "P", "RGB", "RGBA")
# TIFF tags, the first in EXIF too
_ORIENTATION = 274
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_MASKS_PACK = 20  # times; no mammogram packs so well without loss


def read_facts(path: Path, bits: int | None, is_listed: bool) -> dict[str, Any]:
    """Read a picture's header, as fields of Mammogram.

    Args:
        path: Its file.
        bits: How many its values fill; None takes what the file states.
        is_listed: Found in a folder, so that it might be a mask, which raises ArchiveError.
    """
    read = read_mammogram if is_listed else read_pixels
    with open_picture(path) as picture:
        depth = (_find_full_scale(picture, path, bits) + 1).bit_length() - 1
        pixels = picture.width * picture.height
        is_lossy = picture.format == "JPEG"
        packs_well = path.stat().st_size * _MASKS_PACK < pixels and not is_lossy
        if is_listed and (packs_well or split_mask_name(path.stem)):
            read(path, bits)  # for its complaints
        facts = {"rows": picture.height, "cols": picture.width, "is_lossy": is_lossy}
        return {**facts, "bits": depth, "read": partial(read, path, bits), "file": path}


@contextmanager
def open_picture(path: Path) -> Iterator[ImageFile]:
    """Open one upright picture; whatever goes wrong while it is open is an ArchiveError."""
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ArchiveError(
                    f"{path}: {picture.height} x {picture.width} px are more than a mammogram has"
                )
            if getattr(picture, "n_frames", 1) != 1:
                raise ArchiveError(f"{path}: holds several pages, not one image")
            if _read_orientation(picture) != 1:
                raise ArchiveError(
                    f"{path}: is stored turned or mirrored (EXIF orientation), save it upright"
                )
            yield picture
    except ArchiveError:
        raise
    except FileNotFoundError:
        raise ArchiveError(f"{path}: no such file") from None
    except Exception as error:  # Pillow answers damaged files with exceptions of any class
        reason = error.__class__.__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "its format is not known"
        elif "truncated" in str(error):
            reason = "it is truncated"
        raise ArchiveError(f"{path}: can't be read as an image ({reason})") from None


def _read_orientation(picture: ImageFile) -> int:
    # Pillow decodes a PNG to look for EXIF, unless it has met some on its way.
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1
    return int(picture.getexif().get(_ORIENTATION, 1))


def _find_full_scale(picture: ImageFile, path: Path, bits: int | None) -> int:
    """Return the value that means 1; `bits` None takes what the file states."""
    deep = picture.mode.startswith("I;16") or (
        picture.mode == "I" and picture.format in ("PNG", "PPM")
    )
    if not deep and picture.mode not in (*_ONE_CHANNEL, *_CHANNELS):
        raise ArchiveError(f"{path}: its pixels ({picture.mode}) are not of 8 or 16 bits")
    if picture.format == "PPM" and picture.mode in _CHANNELS:
        raise ArchiveError(f"{path}: is no PGM but a colour image")
    if not deep and re.search(r";16\w", str(picture.tile[0][3])):
        # Pillow would drop half of them
        raise ArchiveError(f"{path}: has 16 bits in several channels, save it in one")
    depth = 16 if deep else 1 if picture.mode == "1" else 8
    if deep and picture.format == "TIFF":
        depth = picture.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0]  # type: ignore[attr-defined]
    if bits is not None and picture.format == "PPM":
        raise ArchiveError(f"{path}: a PGM states its largest value itself, leave its bits blank")
    if bits is not None and bits > depth:
        raise ArchiveError(f"{path}: has {depth} bits, the table says {bits}")
    return int(2 ** (bits or depth) - 1)


def read_pixels(path: Path, bits: int | None) -> NDArray[np.float32]:
    """Read a grey picture: float32 [rows, cols, 1] in [0, 1].

    Raises ArchiveError where it has values or colours that no mammogram has.
    """
    with open_picture(path) as picture:
        full = _find_full_scale(picture, path, bits)
        # Pillow turns a TIFF round in which 0 is white if it has 8 bits, but not if it has 16.
        inverted = (
            picture.mode.startswith("I;16")
            and picture.format == "TIFF"
            and picture.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]
        )
        if picture.mode in _CHANNELS:
            channels = np.asarray(picture.convert("RGBA"))
            if (channels[..., 3] != 255).any():
                raise ArchiveError(f"{path}: is transparent in places")
            if (channels[..., :1] != channels[..., 1:3]).any():
                raise ArchiveError(f"{path}: is a colour image, its channels differ")
            values = channels[..., 0].astype(np.int32)
        else:
            values = np.asarray(picture).astype(np.int32)
        if values.max() > full:
            raise ArchiveError(
                f"{path}: holds values up to {values.max()}, more than {bits} bits can"
            )
        values = full - values if inverted else values
        if bits is None and (advice := unused_range(int(values.max()), full)):
            advise("bits", f"some images: {advice}")
        return (values.astype(np.float32) / np.float32(full))[..., np.newaxis]


def read_mammogram(path: Path, bits: int | None) -> NDArray[np.float32]:
    """Read a grey picture as `read_pixels` does; one of two values is a mask, and raises."""
    image = read_pixels(path, bits)
    some = image[::31, ::31]  # of a mammogram, these tell already
    if image.size >= 100 and len(np.unique(some)) <= 2 and len(np.unique(image)) == 2:
        raise ArchiveError(f"{path}: has two intensities alone: it is a mask, not a mammogram")
    return image


def read_labels(path: Path, rows: int, cols: int) -> NDArray[np.int32]:
    """Read a label map, int32 [rows, cols]: values, or indices of a palette, number labels."""
    with _open_sized(path, rows, cols) as picture:
        if picture.mode not in (*_ONE_CHANNEL, "P") and not picture.mode.startswith("I"):
            raise ArchiveError(f"{path}: is no label map, which has one channel")
        return np.asarray(picture).astype(np.int32)


def read_values(path: Path, rows: int, cols: int) -> tuple[NDArray[np.int32], bool, bool]:
    """Read the values of a mask of a given size.

    Returns:
        int32 [rows, cols], of colours the brightest channel, 0 where it is transparent; whether it
        is a JPEG; whether several colours fill areas.
    """
    with _open_sized(path, rows, cols) as picture:
        is_jpeg = picture.format == "JPEG"
        if picture.mode in _CHANNELS:
            channels = np.asarray(picture.convert("RGBA")).astype(np.int32)
            channels[channels[..., 3] == 0] = 0
            return channels[..., :3].max(axis=-1), is_jpeg, not is_jpeg and _has_colours(channels)
        if picture.mode in _ONE_CHANNEL or picture.mode.startswith("I"):
            return np.asarray(picture).astype(np.int32), is_jpeg, False
        raise ArchiveError(f"{path}: its pixels ({picture.mode}) are not of 8 or 16 bits")


def _has_colours(channels: NDArray[np.int32]) -> bool:
    red, green, blue = (channels[..., channel] for channel in range(3))
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return False
    codes = ((red << 16) + (green << 8) + blue).astype(np.float32)
    around = np.ones((3, 3), np.uint8)
    is_area = cv2.erode(codes, around) == cv2.dilate(codes, around)
    return len(np.unique(codes[is_area & (codes > 0)])) > 1


@contextmanager
def _open_sized(path: Path, rows: int, cols: int) -> Iterator[ImageFile]:
    with open_picture(path) as picture:
        if picture.size != (cols, rows):
            raise MaskSize(
                f"{path}: has {picture.height} x {picture.width} px, its image {rows} x {cols}"
            )
        yield picture


def advise(topic: str, advice: str) -> None:
    """Log what is odd about files, once in a process; their names may be patients'."""
    if topic not in _advised:
        _advised.add(topic)
        log.warning("%s", advice)
