"""Which patches train and which are held out: by patient, the archive's way, an earlier
run's way, or CAN's way.

CAN's paper (Shen et al., section III) augments its images first and then draws the test set from
the result, so that turned and mirrored copies of one lesion stand on both sides. `paper` does the
same, on purpose, to measure what that is worth.

`describe`, `save` and `load` keep a split as a JSON file of pseudonyms, with a hash over its
contents: whoever has it tests on the same patients, whatever else of the archive they hold.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tfmammo.config import DataConfig, Frozen
from tfmammo.data.patches import SEVERITY, Patches, worst
from tfmammo.data.sampling import shape_class
from tfmammo.errors import DataError, LeakError
from tfmammo.mammogram import Mammogram, key_check, key_fault

log = logging.getLogger(__name__)

# in DDSM, which has 76, 115, 473 and 504 of them
RARITY = ("round", "oval", "lobular", "irregular", "")
VARIANTS = 8  # rotations by multiples of 90 degrees, each with and without a flip

Rows = NDArray[np.intp]


class Splittable(Protocol):
    """What a split needs to know of patches, be they in memory or in a folder of records."""

    @property
    def patient_ids(self) -> NDArray[np.str_]:
        """Str [n]."""

    @property
    def pathologies(self) -> NDArray[np.str_]:
        """Str [n], "" where unknown."""

    @property
    def shapes(self) -> NDArray[np.str_]:
        """Str [n], the archive's own words, "" where unknown."""

    @property
    def official_splits(self) -> NDArray[np.str_]:
        """Str [n], train, test or ""."""

    def take(self, indices: Rows) -> Self:
        """The patches at `indices`, in that order."""


Some = TypeVar("Some", bound=Splittable)


@dataclass(frozen=True, eq=False)
class Mammograms:
    """Mammograms as something to split, whatever patches are made of them: a row of each array for
    each; see Splittable.
    """

    patient_ids: NDArray[np.str_]
    pathologies: NDArray[np.str_]
    shapes: NDArray[np.str_]
    official_splits: NDArray[np.str_]

    @staticmethod
    def of(records: Iterable[Mammogram]) -> Mammograms:
        """No pixel and no mask file is read.

        Where the archive states no pathology of an image, its worst lesion's counts.
        """
        rows = [
            (
                one.patient_id,
                one.pathology or worst(lesion.pathology or "" for lesion in one.lesions),
                min(
                    (lesion.shape or "" for lesion in one.lesions),
                    key=lambda word: RARITY.index(shape_class(word) or ""),
                    default="",
                ),
                one.official_split or "",
            )
            for one in records
        ]
        return Mammograms(*(np.array(column, np.str_) for column in zip(*rows, strict=True)))

    def take(self, indices: Rows) -> Mammograms:
        """The mammograms at `indices`, in that order."""
        return Mammograms(
            *(
                column[indices]
                for column in (
                    self.patient_ids,
                    self.pathologies,
                    self.shapes,
                    self.official_splits,
                )
            )
        )


class SavedSplit(Frozen):
    """Where each patient of an archive stands."""

    archive: str
    """Its name."""
    split: Literal["patient", "official", "paper"]
    """What kind of split it is."""
    folds: int | None
    """What it was made with, None where they play no part."""
    seed: int | None
    """What it was made with, None where they play no part."""
    stratify: Literal["none", "pathology", "shape"] | None
    """What it was made with, None where they play no part."""
    patients: dict[str, int | Literal["train", "test", "both"]]
    """Pseudonym -> number of the fold that holds the patient out, for "patient"; "train" or "test"
    for "official"; for "paper", which no patient decides, "both" too.
    """
    id_key: str | None = None
    """The `record.key_check` that its pseudonyms were made under, None in files of earlier
    versions.
    """

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the contents as JSON with sorted keys and no blanks; of
        id_key only where there is one.
        """
        without = {"id_key"} if self.id_key is None else set()
        content = json.dumps(
            self.model_dump(mode="json", exclude=without), sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(content.encode()).hexdigest()


def split(patches: Some, config: DataConfig) -> tuple[Some, Some]:
    """Split as config.split says, or as the file config.split_file does.

    Args:
        patches: All of them; "paper" copies and turns them, so it needs them in memory.
        config: Split, split_file, stratify, seed, folds, fold, paper_samples and paper_test are
            used.

    Returns:
        (train, held-out).

    Raises:
        DataError: Fewer patients than folds, too few patches, nothing known to stratify by, a patch
            without an official side, or a split_file that is none, was changed or does not know a
            patient.
        LeakError: A patient would stand on both sides.
    """
    if config.split == "paper":
        if config.split_file:
            raise DataError(
                "data.split_file: names patients, which data.split=paper does not go by"
            )
        if not isinstance(patches, Patches):
            raise DataError(
                "data.split=paper: turns patches, so it needs them in memory and not as "
                "data.records"
            )
        return paper(patches, config.paper_samples, config.paper_test, config.seed)  # type: ignore[return-value]
    if config.split_file:
        train, held_out = by_file(patches.patient_ids, load(config.split_file), config)
    elif config.split == "official":
        train, held_out = official(patches.patient_ids, patches.official_splits)
    else:
        train, held_out = by_patient(
            patches.patient_ids, config.folds, config.fold, config.seed, *_classes(patches, config)
        )
    check_no_leak(patches.patient_ids[train], patches.patient_ids[held_out])
    if len(train) == 0 or len(held_out) == 0:
        raise DataError(
            f"data.split={config.split} puts {len(train)} patches into training and holds "
            f"{len(held_out)} out; none may be empty"
        )
    return patches.take(train), patches.take(held_out)


def by_patient(
    patient_ids: Sequence[str] | NDArray[np.str_],
    folds: int,
    fold: int,
    seed: int,
    classes: Sequence[str] | NDArray[np.str_] | None = None,
    order: Sequence[str] = SEVERITY,
) -> tuple[Rows, Rows]:
    """Hold out one fold of patients.

    Patients are shuffled, those with most patches put first, and each is given to the fold with
    fewest patches. With classes, one class follows the other, and the fold is one of those that
    hold fewest patients of it: every fold gets its share of each class within one patient. Either
    way two folds differ by no more patches than the patient with most patches has. The order of the
    rows does not change a patient's fold.

    Args:
        patient_ids: str [n], of each patch.
        folds: How many.
        fold: Which one is held out.
        seed: Of the shuffle.
        classes: str [n], of each patch, pathologies for instance.
        order: Of all classes that there may be; a patient is of the class of its patches that comes
            first.

    Returns:
        (train, held-out): rising intp indices, together each of n once; every patient is held out
        in one fold.

    Raises:
        DataError: Fewer patients than folds, or no such fold.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise DataError(
            f"fold {fold} of {folds} folds does not exist or leaves nothing to train on"
        )
    patients, rows = np.unique(np.asarray(patient_ids, np.str_), return_inverse=True)
    held_out = _folds(patients, rows, folds, seed, classes, order)[rows] == fold
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def official(patient_ids: NDArray[np.str_], sides: NDArray[np.str_]) -> tuple[Rows, Rows]:
    """The archive's own split.

    Args:
        patient_ids: str [n], of each patch.
        sides: str [n], of each patch.
        sides: Train, test, or "" where the archive says nothing.

    Returns:
        (train, test): rising intp indices, together each of n once.

    Raises:
        DataError: Patches without a side.
        LeakError: Patients with patches on both sides, as the 31 of CBIS-DDSM whose masses and
            calcifications are in opposite sets.
    """
    silent = int(np.sum((sides != "train") & (sides != "test")))
    if silent:
        raise DataError(
            f"data.split=official: the archive puts {silent} of {len(sides)} patches on neither "
            "side; data.split=patient needs none"
        )
    leaking = len(
        set(patient_ids[sides == "train"].tolist()) & set(patient_ids[sides == "test"].tolist())
    )
    if leaking:
        raise LeakError(
            f"data.split=official: patients in both the training and the test set: {leaking}; "
            "take one set of the archive alone "
            "(CBIS-DDSM: data.kinds=[mass] or [calcification], not both), or data.split=patient"
        )
    return np.flatnonzero(sides == "train"), np.flatnonzero(sides == "test")


def halves(held_out: Patches, archive: Mammograms, config: DataConfig) -> tuple[Patches, Patches]:
    """Two halves of held-out patches: those that choose a checkpoint, and those to test on.

    All held-out patients of the archive are halved, whatever patches of theirs are here. So
    trainings on different patches leave the same patients to the test.

    Args:
        archive: All of it.
        config: As for `split`, which gave the held-out patches.

    Raises:
        DataError: The archive holds out a single patient, or a half is empty.
    """
    if config.split_file:  # which may know fewer patients, as those of one kind of lesion
        archive = archive.take(
            np.flatnonzero(np.isin(archive.patient_ids, sorted(load(config.split_file).patients)))
        )
    _, others = split(archive, config)
    one, _ = by_patient(others.patient_ids, 2, 0, config.seed, others.pathologies)
    chooses = np.isin(held_out.patient_ids, others.patient_ids[one])
    if chooses.all() or not chooses.any():
        raise DataError(
            f"{len(held_out)} held-out patches are all of one half of the held-out patients; take "
            "more patches or patients"
        )
    return held_out.take(np.flatnonzero(chooses)), held_out.take(np.flatnonzero(~chooses))


def by_file(
    patient_ids: NDArray[np.str_], saved: SavedSplit, config: DataConfig
) -> tuple[Rows, Rows]:
    """The split of an earlier run.

    Args:
        patient_ids: str [n], of each patch.
        saved: As `load` gives it; patients of it without a patch do no harm.
        config: Split must be the file's; fold, of the file's folds, is the one held out; split_file
            is for messages.

    Returns:
        (train, held-out): rising intp indices, together each of n once.

    Raises:
        DataError: The file holds another kind of split, lacks the fold, or does not know a patient.
    """
    file = f"data.split_file {config.split_file}"
    if saved.split != config.split:
        raise DataError(
            f"{file}: holds a split of the kind {saved.split}, and data.split is {config.split}"
        )
    if saved.folds is not None and config.fold >= saved.folds:
        raise DataError(f"{file}: has no fold {config.fold}, only {saved.folds} folds from 0 on")
    patients, rows = np.unique(patient_ids, return_inverse=True)
    unknown = sum(patient not in saved.patients for patient in patients.tolist())
    if unknown:
        raise DataError(
            f"{file}: does not know {unknown} of {len(patients)} patients; it was made for "
            f"{saved.archive}, perhaps with fewer "
            "kinds of lesions or another TFMAMMO_ID_KEY"
        )
    held_out = np.isin(patients, sorted(held_out_by(saved, config.fold)))[rows]
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def held_out_by(saved: SavedSplit, fold: int) -> set[str]:
    """The patients that a saved split holds out.

    Args:
        fold: Which one of a split by patient.
    """
    held = fold if saved.split == "patient" else "test"
    return {patient for patient, place in saved.patients.items() if place == held}


def check_no_leak(train_ids: Iterable[str], held_out_ids: Iterable[str]) -> None:
    """Make sure that no patient stands on both sides.

    Args:
        train_ids: Patient ids, any number of times each.
        held_out_ids: Patient ids, any number of times each.

    Raises:
        LeakError: Says how many patients do.
    """
    both = set(map(str, train_ids)) & set(map(str, held_out_ids))
    if both:
        raise LeakError(f"patients on both sides of the split: {len(both)}")


def describe(patches: Splittable, config: DataConfig, archive: str) -> SavedSplit:
    """The split of a run as `save` writes it: the same for every fold of it.

    Args:
        patches: As for `split`, which must have succeeded with them.
        config: As for `split`, which must have succeeded with them.
        archive: The name of the archive that was read.

    Returns:
        Every patient's place; with config.split_file, what that file says.
    """
    if config.split_file:
        return load(config.split_file)
    known: dict[str, str | int | None] = {
        "archive": archive,
        "split": config.split,
        "folds": None,
        "seed": None,
        "stratify": None,
    }
    known["id_key"] = key_check()
    if config.split == "patient":
        patients, rows = np.unique(patches.patient_ids, return_inverse=True)
        folds = _folds(patients, rows, config.folds, config.seed, *_classes(patches, config))
        known |= {"folds": config.folds, "seed": config.seed, "stratify": config.stratify}
        return SavedSplit.model_validate(
            known | {"patients": dict(zip(patients.tolist(), folds.tolist(), strict=True))}
        )
    if config.split == "paper":
        known["seed"] = config.seed
    train, test = (set(side.patient_ids.tolist()) for side in split(patches, config))
    places = {
        patient: "both" if patient in train & test else "train" if patient in train else "test"
        for patient in sorted(train | test)
    }
    return SavedSplit.model_validate(known | {"patients": places})


def save(path: Path, saved: SavedSplit) -> None:
    """Write a split as JSON, its hash beside it under "sha256"."""
    content = saved.model_dump(mode="json") | {"sha256": saved.digest()}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> SavedSplit:
    """Read what `save` wrote.

    Raises:
        DataError: The file can't be read, is no such file, was changed since, or its pseudonyms
            were made under another TFMAMMO_ID_KEY. The message names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = content.pop("sha256")
        saved = SavedSplit.model_validate(content)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.__class__.__name__})") from None
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        faults = f" ({error.error_count()} faults)" if isinstance(error, ValidationError) else ""
        raise DataError(f"{path}: is no split that a run wrote{faults}") from None
    if saved.digest() != known:
        raise DataError(
            f"{path}: was changed after it was written (its sha256 does not fit); take the original"
        )
    if fault := key_fault(saved.id_key):
        raise DataError(f"{path}: {fault}")
    return saved


def paper(patches: Patches, samples: int, test: int, seed: int) -> tuple[Patches, Patches]:
    """CAN's protocol, which leaks: augment to `samples` patches, then split off `test` at random.

    Args:
        patches: Before augmentation.
        samples: Drawn without repetition from the 8 rotations and flips of each patch.
        test: Of the samples.
        seed: Of both draws. Ids get "~0" (as it was) to "~7" appended.

    Returns:
        (train, test).

    Raises:
        DataError: Nothing would be left on one side.

    Departure:
        Where 8 variants of each patch don't reach `samples`, all of them are taken and `test` is
        reduced in proportion (and logged).
    """
    available = VARIANTS * len(patches)
    if available < samples:
        test = round(test * available / samples)
        log.warning(
            "%d patches make %d samples of the %d asked for: %d of them test",
            len(patches),
            available,
            samples,
            test,
        )
        samples = available
    if not 0 < test < samples:
        raise DataError(
            f"{len(patches)} patches make {samples} samples, too few to split off {test} for "
            "testing"
        )
    drawn = np.random.default_rng(seed).permutation(available)[:samples]
    return _variants(patches, drawn[test:]), _variants(patches, drawn[:test])


def _classes(
    patches: Splittable, config: DataConfig
) -> tuple[NDArray[np.str_] | None, tuple[str, ...]]:
    """What config.stratify goes by: the class of each patch, and the order in which one of a
    patient's classes counts.
    """
    if config.stratify == "none":
        return None, SEVERITY
    by = config.stratify
    classes = patches.pathologies
    if by == "shape":
        classes = np.array([shape_class(word) or "" for word in patches.shapes.tolist()], np.str_)
    if not np.any(classes != ""):
        raise DataError(
            f"data.stratify={by}: the archive states the {by} of no patch; data.stratify=none "
            "needs none"
        )
    return classes, SEVERITY if by == "pathology" else RARITY


def _folds(
    patients: NDArray[np.str_],
    rows: NDArray[np.integer],
    folds: int,
    seed: int,
    classes: Sequence[str] | NDArray[np.str_] | None,
    ranks: Sequence[str],
) -> Rows:
    """The fold of each patient. patients: str [p]. rows: intp [n], the patient of each patch."""
    if len(patients) < folds:
        raise DataError(f"{len(patients)} patients can't be split into {folds} folds")
    counts = np.bincount(rows, minlength=len(patients))
    strata = (
        np.zeros(len(patients), np.intp)
        if classes is None
        else _strata(rows, len(patients), np.asarray(classes, np.str_), ranks)
    )
    order = np.random.default_rng(seed).permutation(len(patients))
    order = order[np.lexsort((-counts[order], strata[order]))]
    fold_of = np.empty(len(patients), np.intp)
    sizes = np.zeros(folds, np.intp)
    # without classes nobody is counted, so that every fold is open
    members = np.zeros((len(ranks), folds), np.intp)
    for patient in order:
        mine = members[strata[patient]]
        open_folds = np.flatnonzero(mine == mine.min())
        fold = open_folds[sizes[open_folds].argmin()]
        fold_of[patient] = fold
        sizes[fold] += counts[patient]
        mine[fold] += classes is not None
    return fold_of


def _strata(
    rows: NDArray[np.integer], patients: int, classes: NDArray[np.str_], ranks: Sequence[str]
) -> Rows:
    """intp [patients]: the first place in `ranks` that a class of the patient's patches has."""
    strata = np.full(patients, len(ranks) - 1, np.intp)
    np.minimum.at(strata, rows, [ranks.index(name) for name in classes.tolist()])
    return strata


def _variants(patches: Patches, drawn: NDArray[np.integer]) -> Patches:
    rows, variants = np.divmod(drawn, VARIANTS)
    images = np.stack(
        [_turned(patches.images[row], variant) for row, variant in zip(rows, variants, strict=True)]
    )
    masks = np.stack(
        [_turned(patches.masks[row], variant) for row, variant in zip(rows, variants, strict=True)]
    )
    ids = np.array(
        [f"{patches.ids[row]}~{variant}" for row, variant in zip(rows, variants, strict=True)]
    )
    return replace(patches.take(rows), images=images, masks=masks, ids=ids)


def _turned(patch: NDArray, variant: int) -> NDArray:
    turned = np.rot90(patch, variant % 4, axes=(0, 1))
    return turned[:, ::-1] if variant >= 4 else turned
