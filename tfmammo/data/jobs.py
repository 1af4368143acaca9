"""Resumable jobs: work cut into parts, which tfmammo.data.runners makes.

`tfmammo.data.build`, `tfmammo.synthesis.mammograms` and `tfmammo.synthesis.patches` are such jobs.
Each one claims its folder with `claim_folder`, and hands its parts to `complete_parts`. A finished
part leaves a record. A later run reads the record and does not make the part again. Every worker
must see the folder under the same path.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import cv2

from tfmammo import filesystem
from tfmammo.data import runners
from tfmammo.data.runners import Runner
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Mammogram, MaskedLesion

log = logging.getLogger(__name__)

LOCK = ".lock"
ARCHIVES_CONTENT = "content of the archive (a file or its annotations)"
IN_WORDS = {  # keys of identities that are none of a config
    "archive": ARCHIVES_CONTENT,
    "archive.mammograms": ARCHIVES_CONTENT,
    "archive.records": ARCHIVES_CONTENT,
    "archive.name": "archive",
    "tfmammo": "version of tfmammo",
}
Part = TypeVar("Part")
Record = TypeVar("Record")


@dataclass(frozen=True)
class PartSteps(Generic[Part, Record]):
    """How a job makes one part and recognises a finished one.

    Attributes:
        make: Makes a part, whatever is there of it. A function of a module, because workers import
            it by name.
        read: Returns the record of a finished part. None unless its files are there as written.
        name: Names a part in messages.
        command: What the user runs again, for messages.
    """

    make: Callable[[Part], None]
    read: Callable[[Part], Record | None]
    name: Callable[[Part], object]
    command: str


def complete_parts(
    parts: Sequence[Part], steps: PartSteps[Part, Record], runner: Runner
) -> list[Record]:
    """Make the missing parts of a claimed folder, and read the records of all parts.

    Args:
        parts: Small, because each one is pickled for its worker.
        steps: How a part is made and read.
        runner: Who makes them.

    Returns:
        One record per part, in the order of `parts`.

    Raises:
        DataError: A part failed, or is still missing afterwards.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # reading is hashing, which threads share
        records = list(pool.map(steps.read, parts))
        missing = [index for index, record in enumerate(records) if record is None]
        runners.run([parts[index] for index in missing], steps.make, runner)
        made = pool.map(steps.read, [parts[index] for index in missing])
        for index, record in zip(missing, made, strict=True):
            records[index] = record
    return [_require(record, part, steps) for record, part in zip(records, parts, strict=True)]


def _require(record: Record | None, part: Part, steps: PartSteps[Part, Record]) -> Record:
    if record is None:
        raise DataError(
            f"{steps.name(part)}: is missing or not as it was written; run the {steps.command} "
            "again"
        )
    return record


@contextmanager
def claim_folder(output: Path, identity: Mapping[str, Any], file: str) -> Iterator[None]:
    """Reserve a folder for one job, and keep other processes out while the body runs.

    Half-written files of killed workers are removed. The lock ends with the process.

    Args:
        output: A new folder, or one of an earlier run.
        identity: Everything that decides the contents. Runs with an equal identity may use the
            folder one after the other.
        file: Name of the file that keeps the identity.

    Raises:
        ConfigError: The folder belongs to another job (the message names the keys that differ),
            holds other files or can't be used; or another process is at work in it.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        is_foreign = _is_foreign(output, file)
    except OSError as error:
        raise _explain_unusable(output, error) from None
    if is_foreign:  # before the lock, which would leave a file in somebody's folder
        raise ConfigError(
            f"{output}: is not empty and no output of this command; name a new folder"
        )
    with _lock(output):
        _check_identity(output, identity, file)
        for path in output.rglob(".*.part"):  # of a worker that was killed
            path.unlink(missing_ok=True)
        try:
            yield
        except KeyboardInterrupt:
            log.info("%s: stopped; the same command goes on where it was", output)
            raise


def _is_foreign(output: Path, file: str) -> bool:
    """Return whether a folder holds files of other work.

    The lock, and what a kill at the first write leaves, are the command's own.
    """
    first = re.compile(rf"{re.escape(LOCK)}|\.{re.escape(file)}\.\w+\.part")
    return not (output / file).exists() and any(
        not first.fullmatch(path.name) for path in output.iterdir()
    )


def _explain_unusable(output: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{output}: can't be used ({error.__class__.__name__}: {str(error)[:200]})")


@contextmanager
def _lock(output: Path) -> Iterator[None]:
    """Hold the folder for this process.

    Raises:
        ConfigError: Another process holds it, or its lock can't be written.
    """
    try:
        file = (output / LOCK).open("a")  # which leaves its time as it is
    except OSError as error:
        raise _explain_unusable(output, error) from None
    with file:
        locked = filesystem.take_lock(file)
        if locked is None:
            log.warning(
                "%s: its file system has no locks; start no other work there meanwhile", output
            )
        elif not locked:
            raise ConfigError(
                f"{output}: another process is at work there; wait for its end, or name a new "
                "folder"
            )
        yield


def _check_identity(output: Path, identity: Mapping[str, Any], file: str) -> None:
    """Write the identity into a new folder, or compare it with that of an earlier run."""
    try:
        if not (output / file).exists():
            filesystem.write_atomically(output / file, filesystem.to_json(identity))
        recorded = json.loads((output / file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _explain_unusable(output, error) from None
    before = _flatten(recorded)
    now = _flatten(identity)
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if differing:
        names = dict.fromkeys(IN_WORDS.get(key, key.removeprefix("config.")) for key in differing)
        raise ConfigError(f"{output}: was made with another {', '.join(names)}; name a new folder")


def resolve_inside(output: Path, name: str) -> Path:
    """Return the path of a file beneath a folder.

    Raises:
        DataError: The name leads out of the folder.
    """
    path = output / name
    if not path.resolve().is_relative_to(output.resolve()):
        raise DataError(f"{name}: leads out of {output}, where all files are written")
    return path


@contextmanager
def use_one_thread() -> Iterator[None]:
    """Keep OpenCV to one thread, because there are as many workers as cores."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def fingerprint(mammograms: Iterable[Mammogram]) -> str:
    """Hash what an archive states of its mammograms, in their order.

    No pixel and no mask file is read.

    Returns:
        Twelve hexadecimal digits.
    """
    content = hashlib.sha256()
    for mammogram in mammograms:
        content.update(_encode_facts(mammogram))
    return content.hexdigest()[:12]


def _encode_facts(mammogram: Mammogram) -> bytes:
    """Encode what the archive states of a mammogram, without masks in files of their own."""
    outlined = [lesion for lesion in mammogram.lesions if not isinstance(lesion, MaskedLesion)]
    facts = [
        mammogram.patient_id,
        mammogram.image_id,
        mammogram.rows,
        mammogram.cols,
        mammogram.spacing,
        mammogram.laterality,
        mammogram.view,
        mammogram.pathology,
        mammogram.official_split,
        [lesion.box for lesion in outlined],
        [
            (lesion.kind, lesion.pathology, lesion.shape, lesion.margin, lesion.kind_is_certain)
            for lesion in mammogram.lesions
        ],
    ]
    facts += [each for each in (mammogram.lost, mammogram.chest_wall) if each]
    return repr(facts).encode() + b"".join(
        outline.tobytes() for lesion in outlined for outline in lesion.outlines
    )


def _flatten(content: object, name: str = "") -> dict[str, object]:
    """Flatten nested dicts: ``{"a": {"b": 1}}`` -> ``{"a.b": 1}``."""
    if not isinstance(content, dict):
        return {name: content}
    return {
        key: value
        for part, inner in content.items()
        for key, value in _flatten(inner, f"{name}.{part}".lstrip(".")).items()
    }
