"""The user's own mammograms: a folder of images with masks or COCO annotations, and a table.

Every part may be missing: without `images` all images beneath the folder count. Other tools' data
sets are read as they are: see `layouts` and `yolo`. Masks are read when they are wanted. Only the
images that annotations.json lists are read, since the others may be unlabelled. Marked lesions that
can't be read, or whose word is not known, are `Mammogram.lost`. `lesion_patient`, of synthetic
mammograms with another woman's lesions, is not used.

docs/archives/folder.md has the choices.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tfmammo.archives import coco, dicom, layouts, pictures, regions
from tfmammo.archives.findings import LESION
from tfmammo.archives.masks import FOLDERS, Masks, find_mask_folder, find_masks, read_mask
from tfmammo.archives.metadata import Row, parse_cells, read_metadata
from tfmammo.archives.named_files import DICOMS, PICTURES, Names, find_files, is_dicom
from tfmammo.archives.notes import Notes
from tfmammo.archives.region_types import NoAreaError
from tfmammo.archives.regions import is_region_file
from tfmammo.archives.yolo import find_yolo
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import (
    ID_KEY,
    Found,
    Lesion,
    LesionKind,
    Lost,
    Mammogram,
    MaskedLesion,
    Skipped,
    Split,
    hash_id,
    is_keyed,
    normalize_patient,
    normalize_spelling,
    sort_found,
)

log = logging.getLogger(__name__)

TABLE = "metadata.csv"
COCO = "annotations.json"
REGIONS = "annotations"


def read(root: Path, skipped: Skipped | None = None) -> list[Mammogram]:
    """Read tables and headers, in the order of the images' names.

    image_id is hash_id("folder", <an image's name beneath images, without the ending>). A table
    that is damaged, or contradicts an image's size, and annotations of two kinds are an error.
    """
    notes = Notes(root, skipped, "")
    root = notes.root
    for name in (TABLE, COCO):
        if (root / name).exists() and not (root / name).is_file():
            raise ArchiveError(f"{root / name}: is no file")
    if find_mask_folder(root) and (root / COCO).exists():
        raise ArchiveError(f"{root}: has both masks and {COCO}, keep one of them")
    layout = layouts.find_layout(notes) or find_yolo(notes)
    images = layout.images if layout else _find_images(notes)
    rows = parse_cells(root, layout.cells, notes.skipped) if layout else {}
    if (root / TABLE).exists():
        rows = read_metadata(root / TABLE, notes.skipped)
    has_coco = layout is None and (root / COCO).exists()
    masks: Masks = {}
    if layout is None and not has_coco:
        masks = find_masks(notes, images)
    rows = _match_rows(notes, rows, images, masks)
    drawn: dict[str, list[regions.Region]] = {}
    used: set[str] = set()  # images whose regions were looked up
    if layout:
        find = layout.find_lesions
    elif drawn := _read_regions(notes, images, has_masks=has_coco or bool(masks)):
        find = _open_regions(notes, images, drawn, used)
    elif has_coco:
        find = _open_coco(notes, images)
    else:
        find = _open_masks(notes, masks, rows)
    mammograms = list(_make_mammograms(notes, images, rows, find, layout.subsets if layout else {}))
    for region in (each for image in drawn.keys() - used for each in drawn[image]):
        notes.count(region.file, "of its regions are on images that are not read here")
    return notes.finish(mammograms)


def read_one(path: Path) -> Mammogram:
    """Read one file by itself, without any folder around it: its header, not its pixels.

    Returns:
        A record without lesions, its image_id as `read` makes it; as nobody says who the patient
        is, all have one patient_id.

    Raises:
        ArchiveError: No image that can be read, or a raw DICOM image ("for processing").
    """
    if path.exists() and not path.is_file():
        raise ArchiveError(f"{path}: is no file")
    facts = _read_facts(path)
    if facts is None:
        raise ArchiveError(f"{path}: is a raw image, take the one for presentation")
    is_named = path.suffix.lower() in PICTURES + DICOMS
    # a name in no known encoding can't be hashed
    name = (path.stem if is_named else path.name).encode(errors="replace").decode()
    patient, image = hash_id("folder", ""), hash_id("folder", name)
    return Mammogram(archive="folder", patient_id=patient, image_id=image, **facts)


def _read_facts(
    path: Path, bits: int | None = None, is_listed: bool = False
) -> dict[str, Any] | None:
    """Read a header as fields of Mammogram; None of a raw image."""
    if not is_dicom(path):
        return pictures.read_facts(path, bits, is_listed)
    facts = dicom.read_facts(path)
    if bits is not None:
        raise ArchiveError(f"{path}: a DICOM states its bits itself, leave them blank")
    return facts


def _find_images(notes: Notes) -> dict[str, Path]:
    endings = PICTURES + DICOMS
    if (notes.root / "images").is_dir():
        return find_files(notes.root, "images", endings, notes.skipped)
    if not notes.root.is_dir():
        raise ArchiveError(f"{notes.root}: is no folder")
    others = {TABLE, COCO, REGIONS, *FOLDERS}
    return find_files(notes.root, ".", endings, notes.skipped, others)


def _match_rows(
    notes: Notes, rows: dict[str, Row], images: Mapping[str, Path], masks: Masks
) -> dict[str, Row]:
    """Give each image its row, and what rows of several images say where its own is silent."""
    patterns = sorted((name for name in rows if f"/{name}".endswith("/*")), key=len)
    matched = {name: rows[name] for name in rows.keys() - patterns}
    for image, path in images.items():  # of two files that differ in their ending one is read
        relative = path.relative_to(notes.root)  # train/images/a where its image is train/a
        stated = normalize_spelling(relative.with_suffix("").as_posix())
        for name in (image + path.suffix.lower(), stated):
            if name not in images and (row := matched.pop(name, None)):
                matched[image] = row
    names = Names(images.keys() - matched.keys(), folders_matter=True)
    # of an image and its mask with one name, in folders that it leaves out, a row means the image
    mask_names = {
        mask
        for image, named in masks.items()
        for mask, _ in named
        if Path(mask).name != Path(image).name
    }
    unused = 0
    for name in sorted(matched.keys() - images.keys() - mask_names):
        found = names.find(name)
        if found is None or found in matched:
            unused += 1
        else:
            matched[found] = rows[name]
    for image in images:
        general: dict[str, object] = {}
        for pattern in patterns:
            if image.startswith(pattern[:-1]):
                general |= rows[pattern]
        if image in masks and general.get("pathology") == "normal":
            del general["pathology"]
            notes.count("images/*", "images have masks: a row of many does not call them normal")
        row = general | dict(matched.get(image, {}))
        if row.get("patient") == "*":
            row["patient"] = normalize_patient(image)
        matched[image] = row
    if names.guessed:
        notes.count(TABLE, "of its files are matched without their folders", names.guessed)
    if unused:
        notes.count(TABLE, f"of its {len(rows)} files are no image or mask here", unused)
    return matched


# Lesions


def _open_coco(notes: Notes, images: dict[str, Path]) -> layouts.FindLesions:
    """Read a COCO file; take out the images that it does not list."""
    path = notes.root / COCO
    names = Names(images, folders_matter=False)
    listed = coco.load(path, lambda name: names.find(name) or name, partial(notes.note, path))
    if names.guessed:
        notes.note(path, f"{names.guessed} of its names are matched without their folders")
    if missing := len(listed.keys() - images.keys()):
        notes.note(path, f"{missing} of its {len(listed)} images are missing")
    for image in images.keys() - listed.keys():
        del images[image]
        notes.count("images/*", f"images that {COCO} does not list")

    def find(image: str, rows: int, cols: int) -> list[Found]:
        file = images[image]
        entry = listed[image]
        place = f"{path}: {file.relative_to(notes.root).as_posix()}"
        entry.check_size(rows, cols, place)
        found: list[Found] = []
        for number, (finding, annotation) in enumerate(entry.annotations, start=1):
            name = f"annotation {number}"
            # what is read later may be told in a log
            where = f"{path}: {hash_id('folder', image)}, {name}"
            make = partial(coco.make_lesion, annotation, rows, cols, where)
            try:
                found += coco.make_found(finding, make, partial(notes.note, file), name)
            except coco.Contradiction as error:
                raise coco.Contradiction(f"{place}, {name}: {error}") from None
        return found

    return find


def _read_regions(
    notes: Notes, images: dict[str, Path], has_masks: bool
) -> dict[str, list[regions.Region]]:
    """Read the DICOM files that draw regions, among the images and in a folder of their own."""
    files = [name for name, path in images.items() if is_dicom(path) and is_region_file(path)]
    paths = [images.pop(name) for name in files]
    if (notes.root / REGIONS).is_dir():
        paths += find_files(notes.root, REGIONS, DICOMS, notes.skipped).values()
    if has_masks:
        for path in paths:
            notes.note(path, f"is not read beside masks or {COCO}")
        return {}
    return regions.read_regions(paths, notes.note)


def _open_regions(
    notes: Notes,
    images: Mapping[str, Path],
    drawn: Mapping[str, list[regions.Region]],
    used: set[str],
) -> layouts.FindLesions:
    """Draw an image's regions when its lesions are looked for, and add the image to `used`."""

    def find(image: str, rows: int, cols: int) -> list[Found]:
        if not is_dicom(images[image]):
            return []
        identifier, facts = regions.read_image(images[image])
        used.add(identifier)
        lesions: list[Lesion] = []
        lost: list[Lost] = []
        measured: list[tuple[NoAreaError, LesionKind | None]] = []
        for region in drawn.get(identifier, ()):
            if region.finding is None or region.finding.kind is None:
                lost.append(Lost())
                continue
            certain = {"kind_is_certain": region.finding.is_certain}
            try:
                lesions.append(region.draw(facts, region.finding.kind, certain))
            except ValueError as error:
                notes.count(region.file, f"of its regions {error}")
                if isinstance(error, NoAreaError):
                    measured.append((error, region.finding.certain_kind))
                else:
                    lost.append(Lost(region.finding.certain_kind))
        # a diameter or an arrow at a lesion that is drawn as well is no further one
        lost += [
            Lost(kind)
            for line, kind in measured
            if not any(line.measures(lesion, kind) for lesion in lesions)
        ]
        return [*lesions, *lost]

    return find


def _open_masks(notes: Notes, masks: Masks, table: Mapping[str, Row]) -> layouts.FindLesions:
    """Make a lesion of each mask, which is read when it is wanted."""

    def find(image: str, rows: int, cols: int) -> list[Found]:
        row = table.get(image, {})
        named = masks.get(image, [])
        if row.get("pathology") == "normal":
            reason = "masks of images that the table calls normal were not looked at"
            notes.count("images/*", reason, len(named))
            return []
        found: list[Found] = []
        for mask, path in named:
            own = table.get(mask, {}) if mask != image else {}
            finding = own.get("kind", row.get("kind", LESION))
            if finding is None:
                found.append(Lost())
            elif finding.kind is None:
                notes.count("images/*", "masks of findings that are no lesions of ours")
            else:
                details = {it: own[it] for it in ("shape", "margin", "pathology") if it in own}
                details["kind_is_certain"] = finding.is_certain
                read = partial(read_mask, path, rows, cols)
                found.append(MaskedLesion(finding.kind, read, (path,), **details))
        return found

    return find


def _complete(found: list[Found], row: Row) -> list[Found]:
    """Add what the image's row says of each of its lesions to what their own labels say."""
    details = {name: row[name] for name in ("shape", "margin") if name in row and len(found) == 1}
    if row.get("pathology") == "benign" or (
        len(found) == 1 and row.get("pathology") == "malignant"
    ):
        details["pathology"] = row["pathology"]
    stated = row.get("kind")
    for lesion in found:
        if not isinstance(lesion, Lesion):
            continue
        changes = {name: value for name, value in details.items() if getattr(lesion, name) is None}
        if not lesion.kind_is_certain and stated and stated.kind:
            changes |= {"kind": stated.kind, "kind_is_certain": stated.is_certain}
        for name, value in changes.items():
            # frozen, and not shared yet; a MaskedLesion has no other way
            object.__setattr__(lesion, name, value)
    return found


# Images


def _make_mammograms(
    notes: Notes,
    images: Mapping[str, Path],
    rows: Mapping[str, Row],
    find: layouts.FindLesions,
    subsets: Mapping[str, Split],
) -> Iterator[Mammogram]:
    has_patients = any("patient" in row for row in rows.values())
    if not has_patients:
        has_table = (notes.root / TABLE).is_file()
        log.warning(
            "%s: %s, so all images count as one patient's and can't be split; give it the columns "
            "file and patient, `*,*` if every image is of another patient",
            notes.root.name,
            f"{TABLE} names no patients" if has_table else f"there is no {TABLE}",
        )
    elif not is_keyed():
        log.info(
            "patients' pseudonyms are hashes without a key: anyone with a list of the patients' "
            "numbers can reverse them. For private data, set %s to a secret text first",
            ID_KEY,
        )
    for image, path in images.items():
        row = rows.get(image, {})
        if has_patients and "patient" not in row:
            reason = f"images without a patient in {TABLE}"
            notes.count("images/*", f"{reason}, which might be in both subsets of a split")
            continue
        try:
            if facts := _read_facts(path, row.get("bits"), is_listed=True):
                yield _make_mammogram(notes, image, facts, row, find, subsets.get(image))
            else:
                notes.count("images/*", "raw images ('for processing')")
        except coco.Contradiction:
            raise
        except ArchiveError as error:
            notes.note(path, error)


def _make_mammogram(
    notes: Notes,
    image: str,
    facts: dict[str, Any],
    row: Row,
    find: layouts.FindLesions,
    subset: Split | None,
) -> Mammogram:
    found = _complete(find(image, facts["rows"], facts["cols"]), row)
    pathology = row.get("pathology")
    if pathology == "normal" and found:
        reason = f"the table calls it normal, but it has {len(found)} lesions"
        notes.note(facts["file"], f"{reason}: its pathology is taken as unknown")
        pathology = None
    names = ("laterality", "view", "spacing", "birads", "density")
    facts |= {name: row[name] for name in names if name in row}
    return Mammogram(
        archive="folder",
        patient_id=hash_id("folder", row.get("patient", "")),
        image_id=hash_id("folder", image),
        pathology=pathology,
        **sort_found(found),
        official_split=row.get("split") or subset,
        **facts,
    )
