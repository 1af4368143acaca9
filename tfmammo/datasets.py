"""Open the `data:` section of a config: archives or records in, training and held-out
patches out.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from tfmammo import filesystem
from tfmammo.archives import archive_name, folder, mammograms
from tfmammo.archives.files import without_names
from tfmammo.config import AddedConfig, DataConfig, is_training_folder
from tfmammo.data import whole
from tfmammo.data.copies import copies
from tfmammo.data.patches import Make, Patches, joined, make_patches
from tfmammo.data.patients import PATIENTS, Patients
from tfmammo.data.splits import Mammograms, SavedSplit, describe, held_out_by, load, save, split
from tfmammo.data.tfrecord import Records, read_manifest
from tfmammo.data.whole import Whole
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Mammogram, Skipped, hashed_id, key_fault

log = logging.getLogger(__name__)
SPLIT = "split.json"


def all_patches(config: DataConfig, make: Make = make_patches) -> Patches:
    """Every patch of the archive, or of data.records; what was left out is logged with the reason,
    file by file.

    Args:
        make: What makes patches of mammograms: data.patches.make_patches, or as it. Records hold
            what that one made.

    Raises:
        ConfigError: data.records is set for another `make`, or data.added, which `datasets` alone
            heeds.
    """
    refuse_added(config)
    if config.records:
        return _records(config, make).load()
    skipped = Skipped()
    patches = make(mammograms(config, skipped), config, skipped)
    report(skipped)
    return patches


def refuse_added(config: DataConfig) -> None:
    """Raise ConfigError where data.added is set: for whatever is no training on one side of a
    split.
    """
    if config.added != AddedConfig():
        raise ConfigError(
            "data.added: joins the training side of a split; nothing here is trained on it"
        )


def report(skipped: Skipped) -> None:
    """Log how many files were left out, the first of them with their reasons; all of them in the
    debug log. Files go by pseudonyms.
    """
    reasons = without_names(skipped.reasons, skipped.root)
    for file, reason in reasons.items():
        log.debug("skipped %s: %s", file, reason)
    if len(skipped):
        counts = "; ".join(f"{file}: {reason}" for file, reason in list(reasons.items())[:3])
        log.info(
            "%d files were left out, wholly or in part (%s%s)",
            len(skipped),
            counts,
            "; ..." if len(skipped) > 3 else "",
        )


def datasets(
    config: DataConfig, output: Path | None = None, make: Make = make_patches
) -> tuple[Patches | Records, Patches]:
    """(training, held-out) patches by `config.split`; for "patient" and "official" no patient
    stands on both sides.

    Args:
        config: What to read and how to part it; with data.records the training patches stay on
            disk. What data.added names joins the training patches.
        output: Where split.json goes, which tells every patient's place.
        make: See `all_patches`.

    Raises as `all_patches`, `splits.split` and `with_added`.
    """
    announce(config)
    alone = config.model_copy(update={"added": AddedConfig()})
    found: Patches | Records = (
        _records(config, make) if config.records else all_patches(alone, make)
    )
    train_patches, held_out = split(found, alone)
    if config.split == "paper":
        log.warning(
            "data.split=paper: copies of one lesion stand on both sides, as in CAN's protocol; "
            "the metrics are too good%s",
            "; data.augment is off, because the copies are turned already"
            if config.augment
            else "",
        )
    if output:
        _keep_split(found, alone, output)
    held_out = held_out.load() if isinstance(held_out, Records) else held_out
    if config.added.copies or config.added.synthetic:
        if isinstance(train_patches, Records):
            raise ConfigError(
                "data.added: can't join data.records, which hold patches alone; set data.name and "
                "data.root instead"
            )
        skipped = Skipped()
        train_patches = with_added(train_patches, held_out, config, make, skipped)
        report(skipped)
    return train_patches, held_out


def archive_split(config: DataConfig, output: Path) -> DataConfig:
    """The data section with one split of all the archive's patients, so that trainings on different
    patches of it agree.

    `splits.split` goes by the patches that there are, and masses are of other patients than
    calcifications: what trains one network would test the next.

    Args:
        config: Split "patient" is decided here by name, root, folds, seed and stratify; other
            splits, and a split_file, stay.
        output: split.json is written there, once.

    Raises:
        ConfigError: The archive is not there.
        DataError: It can't be split.
    """
    if config.split != "patient" or config.split_file:
        return config
    return config.model_copy(
        update={"split_file": keep_archive_split(config, output, once=is_training_folder(output))}
    )


def keep_archive_split(config: DataConfig, output: Path, once: bool = True) -> Path:
    """Write the split of all the archive's patients, of whatever kind or from whatever file it is,
    as split.json.

    Args:
        once: Leave the one that is there.

    Returns:
        The file, for `split_file`.

    Raises as `archive_split`.
    """
    path = output / SPLIT
    _write_split(path, describe(whole_archive(config), config, archive_name(config)), once)
    return path


def whole_archive(config: DataConfig) -> Mammograms:
    """All the archive's mammograms as something to split; no pixel is read."""
    return Mammograms.of(mammograms(config, Skipped()))


def _records(config: DataConfig, make: Make) -> Records:
    assert config.records
    if make is not make_patches:
        raise ConfigError(
            "data.records: hold patches of lesions, which serve other trainings; set data.name "
            "and data.root instead"
        )
    if not config.records.is_dir():
        raise ConfigError(f"data.records: no such folder: {config.records}")
    records = Records.open(config.records)
    if records.size != config.size:
        raise ConfigError(
            f"data.size: {config.size} px, but the patches in {config.records} have {records.size}"
        )
    return records


def _keep_split(found: Patches | Records, config: DataConfig, output: Path) -> None:
    archive = (
        read_manifest(config.records).identity["archive"]["name"]
        if config.records
        else archive_name(config)
    )
    _write_split(output / SPLIT, describe(found, config, archive), once=is_training_folder(output))


def _write_split(path: Path, decided: SavedSplit, once: bool) -> None:
    """Write split.json. once: it belongs to what stands in the folder; else a start that failed may
    have left another one.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (once and path.exists()):
            with filesystem.atomic_file(path) as part:  # several workers may write it at once
                save(part, decided)
                filesystem.flush(part)
    except OSError as error:
        raise ConfigError(f"{path.parent}: can't be written to ({error.strerror})") from None


QUICKSTART = "python train/can.py --config configs/quickstart.yaml"


def without_data(data: DataConfig) -> bool:
    """Whether the phantom stands in for an archive that was named, but has no folder."""
    return data.name != "phantom" and data.root is None and data.records is None


def announce(data: DataConfig) -> None:
    """Say in a frame that the phantom stands in for data, if it does."""
    if without_data(data):
        framed(
            "No data: data.root is not set, so the built-in phantom is used (synthetic "
            "mammograms).\n"
            "Time:           measured here over the first steps, and told then\n"
            f"Your own data:  {_command()} --set data.name={data.name} data.root=DIR\n"
            f"Ten minutes:    {QUICKSTART}"
        )


def _command() -> str:
    """What was called, without its overrides, which may be many."""
    words = sys.argv[: sys.argv.index("--set")] if "--set" in sys.argv else sys.argv
    return shlex.join(["python", *words])


def framed(text: str) -> None:
    """Print lines on stderr in a frame as wide as they are, up to 140 columns, so that commands can
    be copied whole.
    """
    width = min(max(map(len, text.splitlines())) + 4, 140)
    Console(stderr=True, width=width).print(Panel(Text(text)))


def with_added(
    train: Patches, held_out: Patches, config: DataConfig, make: Make, skipped: Skipped
) -> Patches:
    """The training patches with those of the added mammograms behind them.

    Args:
        train: Of a split by patient.
        held_out: Of a split by patient.
        config: Of the training.
        make: What made the patches.
        skipped: What is left out is noted here.

    Raises:
        ConfigError: The split or the patches are of a kind that nothing can be added to.
        DataError: The synthetic set is none, is too small, or knows a patient who is held out.
        ArchiveError: It can't be read.
    """
    if config.split == "paper":
        raise ConfigError(
            "data.added: needs a split that keeps patients apart; take data.split=patient or "
            "official, not paper"
        )
    if len(train.labels):
        raise ConfigError(
            "data.added: is for trainings on masks or boxes; the patches of this one have labels"
        )
    parts = [train]
    own = config.model_copy(
        update={"added": config.added.model_copy(update={"synthetic": None, "count": None})}
    )
    if config.added.copies:
        known = set(train.patient_ids.tolist())
        found = [one for one in mammograms(config, Skipped()) if one.patient_id in known]
        parts.append(make(copies(found, own, skipped), config, skipped))
    if config.added.synthetic:
        parts.append(make(synthetic(config, _held_out(held_out, config), skipped), config, skipped))
    log.info(
        "training on %d patches, %d of them added", sum(map(len, parts)), sum(map(len, parts[1:]))
    )
    wholes = [part for part in parts if isinstance(part, Whole)]
    return whole.joined(wholes) if wholes else joined(parts)


def synthetic(config: DataConfig, held_out: set[str], skipped: Skipped) -> Iterator[Mammogram]:
    """The mammograms of data.added.synthetic, their patients called as in the archive that they
    were made from.

    Args:
        held_out: Patients who must have no part in the set.

    Raises as `with_added`.
    """
    place = config.added.synthetic
    count = config.added.count
    assert place
    known = _patients(place)
    if fault := key_fault(known.id_key):
        raise DataError(f"data.added.synthetic: {place / PATIENTS}: {fault}")
    for what, patients in (
        ("mammograms", known.mammograms),
        ("lesions", known.lesions),
        ("trained_on", known.trained_on),
    ):
        if both := held_out & set(patients):
            raise DataError(
                f"data.added.synthetic: {place} knows {len(both)} of the {len(held_out)} patients "
                f"who are held out ({what}); make it of"
                " the training patients (patients.split_file, patients.fold, "
                "patients.side=train), its networks too"
            )
    by_name = {hashed_id("folder", patient): patient for patient in known.mammograms}
    found = folder.read(place, skipped)
    if count and len(found) < count:
        raise DataError(
            f"data.added.synthetic: {place} holds {len(found)} mammograms, fewer than "
            f"data.added.count={count}"
        )
    return (
        replace(one, patient_id=by_name[one.patient_id], image_id=f"synthetic-{one.image_id}")
        for one in found[:count]
    )


def _patients(place: Path) -> Patients:
    try:
        return Patients.model_validate_json((place / PATIENTS).read_bytes())
    except (OSError, ValidationError):
        raise DataError(
            f"data.added.synthetic: {place} is no finished set of tfmammo.synthesis, or of an "
            f"older version ({PATIENTS} is missing or"
            " damaged); run the synthesis again"
        ) from None


def _held_out(patches: Patches, config: DataConfig) -> set[str]:
    """Everybody who is held out, those included whom no patch shows."""
    shown = set(patches.patient_ids.tolist())
    return shown | held_out_by(load(config.split_file), config.fold) if config.split_file else shown
