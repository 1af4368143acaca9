"""DDSM, the Digital Database for Screening Mammography: 2,620 cases on film, in four views.

Lesions have outlines as chain codes. Files of a case are in one folder and share letter and
numbers, whether joined by "-" or "_"; .LJPEG and .OVERLAY may still be gzipped, as some are in the
archive. `ljpeg` tells how pixels become an image. The calibration belongs to the scanner and its
site: DBA and LUMISYS stood at one each, HOWTEK at MGH (cases A) and ISMD (cases D).

docs/archives/ddsm.md has the choices.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tfmammo.archives import ljpeg
from tfmammo.archives.files import list_regular_files
from tfmammo.archives.findings import find_word, is_mass_shape, parse_pathology, worst_pathology
from tfmammo.archives.notes import Notes
from tfmammo.archives.views import parse_side, parse_view
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import (
    Found,
    Lesion,
    LesionKind,
    Lost,
    Mammogram,
    Pathology,
    Skipped,
    hash_id,
    sort_found,
)

Key = tuple[str, int, int]  # letter, case and study of B-3027-1
Files = Mapping[tuple[str, str], Path]  # view and form, both in upper case

# (row, col): up, then clockwise
_STEPS = np.array([(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)])
_FORMS = ("LJPEG.1", "TIF", "TIFF", "PNG", "LJPEG", "LJPEG.GZ")  # the first that is there is read
_SCANNERS: dict[str, ljpeg.Scanner] = {  # by digitizer, and for HOWTEK by the letter of the case
    "DBA": "dba",
    "LUMISYS": "lumisys",
    "HOWTEK A": "howtek_mgh",
    "HOWTEK D": "howtek_ismd",
}
_TEXT_LIMIT = 2**24  # bytes; overlays have some thousand
# of an image; DDSM's have up to 4 * 10^7, and a damaged .ics shall not fill the memory
_MOST_PIXELS = 10**8

_CASE = r"([A-Z])[-_](\d{1,6})[-_](\d{1,3})"
_VIEW = r"(LEFT|RIGHT)_(CC|MLO)"
_FLAGS = re.IGNORECASE | re.MULTILINE | re.ASCII
_FILE = re.compile(rf"{_CASE}\.{_VIEW}\.(OVERLAY(?:\.GZ)?|LJPEG(?:\.1|\.GZ)?|PNG|TIFF?)", _FLAGS)
_VOLUME = re.compile(r"(normal|cancer|benign|benign_without_callback)s?(?:_\d+)?", re.IGNORECASE)
# Patterns of an .ics whose lines are stripped: one blank between words, so that no two parts of a
# pattern can share a run of them, which takes a time that grows with the square of its length.
_SIZE = r"LINES (\d{1,5}) PIXELS_PER_LINE (\d{1,5})"
_LINE = re.compile(
    rf"^{_VIEW} {_SIZE}(?: BITS_PER_PIXEL \d{{1,3}})?(?: RESOLUTION "
    r"(\d{1,9}(?:\.\d{0,9})?))?(.*)$",
    _FLAGS,
)


class _Case(NamedTuple):
    """What one .ics says of all its images."""

    path: Path
    patient: str
    scanner: ljpeg.Scanner
    density: str | None
    is_normal: bool  # the archive vouches that nothing was found


@dataclass
class _Abnormality:
    """One abnormality of an overlay: its LESION_TYPEs and BOUNDARY chains as they are written."""

    types: list[str] = field(default_factory=list)
    chains: list[str] = field(default_factory=list)
    assessment: str = ""
    pathology: Pathology | None = None


def read(root: Path, skipped: Skipped | None = None) -> list[Mammogram]:
    """Read .ics and .OVERLAY files, in the order of their paths."""
    notes = Notes(root, skipped, "DDSM")
    headers: list[Path] = []
    files: dict[tuple[Path, Key], dict[tuple[str, str], Path]] = defaultdict(dict)
    for path in list_regular_files(notes.root):
        if path.suffix.lower() == ".ics":
            headers.append(path)
        elif match := _FILE.fullmatch(path.name):
            view = f"{match[4]}_{match[5]}".upper()
            files[path.parent, _make_key(match)][view, match[6].upper()] = path
    if not headers:
        raise notes.fail("it contains no .ics file")
    mammograms: dict[str, Mammogram] = {}
    for path in headers:
        with notes.leaving_out(path):
            for mammogram in _read_case(notes, path, files):
                if mammogram.image_id in mammograms:
                    raise ArchiveError(f"{path}: skipped, the case is there a second time")
                mammograms[mammogram.image_id] = mammogram
    return notes.finish(mammograms.values())


def _make_key(match: re.Match[str]) -> Key:
    return match[1].upper(), int(match[2]), int(match[3])


def _read_case(
    notes: Notes, path: Path, by_case: Mapping[tuple[Path, Key], Files]
) -> Iterator[Mammogram]:
    """Read the mammograms of one .ics."""
    text = "\n".join(" ".join(line.split()) for line in _read_text(path).splitlines())
    named = re.search(rf"^filename {_CASE}", text, _FLAGS) or re.match(_CASE, path.stem, _FLAGS)
    if named is None:
        raise ArchiveError(f"{path}: names no case of the form B-3027-1")
    key = _make_key(named)
    files = by_case.get((path.parent, key), {})
    lines = list(_LINE.finditer(text))
    if not lines:
        raise ArchiveError(f"{path}: lists no image with its LINES and PIXELS_PER_LINE")
    marked = any("OVERLAY" in form for _, form in files) or any(map(_is_marked, lines))
    density = re.search(r"^DENSITY ([1-9])", text, re.MULTILINE)
    # the nearest folder of such a name tells the kind of volume
    parents = reversed(Path(os.path.abspath(path)).parent.parts)
    volumes = [match[1].lower() for part in parents if (match := _VOLUME.fullmatch(part))]
    case = _Case(
        path=path,
        patient=hash_id("ddsm", f"{key[0]}-{key[1]:04d}-{key[2]}"),
        scanner=_find_scanner(path, text, key[0]),
        density=density[1] if density else None,
        is_normal=not marked and volumes[:1] in ([], ["normal"]),
    )
    for line in lines:
        if mammogram := _make_mammogram(notes, case, line, files):
            yield mammogram


def _is_marked(line: re.Match[str]) -> bool:
    return re.search(r"(?<!\S)OVERLAY", line[6], re.IGNORECASE) is not None  # and not NON_OVERLAY


def _find_scanner(path: Path, text: str, letter: str) -> ljpeg.Scanner:
    digitizer = re.search(r"^DIGITIZER .*?(DBA|LUMISYS|HOWTEK)", text, _FLAGS)
    name = digitizer[1].upper() if digitizer else "(not named)"
    scanner = _SCANNERS.get(name) or _SCANNERS.get(f"{name} {letter}")
    if scanner is None:
        raise ArchiveError(
            f"{path}: no calibration is known for digitizer {name} and cases {letter}"
        )
    return scanner


def _make_mammogram(
    notes: Notes, case: _Case, line: re.Match[str], files: Files
) -> Mammogram | None:
    """Make the record of one line of an .ics; None, and a note, where there is no image."""
    name = f"{line[1]}_{line[2]}".upper()
    rows, cols = int(line[3]), int(line[4])
    form = next((form for form in _FORMS if (name, form) in files), None)
    if form is None or not 0 < rows * cols <= _MOST_PIXELS:
        reason = "its file is missing" if form is None else f"its size is {rows} x {cols}"
        notes.note(case.path, f"{name} skipped: {reason}")
        return None
    overlay = files.get((name, "OVERLAY")) or files.get((name, "OVERLAY.GZ"))
    abnormalities: list[_Abnormality] = []
    found: list[Found] = []
    if overlay is not None:
        abnormalities, found = _read_overlay(notes, overlay, rows, cols)
    elif _is_marked(line):
        notes.note(case.path, f"{name} kept without lesions: its overlay is missing")
        found = [Lost()]
    laterality = parse_side(line[1])
    view = parse_view(line[2])[1]
    pathology = worst_pathology(abnormality.pathology for abnormality in abnormalities)
    spacing = float(line[5] or 0) / 1000  # um -> mm
    return Mammogram(
        archive="ddsm",
        patient_id=case.patient,
        image_id=f"{case.patient}_{laterality}_{view}",
        rows=rows,
        cols=cols,
        read=partial(ljpeg.read_pixels, files[name, form], case.scanner, rows, cols),
        file=files[name, form],
        laterality=laterality,
        view=view,
        pathology="normal" if case.is_normal else pathology,
        **sort_found(found),
        spacing=(spacing, spacing) if spacing else None,
        birads=max((each.assessment for each in abnormalities if each.assessment), default=None),
        density=case.density,
    )


def _read_overlay(
    notes: Notes, path: Path, rows: int, cols: int
) -> tuple[list[_Abnormality], list[Found]]:
    """Read the abnormalities of one overlay and their lesions; note what gives none."""
    try:
        abnormalities = _parse_abnormalities(_read_text(path))
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
        notes.note(path, f"its mammogram is kept without lesions: {reason}")
        return [], [Lost()]
    found: list[Found] = []
    for number, abnormality in enumerate(abnormalities, start=1):
        try:
            found.extend(_make_lesions(abnormality, rows, cols))
        except ValueError as error:
            notes.note(path, f"abnormality {number} skipped: {error}")
            found.append(Lost())
    return abnormalities, found


def _parse_abnormalities(text: str) -> list[_Abnormality]:
    """Parse an overlay; raise ValueError where it breaks off or has another form."""
    lines = iter([line.strip() for line in text.splitlines() if line.strip()])
    total = 0
    found = [_Abnormality()]
    for line in lines:
        word, rest = (*line.upper().split(maxsplit=1), "")[:2]
        if word == "TOTAL_ABNORMALITIES" and re.fullmatch(r"\d{1,3}", rest):
            total = int(rest)
        elif word == "ABNORMALITY":
            found.append(_Abnormality())
        elif word == "LESION_TYPE":
            found[-1].types.append(rest)
        elif word == "ASSESSMENT":
            found[-1].assessment = rest if re.fullmatch(r"[0-6]", rest) else ""
        elif word == "PATHOLOGY":
            found[-1].pathology = parse_pathology(rest)
        elif word in ("BOUNDARY", "CORE"):
            chain = next(lines, "")
            if word == "BOUNDARY":
                found[-1].chains.append(chain)
    if not total or len(found) - 1 < total:
        raise ValueError(
            f"is no whole overlay, {len(found) - 1} of {total} abnormalities are there"
        )
    return found[1:]


def _make_lesions(abnormality: _Abnormality, rows: int, cols: int) -> Iterator[Found]:
    """Make one abnormality's lesions; raise ValueError with the reason where there is none."""
    kinds: dict[LesionKind, dict[str, Any]] = {}
    for words in abnormality.types:
        kind, details = _parse_type(words)
        if kind:
            kinds.setdefault(kind, details)  # the first of each kind
    if not kinds:
        named = " and ".join(abnormality.types)[:200] or "not named"
        raise ValueError(f"its type is {named}, which is no lesion of ours")
    if not abnormality.chains:
        raise ValueError("it has no BOUNDARY")
    for chain in abnormality.chains:
        outline = _decode_chain(chain)
        for kind, details in kinds.items():
            details["pathology"] = abnormality.pathology
            yield Lesion.from_outline(kind, outline, rows, cols, **details)


def _parse_type(words: str) -> tuple[LesionKind | None, dict[str, Any]]:
    """Parse one LESION_TYPE in upper case: its kind, and further fields of Lesion."""
    if words.startswith("MASS"):
        shape, margin = (_parse_word(words, key) for key in ("SHAPE", "MARGINS"))
        certain = is_mass_shape(shape)
        return "mass", {"shape": shape, "margin": margin, "kind_is_certain": certain}
    if words.startswith("CALCIFICATION"):
        return "calcification", {"shape": _parse_word(words, "TYPE")}
    finding = find_word(words)
    kind = finding.kind if finding else None
    return kind if kind in ("distortion", "asymmetry") else None, {}


def _parse_word(words: str, key: str) -> str | None:
    match = re.search(rf"\b{key}\s+(\S+)", words)
    if match is None or match[1] in ("N/A", "MARGINS", "DISTRIBUTION"):
        return None
    return match[1].lower()


def _decode_chain(chain: str) -> NDArray[np.float32]:
    """Decode `col row c c c ... #` into an outline, float32 [points, 2], (row, col)."""
    content, end, _ = chain.partition("#")
    tokens = content.split()
    if not end or len(tokens) < 2:
        raise ValueError("its chain is cut off")
    if not re.fullmatch(r"\d{1,5} \d{1,5}(?: [0-7])*", " ".join(tokens)):
        raise ValueError("its chain is not of the form col row c c c ... #")
    start = (int(tokens[1]), int(tokens[0]))
    steps = _STEPS[np.array(tokens[2:], int)].reshape(-1, 2)
    return np.concatenate([[start], start + np.cumsum(steps, axis=0)]).astype(np.float32)


def _read_text(path: Path) -> str:
    return ljpeg.read_bytes(path, _TEXT_LIMIT).decode("ascii", errors="replace")
