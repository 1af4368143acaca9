"""Run a long piece of work as commands, one after the other, each in its own process and only once.

Finished steps are noted in OUTPUT/done, so that a stopped study continues where it was. A step
counts as finished if its command, the config files that the command names, and all steps that it
depends on are unchanged; other work in its place is refused. So is the work of another version of
the package: its source code is part of what a step depends on. A step whose files are gone is run
again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from tfmammo import __version__, filesystem
from tfmammo.data import jobs
from tfmammo.errors import DataError, Interrupted
from tfmammo.tracking.store import redact

log = logging.getLogger(__name__)

DONE = "done"
LOGS = "logs"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Its name, which is also its folder below the folder of the work.
        command: The arguments of Python.
        depends_on: The steps that come before it.
        resumable_args: Further arguments that say how much of the work to do. Where they have
            changed, the command continues in its folder.
        ignored_args: Arguments that do not change the result.
        outputs: Files in its folder that other steps read. The step is finished while all of them
            exist.
    """

    name: str
    command: tuple[str, ...]
    depends_on: tuple[str, ...] = ()
    resumable_args: tuple[str, ...] = ()
    ignored_args: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def find_missing(self, output: Path) -> list[Path]:
        """List the outputs that do not exist; without `outputs`, its folder."""
        paths = [output / self.name / name for name in self.outputs or (".",)]
        return [path for path in paths if not path.exists()]

    @property
    def arguments(self) -> tuple[str, ...]:
        """All arguments of Python."""
        return *self.command, *self.resumable_args, *self.ignored_args

    @property
    def overrides(self) -> list[str]:
        """The values after --set."""
        overrides = []
        follows_set = False
        for argument in self.arguments:
            if argument == "--set":
                follows_set = True
            elif argument.startswith("--"):
                follows_set = False
            elif follows_set:
                overrides.append(argument)
        return overrides

    def format_command(self) -> str:
        """Return the command for a shell, without the password of a tracking store."""
        return shlex.join(["python", *map(redact, self.arguments)])


def format_overrides(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Flatten a nested mapping into arguments of --set.

    Examples:
        >>> format_overrides({"data": {"size": 64}})
        ['data.size=64']
    """
    overrides = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            overrides += format_overrides(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            overrides.append(f"{prefix}{key}={text}")
    return overrides


@dataclass(frozen=True)
class Completion:
    """What is noted of a finished step.

    Attributes:
        digest: A hash of everything that the step depends on, without `resumable_args`.
        resumable_args: Those that it was run with last.
        code: The version and state of the package, see `identify_code`; "" where none was noted.
    """

    digest: str
    resumable_args: tuple[str, ...]
    code: str


def run_steps(
    steps: Sequence[Step], output: Path, context: str = "", any_version: bool = False
) -> list[str]:
    """Run the steps that are not finished, in this order.

    Args:
        steps: Each stands after those that it depends on.
        output: The folder of the work, where all steps write.
        context: What all of them depend on besides their commands.
        any_version: Continue with the results of another version of the package.

    Returns:
        The steps that another version made.

    Raises:
        DataError: A step failed or wrote nothing, or its folder holds other work.
        Interrupted: A stop signal came. The running command got it, to save what it has.
    """
    digests: dict[str, str] = {}
    of_other_versions: list[str] = []
    for number, step in enumerate(steps, start=1):
        digests[step.name] = _hash_step(step, digests, output, context)
        record = output / DONE / f"{step.name}.json"
        completed = _read_completion(record)
        current = Completion(digests[step.name], step.resumable_args, identify_code(step))
        if completed:
            _check_same(step, completed, current, output, any_version)
            if completed.code != current.code:
                of_other_versions.append(step.name)
        if completed and completed.resumable_args == step.resumable_args:
            missing = step.find_missing(output)
            if not missing:
                continue
            log.warning("%s: was done, but %s is gone: it is run again", step.name, missing[0])
        log.info("step %d of %d: %s", number, len(steps), step.name)
        _run_step(step, output)
        if missing := step.find_missing(output):
            raise DataError(f"{step.name}: ended well and made no {missing[0]}")
        _write_completion(record, step, current)
    if of_other_versions:
        log.warning(
            "%d of %d steps were made by other versions of the package: %s",
            len(of_other_versions),
            len(steps),
            ", ".join(of_other_versions),
        )
    return of_other_versions


def identify_code(step: Step) -> str:
    """Identify the code that would run a step.

    Returns:
        The version of the package, and twelve digits of a hash of its source and the step's script.
    """
    digest = hashlib.sha256(hash_sources().encode())
    for argument in step.command:
        if argument.endswith(".py") and Path(argument).is_file():
            digest.update(Path(argument).read_bytes())
    return f"{__version__} {digest.hexdigest()[:12]}"


@cache
def hash_sources() -> str:
    """Return the sha256 of all modules of the package, by their names and contents."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _check_same(
    step: Step, completed: Completion, current: Completion, output: Path, any_version: bool
) -> None:
    """Refuse a folder that another config, or without `any_version` another version, has made."""
    folder = output / step.name
    record = output / DONE / f"{step.name}.json"
    if completed.digest != current.digest:
        raise DataError(
            f"{folder}: was made by another config; take another --output, or remove it and "
            f"{record}"
        )
    if completed.code != current.code and not any_version:
        raise DataError(
            f"{folder}: was made by another version of tfmammo ({completed.code or 'not noted'}; "
            f"this is {current.code}); take another --output, remove it and {record} to make it "
            "again, or continue with what is there by --any-version"
        )


def _run_step(step: Step, output: Path) -> None:
    log_file = output / LOGS / f"{step.name}.txt"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as file:
        # In a process group of its own: Ctrl-C reaches it once, through us.
        process = subprocess.Popen(
            [sys.executable, *step.arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        with process, _forward_signals(process) as signals:
            exit_code = process.wait()
    if signals:
        raise Interrupted(signals[0], f"in {step.name}")
    if exit_code:
        lines = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise DataError(
            f"{step.name}: failed with exit code {exit_code} "
            f"({lines[-1][:300] if lines else 'it said nothing'}); all it said: {log_file}"
        )


@contextmanager
def _forward_signals(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Pass stop signals on to a process; yields the list of those that came."""
    signals: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        process.send_signal(number)

    handlers: dict[int, Callable[..., Any] | int | None] = {
        number: signal.signal(number, forward) for number in SIGNALS
    }
    try:
        yield signals
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _hash_step(step: Step, digests: Mapping[str, str], output: Path, context: str) -> str:
    """Hash what a step depends on; equal steps have equal hashes wherever the work lies."""
    digest = hashlib.sha256(context.encode())
    for argument in step.command:
        digest.update(f"\n{argument.replace(str(output), '')}".encode())
        if argument.endswith(".yaml") and Path(argument).is_file():
            digest.update(Path(argument).read_bytes())
    for name in step.depends_on:
        digest.update(f"\n{digests[name]}".encode())
    return digest.hexdigest()


def _read_completion(path: Path) -> Completion | None:
    """Read what is noted of a finished step; None where nothing is."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Completion(
            str(content["digest"]), tuple(content["extent"]), str(content.get("code", ""))
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_completion(path: Path, step: Step, completion: Completion) -> None:
    content = {
        "digest": completion.digest,
        "extent": completion.resumable_args,
        "code": completion.code,
        "command": step.format_command(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    filesystem.write_atomically(path, jobs.to_json(content), durable=False)
