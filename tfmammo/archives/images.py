"""What an image file itself says of a mammogram, as fields of `Mammogram`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tfmammo.archives import dicom, pictures
from tfmammo.archives.masks import is_named_mask
from tfmammo.archives.named_files import is_dicom
from tfmammo.archives.notes import Notes
from tfmammo.errors import ArchiveError

_MASKS_PACK = 20  # times; no mammogram packs so well without loss


def read_dicom(path: Path, window: bool = True) -> dict[str, Any] | None:
    """Read a DICOM's header; None of a raw image ("for processing").

    Args:
        path: Its file.
        window: What `dicom.read_pixels` takes.
    """
    header = dicom.read_header(path)
    if header.for_processing:
        return None
    names = ("rows", "cols", "laterality", "view", "spacing", "chest_wall")
    return {name: getattr(header, name) for name in names} | dicom.pixel_source(path, window)


def read_noted(notes: Notes, path: Path, place: Path) -> dict[str, Any] | None:
    """Read a DICOM's header; of what can't be used note why, raw images by number for `place`."""
    try:
        facts = read_dicom(path)
    except ArchiveError as error:
        notes.note(path, error)
        return None
    if facts is None:
        notes.count(place, "raw images ('for processing')")
    return facts


def read_picture(path: Path, bits: int | None, is_listed: bool) -> dict[str, Any]:
    """Read a picture's header.

    Args:
        path: Its file.
        bits: How many its values fill; None takes what the file states.
        is_listed: Found in a folder, so that it might be a mask, which raises ArchiveError.
    """
    read = pictures.read_mammogram if is_listed else pictures.read_pixels
    with pictures.open_picture(path) as picture:
        depth = (pictures.find_full_scale(picture, path, bits) + 1).bit_length() - 1
        pixels = picture.width * picture.height
        packs_well = path.stat().st_size * _MASKS_PACK < pixels and picture.format != "JPEG"
        if is_listed and (packs_well or is_named_mask(path.stem)):
            read(path, bits)  # for its complaints
        return {
            "bits": depth,
            "rows": picture.height,
            "cols": picture.width,
            "read": partial(read, path, bits),
            "file": path,
        }


def read_image(
    path: Path, bits: int | None = None, is_listed: bool = False
) -> dict[str, Any] | None:
    """Read the header of a DICOM or a picture as the functions above do."""
    if not is_dicom(path):
        return read_picture(path, bits, is_listed)
    if bits is not None:
        raise ArchiveError(f"{path}: a DICOM states its bits itself, leave them blank")
    return read_dicom(path)
