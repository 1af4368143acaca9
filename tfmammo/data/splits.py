"""Decide which patches train and which are held out.

A split goes by patient, as the archive says, as an earlier run's file says, or as CAN's paper does,
which leaks: see `split_as_in_paper`.

`describe`, `save` and `load` keep a split as a JSON file of pseudonyms, with a hash over its
contents. Whoever has it tests on the same patients, whatever else of the archive they hold.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tfmammo.config import DataConfig, Frozen
from tfmammo.data.patches import SEVERITY, Patches, gravest_pathology
from tfmammo.data.sampling import shape_class
from tfmammo.document import say_count
from tfmammo.errors import ConfigError, DataError, name_key
from tfmammo.mammogram import Mammogram, key_check, key_fault

if TYPE_CHECKING:  # imports TensorFlow
    from tfmammo.data.tfrecord import Records

log = logging.getLogger(__name__)

# in DDSM, which has 76, 115, 473 and 504 of them
RARITY = ("round", "oval", "lobular", "irregular", "")
VARIANTS = 8  # rotations by multiples of 90 degrees, each with and without a flip
Rows = NDArray[np.intp]
Place = int | Literal["train", "test", "both"]


@dataclass(frozen=True, eq=False)
class Mammograms:
    """Mammograms to split, whatever patches are made of them; row i of every array is one."""

    patient_ids: NDArray[np.str_]
    pathologies: NDArray[np.str_]
    shapes: NDArray[np.str_]
    official_splits: NDArray[np.str_]

    @staticmethod
    def of(records: Iterable[Mammogram]) -> Mammograms:
        """List mammograms; no pixel and no mask file is read.

        Where the archive states no pathology of an image, its worst lesion's counts.
        """
        rows = [
            (
                record.patient_id,
                record.pathology
                or gravest_pathology(lesion.pathology or "" for lesion in record.lesions),
                min(
                    (lesion.shape or "" for lesion in record.lesions),
                    key=lambda word: RARITY.index(shape_class(word) or ""),
                    default="",
                ),
                record.official_split or "",
            )
            for record in records
        ]
        return Mammograms(*np.array(rows, np.str_).reshape(-1, 4).T)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Mammograms:
        """Return the mammograms at `indices`, in that order."""
        return Mammograms(
            self.patient_ids[indices],
            self.pathologies[indices],
            self.shapes[indices],
            self.official_splits[indices],
        )


if TYPE_CHECKING:
    Splittable = Mammograms | Patches | Records
SplittableT = TypeVar("SplittableT", bound="Splittable")


class SavedSplit(Frozen):
    """The subset or fold of each patient of an archive."""

    archive: str
    """Its name."""
    split: Literal["patient", "official", "paper"]
    """What kind of split it is."""
    folds: int | None = None
    """data.folds of the run that made it, None where it plays no part, as seed and stratify."""
    seed: int | None = None
    stratify: Literal["none", "pathology", "shape"] | None = None
    patients: dict[str, Place]
    """Pseudonym -> place. Of "patient": the number of the fold that holds the patient out. Of
    "official": "train" or "test". Of "paper", which goes by patches: "both" too.
    """
    id_key: str
    """The `mammogram.key_check` that its pseudonyms were made under."""

    def digest(self) -> str:
        """Return the hexadecimal SHA-256 of the contents as JSON with sorted keys, no blanks."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()


def split(patches: SplittableT, config: DataConfig) -> tuple[SplittableT, SplittableT]:
    """Split as config.split says, or as the file config.split_file does: (train, held-out).

    Raises:
        DataError: Fewer patients than folds, too few patches, nothing known to stratify by, a patch
            without an official subset, or a split_file that is none, was changed or does not know a
            patient; "paper", which rotates patches, of those on disk; or a patient who would be in
            both subsets.

    Examples:
        >>> from tfmammo.archives import phantom
        >>> archive = Mammograms.of(phantom.read(count=8))
        >>> train, held_out = split(archive, DataConfig(folds=2, fold=0))
        >>> len(train.patient_ids), len(held_out.patient_ids)
        (4, 4)
        >>> set(train.patient_ids) & set(held_out.patient_ids)
        set()
    """
    if config.split == "paper":
        if config.split_file:
            raise DataError(
                "data.split_file: names patients, which data.split=paper does not go by"
            )
        if not isinstance(patches, Patches):
            raise DataError(
                "data.split=paper: rotates and flips patches, so it needs them in memory and not "
                "as data.records"
            )
        return split_as_in_paper(  # type: ignore[return-value]
            patches, config.paper_samples, config.paper_test, config.seed
        )
    if config.split_file:
        saved = load_split_file(config.split_file)
        train, held_out = split_by_file(patches.patient_ids, saved, config)
    elif config.split == "official":
        train, held_out = split_officially(patches.patient_ids, patches.official_splits)
    else:
        train, held_out = split_by_patient(
            patches.patient_ids,
            config.folds,
            config.fold,
            config.seed,
            *_find_classes(patches, config),
        )
    check_no_leak(patches.patient_ids[train], patches.patient_ids[held_out])
    if len(train) == 0 or len(held_out) == 0:
        raise DataError(
            f"data.split={config.split} puts {len(train)} patches into training and holds "
            f"{len(held_out)} out; none may be empty"
        )
    return patches.take(train), patches.take(held_out)  # type: ignore[return-value]


def split_by_patient(
    patient_ids: Sequence[str] | NDArray[np.str_],
    folds: int,
    fold: int,
    seed: int,
    classes: Sequence[str] | NDArray[np.str_] | None = None,
    order: Sequence[str] = SEVERITY,
) -> tuple[Rows, Rows]:
    """Hold out one fold of patients: rising indices (train, held-out).

    Patients are shuffled, those with most patches put first, and each is given to the fold with
    fewest patches. With classes, one class follows the other, and the fold is one of those that
    hold fewest patients of it. So every fold gets its share of each class within one patient.
    Either way two folds differ by no more patches than the patient with most patches has. The order
    of the rows does not change a patient's fold.

    Args:
        patient_ids: str [n], of each patch.
        folds: How many there are.
        fold: The one that is held out.
        seed: Of the shuffle.
        classes: str [n], of each patch, pathologies for instance.
        order: All classes that there may be; a patient is of the class of its patches that comes
            first.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise DataError(
            f"fold {fold} of {folds} folds does not exist or leaves nothing to train on"
        )
    patients, rows = np.unique(np.asarray(patient_ids, np.str_), return_inverse=True)
    held_out = _assign_folds(patients, rows, folds, seed, classes, order)[rows] == fold
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def split_officially(patient_ids: NDArray[np.str_], subsets: NDArray[np.str_]) -> tuple[Rows, Rows]:
    """Split as the archive itself does: subsets are train, test, or "" where it says nothing."""
    is_train = subsets == "train"
    is_test = subsets == "test"
    unassigned = int(np.sum(~is_train & ~is_test))
    if unassigned:
        raise DataError(
            f"data.split=official: the archive puts {unassigned} of {len(subsets)} patches into "
            "neither set; data.split=patient needs none"
        )
    leaking = len(set(patient_ids[is_train].tolist()) & set(patient_ids[is_test].tolist()))
    if leaking:
        raise DataError(
            f"data.split=official: patients in both the training and the test set: {leaking}; "
            "take one set of the archive alone "
            "(CBIS-DDSM: data.kinds=[mass] or [calcification], not both), or data.split=patient"
        )
    return np.flatnonzero(is_train), np.flatnonzero(is_test)


def split_as_in_paper(
    patches: Patches, samples: int, test: int, seed: int
) -> tuple[Patches, Patches]:
    """Split by CAN's protocol, which leaks: augment to `samples` patches, then draw `test` of them.

    Deviation:
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
    draws = np.random.default_rng(seed).permutation(available)[:samples]
    return take_variants(patches, draws[test:]), take_variants(patches, draws[:test])


def take_variants(patches: Patches, draws: NDArray[np.integer]) -> Patches:
    """Take patches rotated and flipped: draw VARIANTS * i + v is variant v of patch i.

    It is rotated by v % 4 quarter turns counter-clockwise. For v >= 4 it is then flipped left to
    right.
    """
    rows, variants = np.divmod(draws, VARIANTS)
    pairs = list(zip(rows, variants, strict=True))
    return replace(
        patches.take(rows),
        images=np.stack([_transform(patches.images[row], variant) for row, variant in pairs]),
        masks=np.stack([_transform(patches.masks[row], variant) for row, variant in pairs]),
        ids=np.array([f"{patches.ids[row]}~{variant}" for row, variant in pairs]),
    )


def _transform(patch: NDArray, variant: int) -> NDArray:
    rotated = np.rot90(patch, variant % 4, axes=(0, 1))
    return rotated[:, ::-1] if variant >= 4 else rotated


def halve(held_out: Patches, archive: Mammograms, config: DataConfig) -> tuple[Patches, Patches]:
    """Halve held-out patches: some choose a checkpoint (validation), the others test it.

    All held-out patients of the archive are halved, whatever patches of theirs are here. So
    training runs on different patches leave the same patients to the test.
    """
    if config.split_file:  # which may know fewer patients, as those of one kind of lesion
        known = sorted(load_split_file(config.split_file).patients)
        archive = archive.take(np.flatnonzero(np.isin(archive.patient_ids, known)))
    _, others = split(archive, config)
    rows, _ = split_by_patient(others.patient_ids, 2, 0, config.seed, others.pathologies)
    validates = np.isin(held_out.patient_ids, others.patient_ids[rows])
    if validates.all() or not validates.any():
        raise DataError(
            f"{len(held_out)} held-out patches are all of one half of the held-out patients; take "
            "more patches or patients"
        )
    return held_out.take(np.flatnonzero(validates)), held_out.take(np.flatnonzero(~validates))


def split_by_file(
    patient_ids: NDArray[np.str_], saved: SavedSplit, config: DataConfig
) -> tuple[Rows, Rows]:
    """Split as an earlier run did; config's split must be the file's, and fold one of its folds."""
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
            f"{saved.archive}, perhaps with fewer kinds of lesions, without normal mammograms, "
            "or with another TFMAMMO_ID_KEY"
        )
    held_out = np.isin(patients, sorted(held_out_patients(saved, config.fold)))[rows]
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def held_out_patients(saved: SavedSplit, fold: int) -> set[str]:
    """Return the patients that a saved split holds out."""
    held_out = fold if saved.split == "patient" else "test"
    return {patient for patient, place in saved.patients.items() if place == held_out}


def check_no_leak(train_ids: Iterable[str], held_out_ids: Iterable[str]) -> None:
    """Make sure that no patient is in both subsets; DataError says how many are."""
    leaking = set(map(str, train_ids)) & set(map(str, held_out_ids))
    if leaking:
        raise DataError(f"patients in both subsets of the split: {len(leaking)}")


def check_unseen(claim: str, patients: Iterable[str], held_out: Iterable[str]) -> None:
    """Make sure that no held-out patient is among those of a claim.

    The claim begins the message of DataError: "runs/a: was trained on".
    """
    held_out = set(held_out)
    if known := held_out.intersection(patients):
        raise DataError(
            f"{claim} {len(known)} of the {len(held_out)} patients held out here; the same data "
            "section gives the same split"
        )


def describe(patches: Splittable, config: DataConfig, archive: str) -> SavedSplit:
    """Describe the split of a run as `save` writes it, the same for every fold of it."""
    if config.split_file:
        return load_split_file(config.split_file)
    facts: dict[str, Any] = {"archive": archive, "split": config.split, "id_key": key_check()}
    if config.split == "patient":
        patients, rows = np.unique(patches.patient_ids, return_inverse=True)
        folds = _assign_folds(
            patients, rows, config.folds, config.seed, *_find_classes(patches, config)
        )
        fold_of = dict(zip(patients.tolist(), folds.tolist(), strict=True))
        facts |= {"folds": config.folds, "seed": config.seed, "stratify": config.stratify}
        return SavedSplit(**facts, patients=fold_of)
    train, test = (set(subset.patient_ids.tolist()) for subset in split(patches, config))
    places: dict[str, Place] = dict.fromkeys(sorted(train | test), "train")
    places |= {patient: "test" for patient in test}
    places |= {patient: "both" for patient in train & test}
    seed = config.seed if config.split == "paper" else None
    return SavedSplit(**facts, seed=seed, patients=places)


def save(path: Path, saved: SavedSplit) -> None:
    """Write a split as JSON, its hash beside it under "sha256"."""
    content = saved.model_dump(mode="json") | {"sha256": saved.digest()}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_split_file(path: Path) -> SavedSplit:
    """Read the file of `data.split_file`; see `load`."""
    with name_key("data.split_file"):
        return load(path)


def check_folds(data: DataConfig, folds: int) -> None:
    """Refuse, by a ConfigError, a saved split that has another number of folds."""
    saved = load_split_file(data.split_file) if data.split_file else None
    if saved and saved.split == "patient" and saved.folds != folds:
        raise ConfigError(
            f"data.split_file: {data.split_file} has {saved.folds} folds, and {folds} are wanted"
        )


def load(path: Path) -> SavedSplit:
    """Read what `save` wrote.

    DataError names a file that can't be read, is not such a file, was changed since, or whose
    pseudonyms were made under another TFMAMMO_ID_KEY.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop("sha256")
        saved = SavedSplit.model_validate(content)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.__class__.__name__})") from None
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        faults = f" ({error.error_count()} faults)" if isinstance(error, ValidationError) else ""
        raise DataError(f"{path}: is not a split that a run wrote{faults}") from None
    if saved.digest() != digest:
        raise DataError(
            f"{path}: was changed after it was written (its sha256 does not fit); take the original"
        )
    if fault := key_fault(saved.id_key):
        raise DataError(f"{path}: {fault}")
    return saved


def _find_classes(
    patches: Splittable, config: DataConfig
) -> tuple[NDArray[np.str_] | None, tuple[str, ...]]:
    """Return what config.stratify goes by."""
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


def _assign_folds(
    patients: NDArray[np.str_],
    rows: NDArray[np.integer],
    folds: int,
    seed: int,
    classes: Sequence[str] | NDArray[np.str_] | None,
    ranks: Sequence[str],
) -> Rows:
    """Deal patients out to folds. patients: str [p]. rows: intp [n], the patient of each patch."""
    if len(patients) < folds:
        raise DataError(
            f"data.folds: {say_count(len(patients), 'patient')} can't be split into {folds} folds"
        )
    counts = np.bincount(rows, minlength=len(patients))
    strata = np.full(len(patients), len(ranks) - 1, np.intp)
    if classes is not None:  # of the patient's patches, the class that comes first
        np.minimum.at(strata, rows, [ranks.index(name) for name in np.asarray(classes).tolist()])
    order = np.random.default_rng(seed).permutation(len(patients))
    order = order[np.lexsort((-counts[order], strata[order]))]
    fold_of = np.empty(len(patients), np.intp)
    sizes = np.zeros(folds, np.intp)
    # without classes nobody is counted, so that every fold is open
    members = np.zeros((len(ranks), folds), np.intp)
    for patient in order:
        members_of_stratum = members[strata[patient]]
        open_folds = np.flatnonzero(members_of_stratum == members_of_stratum.min())
        fold = open_folds[sizes[open_folds].argmin()]
        fold_of[patient] = fold
        sizes[fold] += counts[patient]
        members_of_stratum[fold] += classes is not None
    return fold_of
