"""A training's folder: whose it is, and what of it can be read after a kill or a power loss.

config.yaml and train_patches say whose it is. They are written once, as whole files, when a
training begins, and a training that goes on reads them only. A start that fails before its first
step writes neither.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfmammo import config as configuration
from tfmammo import filesystem
from tfmammo.config import TRAINING_CONFIG, Experiment, is_training_folder
from tfmammo.data.patches import Patches
from tfmammo.data.tfrecord import Records
from tfmammo.errors import TrainingError
from tfmammo.filesystem import take_lock, write_atomically
from tfmammo.tracking.store import shown

log = logging.getLogger(__name__)

PATCHES = "train_patches"
# pseudonyms of the patients that `training.initial` was trained on
INITIAL_PATIENTS = "initial_patients.txt"
# TensorFlow's list of checkpoints, which its own tools read; nothing here goes by it
STATE = "checkpoint"


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the folder for this process, and make it where it is missing; the lock goes with the
    process, however it ends.

    Raises:
        TrainingError: It can't be made, or another process holds it.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{output}: can't be made ({error.strerror})") from None
    with (output / ".lock").open("w") as file:
        held = take_lock(file)
        if held is False:
            raise TrainingError(f"{output}: another process is training there")
        if held is None:
            log.warning(
                "%s: its file system knows no locks; make sure that no other process trains there",
                output,
            )
        yield


def check(output: Path, experiment: Experiment[Any], train: Patches | Records) -> None:
    """Make sure that the folder is free, or that its training is this experiment on these patches.

    Nothing is written.

    Raises:
        TrainingError: It is another one; the message names what differs.
    """
    if not is_training_folder(output):
        if saved(output / "checkpoints"):
            raise TrainingError(
                f"{output / TRAINING_CONFIG}: is missing or empty beside checkpoints; put a copy "
                "back, or choose another --output"
            )
        return
    known = configuration.parse(type(experiment), output / TRAINING_CONFIG)
    different = differences(known.identity(), experiment.identity())
    if different:
        raise TrainingError(
            f"{output} holds another training ({', '.join(different)}); choose another --output"
        )
    path = output / PATCHES
    if path.is_file() and path.read_text().strip() not in ("", train.fingerprint()):
        raise TrainingError(
            f"{output} holds another training: its patches were others than those of "
            f"{_source(experiment)}; "
            "choose another --output, or bring back the files that it began with"
        )


def claim(output: Path, experiment: Experiment[Any], train: Patches | Records) -> None:
    """Write once whose the folder is. The store's address goes without its password."""
    if (
        not is_training_folder(output)
        or not (output / PATCHES).is_file()
        or not (output / PATCHES).stat().st_size
    ):
        write_atomically(output / PATCHES, train.fingerprint())
    if not is_training_folder(output):
        tracking = experiment.tracking
        harmless = tracking.model_copy(update={"uri": tracking.uri and shown(tracking.uri)})
        write_atomically(
            output / TRAINING_CONFIG,
            configuration.dump(experiment.model_copy(update={"tracking": harmless})),
        )


def sweep(output: Path) -> None:
    """Remove what a killed process has left half-written.

    Only while the folder is held, and no other worker writes there.
    """
    for place in (
        output,
        output / "samples",
        output / "checkpoints",
        output / "checkpoints" / "best",
    ):
        for path in place.glob(".*.part"):
            path.unlink(missing_ok=True)


def _source(experiment: Experiment[Any]) -> str:
    data = experiment.data
    return (
        f"data.records {data.records}"
        if data.records
        else f"data.root {data.root}"
        if data.root
        else "the phantom"
    )


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The keys in which two configs differ: ["model.filters: [64] there, [32] here"]."""
    found = []
    for key in sorted({*old, *new}):
        before = old.get(key)
        after = new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before} there, {after} here")
    return found


def saved(folder: Path) -> list[str]:
    """The checkpoints of a folder, oldest first, by the files themselves: the index of each is
    written after its data.
    """
    found = {
        int(match[1]): path
        for path in folder.glob("ckpt-*.index")
        if (match := re.fullmatch(r"ckpt-(\d+)\.index", path.name))
    }
    return [str(path.with_suffix("")) for _, path in sorted(found.items())]


def step_of(path: str) -> int:
    """The step of a checkpoint."""
    return int(path.rpartition("-")[2])


class Checkpoints:
    """The newest checkpoints of a training in a folder, named ckpt-STEP.

    An older one is removed when the newer one is on the disk, so that a kill or a power loss at any
    moment leaves one.

    Args:
        checkpoint: What is saved.
        keep: How many.
    """

    def __init__(self, checkpoint: tf.train.Checkpoint, folder: Path, keep: int) -> None:
        self.checkpoint = checkpoint
        self.folder = folder
        self.keep = keep

    @property
    def paths(self) -> list[str]:
        """Those that there are, oldest first."""
        return saved(self.folder)

    @property
    def latest(self) -> str | None:
        """The newest one."""
        return self.paths[-1] if self.paths else None

    def save(self, step: int) -> None:
        """Write one.

        Raises:
            tf.errors.OpError: It can't be written; those before it stay.
            OSError: It can't be written; those before it stay.
        """
        path = self.folder / f"ckpt-{step}"
        self.checkpoint.write(str(path))
        for file in self.folder.glob(f"{path.name}.*"):
            filesystem.flush(file)
        filesystem.flush_names(self.folder)
        # a later one could not be read, else it would have been
        older = [Path(one) for one in self.paths if step_of(one) < step]
        kept = [*older, path][-self.keep :]
        lines = [
            f'model_checkpoint_path: "{path.name}"',
            *(f'all_model_checkpoint_paths: "{one.name}"' for one in kept),
        ]
        write_atomically(self.folder / STATE, "\n".join(lines) + "\n")
        self._remove_but({one.name for one in kept})

    def _remove_but(self, names: set[str]) -> None:
        """Remove older checkpoints, each one's index first, and what a killed write has left."""
        gone = [path for path in self.folder.glob("ckpt-*") if path.name.split(".")[0] not in names]
        for path in sorted(gone, key=lambda path: path.suffix != ".index"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def restore(self) -> str | None:
        """Restore the newest readable one.

        Returns:
            Its path, or None when there is none.

        Raises:
            TrainingError: There are checkpoints, but none can be read, or they are another model's.
        """
        for path in reversed(self.paths):
            try:
                self.checkpoint.read(path).assert_existing_objects_matched()
                return path
            except (tf.errors.OpError, ValueError, IndexError) as error:
                # a truncated file can be any of them
                log.warning(
                    "%s can't be read (%s); trying the one before", path, str(error).split("\n")[0]
                )
            except AssertionError:
                raise TrainingError(
                    f"{path} holds another model's weights; choose another --output"
                ) from None
        if self.paths:
            raise TrainingError(
                f"none of the checkpoints beside {self.latest} can be read; choose another "
                "--output to start anew"
            )
        return None


def check_nothing_is_lost(output: Path) -> None:
    """Make sure that a folder without checkpoints is one in which none was ever finished.

    Raises:
        TrainingError: There was one; a start from step 0 would write over what came of it.
    """
    for trace in (output / "checkpoints" / STATE, output / "export" / "card.json"):
        if trace.exists():
            raise TrainingError(
                f"{trace}: is there, but no checkpoint to go on from; put ckpt-* back, or choose "
                "another --output"
            )
