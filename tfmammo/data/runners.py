"""Resumable jobs: work cut into parts, made by processes of this machine or by Apache Beam.

A job claims its folder with `filesystem.claim_folder`, and hands its parts to `complete_parts`. A
finished part leaves a record, which a later run reads instead of making the part again. Every
worker must see the folder under the same path.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
from rich.console import Console
from rich.progress import track

from tfmammo import cli
from tfmammo.errors import DataError

log = logging.getLogger(__name__)

Part = TypeVar("Part")
Record = TypeVar("Record")


@dataclass(frozen=True)
class Runner:
    """Who makes the parts of a job: so many processes of this machine, or a runner of Apache Beam.

    One process is this process itself. A script that asks for more needs
    `if __name__ == "__main__":`, because each one imports it.
    """

    processes: int = 1
    beam: str | None = None
    flags: tuple[str, ...] = ()


HERE = Runner()


def add_options(parser: cli.Parser) -> None:
    """Add --jobs and --runner."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--jobs",
        type=cli.parse_count,
        metavar="N",
        help="processes of this machine that work at once; default: one per core",
    )
    group.add_argument(
        "--runner",
        metavar="NAME",
        help="a runner of Apache Beam, for clusters, followed by its own flags: FlinkRunner",
    )


def parse(parser: cli.Parser, arguments: Sequence[str] | None) -> tuple[Any, Runner]:
    """Parse the arguments of a command that has `add_options`."""
    options, others = parser.parse_known_args(arguments)
    # of the runner's own flags Beam itself says which it does not know
    parser.refuse([each for each in others if not options.runner or parser.find_meant(each)])
    return options, Runner(options.jobs or _count_cores(), options.runner, tuple(others))


def _count_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))  # those that a cluster's scheduler leaves to us
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def complete_parts(
    parts: Sequence[Part],
    make: Callable[[Part], None],
    read: Callable[[Part], Record | None],
    name: Callable[[Part], object],
    runner: Runner,
) -> list[Record]:
    """Make the missing parts of a claimed folder, and read the records of all parts, in order.

    Args:
        parts: Small, because each one is pickled for its worker.
        make: Makes a part, whatever is there of it. A function of a module, because workers import
            it by name.
        read: Returns the record of a finished part. None unless its files are there as written.
        name: Names a part in messages.
        runner: Who makes them. DataError if one fails, or is still missing afterwards.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # reading is hashing, which threads share
        records = list(pool.map(read, parts))
        missing = [index for index, record in enumerate(records) if record is None]
        run([parts[index] for index in missing], make, runner)
        made = pool.map(read, [parts[index] for index in missing])
        for index, record in zip(missing, made, strict=True):
            if record is None:
                raise DataError(
                    f"{name(parts[index])}: is missing or not as it was written; run the command "
                    "again"
                )
            records[index] = record
    return [record for record in records if record is not None]


@contextmanager
def use_one_thread() -> Iterator[None]:
    """Keep OpenCV to one thread, because there are as many workers as cores."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def run(parts: Sequence[Any], make: Callable[[Any], None], runner: Runner) -> None:
    """Make parts, and log now and then how many are done; DataError if one failed."""
    if runner.beam:
        _import_beam()
    processes = min(runner.processes, len(parts))
    try:
        if runner.beam:
            _run_on_beam(parts, make, runner)
        elif processes > 1:
            _log_progress(_run_in_processes(parts, make, processes), len(parts))
        else:
            _log_progress(map(make, parts), len(parts))
    except Exception as error:
        log.debug("the work failed", exc_info=True)
        raise DataError(
            f"the work stopped before its end ({_explain(error)}); run it again, finished parts "
            "are kept"
        ) from error


def _explain(error: Exception) -> str:
    if isinstance(error, BrokenProcessPool):
        return "a process was killed, as happens for want of memory: fewer --jobs need less"
    text = f"{error.__class__.__name__}: {error}"  # Beam's ends with a worker's whole traceback
    return [line for line in text.splitlines() if line.strip()][-1].strip()[:300]


def _log_progress(made: Iterable[None], total: int, every: float = 10.0) -> None:
    """Go through finished parts, with a progress bar in a terminal or a line now and then."""
    console = Console(stderr=True)
    if console.is_terminal:
        for _ in track(made, "parts", total, console=console, transient=True):
            pass
        return
    last = time.monotonic()
    for count, _ in enumerate(made, start=1):
        if time.monotonic() - last >= every:
            last = time.monotonic()
            log.info("%d of %d parts", count, total)


def _run_in_processes(
    parts: Sequence[Any], make: Callable[[Any], None], processes: int
) -> Iterator[None]:
    others = set(multiprocessing.active_children())
    # Spawned: a fork of TensorFlow's threads hangs.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _prepare_worker)
    try:
        with _hold_interrupts():
            futures = [pool.submit(make, part) for part in parts]
        for future in as_completed(futures):
            yield future.result()
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    """Keep a worker quiet but for errors, share GPUs with others, and end it with its parent."""
    logging.disable(logging.WARNING)
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    parent = multiprocessing.parent_process()
    assert parent

    def follow() -> None:
        parent.join()
        os._exit(1)  # the parent was killed; a second run of its command may have begun

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _hold_interrupts() -> Iterator[None]:
    """Keep Ctrl-C from processes that are started meanwhile; who started them ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_on_beam(parts: Sequence[Any], make: Callable[[Any], None], runner: Runner) -> None:
    beam = _import_beam()
    pipeline_options = beam.options.pipeline_options
    options = pipeline_options.PipelineOptions(
        [f"--runner={runner.beam}", "--default_sdk_harness_log_level=ERROR", *runner.flags]
    )
    # No triggers are used; what allows unsafe ones is never handed to the runner that would
    # have to be downloaded.
    options.view_as(pipeline_options.TypeOptions).allow_unsafe_triggers = True
    # Beam reports a failure in tracebacks; `run` says it in a sentence.
    logging.getLogger("apache_beam.runners").setLevel(logging.CRITICAL)
    try:
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "Parts" >> beam.Create(list(parts), reshuffle=False)
                | beam.Reshuffle()
                | "Make" >> beam.Map(make)
            )
    except Exception as error:
        if "KeyboardInterrupt" in str(error):
            raise KeyboardInterrupt from error
        raise


def _import_beam() -> Any:
    """Import Apache Beam without its warning that Google's client libraries are missing."""
    logging.disable(logging.WARNING)
    try:
        import apache_beam
        import apache_beam.options.pipeline_options
    finally:
        logging.disable(logging.NOTSET)
    return apache_beam
