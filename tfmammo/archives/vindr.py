"""VinDr-Mammo 1.0.0: 20,000 full-field digital mammograms of 5,000 four-view exams.

Findings have boxes.

    <anywhere beneath root>/
        images/<study_id>/<image_id>.dicom
        breast-level_annotations.csv    a row for each image
        finding_annotations.csv         a row for each finding, or one that says ['No Finding']
        metadata.csv                    what the DICOM headers say; not needed

Columns are found by name; case does not matter in names of files. What the archive leaves open, and
what was chosen:

- No column names the patient. Each exam (study_id) is taken as a patient of its own: its
  description speaks of 5,000 exams, not patients, and the official split keeps exams whole. Should
  a woman have come twice, nothing in the archive would show it.
- No biopsies: pathology is None, but "normal" where the breast is BI-RADS 1 and nothing is marked
  in the image. The BI-RADS of a single finding has no place in a Lesion and is left out.
- A box may name several categories. Each of our kinds becomes a lesion of that box, and
  `kind_is_certain` is False where there are several or another finding shares the box, since it
  says not what of it belongs to which. Asymmetry, focal and global asymmetry are one kind. Lymph
  nodes, thickened skin, drawn-in skin or nipples become no lesion; they are counted in `Skipped`,
  and such an image is not normal.
- Boxes are fractions of pixels and reach past the border here and there (xmin -6.25): they are
  widened to whole pixels, cut at the border, and refused where nothing is left.
- Rows and columns are those of the table; a file of another size raises ArchiveError when its
  pixels are read. Spacing and the side of the chest wall are the headers', some 2 ms each.
- BI-RADS and density are given as their bare sign, "4" and "C"; a cell that is neither is None.

Source: Nguyen et al., VinDr-Mammo: A large-scale benchmark dataset for computer-aided diagnosis in
full-field digital mammography, Scientific Data 10 (2023) 277.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tfmammo.archives import dicom
from tfmammo.archives.files import list_regular_files
from tfmammo.archives.findings import Finding, find_word
from tfmammo.archives.tables import Row, read_table
from tfmammo.archives.views import parse_side, parse_view
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import (
    Box,
    Found,
    Lesion,
    Lost,
    Mammogram,
    Skipped,
    Split,
    hash_id,
    normalize_spelling,
    sort_found,
)

IMAGES = "breast-level_annotations.csv"
FINDINGS = "finding_annotations.csv"

Corners = tuple[float, float, float, float]

_IMAGE_COLUMNS = (
    "study_id",
    "image_id",
    "laterality",
    "view_position",
    "height",
    "width",
    "breast_birads",
    "breast_density",
    "split",
)
_FINDING_COLUMNS = ("image_id", "finding_categories", "xmin", "ymin", "xmax", "ymax")
_QUOTED = r"""(?:'[^'\]]*'|"[^"\]]*")"""
# Python's list of strings; never evaluated
_LIST = re.compile(rf"\[\s*{_QUOTED}\s*(?:,\s*{_QUOTED}\s*)*\]")
_SPLITS: dict[str, Split] = {"training": "train", "test": "test"}


@dataclass
class _Findings:
    """What the table marks in one image.

    Attributes:
        boxes: Line, what its categories stand for, (xmin, ymin, xmax, ymax).
        marked: There is anything.
        lost: How many findings can't be read.
    """

    boxes: list[tuple[int, list[Finding | None], Corners]] = field(default_factory=list)
    marked: bool = False
    lost: int = 0


@dataclass
class _Faults:
    """Rows of one table that were left out, counted by reason: 100,000 of them are one note."""

    first: dict[str, int] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, reason: str, line: int) -> None:
        self.first.setdefault(reason, line)
        self.count[reason] += 1

    def reasons(self) -> list[str]:
        """Return each reason with its number of rows and the line of the first."""
        return [
            f"{self.count[reason]} rows, the first in line {line}: {reason}"
            for reason, line in self.first.items()
        ]


@dataclass
class _Archive:
    """What a root holds.

    Attributes:
        dicoms: Files by (study_id, image_id) in lower case.
        tables: Files by name in lower case.
    """

    root: Path
    skipped: Skipped
    dicoms: dict[tuple[str, str], Path] = field(default_factory=dict)
    tables: dict[str, Path] = field(default_factory=dict)
    findings: dict[str, _Findings] = field(default_factory=dict)
    faults: dict[str, _Faults] = field(
        default_factory=lambda: {IMAGES: _Faults(), FINDINGS: _Faults()}
    )

    def note(self, path: Path, reason: object) -> None:
        self.skipped.note(self.root, path, reason)


def read(root: Path, skipped: Skipped | None = None) -> list[Mammogram]:
    """Read the tables and the headers.

    No pixel is read.

    Args:
        root: The archive's folder or any above it.
        skipped: Takes what was left out, and why.

    Returns:
        One record per image that is in the table and on disk, in the table's order; lesions have
        boxes and no outlines.

    Raises:
        ArchiveError: No folder, no table or one without the columns read here, or none of its
            images is there.
    """
    archive = _Archive(Path(root), Skipped() if skipped is None else skipped)
    _find_files(archive)
    for name in (IMAGES, FINDINGS):
        if name not in archive.tables:
            raise ArchiveError(f"{root}: is no VinDr-Mammo archive, {name} is missing")
    _read_findings(archive)
    mammograms = _make_mammograms(archive)
    for name, faults in archive.faults.items():
        for reason in faults.reasons():
            archive.note(archive.tables[name], reason)
    if not mammograms:
        raise ArchiveError(
            f"{root}: holds none of the images that {IMAGES} names and that can be read"
        )
    return list(mammograms.values())


def _find_files(archive: _Archive) -> None:
    """Walk the tree once; of several files of one name the one nearest to the root counts."""
    for path in sorted(list_regular_files(archive.root), key=lambda path: (len(path.parts), path)):
        name = path.name.lower()
        key = (_make_key(path.parent.name), _make_key(path.stem))
        if name in (IMAGES, FINDINGS):
            archive.tables.setdefault(name, path)
        elif path.suffix.lower() not in (".dicom", ".dcm"):
            continue
        elif archive.dicoms.setdefault(key, path) is not path:
            archive.note(path, "is a second file of the same study and image")


def _make_key(name: str) -> str:
    """Return the name of a study or an image in one spelling."""
    return normalize_spelling(name).strip().lower()


def _read_findings(archive: _Archive) -> None:
    faults = archive.faults[FINDINGS]
    for line, row in read_table(archive.tables[FINDINGS], _FINDING_COLUMNS):
        findings = archive.findings.setdefault(_make_key(row["image_id"]), _Findings())
        readable = _LIST.fullmatch(row["finding_categories"])
        names = (
            [name[1:-1].strip().lower() for name in re.findall(_QUOTED, row["finding_categories"])]
            if readable
            else []
        )
        if names == ["no finding"]:
            continue
        findings.marked = True
        known = [find_word(name) for name in names]
        for name, finding in zip(names, known, strict=True):
            if finding and not finding.kind:
                faults.add(f"{name[:40]!r} is no lesion of ours", line)
        corners = _parse_corners(row)
        reason = ""
        if not readable:
            reason = "finding_categories is no list of names"
        elif None in known:
            reason = "an unknown category"
        elif corners is None and any(finding and finding.kind for finding in known):
            reason = "the box has a corner that is no number"
        if reason:
            faults.add(reason, line)
            findings.lost += 1
        if corners:
            findings.boxes.append((line, known, corners))


def _parse_corners(row: Row) -> Corners | None:
    try:
        xmin, ymin, xmax, ymax = (float(row[column]) for column in _FINDING_COLUMNS[2:])
    except ValueError:
        return None
    return (xmin, ymin, xmax, ymax) if all(map(math.isfinite, (xmin, ymin, xmax, ymax))) else None


def _make_mammograms(archive: _Archive) -> dict[str, Mammogram]:
    """Make the records by image_id."""
    table = archive.tables[IMAGES]
    mammograms: dict[str, Mammogram] = {}
    named = set()
    used = set()
    missing = 0
    for line, row in read_table(table, _IMAGE_COLUMNS):
        image = _make_key(row["image_id"])
        key = (_make_key(row["study_id"]), image)
        path = archive.dicoms.get(key)
        if image in named:
            archive.faults[IMAGES].add("names an image a second time", line)
        elif path is None:
            missing += 1
        else:
            try:
                mammograms[image] = _make_mammogram(archive, path, row)
            except ArchiveError as error:
                archive.note(path, error)
        named.add(image)
        used.add(key)
    if missing:
        archive.note(
            table,
            f"{missing} of its {len(named)} images are not on disk as <study_id>/<image_id>.dicom",
        )
    if extra := len(archive.dicoms.keys() - used):
        archive.note(table, f"{extra} DICOM files are not in it")
    if left := len(archive.findings.keys() - named):
        archive.note(archive.tables[FINDINGS], f"{left} images are not in {IMAGES}")
    return mammograms


def _make_mammogram(archive: _Archive, path: Path, row: Row) -> Mammogram:
    image = _make_key(row["image_id"])
    if not all(re.fullmatch(r"[1-9]\d{0,4}", row[column]) for column in ("height", "width")):
        raise ArchiveError(f"{path}: {IMAGES} gives no height and width for it")
    rows = int(row["height"])
    cols = int(row["width"])
    header = dicom.read_header(path)
    laterality = parse_side(row["laterality"])
    if header.chest_wall not in (None, laterality):
        archive.note(path, "is stored mirrored: PatientOrientation holds, not the laterality")
    birads = re.fullmatch(r"(?:BI-RADS\s*)?([0-6][ABC]?)", row["breast_birads"], re.IGNORECASE)
    density = re.fullmatch(r"(?:DENSITY\s*)?([A-D])", row["breast_density"], re.IGNORECASE)
    # without a row it is not known to be free of findings
    findings = archive.findings.get(image, _Findings(marked=True))
    return Mammogram(
        archive="vindr",
        patient_id=hash_id("vindr", _make_key(row["study_id"])),
        image_id=image,
        rows=rows,
        cols=cols,
        laterality=laterality,
        view=parse_view(row["view_position"])[1],
        pathology="normal" if birads and birads[1] == "1" and not findings.marked else None,
        **sort_found(_make_lesions(findings, rows, cols, archive.faults[FINDINGS])),
        spacing=header.spacing,
        chest_wall=header.chest_wall,
        birads=birads[1].upper() if birads else None,
        density=density[1].upper() if density else None,
        official_split=_SPLITS.get(row["split"].lower()),
        **dicom.pixel_source(path),
    )


def _make_lesions(findings: _Findings, rows: int, cols: int, faults: _Faults) -> Iterator[Found]:
    yield from [Lost()] * findings.lost
    for line, known, corners in findings.boxes:
        kinds = list(dict.fromkeys(each.kind for each in known if each and each.kind))
        certain = len(kinds) == 1 and all(each and each.kind for each in known)
        box = _round_box(corners, rows, cols)
        if box:
            yield from (Lesion(kind, box, kind_is_certain=certain) for kind in kinds)
        elif kinds:
            faults.add("the box is empty, or outside the image", line)
            yield Lost(kinds[0] if certain else None)


def _round_box(corners: Corners, rows: int, cols: int) -> Box | None:
    """Return every pixel that (xmin, ymin, xmax, ymax) touches, within the image; None if none."""
    xmin, ymin, xmax, ymax = corners
    top = math.floor(max(ymin, 0))
    left = math.floor(max(xmin, 0))
    bottom = math.ceil(min(ymax, rows))
    right = math.ceil(min(xmax, cols))
    return (
        (top, left, bottom, right)
        if ymin < ymax and xmin < xmax and top < bottom and left < right
        else None
    )
