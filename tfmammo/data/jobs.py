"""Work cut into parts that are made by Apache Beam on as many machines as there are, in a
folder that a stopped run goes on in.

What `tfmammo.data.build` and `tfmammo.synthesis.mammograms` share. Every worker must see the folder
under the same path.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2

from tfmammo import filesystem
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Mammogram, MaskedLesion

log = logging.getLogger(__name__)

LOCK = ".lock"


@contextmanager
def claimed(output: Path, identity: Mapping[str, Any], file: str) -> Iterator[None]:
    """Make a folder this work's own, or make sure that it is, and keep other processes out of it
    while the body runs.

    What killed workers left half-written is removed. The lock goes with the process, however it
    ends.

    Args:
        output: A new folder, or one of an earlier run.
        identity: Everything that decides the contents; two runs may share a folder, one after the
            other, when it is equal.
        file: Where it is kept.

    Raises:
        ConfigError: The folder belongs to other work, which is named by its keys, holds other files
            or can't be used; or another process is at work in it.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        foreign = _is_foreign(output, file)
    except OSError as error:
        raise ConfigError(
            f"{output}: can't be used ({error.__class__.__name__}: {str(error)[:200]})"
        ) from None
    if foreign:  # before the lock, which would leave a file in somebody's folder
        raise ConfigError(
            f"{output}: is not empty and no output of this command; name a new folder"
        )
    with _alone(output):
        _identify(output, identity, file)
        for path in output.rglob(".*.part"):  # of a worker that was killed
            path.unlink(missing_ok=True)
        try:
            yield
        except KeyboardInterrupt:
            log.info("%s: stopped; the same command goes on where it was", output)
            raise


def _is_foreign(output: Path, file: str) -> bool:
    """Whether a folder holds anything but this command's output, or what it leaves when it is
    killed at its first write.
    """
    first = re.compile(rf"{re.escape(LOCK)}|\.{re.escape(file)}\.\w+\.part")
    return not (output / file).exists() and any(
        not first.fullmatch(path.name) for path in output.iterdir()
    )


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Hold the folder for this process.

    Raises:
        ConfigError: Another process holds it, or its lock can't be written.
    """
    try:
        file = (output / LOCK).open("a")  # which leaves its time as it is
    except OSError as error:
        raise ConfigError(
            f"{output}: can't be used ({error.__class__.__name__}: {str(error)[:200]})"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{output}: another process is at work there; wait for its end, or name a new "
                "folder"
            ) from None
        except OSError as error:
            log.warning(
                "%s: its file system has no locks (%s); start no other work there meanwhile",
                output,
                error,
            )
        yield


def _identify(output: Path, identity: Mapping[str, Any], file: str) -> None:
    """Write down whose the folder is, or make sure that it is this work's."""
    try:
        if not (output / file).exists():
            filesystem.write_atomically(output / file, as_json(identity))
        known = json.loads((output / file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{output}: can't be used ({error.__class__.__name__}: {str(error)[:200]})"
        ) from None
    before = _flat(known)
    now = _flat(identity)
    other = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if other:
        raise ConfigError(f"{output}: was made with another {', '.join(other)}; name a new folder")


def inside(output: Path, name: str) -> Path:
    """The path of a file beneath a folder.

    Raises:
        DataError: The name leads out of the folder.
    """
    path = output / name
    if not path.resolve().is_relative_to(output.resolve()):
        raise DataError(f"{name}: leads out of {output}, where all files are written")
    return path


def run(parts: Sequence[Any], make: Callable[[Any], None], flags: Sequence[str]) -> None:
    """The pipeline: parts, dealt out over the workers, each made where it falls.

    Args:
        parts: What can be pickled.
        make: Makes one, a function of a module.
        flags: Beam's own.

    Raises:
        ConfigError: Apache Beam is missing.
        DataError: A worker failed.
    """
    try:
        beam = _beam()
        from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, TypeOptions
    except ImportError as error:
        raise ConfigError(
            f'Apache Beam is missing ({error}): pip install "tfmammo[build]"'
        ) from None
    options = PipelineOptions(["--default_sdk_harness_log_level=ERROR", *flags])
    # There are no triggers here; what allows unsafe ones is never handed to the runner that would
    # have to be downloaded.
    options.view_as(TypeOptions).allow_unsafe_triggers = True
    direct = options.view_as(DirectOptions)
    if direct.direct_num_workers != 1 and direct.direct_running_mode == "in_memory":
        direct.direct_running_mode = "multi_processing"
    # of a failure it tells in tracebacks, we in a sentence
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


def _beam() -> Any:
    """Apache Beam, imported without a word: it always says that Google's client libraries are
    missing.
    """
    logging.disable(logging.WARNING)
    try:
        import apache_beam
        import apache_beam.options.pipeline_options
    finally:
        logging.disable(logging.NOTSET)
    return apache_beam


def unknown_to_beam(flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """Of a command's further arguments, those that Apache Beam does not know, and the names of all
    that it knows.

    Where Beam is missing nothing is unknown: `run` says what is missing.
    """
    try:
        PipelineOptions = _beam().options.pipeline_options.PipelineOptions
    except ImportError:
        return [], []
    parsers: list[Any] = []
    PipelineOptions([]).get_all_options(add_extra_args_fn=parsers.append)
    (parser,) = parsers
    return parser.parse_known_args(list(flags))[1], [
        name for action in parser._actions for name in action.option_strings
    ]


@contextmanager
def progress(output: Path, pattern: str, total: int, every: float = 10.0) -> Iterator[None]:
    """Log how many files of a pattern are there, of `total` wanted, whoever makes them, while the
    body runs.
    """
    done = threading.Event()
    told = -1

    def watch() -> None:
        nonlocal told
        while not done.wait(every):
            count = sum(1 for _ in output.glob(pattern))
            if count != told:
                log.info("%d of %d parts", count, total)
            told = count

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def one_thread() -> Iterator[None]:
    """Workers are as many as cores, so that threads of OpenCV's own would only be in their way."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def as_json(content: object) -> str:
    """Equal contents, equal text."""
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def fingerprint(mammograms: Iterable[Mammogram]) -> str:
    """Twelve hexadecimal digits, equal for the same mammograms in the same order; no pixel and no
    mask file is read.
    """
    content = hashlib.sha256()
    for mammogram in mammograms:
        content.update(_described(mammogram))
    return content.hexdigest()[:12]


def _described(mammogram: Mammogram) -> bytes:
    """What the archive states of a mammogram; a mask in a file of its own is not read."""
    lesions = [lesion for lesion in mammogram.lesions if not isinstance(lesion, MaskedLesion)]
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
        [lesion.box for lesion in lesions],
        [
            (found.kind, found.pathology, found.shape, found.margin, found.kind_is_certain)
            for found in mammogram.lesions
        ],
    ]
    return repr(facts).encode() + b"".join(
        outline.tobytes() for lesion in lesions for outline in lesion.outlines
    )


def _flat(content: object, name: str = "") -> dict[str, object]:
    if not isinstance(content, dict):
        return {name: content}
    return {
        key: value
        for part, inner in content.items()
        for key, value in _flat(inner, f"{name}.{part}".lstrip(".")).items()
    }
