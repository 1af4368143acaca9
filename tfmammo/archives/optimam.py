"""OMI-DB / OPTIMAM: screening mammograms of the NHS, as DICOM.

Radiologists drew boxes, and the screening service's records come with them. Case does not matter in
folders and prefixes of names. The package omidb parses the records; it drops studies whose episode
is not in the NBSS records, which stay here. A client, study or image that can't be read costs no
other one.

docs/archives/optimam.md has the choices.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfmammo.archives.notes import Notes
from tfmammo.archives.tables import read_json
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import (
    Found,
    Laterality,
    Lesion,
    LesionKind,
    Lost,
    Mammogram,
    Pathology,
    Skipped,
    cut_box,
    hash_id,
    sort_found,
)

# omidb imports matplotlib.pyplot: read() pays for that, `import tfmammo.archives` does not
if TYPE_CHECKING:
    from omidb.episode import Episode
    from omidb.image import Image
    from omidb.lesion import Lesion as Finding
    from omidb.mark import Mark

# names of studies and images come from JSON: nothing else may become a path
_UID = re.compile(r"[0-9][0-9.]{0,63}")
_CLIENT = re.compile(r"[A-Za-z0-9_-]+")
_BENIGN_FLAGS = (
    "dystrophic_calcification",
    "milk_of_calcium",
    "other_benign_cluster",
    "plasma_cell_mastitis",
    "suture_calcification",
    "vascular_feature",
)
_KINDS: dict[LesionKind, tuple[str, ...]] = {
    "mass": ("mass",),
    "calcification": ("suspicious_calcifications", *_BENIGN_FLAGS),
    "distortion": ("architectural_distortion",),
    "asymmetry": ("focal_asymmetry",),
}
_DESCRIPTIONS: dict[str, LesionKind] = {
    "MA": "mass",
    "MC": "mass",
    "CA": "calcification",
    "DS": "distortion",
    "AS": "asymmetry",
}
# the rest are types of calcification, or no statement
_MARGINS = ("ill_defined", "spiculated", "well_defined")


def read(root: Path, skipped: Skipped | None = None) -> list[Mammogram]:
    """Read records and DICOM headers, in the order of clients, studies and images."""
    notes = Notes(root, skipped, "OMI-DB")
    folders = {path.name.lower(): path for path in _list_folders(notes.root)}
    if "data" not in folders or "images" not in folders:
        raise notes.fail("it has no folders data and images")
    return notes.finish(
        mammogram
        for folder in _list_folders(folders["data"])
        for mammogram in _read_client(notes, folder, folders["images"])
    )


def _list_folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir())
    except OSError:
        raise ArchiveError(f"{path}: is no folder that can be read") from None


def _read_client(notes: Notes, folder: Path, images: Path) -> list[Mammogram]:
    """Read all images of one client; whatever is wrong with it is noted and stays with it."""
    client = folder.name
    place = images / "*.dcm"
    try:
        names = {path.name.lower(): path for path in folder.iterdir()}
    except OSError as error:
        notes.note(folder, error)
        return []
    if not _CLIENT.fullmatch(client):
        notes.count(place, "folders whose name is no client's")
        return []
    imagedb, nbss = (
        names.get(name.lower(), folder / name)
        for name in (f"imagedb_{client}.json", f"nbss_{client}.json")
    )
    try:
        studies = read_json(imagedb).get("STUDIES")
        if not isinstance(studies, dict):
            raise ArchiveError(f"{imagedb}: lists no studies")
    except ArchiveError as error:
        notes.note(imagedb, error)
        return []
    mammograms: dict[str, Mammogram] = {}
    for study, series, episode, outcome in _list_studies(notes, client, studies, nbss, imagedb):
        for image in series:
            path = images / client / study / f"{image.id}.dcm"
            if not _UID.fullmatch(study) or not _UID.fullmatch(image.id):
                notes.count(place, "images whose study or name is no UID")
                continue
            if not path.is_file():
                notes.count(place, "images are listed but have no DICOM file")
                continue
            if facts := notes.read_dicom(path, place):
                lost = _count_lost_marks(notes, path, studies[study], image)
                mammogram = _make_mammogram(notes, path, image, episode, outcome, lost, facts)
                # listed in two series, it is still one file
                mammograms.setdefault(mammogram.image_id, mammogram)
    return list(mammograms.values())


def _list_studies(
    notes: Notes, client: str, studies: dict[str, Any], nbss: Path, imagedb: Path
) -> Iterator[tuple[str, list[Image], Episode | None, str]]:
    """List the studies of a client, each once: (study, images, episode, omidb's outcome of it).

    Of omidb's exceptions, whose texts hold dates, only the class is passed on.
    """
    from omidb.client_parser import ClientParser

    parser = ClientParser(client, {}, {"STUDIES": studies}, list(studies), False, None, None)
    episodes = []
    try:
        parser.nbss = read_json(nbss)
        episodes = parser.parse_episodes()
    except Exception as error:
        reason = f"omidb can't read it ({error.__class__.__name__})"
        if isinstance(error, ArchiveError):
            reason = str(error).removeprefix(f"{nbss}: ")
        notes.note(nbss, f"its images are kept without pathology: {reason}")
    linked = set()
    for episode in episodes:
        outcome = _find_outcome(episode, episodes)
        for study in episode.studies:
            linked.add(study.id)
            images = [image for series in study.series for image in series.images]
            yield study.id, images, episode, outcome
    for study_id in (name for name in studies if name not in linked):
        try:
            series = parser.parse_series(study_id, studies[study_id])
            yield study_id, [image for each in series for image in each.images], None, ""
        except Exception as error:
            notes.note(imagedb, f"a study can't be read ({error.__class__.__name__})")


def _find_outcome(episode: Episode, episodes: list[Episode]) -> str:
    """Return N, NA, NAB, B, M, CI, or MP and CIP of a prior; "" where omidb does not settle it."""
    from omidb.classificationtools import EpisodeOutcome, episode_outcome

    try:
        outcome, _ = episode_outcome(episode, episodes)
    except Exception:  # dates or events that omidb did not foresee
        return ""
    return outcome.name if isinstance(outcome, EpisodeOutcome) else ""


def _make_mammogram(
    notes: Notes,
    path: Path,
    image: Image,
    episode: Episode | None,
    outcome: str,
    lost: int,
    facts: dict[str, Any],
) -> Mammogram:
    breast = _find_breast_pathology(episode, outcome, facts["laterality"]) if episode else None
    found = _make_lesions(notes, path, image.marks, episode, breast, facts)
    found += [Lost()] * lost
    client, study = path.parts[-3:-1]
    patient = hash_id("optimam", client.lower())
    return Mammogram(
        archive="optimam",
        patient_id=patient,
        # 12 digits alone meet twice in millions
        image_id=f"{patient}-{hash_id('optimam', f'{client}/{study}/{image.id}')}",
        pathology=_find_pathology(breast, found),
        **sort_found(found),
        **facts,
    )


def _count_lost_marks(notes: Notes, path: Path, study: dict[str, Any], image: Image) -> int:
    """Count marks that omidb dropped, and note them."""
    listed = [series.get(image.id) for series in study.values() if isinstance(series, dict)]
    most = max((len(marks) for marks in listed if isinstance(marks, dict)), default=0)
    lost = max(0, most - len(image.marks))
    if lost:
        notes.note(path, f"{lost} of its {most} marks can't be read")
    return lost


def _find_breast_pathology(
    episode: Episode, outcome: str, side: Laterality | None
) -> Pathology | None:
    events = episode.events
    proven = [events.surgery, events.biopsy_wide, events.biopsy_fine] if events else []
    others = [*(events.screening or ()), events.assessment, events.clinical] if events else []
    both = {"L": "left_opinion", "R": "right_opinion"}
    names = [both[side]] if side else list(both.values())
    results, opinions = (
        {
            opinion.name
            for event in group
            for name in names
            if event and (opinion := getattr(event, name))
        }
        for group in (proven, proven + others)
    )
    intervals = [lesion.side for lesion in episode.lesions.values() if lesion.interval_cancer]
    is_interval = outcome == "CI" and any(each and each.name == side for each in intervals)
    if side and ("OM" in results or is_interval):
        return "malignant"
    if side and "OB" in results:
        return "benign"
    if outcome in ("N", "NA", "NAB") and not opinions & {"OM", "OB"} and not results & {"OS", "OU"}:
        return "normal"
    return "normal" if side and outcome in ("M", "B", "CI") and opinions == {"ON"} else None


def _make_lesions(
    notes: Notes,
    path: Path,
    marks: list[Mark],
    episode: Episode | None,
    breast: Pathology | None,
    facts: dict[str, Any],
) -> list[Found]:
    found: list[Found] = []
    faults: dict[str, list[str]] = defaultdict(list)
    known = episode.lesions if episode else {}
    side = facts["laterality"]
    for number, mark in enumerate(marks, start=1):
        findings = [known[key] for key in sorted(mark.lesion_ids or ()) if key in known]
        findings = [each for each in findings if side in (None, each.side and each.side.name)]
        try:
            kind, certain = _find_kind(mark, findings)
            place = mark.boundingBox
            box = cut_box((place.y1, place.x1, place.y2, place.x2), facts["rows"], facts["cols"])
        except ValueError as error:
            faults[str(error)].append(str(number))
            found.append(Lost())
            continue
        passed_on = breast == "benign" or (len(marks) == 1 and breast == "malignant")
        own = _find_mark_pathology(mark, findings)
        details: dict[str, Any] = {"pathology": own or (breast if passed_on else None)}
        if kind == "mass" and mark.mass_classification:
            margin = mark.mass_classification.name
            details["margin"] = margin if margin in _MARGINS else None
        if kind == "calcification" and mark.benign_classification:
            details["shape"] = mark.benign_classification.value
        found.append(Lesion(kind, box, kind_is_certain=certain, **details))
    for reason, numbers in faults.items():
        notes.note(path, f"mark {', '.join(numbers)} skipped: {reason}")
    return found


def _find_kind(mark: Mark, findings: list[Finding]) -> tuple[LesionKind, bool]:
    """Return what a mark's flags call it, and whether they name one kind only."""
    kinds = [kind for kind, flags in _KINDS.items() if any(getattr(mark, flag) for flag in flags)]
    if not kinds and mark.calcifications:
        kinds = ["calcification"]
    if not kinds:
        names = [finding.description.name for finding in findings if finding.description]
        kinds = list(dict.fromkeys(_DESCRIPTIONS[name] for name in names if name in _DESCRIPTIONS))
    if not kinds:
        raise ValueError("its flags name no mass, calcification, distortion or asymmetry")
    return kinds[0], len(kinds) == 1


def _find_mark_pathology(mark: Mark, findings: list[Finding]) -> Pathology | None:
    pathologies: set[Pathology | None] = {_find_finding_pathology(finding) for finding in findings}
    if "malignant" in pathologies:
        return "malignant"
    benign = (
        any(getattr(mark, flag) for flag in (*_BENIGN_FLAGS, "fat_necrosis"))
        and not mark.suspicious_calcifications
    )
    return "benign" if pathologies == {"benign"} or (benign and not findings) else None


def _find_finding_pathology(finding: Finding) -> Pathology | None:
    events = (finding.surgery, finding.biopsy_wide, finding.biopsy_fine)
    opinions = {event.opinion.name for event in events if event and event.opinion}
    if finding.status or opinions & {"H5", "B5", "C5"}:  # status: invasive or in situ
        return "malignant"
    return "benign" if opinions & {"H2", "B2", "C2"} else None


def _find_pathology(breast: Pathology | None, found: list[Found]) -> Pathology | None:
    """Return the image's pathology: its breast's, unless a lesion's is worse or contradicts it."""
    pathologies = {None if isinstance(each, Lost) else each.pathology for each in found}
    if "malignant" in pathologies or breast == "malignant":
        return "malignant"
    if breast != "benign" and "benign" in pathologies and None not in pathologies:
        return "benign"
    return None if breast == "normal" and found else breast
