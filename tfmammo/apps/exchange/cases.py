"""The cases of a data set: mammograms or patches, one after the other, each with its subset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.apps.exchange.config import ExchangeConfig
from tfmammo.archives import read_mammograms
from tfmammo.data import jobs, splits
from tfmammo.data.datasets import announce_phantom, refuse_added
from tfmammo.data.extraction import extract_patches
from tfmammo.data.patches import Patch
from tfmammo.data.preprocess import preprocess_mammogram
from tfmammo.data.sampling import draw_quota, note_lost, select_lesions
from tfmammo.data.splits import Mammograms, SavedSplit
from tfmammo.errors import ConfigError, DataError
from tfmammo.filesystem import name_case
from tfmammo.mammogram import Mammogram, Skipped, hash_patient, hold_pixels, trace_lesions


@dataclass(frozen=True)
class Case:
    """One image of the data set.

    Attributes:
        name: Its file's name without the ending: the image_id in letters, digits, - and _.
        mammogram: A patch is a small mammogram. Its lesions are the wanted ones.
        is_held_out: Whether its patient is in the held-out subset.
        fold: Which fold validates on it; None of a test case.
    """

    name: str
    mammogram: Mammogram
    is_held_out: bool
    fold: int | None


@dataclass(frozen=True)
class Plan:
    """What is to be written.

    Attributes:
        records: The archive's mammograms.
        split: Of the patients, under the archive's own pseudonyms.
        held_out: Patients who are held out.
        folds: Patient -> the fold that validates on the patient; without those of an official
            test set.
        fingerprint: Of what the archive states of its mammograms.
    """

    records: Sequence[Mammogram]
    split: SavedSplit
    held_out: frozenset[str]
    folds: dict[str, int]
    fingerprint: str


def make_plan(config: ExchangeConfig, skipped: Skipped) -> Plan:
    """List the mammograms and split their patients; pixels are read of patches alone.

    Patches are made twice, now and when they are written, as a split by patient goes by their
    number: no more than one mammogram is in memory.

    Args:
        config: Which archive, and what of it.
        skipped: Takes what is left out.

    Raises:
        ConfigError: A key that a data set for another tool can't follow.
        DataError: The patients can't be split as the config says.
        ArchiveError: The archive can't be read.
    """
    _refuse_keys(config)
    announce_phantom(config.data)
    records = read_mammograms(config.data, skipped)
    items = records
    if config.exchange.items == "patches":
        # what is left out is noted when they are written
        found = [replace(item, read=_no_pixels) for item in _make_items(config, records, Skipped())]
        items = [replace(item, lesions=()) for item in found]
    if not items:
        raise DataError("the archive holds none of the patches that the config asks for")
    index = Mammograms.of(items)
    splits.split(index, config.data)  # for its complaints
    saved = splits.describe(index, config.data, config.data.archive_name)
    held_out = frozenset(
        splits.held_out_patients(saved, config.data.fold) & set(index.patient_ids.tolist())
    )
    return Plan(
        records, saved, held_out, _find_folds(index, saved, config), jobs.fingerprint(records)
    )


def make_cases(config: ExchangeConfig, plan: Plan, skipped: Skipped) -> Iterator[Case]:
    """Make the cases one by one, in the archive's order.

    Args:
        config: The same as for `make_plan`.
        plan: What that returned.
        skipped: Takes what is left out.

    Raises:
        DataError: Two images would have one name.
    """
    names: set[str] = set()
    for item in _make_items(config, plan.records, skipped):
        name = name_case(item.image_id)
        if name in names:
            raise DataError(f"two images of the archive are called {name}")
        names.add(name)
        patient = item.patient_id
        yield Case(name, item, patient in plan.held_out, plan.folds.get(patient))


def translate_split(saved: SavedSplit) -> SavedSplit:
    """Return a split under the pseudonyms that the archive `folder` gives these patients.

    They are pseudonyms of pseudonyms: `folder` knows no others.
    """
    places = {hash_patient("folder", patient): place for patient, place in saved.patients.items()}
    return saved.model_copy(update={"archive": "folder", "patients": places})


def _refuse_keys(config: ExchangeConfig) -> None:
    refuse_added(config.data)
    if config.data.records:
        raise ConfigError(
            "data.records: hold patches without their mammograms' facts; set data.name and "
            "data.root instead"
        )
    if config.data.split == "paper":
        raise ConfigError(
            "data.split=paper: keeps patients in both subsets; take data.split=patient or official"
        )
    if (
        config.exchange.items == "patches"
        and config.data.patches != "normal"
        and len(config.data.kinds) > 1
    ):
        raise ConfigError(
            "data.kinds: a patch's mask does not tell kinds apart; name one kind, or take "
            "exchange.items=mammograms"
        )


def _find_folds(index: Mammograms, saved: SavedSplit, config: ExchangeConfig) -> dict[str, int]:
    """Find the fold of each patient; of an official split those of the training patients."""
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
    if config.exchange.items == "patches":
        return _make_patches(config, records, skipped)
    return _preprocess(config, records, skipped)


def _preprocess(
    config: ExchangeConfig, records: Iterable[Mammogram], skipped: Skipped
) -> Iterator[Mammogram]:
    for record in records:
        lesions = tuple(select_lesions(record, config.data).values())
        if note_lost(record, config.data.kinds, skipped):
            continue
        try:
            yield preprocess_mammogram(replace(record, lesions=lesions), config.data.preprocess)
        except DataError as error:
            skipped.add(record.image_id, error)


def _make_patches(
    config: ExchangeConfig, records: Sequence[Mammogram], skipped: Skipped
) -> Iterator[Mammogram]:
    counts: dict[str, int] = {}
    if config.data.patches != "lesion":
        counts = draw_quota(records, config.data)
    for record in records:
        count = counts.get(record.image_id, 0)
        for patch in extract_patches(record, config.data, skipped, count):
            yield _wrap_patch(patch, record)


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


def _no_pixels() -> NDArray[np.float32]:
    raise AssertionError("an entry of a plan has no pixels")


def quantize(mammogram: Mammogram) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Read grey values as whole numbers of 8 or 16 bits, over their whole range.

    Files of 8 and 16 bits keep their values. Others are rounded: those of up to 8 bits to 8, all
    others to 16.

    Returns:
        uint8 or uint16 [rows, cols].
    """
    grey = mammogram.pixels()[..., 0].astype(np.float64)
    if mammogram.bits is not None and mammogram.bits <= 8:
        return np.rint(grey * 255).astype(np.uint8)
    return np.rint(grey * 65535).astype(np.uint16)


def encode_png(pixels: NDArray[np.generic]) -> bytes:
    """Encode a picture of one channel as PNG: uint8 or uint16 [rows, cols]."""
    return cv2.imencode(".png", pixels)[1].tobytes()
