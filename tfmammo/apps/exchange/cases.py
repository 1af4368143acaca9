"""The cases of a data set: mammograms or patches, one after the other, each with its subset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import numpy as np
from pydantic import model_validator

from tfmammo import archives
from tfmammo.archives.files import remove_names
from tfmammo.config import DataConfig, Frozen
from tfmammo.data import splits
from tfmammo.data.datasets import refuse_added
from tfmammo.data.extraction import extract_patches
from tfmammo.data.patches import Patch
from tfmammo.data.preprocess import preprocess_mammogram
from tfmammo.data.sampling import draw_quota, is_normal, note_lost, select_lesions
from tfmammo.data.splits import Mammograms, SavedSplit
from tfmammo.errors import ConfigError, DataError
from tfmammo.filesystem import name_case
from tfmammo.mammogram import Mammogram, Skipped, hash_patient, hold_pixels, trace_lesions

# Columns of the table of the archive `folder`
COLUMNS = ("patient", "laterality", "view", "pathology", "birads", "density", "spacing")
# Sections of a train script's or a build's config, of which `data` alone counts.
_OTHERS = ("name", "model", "training", "tracking", "build")


class ExchangeOptions(Frozen):
    """The contents of the data set."""

    items: Literal["mammograms", "patches"] = "mammograms"
    """"mammograms": whole ones, after data.preprocess.remove_marks to data.preprocess.spacing;
    "patches": those of a training run with this data section, of one kind of lesion.
    """
    boxes: bool = False
    """COCO and YOLO: write boxes alone. Otherwise YOLO skips mammograms with a lesion without an
    outline.
    """


class ExchangeConfig(Frozen):
    """A config file of this command, or of a train script, whose data section counts."""

    data: DataConfig = DataConfig()
    """Mammograms, their patches, and the held-out patients."""
    exchange: ExchangeOptions = ExchangeOptions()
    """The contents of the data set."""

    @model_validator(mode="before")
    @classmethod
    def _drop_others(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        return {key: value for key, value in content.items() if key not in _OTHERS}


@dataclass(frozen=True)
class Case:
    """One image of the data set."""

    name: str  # its file's name without the ending: the image_id in letters, digits, - and _
    mammogram: Mammogram  # or a patch, as a small mammogram; with the lesions to write
    is_held_out: bool
    fold: int | None  # the fold that validates on it; None of a test case

    def make_row(self) -> dict[str, str]:
        """Return its facts by COLUMNS, "" where unknown; the patient is a pseudonym."""
        spacing = self.mammogram.spacing
        facts = {
            "patient": self.mammogram.patient_id,
            "spacing": " x ".join(map(repr, map(float, spacing))) if spacing else "",
        }
        return {
            name: facts.get(name) or getattr(self.mammogram, name, None) or "" for name in COLUMNS
        }


@dataclass(frozen=True)
class Plan:
    """What to write."""

    records: Sequence[Mammogram]
    split: SavedSplit  # under the archive's own pseudonyms
    held_out: frozenset[str]  # patients
    folds: dict[str, int]  # patient -> its validation fold; without an official test set's
    fingerprint: str  # of what the archive states of its mammograms


def make_plan(config: ExchangeConfig, skipped: Skipped) -> Plan:
    """List the mammograms and split their patients; only patches need pixels.

    Patches are made twice, now and when they are written, because a split by patient depends on
    their number: no more than one mammogram is in memory.
    """
    refuse_added(config.data)
    is_patches = config.exchange.items == "patches"
    if config.data.records:
        raise ConfigError(
            "data.records: patches without the facts of their mammograms; set data.name and "
            "data.root instead"
        )
    if config.data.split == "paper":
        raise ConfigError(
            "data.split=paper: keeps patients in both subsets; use data.split=patient or official"
        )
    if is_patches and config.data.patches != "normal" and len(config.data.kinds) > 1:
        raise ConfigError(
            "data.kinds: a patch's mask does not distinguish kinds; name one kind, or use "
            "exchange.items=mammograms"
        )
    records = archives.read_mammograms(config.data, skipped)
    items, noted = records, skipped
    if is_patches:
        # noted for the summary when they are written
        noted = Skipped(dict(skipped.reasons), skipped.root)
        items = [
            replace(item, read=_no_pixels, lesions=())
            for item in _make_items(config, records, noted)
        ]
    if not items:
        raise DataError(
            "the archive has none of the images that the config describes" + name_first(noted)
        )
    index = Mammograms.of(items)
    splits.split(index, config.data)  # for its errors
    saved = splits.describe(index, config.data, config.data.archive_name)
    held_out = splits.held_out_patients(saved, config.data.fold) & set(index.patient_ids.tolist())
    folds = _find_folds(index, saved, config)
    return Plan(records, saved, frozenset(held_out), folds, archives.fingerprint(records))


def make_cases(config: ExchangeConfig, plan: Plan, skipped: Skipped) -> Iterator[Case]:
    """Make the cases of a plan one by one, in the archive's order."""
    names: set[str] = set()
    for item in _make_items(config, plan.records, skipped):
        name = name_case(item.image_id)
        if name in names:
            raise DataError(f"two images of the archive are called {name}")
        names.add(name)
        patient = item.patient_id
        yield Case(name, item, patient in plan.held_out, plan.folds.get(patient))


def name_first(skipped: Skipped) -> str:
    """Say what was skipped first and why, without the name of a file; "" if nothing was."""
    reasons = remove_names(skipped.reasons, skipped.root)
    return next((f" ({item}: {reason})" for item, reason in reasons.items()), "")


def translate_split(saved: SavedSplit) -> SavedSplit:
    """Return a split under the pseudonyms that the archive `folder` gives to these pseudonyms."""
    places = {hash_patient("folder", patient): place for patient, place in saved.patients.items()}
    return saved.model_copy(update={"archive": "folder", "patients": places})


def _find_folds(index: Mammograms, saved: SavedSplit, config: ExchangeConfig) -> dict[str, int]:
    """Find the fold of each patient; for an official split, of the training patients."""
    if saved.split == "patient":
        return {patient: int(fold) for patient, fold in saved.patients.items()}
    test = splits.held_out_patients(saved, config.data.fold)
    train = index.patient_ids[~np.isin(index.patient_ids, sorted(test))]
    folds: dict[str, int] = {}
    for fold in range(config.data.folds):
        _, rows = splits.split_by_patient(train, config.data.folds, fold, config.data.seed)
        folds |= dict.fromkeys(train[rows].tolist(), fold)
    return folds


def _make_items(
    config: ExchangeConfig, records: Sequence[Mammogram], skipped: Skipped
) -> Iterator[Mammogram]:
    data = config.data
    if config.exchange.items == "patches":
        counts = draw_quota(records, data) if data.patches != "lesion" else {}
        for record in records:
            for patch in extract_patches(record, data, skipped, counts.get(record.image_id, 0)):
                yield _wrap_patch(patch, record)
        return
    for record in records:
        lesions = tuple(select_lesions(record, data).values())
        if note_lost(record, data.kinds, skipped):
            continue
        if not record.lesions and not is_normal(record):
            reason = "it has no lesion and is not called normal: none may have been drawn"
            skipped.add(record.image_id, reason)
            continue
        try:
            yield preprocess_mammogram(replace(record, lesions=lesions), data.preprocess)
        except DataError as error:
            skipped.add(record.image_id, error)


def _wrap_patch(patch: Patch, record: Mammogram) -> Mammogram:
    """Turn a patch into a mammogram of its size, with a lesion for each part of its mask."""
    rows, cols = patch.mask.shape[:2]
    lesions = trace_lesions(
        patch.kind,  # type: ignore[arg-type]
        patch.mask[..., 0],
        pathology=patch.pathology or None,
        shape=patch.shape or None,
    )
    return Mammogram(
        archive=record.archive,
        patient_id=patch.patient_id,
        image_id=patch.id,
        rows=rows,
        cols=cols,
        read=hold_pixels(patch.image),
        laterality=record.laterality,
        view=record.view,
        pathology=patch.pathology or None,  # type: ignore[arg-type]
        lesions=lesions,
        birads=record.birads,
        density=record.density,
        official_split=record.official_split,
    )


def _no_pixels() -> NoReturn:
    raise AssertionError("an entry of a plan has no pixels")
