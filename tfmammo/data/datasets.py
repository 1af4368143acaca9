"""Open the `data:` section of a config: an archive or records in, patches out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tfmammo import filesystem
from tfmammo.archives import folder, read_mammograms
from tfmammo.archives.files import remove_names
from tfmammo.config import AddedConfig, DataConfig, format_overrides, is_training_folder
from tfmammo.data.copies import make_copies
from tfmammo.data.extraction import MakePatches, make_patches
from tfmammo.data.patches import Patches
from tfmammo.data.patients import PATIENTS, read_patients
from tfmammo.data.splits import (
    Mammograms,
    SavedSplit,
    describe,
    held_out_patients,
    load_split_file,
    save,
    split,
)
from tfmammo.data.tfrecord import PatchSource, Records, read_manifest
from tfmammo.document import say_count
from tfmammo.errors import ConfigError, DataError, name_key
from tfmammo.mammogram import Mammogram, Skipped, hash_patient

log = logging.getLogger(__name__)

SPLIT = "split.json"
# keys of records that do not decide a lesion's patch
UNDECISIVE = {"size", "canvas", "tiles", "sampling", "added", "seed", "phantoms"}


def open_subsets(
    config: DataConfig, output: Path | None = None, make: MakePatches = make_patches
) -> tuple[PatchSource, Patches]:
    """Open the training and the held-out patches of `config.split`.

    With "patient" and "official" no patient is in both.

    Args:
        config: What to read and how to split it. With data.records the training patches stay on
            disk. data.added joins the training patches.
        output: Where split.json is written, which names every patient's subset; None: nowhere.
        make: Makes patches of mammograms, as `make_patches` does.
    """
    without_added = config.model_copy(update={"added": AddedConfig()})
    patches: PatchSource = (
        _open_records(config, make) if config.records else load_all_patches(without_added, make)
    )
    train, held_out = split(patches, without_added)
    if config.split == "paper":
        note = "; data.augment is off, because the copies are turned already"
        log.warning(
            "data.split=paper: copies of one lesion are on both sides, as in CAN's protocol; "
            "the metrics are too good%s",
            note if config.augment else "",
        )
    if output:
        _write_split_of(patches, without_added, output)
    held_out_patches = held_out.load()
    if config.added.copies or config.added.synthetic:
        if isinstance(train, Records):
            raise ConfigError(
                "data.added: can't join data.records, which hold patches alone; set data.name and "
                "data.root instead"
            )
        skipped = Skipped()
        train = join_added(train, held_out_patches, config, make, skipped)
        log_skipped(skipped)
    return train, held_out_patches


def load_all_patches(config: DataConfig, make: MakePatches = make_patches) -> Patches:
    """Load every patch of the archive, or of data.records; log each skipped file with the reason.

    Records hold the patches of `make_patches`.
    """
    refuse_added(config)
    if config.records:
        return _open_records(config, make).load()
    skipped = Skipped()
    patches = make(read_mammograms(config, skipped), config, skipped)
    log_skipped(skipped)
    return patches


def refuse_added(config: DataConfig) -> None:
    """Refuse data.added where nothing is trained."""
    if config.added != AddedConfig():
        raise ConfigError(
            "data.added: joins the training side of a split; nothing here is trained on it"
        )


def log_skipped(skipped: Skipped) -> None:
    """Log how many files were skipped, by pseudonyms, and three reasons: of single files first."""
    every = remove_names(skipped.reasons, skipped.root)
    reasons = dict(sorted(every.items(), key=lambda item: "*" in item[0]))
    for file, reason in reasons.items():
        log.debug("skipped %s: %s", file, reason)
    if len(skipped):
        first = [f"{file}: {reason}" for file, reason in list(reasons.items())[:3]]
        said = "; ".join([*first, "..."] if len(skipped) > 3 else first)
        log.info("skipped %s, some in part (%s)", say_count(len(skipped), "file"), said)


def _open_records(config: DataConfig, make: MakePatches) -> Records:
    assert config.records
    if make is not make_patches:
        raise ConfigError(
            "data.records: hold patches of lesions, which serve other training runs; set data.name "
            "and data.root instead"
        )
    if not config.records.is_dir():
        raise ConfigError(f"data.records: no such folder: {config.records}")
    records = Records.open(config.records)
    if records.size != config.size:
        raise ConfigError(
            f"data.size: {config.size} px, but the patches in {config.records} have {records.size}"
        )
    made_with = read_manifest(config.records).identity["data"]
    ours = config.model_dump(mode="json")
    differing = {
        key: value
        for key, value in made_with.items()
        if key not in UNDECISIVE and value != ours[key]
    }
    if differing:
        raise ConfigError(
            f"data.records: {config.records} holds patches of other settings; set "
            f"{' '.join(format_overrides({'data': differing}))}"
        )
    return records


def pin_archive_split(config: DataConfig, output: Path) -> DataConfig:
    """Fix one split of all the archive's patients, for training runs on different patches of it.

    `splits.split` goes by the patches that there are. Masses are of other patients than
    calcifications, so without one split the training data of one network would test the next.
    Split "patient" is decided by name, root, folds, seed and stratify. Another split, or a
    split_file, stays; so do records, which hold one kind of patches.
    """
    if config.split != "patient" or config.split_file or config.records:
        return config
    path = write_archive_split(config, output, once=is_training_folder(output))
    return config.model_copy(update={"split_file": path})


def write_archive_split(config: DataConfig, output: Path, once: bool = True) -> Path:
    """Write the split of all the archive's patients as split.json, whatever decides it."""
    path = output / SPLIT
    _write_split(path, describe(index_archive(config), config, config.archive_name), once)
    return path


def index_archive(config: DataConfig) -> Mammograms:
    """List all the archive's mammograms as something to split; no pixel is read."""
    return Mammograms.of(read_mammograms(config, Skipped()))


def _write_split_of(patches: PatchSource, config: DataConfig, output: Path) -> None:
    archive = config.archive_name
    if config.records:
        archive = read_manifest(config.records).identity["archive"]["name"]
    saved = describe(patches, config, archive)
    _write_split(output / SPLIT, saved, once=is_training_folder(output))


def _write_split(path: Path, saved: SavedSplit, once: bool) -> None:
    """Write split.json."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (once and path.exists()):
            with filesystem.atomic_file(path) as part:  # several workers may write it at once
                save(part, saved)
                filesystem.flush(part)
    except OSError as error:
        raise ConfigError(f"{path.parent}: can't be written to ({error.strerror})") from None


def join_added(
    train: Patches, held_out: Patches, config: DataConfig, make: MakePatches, skipped: Skipped
) -> Patches:
    """Append the patches of the added mammograms to the training patches."""
    if config.split == "paper":
        raise ConfigError(
            "data.added: needs a split that keeps patients apart; take data.split=patient or "
            "official, not paper"
        )
    if len(train.labels):
        raise ConfigError(
            "data.added: is for training on masks or boxes; these patches have labels"
        )
    added: list[Patches] = []
    if config.added.copies:
        patients = set(train.patient_ids.tolist())
        mammograms = [
            mammogram
            for mammogram in read_mammograms(config, Skipped())
            if mammogram.patient_id in patients
        ]
        added.append(make(make_copies(mammograms, config, skipped), config, skipped))
    if config.added.synthetic:
        held_out_ids = _list_held_out(held_out, config)
        added.append(make(read_synthetic(config, held_out_ids, skipped), config, skipped))
    count = sum(map(len, added))
    log.info("training on %d patches, %d of them added", len(train) + count, count)
    return train.concatenate(*added)


def read_synthetic(config: DataConfig, held_out: set[str], skipped: Skipped) -> Iterator[Mammogram]:
    """Read the mammograms of data.added.synthetic, by the patient ids of their source archive."""
    root = config.added.synthetic
    count = config.added.count
    assert root
    with name_key("data.added.synthetic"):
        patients = read_patients(root)
    for role in ("mammograms", "lesions", "trained_on"):
        ids = getattr(patients, role)
        if shared := held_out & set(ids):
            raise DataError(
                f"data.added.synthetic: {root} knows {len(shared)} of the {len(held_out)} patients "
                f"who are held out ({role}); make it of the training patients "
                "(patients.split_file, patients.fold, patients.side=train), its networks too"
            )
    source_ids = {hash_patient("folder", patient): patient for patient in patients.mammograms}
    mammograms = folder.read(root, skipped)
    if {mammogram.patient_id for mammogram in mammograms} - source_ids.keys():
        raise DataError(
            f"data.added.synthetic: {root}: {PATIENTS} does not name every patient of the set; "
            "undo what was edited, or run the synthesis again"
        )
    if count and len(mammograms) < count:
        raise DataError(
            f"data.added.synthetic: {root} has {len(mammograms)} mammograms, fewer than "
            f"data.added.count={count}"
        )
    return (
        replace(
            mammogram,
            patient_id=source_ids[mammogram.patient_id],
            image_id=f"synthetic-{mammogram.image_id}",
        )
        for mammogram in mammograms[:count]
    )


def list_synthetic_patients(config: DataConfig) -> set[str]:
    """List the patients behind the synthetic sets that a training run sees.

    They are those whose tissue or lesions a set shows, and those whom its networks were trained on:
    of data.added.synthetic, and of data.root where that is such a set itself.
    """
    roots = [config.added.synthetic]
    if config.name == "folder" and config.root and (config.root / PATIENTS).is_file():
        roots.append(config.root)
    sets = [read_patients(root) for root in roots if root]
    return {
        patient for each in sets for patient in (*each.mammograms, *each.lesions, *each.trained_on)
    }


def _list_held_out(patches: Patches, config: DataConfig) -> set[str]:
    """List everybody who is held out, including patients without any patch."""
    with_patches = set(patches.patient_ids.tolist())
    if not config.split_file:
        return with_patches
    return with_patches | held_out_patients(load_split_file(config.split_file), config.fold)
