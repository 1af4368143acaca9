"""Masks of lesions: which files they are, and what they mark.

One file is one lesion; its parts are not split into several. Of two values the higher is the
lesion. More than two are left by resampling or by JPEG, which grey a rim around the lesion: they
are cut at half of the highest. Crisp levels without such a rim, and colours, are labels, of which
nothing says whether they are lesions or kinds: they are refused, and so is a mask that marks the
background.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.archives import pictures
from tfmammo.archives.named_files import PICTURES, find_files, split_mask_name
from tfmammo.archives.notes import Notes
from tfmammo.errors import ArchiveError, EmptyMask
from tfmammo.mammogram import Skipped

# in any case of letters; the first that holds pictures counts
FOLDERS = ("masks", "mask", "labels", "segmentations")
_NUMBER = re.compile(r"(.+)_([0-9]{1,9})", re.DOTALL)
_MOST = 0.9  # of an image that a lesion covers
_FEW = 64  # values of a mask that was numbered, not drawn in grey

Masks = dict[str, list[tuple[str, Path]]]  # image -> name and file of each of its masks
_Numbered = dict[str, list[tuple[int, str, Path]]]  # with their numbers


def find_masks(notes: Notes, images: dict[str, Path]) -> Masks:
    """Find each image's masks by number, in a folder of their own or among `images`.

    The latter are taken out of `images`.
    """
    found: _Numbered = defaultdict(list)
    beside = {
        mask: parts
        for mask, path in images.items()
        if path.suffix.lower() in PICTURES
        and (parts := split_mask_name(mask))
        and parts[0] in images
    }
    for mask, (image, number) in beside.items():
        found[image].append((number, mask, images.pop(mask)))
    if beside:
        notes.skipped.add(
            "images/*", f"{len(beside)} masks are next to their images, by their names"
        )
    if folder := find_mask_folder(notes.root):
        _match_folder(notes, folder, images, found)
    return {
        image: [(mask, path) for _, mask, path in sorted(masks)] for image, masks in found.items()
    }


def find_mask_folder(root: Path) -> str | None:
    """Find the folder of masks."""
    try:
        folders = {path.name.lower(): path.name for path in sorted(root.iterdir()) if path.is_dir()}
    except OSError:
        return None
    for name in FOLDERS:
        folder = folders.get(name)
        if folder and (name == "masks" or find_files(root, folder, PICTURES, Skipped())):
            return folder
    return None


def _match_folder(notes: Notes, folder: str, images: Mapping[str, Path], found: _Numbered) -> None:
    """Match masks to images by their paths, else by a name that only one image has."""
    flat: dict[str, list[str]] = defaultdict(list)
    for image in images:
        flat[PurePosixPath(image).name].append(image)
    moved = 0
    for mask, path in find_files(notes.root, folder, PICTURES, notes.skipped).items():
        names = list(_list_names(mask))
        exact = [(name, number) for name, number in names if name in images]
        bases = [(PurePosixPath(name).name, number) for name, number in names]
        named = [(flat[base], number) for base, number in bases if base in flat]
        if exact:
            image, number = exact[0]
            found[image].append((number, mask, path))
        elif named and len(named[0][0]) == 1:
            ((image,), number) = named[0]
            found[image].append((number, mask, path))
            moved += 1
        else:
            reason = "none has its name, with or without a number at the end"
            notes.note(path, f"is a mask of no image: {reason}")
    if moved:
        notes.skipped.add(
            f"{folder}/*", f"{moved} masks are matched by their names, in other folders"
        )


def _list_names(mask: str) -> Iterator[tuple[str, int]]:
    """List the images whose mask this may be, the likeliest first, each with the mask's number."""
    yield mask, -1
    if parts := split_mask_name(mask):
        yield parts
    if match := _NUMBER.fullmatch(mask):
        yield match[1], int(match[2])


def read_mask(path: Path, rows: int, cols: int) -> NDArray[np.uint8]:
    """Read the mask of one lesion: uint8 [rows, cols], 1 on the lesion.

    Raises ArchiveError where it has another size, holds labels, or marks nothing or the background.
    """
    values, is_jpeg, has_colours = pictures.read_values(path, rows, cols)
    lowest = int(values.min())
    highest = int(values.max())
    if highest < (128 if is_jpeg else 1):  # a JPEG's black may be off by a little
        raise EmptyMask(f"{path}: marks nothing")
    if has_colours or (not is_jpeg and _holds_labels(values)):
        raise ArchiveError(
            f"{path}: has several labels, which may be lesions or kinds: write one file a lesion "
            "(NAME_1.png, NAME_2.png ...) and its kind into metadata.csv"
        )
    if np.all((values == lowest) | (values == highest)):
        region = (values == highest).astype(np.uint8)
    else:
        advice = "some masks have more than two intensities and are cut at half of the highest"
        pictures.advise("masks", f"{advice}: resampled, or JPEG")
        region = (2 * values >= highest).astype(np.uint8)
    check_region(region, path)
    return region


def check_region(region: NDArray[np.uint8], path: Path) -> None:
    """Raise ArchiveError where a region covers the background."""
    corners = int(region[[0, 0, -1, -1], [0, -1, 0, -1]].sum())
    share = float(region.mean())
    if corners == 4 or share > _MOST or (corners == 3 and share > 0.5):
        raise ArchiveError(
            f"{path}: marks the image's corners or nearly all of it; is it inverted?"
        )


def _holds_labels(values: NDArray[np.int32]) -> bool:
    """Whether intensities number regions, and are not a rim between two others."""
    levels = np.unique(values)
    if len(levels) < 3:
        return False
    if levels[-1] < _FEW and levels[-1] == len(levels) - 1:  # 0, 1, 2 ...
        return True
    grey = values.astype(np.float32)
    between = (grey > grey.min()) & (grey < grey.max())
    is_rim = cv2.dilate(grey, np.ones((5, 5), np.uint8)) > grey
    return bool(is_rim[between].mean() < 0.5)
