"""Real lesions to set into other mammograms: those that an archive has, each mirrored,
turned and resized for its new place.

A lesion is cut out of its own mammogram with its surroundings and comes to the native pixels of the
other by a single interpolation, which does all at once: a lesion of a right breast is mirrored for
a left one and the other way round, then turned, scaled by a random factor, and by the two spacings,
so that millimetres stay millimetres. Where spacings are not stated nothing says how large a lesion
is: then only those of the same archive are taken, pixel for pixel.

Source: Lin et al., Breast mass detection in mammograms via blending adversarial learning (2019),
section 3 ("we randomly resize and rotate the input lesion"). Departure: neither range is given; all
angles, and factors from 0.8 to 1.2, are equally likely. A breast does not look the same from all
sides, its ducts lead to the nipple: a smaller `rotate` may look truer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo import archives
from tfmammo.config import DataConfig
from tfmammo.data import jobs, sampling, splits
from tfmammo.data.patches import window
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Lesion, LesionKind, Mammogram, MaskedLesion, Skipped
from tfmammo.synthesis.config import SynthesisConfig, Used
from tfmammo.synthesis.placement import largest
from tfmammo.synthesis.provenance import Graft, digest

# side of what is kept around a lesion over its longer side: turned in whichever way, its
# surroundings go with it
CONTEXT = 2.0
KEPT = 128  # lesions whose pixels a process remembers, of a megabyte or two each
AROUND = 4  # px around a turned lesion's box that are known at least
CUT_OFF = "its mask touches the border of its mammogram, where the rest of it may be cut off"


@dataclass(frozen=True, eq=False)
class Donor:
    """A lesion that may be taken.

    Attributes:
        number: Its index in its mammogram.
    """

    mammogram: Mammogram
    number: int

    @property
    def lesion(self) -> Lesion:
        """The lesion itself; a mask in a file is not read yet."""
        return self.mammogram.lesions[self.number]


@dataclass(frozen=True, eq=False)
class Piece:
    """A lesion as it will lie in another mammogram.

    Attributes:
        kind: Of lesion.
        mask: uint8 [rows, cols], 0 or 1, touching all four sides.
        image: float32 [rows + 2 around, cols + 2 around] in [0, 1], the lesion's own pixels and its
            surroundings'.
        graft: For the recipe.
    """

    kind: LesionKind
    mask: NDArray[np.uint8]
    image: NDArray[np.float32]
    around: int
    graft: Graft

    def shown(self, around: int) -> NDArray[np.float32]:
        """The lesion with fewer px around its box: float32 [rows + 2 around, cols + 2 around]."""
        less = self.around - around
        return np.ascontiguousarray(
            self.image[less : len(self.image) - less, less : self.image.shape[1] - less]
        )


def bank(chosen: SynthesisConfig) -> tuple[Donor, ...]:
    """The lesions that a config asks for: wanted, outlined, of its pathology and patients.

    No pixel and no mask file is read.

    Raises:
        DataError: There is none, or the split does not tell a patient's side.
        ConfigError: No such archive.
        ArchiveError: No such archive.
    """
    return _bank(chosen.sources)


@functools.cache
def _bank(chosen: SynthesisConfig) -> tuple[Donor, ...]:
    data = chosen.lesions or chosen.data
    found = of_side(archives.mammograms(data, Skipped()), data, chosen)
    known = tuple(
        Donor(mammogram, number)
        for mammogram in found
        for number, lesion in sampling.wanted(mammogram, data).items()
        if (isinstance(lesion, MaskedLesion) or lesion.outlines)
        and chosen.pathology in (None, lesion.pathology)
    )
    if not known:
        what = f"{chosen.pathology or ''} {' or '.join(data.kinds)}".strip()
        raise DataError(
            f"{archives.archive_name(data)} holds no {what} with an outline{chosen.whose} to set in"
        )
    return known


def usable(donors: Iterable[Donor], skipped: Skipped) -> list[Donor]:
    """Those whose mask can be read and is whole; the others are noted.

    No pixel of a mammogram is read.

    Raises:
        DataError: There is none.
    """
    found = []
    reasons = []
    for donor in donors:
        try:
            _whole(donor)
        except ValueError as error:
            reasons.append(f"lesion {donor.number}: {error}")
            skipped.add(donor.mammogram.image_id, reasons[-1])
        else:
            found.append(donor)
    if not found:
        raise DataError(f"no lesion can be set in; the first, {reasons[0]}")
    return found


def of_side(
    mammograms: Sequence[Mammogram], data: DataConfig, chosen: SynthesisConfig
) -> list[Mammogram]:
    """Those of patients on the side of a split that a config asks for; all of an archive that the
    split is not of.

    Args:
        data: The archive's section.
        chosen: Patients, data and lesions are used.

    Raises:
        DataError: The file holds no such split, does not know a patient, or is of neither archive.
    """
    if chosen.patients is None:
        return list(mammograms)
    file = chosen.patients.split_file
    saved = splits.load(chosen.patients.split_file)
    names = {
        archives.archive_name(section) for section in (chosen.data, chosen.lesions or chosen.data)
    }
    if saved.archive not in names:
        raise DataError(f"{file}: is of {saved.archive}, not of {' or '.join(sorted(names))}")
    if saved.split == "paper":
        raise DataError(
            f"{file}: is a split of the kind paper, which no patient's side follows from"
        )
    if archives.archive_name(data) != saved.archive:
        return list(mammograms)
    asked = data.model_copy(
        update={"split": saved.split, "split_file": file, "fold": chosen.patients.fold}
    )
    train, held_out = splits.by_file(
        np.array([one.patient_id for one in mammograms], np.str_), saved, asked
    )
    return [mammograms[row] for row in (train if chosen.patients.side == "train" else held_out)]


def described(chosen: SynthesisConfig) -> dict[str, object]:
    """Which lesions are set in and whose, equal where they are equal."""
    donors = bank(chosen)
    records = {donor.mammogram.image_id: donor.mammogram for donor in donors}
    return {
        "lesions": len(donors),
        "records": jobs.fingerprint(records.values()),
        "patients": side_described(chosen),
    }


def side_described(chosen: SynthesisConfig) -> dict[str, object] | None:
    """Whose lesions and mammograms are taken, equal where they are equal; None: everybody's."""
    patients = chosen.patients
    return (
        {
            "sha256": splits.load(patients.split_file).digest(),
            "fold": patients.fold,
            "side": patients.side,
        }
        if patients
        else None
    )


def drawn(
    chosen: SynthesisConfig,
    mammogram: Mammogram,
    random: np.random.Generator,
    trained: frozenset[str] | None,
    used: Used | None = None,
) -> Piece:
    """A lesion of the bank for a mammogram, each equally likely that can be given its size in it.

    Args:
        trained: Patients that the painter's network was trained on, None where there is none.
        used: For the recipe.

    Raises:
        DataError: There is none, or that one can't be used.
        ArchiveError: It can't be read.
    """
    others = [donor for donor in bank(chosen) if not _same(donor.mammogram, mammogram)]
    if not others:
        raise DataError("there are no lesions but its own")
    fitting = [donor for donor in others if _comparable(donor.mammogram, mammogram)]
    if not fitting:
        raise DataError(_incomparable(others[0].mammogram, mammogram))
    donor = fitting[random.integers(len(fitting))]
    angle = random.uniform(-chosen.rotate, chosen.rotate)
    factor = random.uniform(*chosen.resize)
    own = donor.mammogram
    sides = {donor.mammogram.laterality, mammogram.laterality}
    graft = Graft(
        archive=own.archive,
        image_id=own.image_id,
        patient_id=own.patient_id,
        number=donor.number,
        sha256=_opened(donor).sha256,
        pathology=donor.lesion.pathology,
        angle=angle,
        factor=factor,
        mirrored=sides == {"L", "R"},
        trained_on=None if trained is None else own.patient_id in trained,
        used=used,
    )
    return turned(donor, graft, mammogram)


def again(graft: Graft, chosen: SynthesisConfig, mammogram: Mammogram) -> Piece:
    """The lesion of a recipe.

    Raises:
        DataError: It is not there any more, or its mammogram has changed.
        ArchiveError: It can't be read.
        ConfigError: Nobody said where the archive lies.
    """
    data = chosen.lesions or chosen.data
    if data.root is None and graft.archive != "phantom":
        raise ConfigError(
            "recipes don't say where archives lie; give --set lesions.root=DIR (of an archive "
            f"{graft.archive})"
        )
    found = {one.image_id: one for one in archives.mammograms(data, Skipped())}
    own = found.get(graft.image_id)
    if own is None or graft.number >= len(own.lesions):
        raise DataError(
            f"the lesion {graft.image_id}#{graft.number} is not in {archives.archive_name(data)}"
        )
    donor = Donor(own, graft.number)
    if _opened(donor).sha256 != graft.sha256:
        raise DataError(
            f"the mammogram of the lesion {graft.image_id}#{graft.number} has changed since "
            "(sha256)"
        )
    return turned(donor, graft, mammogram)


def turned(donor: Donor, graft: Graft, mammogram: Mammogram) -> Piece:
    """A lesion in the native pixels of another mammogram.

    Of its mask what is at least half covered, and of that the largest part, as in insertion.scaled.
    Grey values by cubic interpolation, which keeps more of the grain than linear; before they
    shrink they are blurred against aliasing.

    Args:
        graft: Angle, factor and mirrored are used.
        mammogram: Rows, cols and spacing are used.

    Raises:
        DataError: It is empty, cut off, or larger than the mammogram.
        ArchiveError: It can't be read.
    """
    opened = _opened(donor)
    forward = _forward(donor.mammogram.spacing, mammogram.spacing, graft)
    extents = np.abs(forward) @ opened.sides
    if extents[0] > mammogram.cols or extents[1] > mammogram.rows:
        raise DataError(f"a lesion of {extents[1]:.0f} x {extents[0]:.0f} px is larger than it")
    around = max(AROUND, ceil(extents.max() / 20))
    cols, rows = (ceil(extent - 1e-6) + 2 * (around + 1) for extent in extents)
    back = np.linalg.inv(forward)
    matrix = np.column_stack([back, opened.middle - back @ ((cols - 1) / 2, (rows - 1) / 2)])
    size = (cols, rows)
    source = _smoothed(opened.image, forward)
    linear, cubic = (how | cv2.WARP_INVERSE_MAP for how in (cv2.INTER_LINEAR, cv2.INTER_CUBIC))
    covered = cv2.warpAffine(opened.mask.astype(np.float32), matrix, size, flags=linear)
    image = cv2.warpAffine(source, matrix, size, flags=cubic, borderMode=cv2.BORDER_REFLECT_101)
    mask = largest((covered >= 0.5).astype(np.uint8))
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        raise DataError(f"nothing of a lesion of {extents[1]:.1f} x {extents[0]:.1f} px is left")
    part = image[top - around : top + height + around, left - around : left + width + around]
    return Piece(
        donor.lesion.kind,
        np.ascontiguousarray(mask[top : top + height, left : left + width]),
        np.clip(part, 0, 1),
        around,
        graft,
    )


@dataclass(frozen=True, eq=False)
class _Opened:
    """A lesion's own pixels.

    Attributes:
        image: float32 [rows, cols] in [0, 1].
        mask: uint8 [rows, cols], 0 or 1.
        middle: (col, row) of its box there, sides: (width, height) of that, px.
        sha256: Of its mammogram.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    middle: NDArray[np.float64]
    sides: NDArray[np.float64]
    sha256: str


@functools.lru_cache(KEPT)
def _opened(donor: Donor) -> _Opened:
    mammogram = donor.mammogram
    try:
        _whole(donor)
    except ValueError as error:
        raise DataError(f"lesion {donor.number} of {mammogram.image_id}: {error}") from None
    box = donor.lesion.box
    rows = mammogram.rows
    cols = mammogram.cols
    top, left, bottom, right = window(box, rows, cols, CONTEXT)
    top = max(0, top)
    left = max(0, left)
    bottom = min(rows, bottom)
    right = min(cols, right)
    mask = donor.lesion.mask(rows, cols)[top:bottom, left:right].copy()
    stored = archives.stored(mammogram)
    image = stored.image()[top:bottom, left:right, 0].copy()
    middle = np.array([(box[1] + box[3] - 1) / 2 - left, (box[0] + box[2] - 1) / 2 - top])
    return _Opened(
        image,
        mask,
        middle,
        np.array([box[3] - box[1], box[2] - box[0]], np.float64),
        digest(mammogram, stored),
    )


def _whole(donor: Donor) -> None:
    """Raises: ValueError: The mask is empty, cut off or can't be read."""
    top, left, bottom, right = donor.lesion.box
    if top >= bottom or left >= right:
        raise DataError("its mask is empty")
    if not (
        top > 0 and left > 0 and bottom < donor.mammogram.rows and right < donor.mammogram.cols
    ):
        raise DataError(CUT_OFF)


def _same(one: Mammogram, other: Mammogram) -> bool:
    """Whether both are one image; two folders of the user's may call theirs by the same names."""
    return one.image_id == other.image_id and archives.source_file(one) == archives.source_file(
        other
    )


def _comparable(own: Mammogram, other: Mammogram) -> bool:
    """Whether a lesion's size in the other mammogram is known."""
    if own.spacing is None or other.spacing is None:
        return own.spacing is other.spacing and own.archive == other.archive
    return True


def _incomparable(own: Mammogram, other: Mammogram) -> str:
    lesions = f"lesions of {own.archive}"
    if own.spacing is None and other.spacing is None:
        missing = f"neither its mm per px nor those of {lesions} are stated"
    else:
        missing = (
            f"{'its mm per px' if other.spacing is None else f'the mm per px of {lesions}'} "
            "are not stated"
        )
    return f"{missing}, so that it is not known how large {lesions} are in it"


def _forward(
    own: tuple[float, float] | None, other: tuple[float, float] | None, graft: Graft
) -> NDArray[np.float64]:
    """From a lesion's (x, y) about its middle, px, to those in the other mammogram: mirrored, in
    mm, turned, resized, in px again.
    """
    angle = np.deg2rad(graft.angle)
    turn = graft.factor * np.array(
        [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    )
    to_mm, from_mm = (np.array((step or (1.0, 1.0))[::-1]) for step in (own, other))
    return turn * (to_mm * (-1 if graft.mirrored else 1, 1)) / from_mm[:, None]


def _smoothed(image: NDArray[np.float32], forward: NDArray[np.float64]) -> NDArray[np.float32]:
    """Blurred along each axis as far as it is going to shrink: sigma = (1 / s - 1) / 2 px, so that
    nothing finer than a new px is left.
    """
    sigmas = [max(0.0, (1 / scale - 1) / 2) for scale in np.linalg.norm(forward, axis=0)]
    if max(sigmas) < 0.05:
        return image
    return cv2.GaussianBlur(image, (0, 0), sigmaX=max(sigmas[0], 1e-3), sigmaY=max(sigmas[1], 1e-3))
