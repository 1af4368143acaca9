"""Run folder: ownership, locking, and what survives a kill or a power loss.

config.yaml, train_patches and held_out_patches say whose it is, and precision in which one it
computes. They are written once, as whole files, when a run begins; a run that resumes only reads
them. A start that fails before its first step writes none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import keras

from tfmammo import config as configuration
from tfmammo.config import TRAINING_CONFIG, Experiment, is_training_folder
from tfmammo.data.datasets import SPLIT
from tfmammo.data.tfrecord import PatchSource
from tfmammo.errors import TrainingError
from tfmammo.filesystem import LOCK, flatten, lock_folder, write_atomically
from tfmammo.tracking.store import redact
from tfmammo.training.checkpoints import STATE, list_checkpoints

# hashes of the patches
PATCHES = "train_patches"
HELD_OUT = "held_out_patches"
# pseudonyms of the patients that the weights had been trained on before step 0
INITIAL_PATIENTS = "initial_patients.txt"
# Keras's dtype policy, which decides what a checkpoint holds
PRECISION = "precision"
WRITTEN = ("best", "export", "checkpoints", "samples")  # folders that a training replaces
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
_held: set[Path] = set()  # the folders that this process holds


@contextmanager
def hold_lock(output: Path) -> Iterator[None]:
    """Hold the folder for this process, and create it if it is missing.

    The lock ends with the process, however that ends. Within it, holding the same folder again does
    nothing. Folders that were created here for a training run that did not begin are removed.
    A folder that another process holds is a TrainingError.
    """
    place = output.resolve()
    if place in _held:
        yield
        return
    created = [folder for folder in (place, *place.parents) if not folder.exists()]
    output.mkdir(parents=True, exist_ok=True)
    try:
        with (output / LOCK).open("w") as file:
            if not lock_folder(output, file):
                raise TrainingError(f"{output}: another process is training there")
            _held.add(place)
            yield
    finally:
        _held.discard(place)
        if created:
            _remove_unused(created)


def _remove_unused(created: list[Path]) -> None:
    """Remove a folder that no training has claimed, and then its parents that are empty."""
    with suppress(OSError):  # another process may take, fill or remove them meanwhile
        if {path.name for path in created[0].iterdir()} <= {LOCK, SPLIT}:
            for name in (SPLIT, LOCK):
                (created[0] / name).unlink(missing_ok=True)
            for folder in created:
                folder.rmdir()


def check_owner(
    output: Path, experiment: Experiment[Any], train: PatchSource, held_out: PatchSource
) -> None:
    """Check that the folder is free, or that its training is this experiment on these patches.

    Nothing is written. Another training run is a TrainingError that names what differs.
    """
    if not is_training_folder(output):
        if list_checkpoints(output / "checkpoints"):
            raise TrainingError(
                f"{output / TRAINING_CONFIG}: is missing or empty beside checkpoints; put a copy "
                "back, or choose another --output"
            )
        foreign = [name for name in WRITTEN if (output / name).exists()]
        if foreign:
            raise TrainingError(
                f"{output} contains {' and '.join(foreign)}, which no training run wrote; choose "
                "another --output"
            )
        return
    name = configuration.read_yaml(output / TRAINING_CONFIG).get("name")
    if name != experiment.name:
        raise TrainingError(
            f"{output} holds a run of {name}, not of {experiment.name}; choose another --output"
        )
    owner = configuration.parse(type(experiment), output / TRAINING_CONFIG)
    differences = list_differences(owner.identity(), experiment.identity())
    if differences:
        raise TrainingError(
            f"{output} holds another run ({', '.join(differences)}); choose another --output"
        )
    check_patches(output, experiment, train, held_out)


def check_patches(
    output: Path, experiment: Experiment[Any], train: PatchSource, held_out: PatchSource
) -> None:
    """Refuse, by a TrainingError, a folder whose training began with other patches."""
    for name, words, patches in (
        (PATCHES, "patches", train),
        (HELD_OUT, "held-out patches", held_out),
    ):
        path = output / name
        if not path.is_file() or path.read_text().strip() != patches.fingerprint():
            raise TrainingError(
                f"{output} holds another run: its {words} were others than those of "
                f"{_describe_source(experiment)}; choose another --output, or bring back the files "
                "that it began with"
            )


def claim(
    output: Path, experiment: Experiment[Any], train: PatchSource, held_out: PatchSource
) -> None:
    """Write once whose the folder is. The store's address is written without its password."""
    if is_training_folder(output):
        return
    write_atomically(output / PATCHES, train.fingerprint())
    write_atomically(output / HELD_OUT, held_out.fingerprint())
    write_atomically(output / PRECISION, keras.config.dtype_policy().name)
    tracking = experiment.tracking
    redacted = tracking.model_copy(update={"uri": tracking.uri and redact(tracking.uri)})
    content = experiment.model_copy(update={"tracking": redacted})
    write_atomically(output / TRAINING_CONFIG, configuration.dump(content))


def read_precision(output: Path) -> str | None:
    """Return the dtype policy that a run, or the first of its stages, began with, if noted."""
    for path in (output / PRECISION, *sorted(output.glob(f"*/{PRECISION}"))):
        if path.is_file() and (policy := path.read_text(encoding="utf-8").strip()) in POLICIES:
            return policy
    return None


def write_seen_patients(output: Path, patients: Collection[str]) -> None:
    """Record at step 0 which patients (pseudonyms) the weights were already trained on."""
    path = output / INITIAL_PATIENTS
    if patients or path.exists():
        write_atomically(path, "\n".join(sorted(patients)))


def read_seen_patients(output: Path) -> list[str]:
    """Return what `write_seen_patients` recorded, [] without a record."""
    path = output / INITIAL_PATIENTS
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def remove_partial_files(output: Path) -> None:
    """Remove what a killed process has left half-written; the caller alone writes there."""
    for name in (".", "samples", "checkpoints", "checkpoints/best"):
        for path in (output / name).glob(".*.part"):
            path.unlink(missing_ok=True)


def _describe_source(experiment: Experiment[Any]) -> str:
    data = experiment.data
    if data.records:
        return f"data.records {data.records}"
    return f"data.root {data.root}" if data.root else "the phantom"


def list_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """List the keys in which two configs differ.

    Examples:
        >>> list_differences({"model": {"filters": [64]}}, {"model": {"filters": [32]}})
        ['model.filters: [64] there, [32] here']
    """
    before = flatten(old)
    after = flatten(new)
    return [
        f"{key}: {before.get(key)} there, {after.get(key)} here"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def check_nothing_lost(output: Path) -> None:
    """Check that a folder without checkpoints never had one.

    A start from step 0 would overwrite what came of it, so that is a TrainingError.
    """
    for trace in (output / "checkpoints" / STATE, output / "export" / "card.json"):
        if trace.exists():
            raise TrainingError(
                f"{trace}: is there, but no checkpoint to go on from; put ckpt-* back, or choose "
                "another --output"
            )
