"""CBIS-DDSM: scanned film mammograms with masks and biopsy-proven pathology.

What counts is the folder that names set, patient, laterality and view: every download tool keeps
it. Folders beneath it and files are called by UIDs, by "1.000000-ROI mask images-12345", 000000.dcm
or 1-1.dcm. The UIDs in the tables' paths join a tree by series UIDs alone; those paths serve no
other purpose. One record is one folder of a mammogram, and one lesion is one row of a table. Which
of a lesion's files is the mask is decided when it is first used, because indexing reads headers of
mammograms alone.

docs/archives/cbis_ddsm.md has the choices.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tfmammo.archives import dicom
from tfmammo.archives.files import list_regular_files
from tfmammo.archives.findings import is_mass_shape, parse_pathology, worst_pathology
from tfmammo.archives.headers import Header
from tfmammo.archives.masks import check_region
from tfmammo.archives.notes import Notes
from tfmammo.archives.tables import read_table
from tfmammo.archives.views import parse_side, parse_view
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Mammogram, MaskedLesion, Skipped, Split, hash_id

_TABLE = re.compile(r"(mass|calc)_case_description_(train|test)_set\.csv", re.IGNORECASE)
_FOLDER = re.compile(
    r"(?:Mass|Calc)-(?:Training|Test)_P_[0-9]+_(?:LEFT|RIGHT)_(?:CC|MLO)(?:_[0-9]+)?"
)
_UID = re.compile(r"[0-9]+(?:\.[0-9]+){3,}")
_COLUMNS = (
    "patient_id",
    "breast_density",
    "left_or_right_breast",
    "image_view",
    "abnormality_id",
    "assessment",
    "pathology",
)
_ROLES = ("mask", "crop", "full")  # words of SeriesDescription


@dataclass(frozen=True)
class Row:
    """One abnormality of one image, as a row of a case-description table states it."""

    kind: Literal["mass", "calcification"]
    split: Split
    folder: str  # the image's, "Mass-Training_P_00001_LEFT_CC"
    lesion_folder: str  # that of mask and crop, "Mass-Training_P_00001_LEFT_CC_1"
    paths: tuple[str, str, str]  # image, crop and mask as printed, the last two exchanged in places
    image: dict[str, Any]  # fields of Mammogram
    lesion: dict[str, Any]  # fields of Lesion


def read(root: Path, skipped: Skipped | None = None) -> list[Mammogram]:
    """Read the mammograms, in the order of the tables; a row whose mask is missing stays.

    The case-description tables, one to four, are at any depth.
    """
    notes = Notes(root, skipped, "CBIS-DDSM")
    paths = list(list_regular_files(notes.root))
    by_table = _read_tables(notes, [path for path in paths if _TABLE.fullmatch(path.name)])
    dicoms = [path for path in paths if path.suffix.lower() == ".dcm"]
    files = _group_by_folder(notes, dicoms, [row for rows in by_table.values() for row in rows])
    return notes.finish(
        mammogram
        for table, rows in by_table.items()
        for mammogram in _read_images(notes, table, rows, files)
    )


def _read_tables(notes: Notes, paths: list[Path]) -> dict[Path, list[Row]]:
    """Read the rows of each table; its damaged rows are noted together."""
    if not paths:
        raise notes.fail("there is no {mass,calc}_case_description_{train,test}_set.csv")
    by_table: dict[Path, list[Row]] = {}
    for path in paths:
        with notes.leaving_out(path):
            if path.name.lower() in {table.name.lower() for table in by_table}:
                raise ArchiveError(f"{path}: is a second table of its name")
            by_table[path] = _parse_table(notes, path)
    if not any(by_table.values()):
        reason = notes.skipped.reasons.get(str(paths[0].relative_to(notes.root)), "it is empty")
        raise notes.fail(f"no table has a readable row, {paths[0].name}: {reason}")
    return by_table


def _parse_table(notes: Notes, path: Path) -> list[Row]:
    rows: dict[str, Row] = {}
    faults: list[str] = []
    records = read_table(path, _COLUMNS)
    for number, (_, record) in enumerate(records, start=1):
        try:
            row = _parse_row(record, path)
            if row.lesion_folder in rows:
                raise ValueError("it repeats another's image and abnormality")
            rows[row.lesion_folder] = row
        except ValueError as error:
            faults.append(f"row {number}: {error}")
    if faults:
        counts = f"{len(faults)} of its {len(records)} rows skipped"
        notes.note(path, f"{counts}, the first is {faults[0]}")
    return list(rows.values())


def _parse_row(record: Mapping[str, str], path: Path) -> Row:
    """Parse one row; errors repeat no value, which may be a patient's."""
    match = _TABLE.fullmatch(path.name)
    assert match is not None  # as `read` has chosen
    of_masses = match[1].lower() == "mass"
    of_training = match[2].lower() == "train"
    patient, side, view, number = (
        record[name].upper()
        for name in ("patient_id", "left_or_right_breast", "image_view", "abnormality_id")
    )
    if not re.fullmatch(r"P_[0-9]+", patient):
        raise ValueError("its patient_id is not of the form P_00001")
    if side not in ("LEFT", "RIGHT") or view not in ("CC", "MLO"):
        raise ValueError("its side is neither LEFT nor RIGHT or its view neither CC nor MLO")
    if not re.fullmatch(r"[0-9]{1,4}", number):
        raise ValueError("its abnormality id is no number")
    series = f"{'Mass' if of_masses else 'Calc'}-{'Training' if of_training else 'Test'}"
    folder = f"{series}_{patient}_{side}_{view}"
    density = record["breast_density"]
    shape = record.get("mass_shape" if of_masses else "calc_type", "").lower() or None
    return Row(
        kind="mass" if of_masses else "calcification",
        split="train" if of_training else "test",
        folder=folder,
        lesion_folder=f"{folder}_{int(number)}",
        paths=(
            record.get("image_file_path", ""),
            record.get("cropped_image_file_path", ""),
            record.get("roi_mask_file_path", ""),
        ),
        image={
            "patient_id": hash_id("cbis_ddsm", patient),
            "laterality": parse_side(side),
            "view": parse_view(view)[1],
            "birads": record["assessment"].lower() or None,
            "density": density if density not in ("", "0") else None,
        },
        lesion={
            "pathology": parse_pathology(record["pathology"]),
            "shape": shape,
            "margin": record.get("mass_margins", "").lower() or None,
            "kind_is_certain": is_mass_shape(shape),
        },
    )


def _group_by_folder(
    notes: Notes, dicoms: Iterable[Path], rows: list[Row]
) -> dict[str, list[Path]]:
    """Group the DICOM files of each folder that a row names; count all others in a note."""
    named = {folder for row in rows for folder in (row.folder, row.lesion_folder)}
    by_uid = _group_by_uid(rows)
    files: dict[str, list[Path]] = defaultdict(list)
    others: list[Path] = []
    for path in dicoms:
        parents = reversed(path.relative_to(notes.root).parts[:-1])
        folders = (part if _FOLDER.fullmatch(part) else by_uid.get(part, "") for part in parents)
        folder = next(filter(None, folders), "")
        (files[folder] if folder in named else others).append(path)
    if others:
        count = f"it and {len(others) - 1} further DICOM files"
        notes.note(others[0], f"{count} belong to no row of the tables")
    return files


def _group_by_uid(rows: Iterable[Row]) -> dict[str, str]:
    """Map study and series UIDs in the tables' paths to their folder, where there is only one."""
    folders: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        named = (row.folder, row.lesion_folder, row.lesion_folder)
        for path, folder in zip(row.paths, named, strict=True):
            for part in path.split("/"):
                if _UID.fullmatch(part):
                    folders[part].add(folder)
    return {uid: named.pop() for uid, named in folders.items() if len(named) == 1}


def _read_images(
    notes: Notes, table: Path, rows: list[Row], files: Mapping[str, list[Path]]
) -> Iterator[Mammogram]:
    """Make the records of one table's images; count rows without files."""
    images: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        images[row.folder].append(row)
    for folder, findings in images.items():
        of_all = f"of its {len(rows)} rows name"
        if folder not in files:
            notes.count(table, f"{of_all} images that are not here", len(findings))
            continue
        maskless = sum(row.lesion_folder not in files for row in findings)
        notes.count(table, f"{of_all} an image that is here and a mask that is not", maskless)
        image = _find_image(notes, files[folder])
        if image:
            yield _make_mammogram(*image, findings, files)


def _find_image(notes: Notes, paths: list[Path]) -> tuple[Path, Header] | None:
    """Find the first readable mammogram of a folder."""
    full_image = None
    for path in paths:
        with notes.leaving_out(path):
            header = dicom.read_header(path)
            if (role := _find_role(header)) in ("mask", "crop"):
                raise ArchiveError(f"{path}: says that it is a {role}, but is among the mammograms")
            if full_image:
                raise ArchiveError(f"{path}: is a second file of the same image")
            full_image = path, header
    return full_image


def _make_mammogram(
    path: Path, header: Header, rows: list[Row], files: Mapping[str, list[Path]]
) -> Mammogram:
    lesions = []
    for row in rows:
        paths = tuple(files.get(row.lesion_folder, ()))
        read = partial(_read_mask, row.lesion_folder, paths, header.rows, header.cols)
        lesions.append(MaskedLesion(row.kind, read, paths, **row.lesion))
    birads = max((row.image["birads"] for row in rows if row.image["birads"]), default=None)
    return Mammogram(
        archive="cbis_ddsm",
        image_id=hash_id("cbis_ddsm", rows[0].folder),
        rows=header.rows,
        cols=header.cols,
        pathology=worst_pathology(row.lesion["pathology"] for row in rows),
        lesions=tuple(lesions),
        official_split=rows[0].split,
        **rows[0].image | {"birads": birads},
        **dicom.pixel_source(path, window=False),
    )


def _find_role(header: Header) -> str | None:
    """Tell ROI masks, cropped and full mammogram images by SeriesDescription; some have none."""
    words = (header.series_description or "").lower()
    return next((role for role in _ROLES if role in words), None)


def _read_mask(folder: str, paths: tuple[Path, ...], rows: int, cols: int) -> NDArray[np.uint8]:
    """Read an abnormality's region, uint8 [rows, cols], from whichever of its files is the mask."""
    candidates: list[tuple[bool, int, Path]] = []
    faults: list[str] = []
    for path in paths:
        try:
            header = dicom.read_header(path)
            role = _find_role(header)
            if role in ("crop", "full"):
                raise ArchiveError(f"{path}: is no mask, it says that it is a {role}")
            if abs(header.rows * cols / (header.cols * rows) - 1) > 0.01:
                size = f"{header.rows} x {header.cols} px"
                raise ArchiveError(
                    f"{path}: has {size}, which don't fit the image's {rows} x {cols}"
                )
            candidates.append((role != "mask", abs(header.rows - rows), path))
        except ArchiveError as error:
            faults.append(str(error))
    for *_, path in sorted(candidates):
        try:
            return _read_region(path, rows, cols)
        except ArchiveError as error:
            faults.append(str(error))
    raise ArchiveError(
        f"{folder}: has no usable mask ({'; '.join(faults) or 'none of its files is here'})"
    )


def _read_region(path: Path, rows: int, cols: int) -> NDArray[np.uint8]:
    """Return the brighter of a file's two intensities; raise ArchiveError if it has not two."""
    stored = dicom.read_pixels(path, window=False)[..., 0]
    low, high = stored.min(), stored.max()
    region = stored == high
    if not np.all(region | (stored == low)):
        raise ArchiveError(f"{path}: is no mask, it holds more than two intensities")
    if low == high:
        raise ArchiveError(f"{path}: is a mask that marks nothing")
    # The nearest pixel's centre: index i of the image is at (i + 0.5) * size / rows of the mask.
    row, col = (
        ((np.arange(to) + 0.5) * size / to).astype(int)
        for size, to in zip(stored.shape, (rows, cols), strict=True)
    )
    region = region[np.ix_(row, col)].astype(np.uint8)
    check_region(region, path)
    if not region.any():
        raise ArchiveError(f"{path}: marks nothing that is left at the image's size")
    return region
