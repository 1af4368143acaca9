"""The user's own mammograms: a folder of images with masks or COCO annotations, and a table.

    images/             .png .tif .tiff .jpg .jpeg .pgm .bmp (8 or 16 bit, one channel or equal
                        ones) and .dcm, at any depth
    masks/              <image's name>.png, or <image's name>_1.png, _2.png ... where it has several
                        lesions: 0 is background; a_mask.png or a_seg.png, and beside a.png
    annotations.json    or COCO instead of masks: polygons, RLE (compressed or not) or boxes
    metadata.csv        file, patient, laterality, view, pathology, kind, shape, margin, birads,
                        density, spacing, split, bits, lesion_patient

All but `images` may be missing. The table's columns stand in any order, all but `file` may be
missing or blank, others are ignored and noted; it is separated by commas, semicolons or tabs.
`file` names an image ("a.png", "images/left/b.dcm"), or one mask ("a_2.png"), whose row then gives
that lesion's kind, shape, margin and pathology.

Patients. Images of one woman in both subsets of a split make every result worthless, and file names
can't be trusted to tell women apart. So nothing is guessed. Where the table names patients, images
without one are left out and counted. Where it names none at all, all images count as one patient:
they can be looked at and predicted on but not split, and a log line says so.
One number is one patient, whether a program wrote it as 12, 0012, 12.0 or 1.2E+01.
`lesion_patient`, which synthetic mammograms with another woman's lesions have, is accepted and not
used: make such a set from one subset of a split alone.

Grey values. Nothing is guessed from the pixels: 16-bit files are scaled by 65535, also where their
values stay below 4096. The column `bits` says what they hold instead (12 for most detectors); a log
line asks for it once where pixels use a quarter of 16 bits or less. A DICOM, a PGM (its maxval) and
a 12-bit TIFF say it themselves. Raw DICOM images ("for processing") are left out and counted.

Masks (see `masks`). Without a `kind` in the table a mask is a mass of uncertain kind. A mask is
read when it is wanted: one that is empty, damaged or of another size than its image raises
ArchiveError then. Normal images need no mask, and those of images whose `pathology` is normal are
not looked at.

COCO. Categories are mass, calcification, asymmetry and distortion in any case, singular or plural;
others are noted. Coordinates count from the image's corner, half a pixel from the first pixel's
centre. With annotations.json only the images that it lists are read, since the others may be
unlabelled. Holes of a region are filled, as everywhere here.

DICOM SEG, SR and RTSTRUCT files, among the images or in a folder annotations, give the lesions of
the DICOM images that they name, where there are neither masks nor annotations.json: see `regions`.
Another tool's data set is read as it is: see `layouts`.

Pathology is the image's: its lesions carry it where they have no own and it holds for each, because
there is one or all is benign.
"""

from __future__ import annotations

import csv
import difflib
import io
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from tfmammo.archives import coco, dicom, layouts, pictures, regions
from tfmammo.archives.findings import CATEGORIES, Finding, find_word
from tfmammo.archives.masks import find_mask_folder, find_masks, is_named_mask, read_mask
from tfmammo.archives.named_files import DICOMS, PICTURES, find_files, make_key
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

_MASKS_PACK = 20  # times; no mammogram packs so well without loss
Row = Mapping[str, Any]  # a column's name -> its value in our own terms; blank cells are absent


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
        ArchiveError: No image can be read, masks and annotations.json stand side by side, a table
            or COCO file is damaged, holds a wrong value, names a file outside the folder, or states
            another size than the image has.
    """
    root = Path(root)
    skipped = Skipped() if skipped is None else skipped
    for name in ("metadata.csv", "annotations.json"):
        if (root / name).exists() and not (root / name).is_file():
            raise ArchiveError(f"{root / name}: is no file")
    layout = layouts.find_layout(root, skipped)
    if not (root / "images").is_dir() and layout is None:
        raise ArchiveError(f"{root}: has no folder images")
    if find_mask_folder(root) and (root / "annotations.json").exists():
        raise ArchiveError(f"{root}: has both masks and annotations.json, keep one of them")
    images = (
        find_files(root, "images", PICTURES + DICOMS, skipped) if layout is None else layout.images
    )
    folder = _Folder(root, skipped, images, {}, layout=layout)
    if layout is not None:
        folder.rows = _parse_cells(root, layout.cells)
    if (root / "metadata.csv").exists():
        folder.rows = _read_table(root / "metadata.csv", skipped)
    if layout is not None:
        pass  # it has its own labels
    elif (root / "annotations.json").exists():
        folder.coco = _read_coco(folder, root / "annotations.json")
        folder.listed_only = True
    else:
        folder.masks = find_masks(root, images, skipped)
    if layout is None:
        _find_regions(folder)
    _note_unused_rows(folder)
    mammograms = list(_make_mammograms(folder))
    _note_unused_regions(folder)
    for reason, count in folder.counts.items():
        skipped.add("images/*", f"{count} {reason}")
    if not mammograms:
        first = next(
            (f", the first is {file}: {reason}" for file, reason in skipped.reasons.items()), ""
        )
        raise ArchiveError(
            f"{root}: holds no image that can be read ({len(skipped)} skipped{first})"
        )
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
    facts = _read_dicom_facts(path) if is_dicom(path) else _read_facts(path, None)
    if facts is None:
        raise ArchiveError(
            f"{path}: is a raw image ('for processing'), take the one for presentation"
        )
    # a name in no known encoding can't be hashed
    name = path.stem.encode(errors="replace").decode()
    return Mammogram(
        archive="folder",
        patient_id=hash_id("folder", ""),
        image_id=hash_id("folder", name),
        **facts,
    )


def is_dicom(path: Path) -> bool:
    """Whether a file is a DICOM by its ending or its first bytes; False where it can't be read."""
    try:
        with path.open("rb") as file:
            return path.suffix.lower() in DICOMS or file.read(132)[128:] == b"DICM"
    except OSError:
        return False


# metadata.csv


def _parse_choice(words: Mapping[str, Any]) -> Callable[[str], Any]:
    return partial(_parse_word, words)


def _parse_word(words: Mapping[str, Any], text: str) -> Any:
    if text.lower() not in words:
        raise ValueError(f"is none of {', '.join(words)}")
    return words[text.lower()]


def _parse_kind(text: str) -> LesionKind:
    finding = find_word(text)
    if finding is None or finding.kind is None:
        raise ValueError(f"is none of {', '.join(CATEGORIES)}")
    return finding.kind


def _parse_spacing(text: str) -> tuple[float, float]:
    try:
        values = [float(number.replace(",", ".")) for number in re.split(r"\s*[x×\s]\s*", text)]
    except ValueError:
        values = []
    if len(values) not in (1, 2) or not all(0 < value < math.inf for value in values):
        raise ValueError("is no spacing in mm like 0.07 or 0.07 x 0.05 (row x column)")
    return values[0], values[-1]


def _parse_bits(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,2}", text) or not 1 <= int(text) <= 16:
        raise ValueError("is no number of bits from 1 to 16")
    return int(text)


_COLUMNS: dict[str, Callable[[str], Any]] = {
    "file": make_key,
    "patient": normalize_patient,
    "laterality": _parse_choice({"l": "L", "left": "L", "r": "R", "right": "R"}),
    "view": _parse_choice({"cc": "CC", "mlo": "MLO"}),
    "pathology": _parse_choice({word: word for word in ("normal", "benign", "malignant")}),
    "kind": _parse_kind,
    "shape": str.lower,
    "margin": str.lower,
    "birads": str,
    "density": str,
    "spacing": _parse_spacing,
    "split": _parse_choice({"train": "train", "test": "test"}),
    "bits": _parse_bits,
    "lesion_patient": normalize_patient,
}


def _read_table(path: Path, skipped: Skipped) -> dict[str, Row]:
    """Read the rows by file.

    Messages name line and column but no value: it might be a patient's in the wrong place.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        head = text.partition("\n")[0]
        lines = list(
            csv.reader(
                io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True
            )
        )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ArchiveError(
            f"{path}: can't be read as CSV in UTF-8 ({error.__class__.__name__})"
        ) from None
    columns = [name.strip().lower() for name in lines[0]] if lines else []
    if "file" not in columns or any(columns.count(name) > 1 for name in columns if name):
        raise ArchiveError(
            f"{path}: its first line must name every column once, and one of them file"
        )
    if unknown := [name for name in columns if name and name not in _COLUMNS]:
        # by number, because a name might say who somebody is
        numbered = []
        for name in unknown:
            close = difflib.get_close_matches(name, set(_COLUMNS) - set(columns), 1)
            numbered.append(f"{columns.index(name) + 1}{f' ({close[0]}?)' if close else ''}")
        skipped.add(
            path.name,
            f"unknown columns are ignored: number {', '.join(numbered)}; known are "
            f"{', '.join(_COLUMNS)}",
        )
    rows: dict[str, Row] = {}
    for number, cells in enumerate(lines[1:], start=2):
        if any(cell.strip() for cell in cells):
            row = _parse_row(path, number, columns, cells)
            if rows.setdefault(row["file"], row) is not row:
                raise ArchiveError(f"{path}: row {number} is a second one of its file")
    if "patient" in columns:
        place = columns.index("patient")
        _speak_of_leading_zeros(path.parent, [cells[place] for cells in lines[1:] if cells])
    return rows


def _speak_of_leading_zeros(root: Path, cells: Iterable[str]) -> None:
    """Say which numbers count as one patient though the table writes them in several ways."""
    digits = {match[0] for cell in cells if (match := re.match(r"\+?[0-9]+", cell.strip()))}
    spellings = Counter(digit.lstrip("+0") for digit in digits)
    if joined := sum(count > 1 for count in spellings.values()):
        log.warning(
            "%s: %d patient numbers are written with and without leading zeros; each counts as "
            "one patient",
            root.name,
            joined,
        )


def _parse_row(path: Path, number: int, columns: list[str], cells: list[str]) -> Row:
    if len(cells) != len(columns):
        raise ArchiveError(
            f"{path}: row {number} has {len(cells)} cells, the first line {len(columns)}"
        )
    row = {}
    for name, text in zip(
        columns, (normalize_spelling(cell).strip() for cell in cells), strict=True
    ):
        if name in _COLUMNS and (text or name == "file"):
            try:
                if not text:
                    raise ValueError("is blank")
                row[name] = _COLUMNS[name](text)
            except ValueError as error:
                raise ArchiveError(f"{path}: row {number}, {name}: {error}") from None
    return row


def _parse_cells(root: Path, cells: Mapping[str, Mapping[str, str]]) -> dict[str, Row]:
    """Parse what another tool's table says of its images."""
    rows: dict[str, Row] = {}
    for image, words in cells.items():
        row: dict[str, Any] = {"file": image}
        for name, text in words.items():
            word = normalize_spelling(text).strip()
            if name in _COLUMNS and name != "file" and word:
                try:
                    row[name] = _COLUMNS[name](word)
                except ValueError as error:
                    raise ArchiveError(f"{root}: {image}, {name}: {error}") from None
        rows[image] = row
    _speak_of_leading_zeros(root, [words.get("patient", "") for words in cells.values()])
    return rows


def _note_unused_rows(folder: _Folder) -> None:
    used = {*folder.images, *(mask for masks in folder.masks.values() for mask, _ in masks)}
    if unused := len(folder.rows.keys() - used):
        folder.skipped.add(
            "metadata.csv", f"{unused} of its {len(folder.rows)} files are no image or mask here"
        )


# Lesions


def _read_coco(folder: _Folder, path: Path) -> dict[str, coco.Listed]:
    """Read the images that a COCO file lists and that are there."""
    listed = coco.load(path, make_key, partial(folder.note, path))
    if missing := len(listed.keys() - folder.images.keys()):
        folder.note(path, f"{missing} of its {len(listed)} images are missing")
    return listed


def _find_regions(folder: _Folder) -> None:
    """Find the DICOM files that draw regions, among the images and in a folder annotations."""
    files = {
        image: path
        for image, path in folder.images.items()
        if path.suffix.lower() in DICOMS and regions.is_region_file(path)
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
    if path.suffix.lower() not in DICOMS:
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
        folder.counts["masks of images that the table calls normal were not looked at"] += len(
            masks
        )
        return
    for mask, path in masks:
        details = _find_details(row, len(masks)) | (
            _find_details(folder.rows.get(mask, {}), 1) if mask != image else {}
        )
        kind = folder.rows.get(mask, {}).get("kind") or row.get("kind")
        details["kind_is_certain"] = kind is not None
        yield MaskedLesion(kind or "mass", partial(read_mask, path, rows, cols), (path,), **details)


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
    assert finding.kind
    if finding.is_certain or "kind" not in row:
        return finding.kind, finding.is_certain
    return row["kind"], True


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


def _find_subset(folder: _Folder, image: str) -> Split | None:
    return folder.layout.subsets.get(image) if folder.layout is not None else None


def _find_details(row: Row, lesions: int) -> dict[str, Any]:
    """Return what an image's row says of each of its lesions."""
    details = {name: row[name] for name in ("shape", "margin") if name in row and lesions == 1}
    if row.get("pathology") == "benign" or (lesions == 1 and row.get("pathology") == "malignant"):
        details["pathology"] = row["pathology"]
    return details


# Images


@cache
def _speak_of_unkeyed_pseudonyms() -> None:
    """Say it once in a process, however many folders it reads."""
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
        _speak_of_unkeyed_pseudonyms()
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
                if facts := _read_facts(path, folder.rows.get(image, {}).get("bits")):
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
    return Mammogram(
        archive="folder",
        patient_id=hash_id("folder", row.get("patient", "")),
        image_id=hash_id("folder", image),
        pathology=pathology,
        **found,
        official_split=row.get("split") or _find_subset(folder, image),
        **facts,
    )


def _read_facts(path: Path, bits: int | None) -> dict[str, Any] | None:
    """Read what an image's own header says, as fields of Mammogram; None of a raw one."""
    if path.suffix.lower() in DICOMS:
        if bits is not None:
            raise ArchiveError(f"{path}: a DICOM states its bits itself, leave them blank")
        return _read_dicom_facts(path)
    with pictures.open_picture(path) as picture:
        depth = (pictures.find_full_scale(picture, path, bits) + 1).bit_length() - 1
        pixels = picture.width * picture.height
        packs_well = path.stat().st_size * _MASKS_PACK < pixels and picture.format != "JPEG"
        if packs_well or is_named_mask(path.stem):
            pictures.read_pixels(path, bits)  # for its complaint about masks
        return {
            "bits": depth,
            "rows": picture.height,
            "cols": picture.width,
            "read": partial(pictures.read_pixels, path, bits),
            "file": path,
        }


def _read_dicom_facts(path: Path) -> dict[str, Any] | None:
    header = dicom.read_header(path)
    facts = {
        name: getattr(header, name) for name in ("rows", "cols", "laterality", "view", "spacing")
    }
    return None if header.for_processing else facts | dicom.pixel_source(path)
