"""Resumable jobs: work cut into parts, which Apache Beam makes on one machine or many.

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
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

import cv2

from tfmammo import filesystem
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
        make: Makes a part, unless `read` recognises it as finished. A function of a module, because
            workers import it by name.
        read: Returns the record of a finished part. None unless its files are there as written.
        record_path: Path of that record.
        command: What the user runs again, for messages.
        has_failures: Whether something in a finished part could not be made.
    """

    make: Callable[[Part], None]
    read: Callable[[Part], Record | None]
    record_path: Callable[[Part], Path]
    command: str
    has_failures: Callable[[Record], bool] = lambda _: False


def complete_parts(
    parts: Sequence[Part],
    steps: PartSteps[Part, Record],
    flags: Sequence[str],
    progress: tuple[Path, str, int],
    retry: bool = False,
) -> list[Record]:
    """Make the missing parts of a claimed folder, and read the records of all parts.

    Args:
        parts: Small, because each one is pickled for its worker.
        steps: How a part is made and read.
        flags: Apache Beam's own.
        progress: Folder, pattern and total of the files that count as progress.
        retry: Make finished parts with failures again.

    Returns:
        One record per part, in the order of `parts`.

    Raises:
        ConfigError: Apache Beam is missing.
        DataError: A worker failed, or a part is still missing afterwards.
    """
    for part in parts if retry else ():
        record = steps.read(part)
        if record is not None and steps.has_failures(record):
            steps.record_path(part).unlink()
    with report_progress(*progress):
        run(parts, steps.make, flags)
    # Reading is mostly hashing, which threads share.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda part: _require_record(part, steps), parts))


def _require_record(part: Part, steps: PartSteps[Part, Record]) -> Record:
    record = steps.read(part)
    if record is None:
        raise DataError(
            f"{steps.record_path(part)}: is missing or not as it was written; run the "
            f"{steps.command} again"
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


def require_beam() -> None:
    """Check that Apache Beam is installed, without importing it.

    Raises:
        ConfigError: It is not.
    """
    try:
        metadata.version("apache-beam")
    except metadata.PackageNotFoundError:
        raise ConfigError('Apache Beam is missing: pip install "tfmammo[build]"') from None


def run(parts: Sequence[Any], make: Callable[[Any], None], flags: Sequence[str]) -> None:
    """Distribute parts over Apache Beam's workers, which make them.

    Args:
        parts: What can be pickled.
        make: Makes one part. A function of a module.
        flags: Apache Beam's own.

    Raises:
        ConfigError: Apache Beam is missing.
        DataError: A worker failed.
    """
    try:
        beam = _import_beam()
    except ImportError as error:
        raise ConfigError(
            f'Apache Beam is missing ({error}): pip install "tfmammo[build]"'
        ) from None
    options = _make_options(flags, make.__module__)
    # Beam reports a failure in tracebacks; the DataError below says it in a sentence.
    logging.getLogger("apache_beam.runners").setLevel(logging.CRITICAL)
    try:
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "Parts" >> beam.Create(list(parts), reshuffle=False)
                | beam.Reshuffle()
                | "Make" >> beam.Map(make)
            )
    except Exception as error:  # Beam answers a worker's fault with exceptions of any class
        log.debug("Beam failed", exc_info=True)
        if "KeyboardInterrupt" in str(error):
            raise KeyboardInterrupt from error
        reason = next(
            (line for line in reversed(str(error).splitlines()) if line.strip()),
            error.__class__.__name__,
        )
        raise DataError(
            f"the work stopped before its end ({reason.strip()[:300]}); run it again, finished "
            "parts are kept"
        ) from error


def _make_options(flags: Sequence[str], module: str) -> Any:
    """Make Beam's options.

    Args:
        flags: The user's.
        module: What a worker imports at its start, together with the others. Beam itself would let
            the second worker wait until the first one has its imports, some five seconds.
    """
    from apache_beam.options import pipeline_options

    plugin = () if module == "__main__" else (f"--beam_plugin={module}",)
    options = pipeline_options.PipelineOptions(
        ["--default_sdk_harness_log_level=ERROR", *plugin, *flags]
    )
    # There are no triggers here; what allows unsafe ones is never handed to the runner that would
    # have to be downloaded.
    options.view_as(pipeline_options.TypeOptions).allow_unsafe_triggers = True
    direct = options.view_as(pipeline_options.DirectOptions)
    if direct.direct_num_workers != 1 and direct.direct_running_mode == "in_memory":
        direct.direct_running_mode = "multi_processing"
    return options


def _import_beam() -> Any:
    """Import Apache Beam without its warning that Google's client libraries are missing."""
    logging.disable(logging.WARNING)
    try:
        import apache_beam
        import apache_beam.options.pipeline_options
    finally:
        logging.disable(logging.NOTSET)
    return apache_beam


def find_unknown_flags(flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """Find the arguments that Apache Beam does not know.

    Without Beam nothing counts as unknown: `run` reports that it is missing.

    Args:
        flags: A command's further arguments.

    Returns:
        The unknown arguments, and the names of all options that Beam knows.
    """
    try:
        PipelineOptions = _import_beam().options.pipeline_options.PipelineOptions
    except ImportError:
        return [], []
    parsers: list[Any] = []
    PipelineOptions([]).get_all_options(add_extra_args_fn=parsers.append)
    (parser,) = parsers
    unknown = parser.parse_known_args(list(flags))[1]
    names = [name for action in parser._actions for name in action.option_strings]
    return unknown, names


@contextmanager
def report_progress(output: Path, pattern: str, total: int, every: float = 10.0) -> Iterator[None]:
    """Log the number of finished files while the body runs, whichever worker made them.

    Args:
        output: Folder of the files.
        pattern: Glob pattern of their names.
        total: How many there will be.
        every: Seconds between two counts.
    """
    done = threading.Event()

    def watch() -> None:
        """Log the count whenever it has changed."""
        last_count = -1
        while not done.wait(every):
            count = sum(1 for _ in output.glob(pattern))
            if count != last_count:
                log.info("%d of %d parts", count, total)
            last_count = count

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


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
