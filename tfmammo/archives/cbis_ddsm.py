"""CBIS-DDSM: scanned film mammograms with masks and biopsy-proven pathology.

    <anywhere beneath root>/
        {mass,calc}_case_description_{train,test}_set.csv          all four, or some of them
        Mass-Training_P_00001_LEFT_CC/<study>/<series>/1-1.dcm     the mammogram
        Mass-Training_P_00001_LEFT_CC_1/<study>/<series>/1-2.dcm   mask and crop of abnormality 1

What counts is the folder that names set, patient, laterality and view: every download tool keeps
it. Folders beneath it and files are called by UIDs, by "1.000000-ROI mask images-12345", 000000.dcm
or 1-1.dcm. The UIDs in the tables' paths join a tree by series UIDs alone; those paths serve no
other purpose. One record is one folder of a mammogram, and one lesion is one row of a table. A row
whose image was not downloaded is counted, in one note per table.

What the archive leaves open, and what was chosen:

- Mask and crop of an abnormality lie side by side and the tables exchange some of them, so the
  tables are not asked. A file that SeriesDescription calls a crop is no mask; any other is one if
  it holds two grey values and its aspect ratio is the image's within 1 %; a described mask comes
  before an undescribed one, and the size nearest to the image's first. This is decided when a mask
  is first used, because indexing reads headers of mammograms alone.
- Some masks have another size than their mammogram: they are resampled to the nearest pixel. If the
  aspect ratio differs, no one knows where the lesion lies, and using it raises ArchiveError.
- The mass tables' shapes include distortion and asymmetry. Kind stays "mass", as the table's own
  abnormality type says, and is uncertain where the shape names nothing else. Shape and margin are
  the tables' words in lower case, several joined by "-"; a calcification's shape is its calc type,
  it has no margin, and its distribution is not kept.
- BENIGN_WITHOUT_CALLBACK is benign. An image's BI-RADS is the highest of its rows, 0 (incomplete)
  the lowest. Density 0 is no category and becomes None. Subtlety is not kept. Pixel spacing is not
  in the files, so it is None.
- Masses and calcifications were split each by itself: 31 patients train in one set and test in the
  other. Both sets give a patient the same patient_id, so that a split by patient, or a check of the
  official one, sees it. Some mammograms are in both sets, under two image_ids, each with the
  lesions of its set.

Source: Lee et al., A curated mammography data set for use in computer-aided detection and diagnosis
research, Scientific Data 4 (2017) 170177.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tfmammo.archives import dicom
from tfmammo.archives.files import list_regular_files
from tfmammo.archives.headers import Header
from tfmammo.archives.masks import check_region
from tfmammo.archives.tables import read_table
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import (
    Laterality,
    Mammogram,
    MaskedLesion,
    Pathology,
    Skipped,
    Split,
    View,
    hash_id,
)

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
_LATERALITIES: dict[str, Laterality] = {"LEFT": "L", "RIGHT": "R"}
_VIEWS: dict[str, View] = {"CC": "CC", "MLO": "MLO"}
_PATHOLOGIES: dict[str, Pathology] = {
    "BENIGN": "benign",
    "BENIGN_WITHOUT_CALLBACK": "benign",
    "MALIGNANT": "malignant",
}
_WORST_FIRST: tuple[Pathology, ...] = ("malignant", "benign")
_Role = Literal["mask", "crop", "full"]
_ROLES: tuple[_Role, ...] = ("mask", "crop", "full")
_NO_MASS = {"architectural_distortion", "focal_asymmetric_density", "asymmetric_breast_tissue"}


@dataclass(frozen=True)
class Row:
    """One abnormality of one image, as a row of a case-description table states it.

    A field is None where the row says nothing.

    Attributes:
        kind: Kind of lesion of the table.
        split: Subset of the table.
        patient_id: A pseudonym.
        folder: The image's, "Mass-Training_P_00001_LEFT_CC".
        abnormality: Its number in the image, whose mask and crop are in `lesion_folder`.
        shape: Shape of a mass, or type of a calcification.
        paths: Paths of image, crop and mask as printed, the last two exchanged in places.
    """

    kind: Literal["mass", "calcification"]
    split: Split
    patient_id: str
    folder: str
    laterality: Laterality
    view: View
    abnormality: int
    shape: str | None
    margin: str | None
    pathology: Pathology | None
    birads: str | None
    density: str | None
    paths: tuple[str, str, str]

    @property
    def lesion_folder(self) -> str:
        """The folder of the abnormality's mask and crop."""
        return f"{self.folder}_{self.abnormality}"


def tables(root: Path, skipped: Skipped | None = None) -> list[Row]:
    """Read the case-description tables; no DICOM file is needed or read.

    Args:
        root: A folder that holds one to four tables at any depth.
        skipped: Takes what was left out, and why.

    Returns:
        The rows in their order, calc-test, calc-train, mass-test, mass-train where all lie in one
        folder.

    Raises:
        ArchiveError: `root` is no folder, holds no table, or none with a readable row.
    """
    root = Path(root)
    by_table = _read_tables(root, _find_files(root)[0], Skipped() if skipped is None else skipped)
    return [row for rows in by_table.values() for row in rows]


def read(root: Path, skipped: Skipped | None = None) -> list[Mammogram]:
    """Read the mammograms of a CBIS-DDSM folder, in the order of its tables.

    Headers are read, pixels and masks are not.

    Args:
        root: The folder that holds tables and DICOM folders at any depth.
        skipped: Takes what was left out, and why.

    Returns:
        One record per image that is there and readable, with a MaskedLesion per row, even where its
        mask is missing.

    Raises:
        ArchiveError: What `tables` raises, or none of the images is there and readable.
    """
    root = Path(root)
    skipped = Skipped() if skipped is None else skipped
    table_files, dicoms = _find_files(root)
    by_table = _read_tables(root, table_files, skipped)
    files = _group_by_folder(
        root, dicoms, [row for rows in by_table.values() for row in rows], skipped
    )
    mammograms: list[Mammogram] = []
    for table, rows in by_table.items():
        mammograms += _make_mammograms(root, table, rows, files, skipped)
    if not mammograms:
        raise ArchiveError(
            f"{root}: none of the images that its tables name is there and readable "
            f"({len(dicoms)} DICOM files found)"
        )
    return mammograms


def _find_files(root: Path) -> tuple[list[Path], list[Path]]:
    """Find (tables, DICOM files) beneath root."""
    if not root.is_dir():
        raise ArchiveError(f"{root}: is no folder")
    paths = list(list_regular_files(root))
    return [path for path in paths if _TABLE.fullmatch(path.name)], [
        path for path in paths if path.suffix.lower() == ".dcm"
    ]


def _read_tables(root: Path, paths: list[Path], skipped: Skipped) -> dict[Path, list[Row]]:
    """Read the rows of each table; damaged rows of a table are noted together."""
    if not paths:
        raise ArchiveError(
            f"{root}: is no CBIS-DDSM archive, there is no "
            "{mass,calc}_case_description_{train,test}_set.csv"
        )
    by_table: dict[Path, list[Row]] = {}
    for path in paths:
        try:
            if path.name.lower() in {table.name.lower() for table in by_table}:
                raise ArchiveError(f"{path}: is a second table of its name")
            by_table[path], faults, count = _parse_table(path)
            if faults:
                skipped.add(
                    path.relative_to(root),
                    f"{len(faults)} of its {count} rows left out, the first is {faults[0]}",
                )
        except ArchiveError as error:
            skipped.note(root, path, error)
    if not any(by_table.values()):
        reason = skipped.reasons.get(str(paths[0].relative_to(root)), "it is empty")
        raise ArchiveError(
            f"{root}: none of its {len(paths)} tables has a readable row, {paths[0].name}: {reason}"
        )
    return by_table


def _parse_table(path: Path) -> tuple[list[Row], list[str], int]:
    """Parse a table: (rows, what is wrong with the others, how many there are)."""
    rows: dict[str, Row] = {}
    faults: list[str] = []
    records = [record for _, record in read_table(path, _COLUMNS)]
    for number, record in enumerate(records, start=1):
        try:
            row = _parse_row(record, path)
            if row.lesion_folder in rows:
                raise ValueError("it repeats another's image and abnormality")
            rows[row.lesion_folder] = row
        except ValueError as error:
            faults.append(f"row {number}: {error}")
    return list(rows.values()), faults, len(records)


def _parse_row(record: dict[str, str], path: Path) -> Row:
    """Parse one row.

    Raises ValueError where it names no image or abnormality; no value is repeated, it may be a
    patient's.
    """
    match = _TABLE.fullmatch(path.name)
    assert match is not None  # as _find_files has chosen
    of_masses = match[1].lower() == "mass"
    of_training = match[2].lower() == "train"
    patient, side, view, number = (
        record[name].upper()
        for name in ("patient_id", "left_or_right_breast", "image_view", "abnormality_id")
    )
    if not re.fullmatch(r"P_[0-9]+", patient):
        raise ValueError("its patient_id is not of the form P_00001")
    if side not in _LATERALITIES or view not in _VIEWS:
        raise ValueError("its side is neither LEFT nor RIGHT or its view neither CC nor MLO")
    if not re.fullmatch(r"[0-9]{1,4}", number):
        raise ValueError("its abnormality id is no number")
    series = f"{'Mass' if of_masses else 'Calc'}-{'Training' if of_training else 'Test'}"
    return Row(
        kind="mass" if of_masses else "calcification",
        split="train" if of_training else "test",
        patient_id=hash_id("cbis_ddsm", patient),
        folder=f"{series}_{patient}_{side}_{view}",
        laterality=_LATERALITIES[side],
        view=_VIEWS[view],
        abnormality=int(number),
        shape=_parse_word(record, "mass_shape" if of_masses else "calc_type"),
        margin=_parse_word(record, "mass_margins"),
        pathology=_PATHOLOGIES.get(record["pathology"].upper()),
        birads=_parse_word(record, "assessment"),
        density=_parse_word(record, "breast_density") if record["breast_density"] != "0" else None,
        paths=(
            record.get("image_file_path", ""),
            record.get("cropped_image_file_path", ""),
            record.get("roi_mask_file_path", ""),
        ),
    )


def _parse_word(record: dict[str, str], column: str) -> str | None:
    return record.get(column, "").lower() or None


def _group_by_folder(
    root: Path, dicoms: list[Path], rows: list[Row], skipped: Skipped
) -> dict[str, list[Path]]:
    """Group the DICOM files of each folder that a row names; count all others in a note."""
    named = {folder for row in rows for folder in (row.folder, row.lesion_folder)}
    by_uid = _group_by_uid(rows)
    files: dict[str, list[Path]] = defaultdict(list)
    others: list[Path] = []
    for path in dicoms:
        parents = reversed(path.relative_to(root).parts[:-1])
        folder = next(
            (
                part if _FOLDER.fullmatch(part) else by_uid[part]
                for part in parents
                if _FOLDER.fullmatch(part) or part in by_uid
            ),
            "",
        )
        (files[folder] if folder in named else others).append(path)
    if others:
        skipped.add(
            others[0].relative_to(root),
            f"it and {len(others) - 1} further DICOM files belong to no row of the tables",
        )
    return files


def _group_by_uid(rows: Iterable[Row]) -> dict[str, str]:
    """Map study and series UIDs in the tables' paths to their folder, where there is only one."""
    folders: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for path, folder in zip(
            row.paths, (row.folder, row.lesion_folder, row.lesion_folder), strict=True
        ):
            for part in path.split("/"):
                if _UID.fullmatch(part):
                    folders[part].add(folder)
    return {uid: named.pop() for uid, named in folders.items() if len(named) == 1}


def _make_mammograms(
    root: Path, table: Path, rows: list[Row], files: dict[str, list[Path]], skipped: Skipped
) -> list[Mammogram]:
    """Make the records of one table's images.

    Rows without files are counted in one note for the table.
    """
    images: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        images[row.folder].append(row)
    mammograms: list[Mammogram] = []
    absent = 0
    maskless = 0
    for folder, findings in images.items():
        if folder not in files:
            absent += len(findings)
            continue
        maskless += sum(row.lesion_folder not in files for row in findings)
        image = _find_image(root, files[folder], skipped)
        if image:
            mammograms.append(_make_mammogram(*image, findings, files))
    if absent:
        skipped.add(
            table.relative_to(root),
            f"{absent} of its {len(rows)} rows name images that are not here",
        )
    if maskless:
        skipped.add(
            table.relative_to(root),
            f"{maskless} of its {len(rows)} rows name an image that is here and a mask that is not",
        )
    return mammograms


def _find_image(root: Path, paths: list[Path], skipped: Skipped) -> tuple[Path, Header] | None:
    """Find the first readable mammogram of a folder."""
    full_image = None
    for path in paths:
        try:
            header = dicom.read_header(path)
            if _find_role(header) in ("mask", "crop"):
                raise ArchiveError(
                    f"{path}: says that it is a {_find_role(header)}, but lies among the mammograms"
                )
            if full_image:
                raise ArchiveError(f"{path}: is a second file of the same image")
            full_image = path, header
        except ArchiveError as error:
            skipped.note(root, path, error)
    return full_image


def _make_mammogram(
    path: Path, header: Header, rows: list[Row], files: dict[str, list[Path]]
) -> Mammogram:
    first = rows[0]
    pathologies = {row.pathology for row in rows}
    return Mammogram(
        archive="cbis_ddsm",
        patient_id=first.patient_id,
        image_id=hash_id("cbis_ddsm", first.folder),
        rows=header.rows,
        cols=header.cols,
        laterality=first.laterality,
        view=first.view,
        pathology=next((word for word in _WORST_FIRST if word in pathologies), None),
        lesions=tuple(_make_lesion(row, files.get(row.lesion_folder, []), header) for row in rows),
        birads=max((row.birads for row in rows if row.birads), default=None),
        density=first.density,
        official_split=first.split,
        **dicom.pixel_source(path, window=False),
    )


def _make_lesion(row: Row, paths: list[Path], header: Header) -> MaskedLesion:
    return MaskedLesion(
        row.kind,
        partial(_read_mask, row.lesion_folder, tuple(paths), header.rows, header.cols),
        tuple(paths),
        pathology=row.pathology,
        shape=row.shape,
        margin=row.margin,
        kind_is_certain=row.shape is None or not set(row.shape.split("-")) <= _NO_MASS,
    )


def _find_role(header: Header) -> _Role | None:
    """Tell what SeriesDescription says; some files have none.

    It is "ROI mask images", "cropped images" or "full mammogram images".
    """
    words = (header.series_description or "").lower()
    return next((role for role in _ROLES if role in words), None)


def _read_mask(folder: str, paths: tuple[Path, ...], rows: int, cols: int) -> NDArray[np.uint8]:
    """Read an abnormality's region from whichever of its files is the mask.

    Args:
        folder: What the abnormality is called.
        paths: Its files.
        rows: Rows of the mammogram.
        cols: Columns of the mammogram.

    Returns:
        uint8 [rows, cols], 0 or 1.

    Raises:
        ArchiveError: None of the files is a mask that fits; says of each why.
    """
    candidates: list[tuple[bool, int, Path]] = []
    faults: list[str] = []
    for path in paths:
        try:
            header = dicom.read_header(path)
            if _find_role(header) in ("crop", "full"):
                raise ArchiveError(f"{path}: is no mask, it says that it is a {_find_role(header)}")
            if abs(header.rows * cols / (header.cols * rows) - 1) > 0.01:
                raise ArchiveError(
                    f"{path}: has {header.rows} x {header.cols} px, which don't fit the image's "
                    f"{rows} x {cols}"
                )
            candidates.append((_find_role(header) != "mask", abs(header.rows - rows), path))
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
    """Return the brighter of a file's two grey values, uint8 [rows, cols].

    Raises ArchiveError if it has not two.
    """
    stored = dicom.read_pixels(path, window=False)[..., 0]
    low = stored.min()
    high = stored.max()
    region = stored == high
    if not np.all(region | (stored == low)):
        raise ArchiveError(f"{path}: is no mask, it holds more than two grey values")
    if low == high:
        raise ArchiveError(f"{path}: is a mask that marks nothing")
    # The nearest pixel's centre: index i of the image lies at (i + 0.5) * size / rows of the mask.
    row, col = (
        ((np.arange(to) + 0.5) * size / to).astype(int)
        for size, to in zip(stored.shape, (rows, cols), strict=True)
    )
    region = region[np.ix_(row, col)].astype(np.uint8)
    check_region(region, path)
    if not region.any():
        raise ArchiveError(f"{path}: marks nothing that is left at the image's size")
    return region
