"""The user's own mammograms: a folder of images with masks or COCO annotations, and a table.

    images/             .png .tif .tiff .jpg .jpeg .pgm .bmp (8 or 16 bit, one channel or equal
                        ones), at any depth; DICOM of any name
    masks/              <image's name>.png, or <image's name>_1.png, _2.png ... where it has several
                        lesions: 0 is background; a_mask.png or a_seg.png, and beside a.png
    annotations.json    or COCO instead of masks: polygons, RLE (compressed or not) or boxes
    metadata.csv        file, patient, laterality, view, pathology, kind, shape, margin, birads,
                        density, spacing, split, bits, lesion_patient

All but `images` may be missing, and all columns but `file`, in any order. `file` names an image
("a.png", "images/left/b.dcm"), or one mask ("a_2.png"), whose row then gives that lesion's kind,
shape, margin and pathology. See `metadata`.

Patients. Images of one woman in both subsets of a split make every result worthless, and file names
can't be trusted to tell women apart. So nothing is guessed. Where the table names patients, images
without one are left out and counted. Where it names none at all, all images count as one patient:
they can be looked at and predicted on but not split, and a log line says so.
One number is one patient, whether a program wrote it as 12, 0012, 12.0 or 1.2E+01.
`lesion_patient`, which synthetic mammograms with another woman's lesions have, is not used: make
such a set from one subset of a split alone.

Grey values. Nothing is guessed from the pixels: 16-bit files are scaled by 65535, also where their
values stay below 4096. The column `bits` says what they hold instead (12 for most detectors); a log
line asks for it once where pixels use a quarter of 16 bits or less. A DICOM, a PGM (its maxval) and
a 12-bit TIFF say it themselves. Raw DICOM images ("for processing") are left out and counted.

Masks (see `masks`). Without a `kind` in the table a mask is a mass of uncertain kind. A mask is
read when it is wanted: one that is empty, damaged or of another size than its image raises
ArchiveError then. Normal images need no mask, and those of images whose `pathology` is normal are
not looked at.

COCO. Coordinates count from the image's corner, half a pixel from the first pixel's centre. Only
the images that annotations.json lists are read, since the others may be unlabelled. Holes of a
region are filled, as everywhere here.

DICOM SEG, SR and RTSTRUCT files, among the images or in a folder annotations, give the lesions of
the DICOM images that they name, where there are neither masks nor annotations.json: see `regions`.
Other tools' data sets are read as they are: see `layouts` and `yolo`.

Marked lesions that can't be read, or whose word is not known, are `Mammogram.lost`.

Pathology is the image's: its lesions carry it where they have no own and it holds for each, because
there is one or all is benign.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfmammo.archives import coco, dicom, layouts, pictures, regions
from tfmammo.archives.findings import LESION, Finding
from tfmammo.archives.masks import find_mask_folder, find_masks, is_named_mask, read_mask
from tfmammo.archives.metadata import Row, parse_cells, read_metadata
from tfmammo.archives.named_files import DICOMS, PICTURES, Names, find_files, has_dicom_bytes
from tfmammo.archives.yolo import find_yolo
from tfmammo.errors import ArchiveError
from tfmammo.filesystem import is_first_time
from tfmammo.mammogram import (
    ID_KEY,
    Found,
    Lesion,
    LesionKind,
    Lost,
    Mammogram,
    MaskedLesion,
    Skipped,
    hash_id,
    is_keyed,
    sort_found,
)

log = logging.getLogger(__name__)

_MASKS_PACK = 20  # times; no mammogram packs so well without loss


@dataclass
class _Folder:
    """What a root holds."""

    root: Path
    skipped: Skipped
    images: dict[str, Path]
    rows: dict[str, Row]
    # image -> (mask, its file)
    masks: dict[str, list[tuple[str, Path]]] = field(default_factory=dict)
    coco: dict[str, coco.Listed] = field(default_factory=dict)
    listed_only: bool = False
    layout: layouts.Layout | None = None  # of another tool
    # by the SOP Instance UID of their image; None where other labels count
    regions: dict[str, list[regions.Region]] | None = None
    drawn: set[str] = field(default_factory=set)  # images whose regions were used
    # (file, why) -> how many of its regions
    unusable: Counter[tuple[Path, str]] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def note(self, path: Path, reason: object) -> None:
        self.skipped.note(self.root, path, reason)


def read(root: Path, skipped: Skipped | None = None) -> list[Mammogram]:
    """Read the mammograms of a folder, in the order of their names.

    Tables and headers are read, pixels and masks are not.

    Args:
        root: The folder that holds `images`.
        skipped: Takes what was left out, and why.

    Returns:
        One record per readable image; image_id is hashed_id("folder", <its name beneath images,
        without the ending>).

    Raises:
        ArchiveError: No image can be read, annotations of two kinds stand side by side, or a table
            or COCO file is damaged, or states another size than the image has.
    """
    root = Path(root)
    skipped = Skipped() if skipped is None else skipped
    for name in ("metadata.csv", "annotations.json"):
        if (root / name).exists() and not (root / name).is_file():
            raise ArchiveError(f"{root / name}: is no file")
    layout = layouts.find_layout(root, skipped) or find_yolo(root, skipped)
    if not (root / "images").is_dir() and layout is None:
        raise ArchiveError(f"{root}: has no folder images")
    if find_mask_folder(root) and (root / "annotations.json").exists():
        raise ArchiveError(f"{root}: has both masks and annotations.json, keep one of them")
    images = (
        find_files(root, "images", PICTURES + DICOMS, skipped) if layout is None else layout.images
    )
    folder = _Folder(root, skipped, images, {}, layout=layout)
    if layout is not None:
        folder.rows = parse_cells(root, layout.cells, skipped)
    if (root / "metadata.csv").exists():
        folder.rows = read_metadata(root / "metadata.csv", skipped)
    if layout is not None:
        pass  # it has its own labels
    elif (root / "annotations.json").exists():
        folder.coco = _read_coco(folder, root / "annotations.json")
        folder.listed_only = True
    else:
        folder.masks = find_masks(root, images, skipped)
    if layout is None:
        _find_regions(folder)
    _match_rows(folder)
    mammograms = list(_make_mammograms(folder))
    _note_unused_regions(folder)
    for reason, count in folder.counts.items():
        skipped.add("images/*", f"{count} {reason}")
    if not mammograms:
        reasons = [f", the first is {file}: {why}" for file, why in skipped.reasons.items()]
        first = f"{len(skipped)} skipped{next(iter(reasons), '')}"
        raise ArchiveError(f"{root}: holds no image that can be read ({first})")
    return mammograms


def read_one(path: Path) -> Mammogram:
    """Read one file by itself, without any folder around it: its header, not its pixels.

    Args:
        path: An image of a kind that a folder may hold; a DICOM may have any name.

    Returns:
        A record without lesions, its image_id as `read` makes it; as nobody says whose it is, all
        have one patient_id.

    Raises:
        ArchiveError: No such file, no image that can be read, or a raw DICOM image ("for
            processing").
    """
    if path.exists() and not path.is_file():
        raise ArchiveError(f"{path}: is no file")
    facts = _read_facts(path, None)
    if facts is None:
        raise ArchiveError(
            f"{path}: is a raw image ('for processing'), take the one for presentation"
        )
    is_named = path.suffix.lower() in PICTURES + DICOMS
    # a name in no known encoding can't be hashed
    name = (path.stem if is_named else path.name).encode(errors="replace").decode()
    return Mammogram(
        archive="folder",
        patient_id=hash_id("folder", ""),
        image_id=hash_id("folder", name),
        **facts,
    )


def is_dicom(path: Path) -> bool:
    """Whether a file is a DICOM by its ending or its first bytes; False where it can't be read."""
    return path.is_file() and (path.suffix.lower() in DICOMS or has_dicom_bytes(path))


def _match_rows(folder: _Folder) -> None:
    """Match rows that name an image in another folder, and note those of no image or mask."""
    masks = {mask for masks in folder.masks.values() for mask, _ in masks}
    names = Names(folder.images.keys() - folder.rows.keys(), folders_matter=True)
    unused = 0
    for name in sorted(folder.rows.keys() - folder.images.keys() - masks):
        image = names.find(name)
        if image is None or image in folder.rows:
            unused += 1
        else:
            folder.rows[image] = folder.rows[name]
    if names.guessed:
        folder.skipped.add(
            "metadata.csv", f"{names.guessed} of its files are matched without their folders"
        )
    if unused:
        folder.skipped.add(
            "metadata.csv", f"{unused} of its {len(folder.rows)} files are no image or mask here"
        )


# Lesions


def _read_coco(folder: _Folder, path: Path) -> dict[str, coco.Listed]:
    """Read the images that a COCO file lists and that are there."""
    names = Names(folder.images, folders_matter=False)
    listed = coco.load(path, lambda name: names.find(name) or name, partial(folder.note, path))
    if names.guessed:
        folder.note(path, f"{names.guessed} of its names are matched without their folders")
    if missing := len(listed.keys() - folder.images.keys()):
        folder.note(path, f"{missing} of its {len(listed)} images are missing")
    return listed


def _find_regions(folder: _Folder) -> None:
    """Find the DICOM files that draw regions, among the images and in a folder annotations."""
    files = {
        image: path
        for image, path in folder.images.items()
        if is_dicom(path) and regions.is_region_file(path)
    }
    for image in files:
        del folder.images[image]
    paths = list(files.values())
    if (folder.root / "annotations").is_dir():
        paths += find_files(folder.root, "annotations", DICOMS, folder.skipped).values()
    if paths and (folder.masks or folder.listed_only):
        for path in paths:
            folder.note(path, "is not read beside masks or annotations.json")
    elif paths:
        folder.regions = regions.read_regions(paths, folder.note)


def _make_region_lesions(folder: _Folder, image: str) -> Iterator[Found]:
    assert folder.regions is not None
    path = folder.images[image]
    if not is_dicom(path):
        return
    identifier, facts = regions.read_image(path)
    drawn = folder.regions.get(identifier, [])
    row = folder.rows.get(image, {})
    details = _find_details(row, len(drawn))
    for region in drawn:
        folder.drawn.add(identifier)
        if region.finding is None:
            yield Lost()
            continue
        kind, certain = _choose_kind(region.finding, row)
        try:
            yield region.draw(facts, kind, details | {"kind_is_certain": certain})
        except ValueError as error:
            folder.unusable[region.file, str(error)] += 1
            yield Lost(kind if certain else None)


def _note_unused_regions(folder: _Folder) -> None:
    for (path, reason), count in folder.unusable.items():
        folder.note(path, f"{count} of its regions {reason}")
    others = Counter(
        region.file
        for image, listed in (folder.regions or {}).items()
        if image not in folder.drawn
        for region in listed
    )
    for path, count in others.items():
        folder.note(path, f"{count} of its regions lie on images that are not read here")


def _make_mask_lesions(folder: _Folder, image: str, rows: int, cols: int) -> Iterator[Found]:
    row = folder.rows.get(image, {})
    masks = folder.masks.get(image, [])
    if masks and row.get("pathology") == "normal":
        reason = "masks of images that the table calls normal were not looked at"
        folder.counts[reason] += len(masks)
        return
    for mask, path in masks:
        details = _find_details(row, len(masks)) | (
            _find_details(folder.rows.get(mask, {}), 1) if mask != image else {}
        )
        finding = folder.rows.get(mask, {}).get("kind", row.get("kind", LESION))
        if finding is None:
            yield Lost()
        elif finding.kind is None:
            folder.counts["masks of findings that are no lesions of ours"] += 1
        else:
            details["kind_is_certain"] = finding.is_certain
            read = partial(read_mask, path, rows, cols)
            yield MaskedLesion(finding.kind, read, (path,), **details)


def _make_coco_lesions(folder: _Folder, image: str, rows: int, cols: int) -> Iterator[Found]:
    listed = folder.coco[image]
    path = folder.images[image]
    where = f"{folder.root / 'annotations.json'}: {path.relative_to(folder.root).as_posix()}"
    # what is read later may be told in a log
    later = f"{folder.root / 'annotations.json'}: {hash_id('folder', image)}"
    if listed.size not in (None, (rows, cols)):
        raise coco.Contradiction(
            f"{where} has {(rows, cols)} rows and columns there, but {listed.size} is stated"
        )
    details = _find_details(folder.rows.get(image, {}), len(listed.annotations))
    row = folder.rows.get(image, {})
    for number, (finding, annotation) in enumerate(listed.annotations, start=1):
        if finding is None:
            yield Lost()
            continue
        kind, certain = _choose_kind(finding, row)
        try:
            yield coco.lesion(
                kind,
                annotation,
                rows,
                cols,
                details | {"kind_is_certain": certain},
                f"{later}, annotation {number}",
            )
        except coco.Contradiction as error:
            raise coco.Contradiction(str(error).replace(later, where)) from None
        except ValueError as error:
            folder.note(path, f"annotation {number} left out: {error}")
            yield Lost(kind if certain else None)


def _choose_kind(finding: Finding, row: Row) -> tuple[LesionKind, bool]:
    """Return what a finding is, which the table may know better than a general word."""
    stated = row.get("kind")
    if not finding.is_certain and stated and stated.kind:
        finding = stated
    assert finding.kind
    return finding.kind, finding.is_certain


def _make_lesions(folder: _Folder, image: str, rows: int, cols: int) -> Iterator[Found]:
    if folder.layout is not None:
        lesions = folder.layout.find_lesions(image, rows, cols)
        details = _find_details(folder.rows.get(image, {}), len(lesions))
        return (_complete(lesion, details) for lesion in lesions)
    if folder.regions is not None:
        return _make_region_lesions(folder, image)
    if folder.listed_only:
        return _make_coco_lesions(folder, image, rows, cols)
    return _make_mask_lesions(folder, image, rows, cols)


def _complete(lesion: Found, details: Mapping[str, Any]) -> Found:
    """Add what the image's row says of a lesion to what its own label says."""
    for name, value in details.items():
        if isinstance(lesion, Lesion) and getattr(lesion, name) is None:
            # frozen, and not shared yet; a MaskedLesion has no other way
            object.__setattr__(lesion, name, value)
    return lesion


def _find_details(row: Row, lesions: int) -> dict[str, Any]:
    """Return what an image's row says of each of its lesions."""
    details = {name: row[name] for name in ("shape", "margin") if name in row and lesions == 1}
    if row.get("pathology") == "benign" or (lesions == 1 and row.get("pathology") == "malignant"):
        details["pathology"] = row["pathology"]
    return details


# Images


def _speak_of_unkeyed_pseudonyms(root: Path) -> None:
    """Say it once of each folder."""
    if not is_first_time(f"unkeyed pseudonyms of {root.resolve()}"):
        return
    log.info(
        "pseudonyms of patients are hashes without a key: whoever has a list of the patients' "
        "numbers can undo them; with private data set %s to a secret text first",
        ID_KEY,
    )


def _make_mammograms(folder: _Folder) -> Iterator[Mammogram]:
    has_patients = any("patient" in row for row in folder.rows.values())
    if not has_patients:
        reason = (
            "metadata.csv names no patients, so all images count as one and can't be split; "
            "give it the columns file and patient"
        )
        log.warning("%s: %s", folder.root.name, reason)
    elif not is_keyed():
        _speak_of_unkeyed_pseudonyms(folder.root)
    for image, path in folder.images.items():
        if folder.listed_only and image not in folder.coco:
            folder.counts["images that annotations.json does not list"] += 1
        elif has_patients and "patient" not in folder.rows.get(image, {}):
            folder.counts[
                "images without a patient in metadata.csv, which might be in both subsets of a "
                "split"
            ] += 1
        else:
            try:
                bits = folder.rows.get(image, {}).get("bits")
                if facts := _read_facts(path, bits, pictures.read_mammogram):
                    yield _make_mammogram(folder, image, facts)
                else:
                    folder.counts["raw images ('for processing')"] += 1
            except coco.Contradiction:
                raise
            except ArchiveError as error:
                folder.note(path, error)


def _make_mammogram(folder: _Folder, image: str, facts: dict[str, Any]) -> Mammogram:
    row = folder.rows.get(image, {})
    found = sort_found(_make_lesions(folder, image, facts["rows"], facts["cols"]))
    pathology = row.get("pathology")
    if pathology == "normal" and (found["lesions"] or found["lost"]):
        folder.note(
            folder.images[image],
            f"the table calls it normal, but it has {sum(map(len, found.values()))} lesions: its "
            "pathology is taken as unknown",
        )
        pathology = None
    facts |= {
        name: row[name]
        for name in ("laterality", "view", "spacing", "birads", "density")
        if name in row
    }
    subsets = folder.layout.subsets if folder.layout else {}
    mammogram = Mammogram(
        archive="folder",
        patient_id=hash_id("folder", row.get("patient", "")),
        image_id=hash_id("folder", image),
        pathology=pathology,
        **found,
        official_split=row.get("split") or subsets.get(image),
        **facts,
    )
    if mammogram.laterality and mammogram.wall_side != mammogram.laterality:
        folder.counts[
            "images are stored mirrored: PatientOrientation holds, not the laterality"
        ] += 1
    return mammogram


def _read_facts(
    path: Path,
    bits: int | None,
    read: Callable[[Path, int | None], NDArray[np.float32]] = pictures.read_pixels,
) -> dict[str, Any] | None:
    """Read what an image's own header says, as fields of Mammogram; None of a raw one.

    Args:
        path: Its file.
        bits: What the table says.
        read: Reads a picture's pixels.
    """
    if is_dicom(path):
        if bits is not None:
            raise ArchiveError(f"{path}: a DICOM states its bits itself, leave them blank")
        return _read_dicom_facts(path)
    with pictures.open_picture(path) as picture:
        depth = (pictures.find_full_scale(picture, path, bits) + 1).bit_length() - 1
        pixels = picture.width * picture.height
        packs_well = path.stat().st_size * _MASKS_PACK < pixels and picture.format != "JPEG"
        if packs_well or is_named_mask(path.stem):
            read(path, bits)  # for its complaints
        return {
            "bits": depth,
            "rows": picture.height,
            "cols": picture.width,
            "read": partial(read, path, bits),
            "file": path,
        }


def _read_dicom_facts(path: Path) -> dict[str, Any] | None:
    header = dicom.read_header(path)
    facts = {
        name: getattr(header, name)
        for name in ("rows", "cols", "laterality", "view", "spacing", "chest_wall")
    }
    return None if header.for_processing else facts | dicom.pixel_source(path)
