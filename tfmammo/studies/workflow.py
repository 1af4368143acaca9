"""Run a long piece of work as commands, each in its own process and only once.

Finished steps are noted in OUTPUT/done, so that a stopped study continues where it was. A step
counts as finished if its command, the config files that the command names, and all steps that it
depends on are unchanged; other work in its place is refused. So is the work of another version of
the package or of its libraries: its source code is part of what a step depends on. A step whose
files are gone is run again.

Steps run one after the other, or several at once where none needs another's files. A failed step
ends the work, or with `keep_going` only the steps that need it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from tfmammo import __version__, filesystem, shipped
from tfmammo import config as configuration
from tfmammo.errors import ConfigError, DataError, Interrupted
from tfmammo.tracking.store import read_git_state, redact

log = logging.getLogger(__name__)

DONE = "done"
LOGS = "logs"
OLD = ".old"  # ending of a folder whose step is made again
SIGNALS = (signal.SIGINT, signal.SIGTERM)
LIBRARIES = ("tensorflow", "keras", "numpy")  # whose versions can change what a step computes
POLL = 0.05  # seconds between two looks at the running processes


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
        inputs: Files from elsewhere that the step reads. With other contents it is another step.
    """

    name: str
    command: tuple[str, ...]
    depends_on: tuple[str, ...] = ()
    resumable_args: tuple[str, ...] = ()
    ignored_args: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    inputs: tuple[Path, ...] = ()

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
        words = [redact(argument) for argument in self.arguments]
        command = shipped.name_command(" ".join(words[:2])) if words[0] == "-m" else None
        return shlex.join(["tfmammo", command, *words[2:]] if command else ["python", *words])


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


def parse_step(step: Step, schema: Any, name: str) -> Any:
    """Parse the config of a step.

    Raises:
        ConfigError: It is not one; the message begins with `name`.
    """
    file = step.command[step.command.index("--config") + 1]
    try:
        return configuration.parse(schema, file, step.overrides)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


@dataclass(frozen=True)
class Completion:
    """What is noted of a finished step.

    Attributes:
        digest: A hash of everything that the step depends on, without `resumable_args`.
        resumable_args: Those that it was run with last.
        code: The version and state of the package, see `identify_code`; "" where none was noted.
        is_stale: Whether what it was made of was made again since.
    """

    digest: str
    resumable_args: tuple[str, ...]
    code: str
    is_stale: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of all steps.

    Attributes:
        of_other_versions: The steps that another version of the package made.
        failures: Step -> why it failed, or which failed step it needs.
    """

    of_other_versions: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def run_steps(
    steps: Sequence[Step],
    output: Path,
    context: str = "",
    any_version: bool = False,
    jobs: int = 1,
    keep_going: bool = False,
    on_finish: Callable[[str], None] = lambda name: None,
) -> Outcome:
    """Run the steps that are not finished.

    Args:
        steps: Each stands after those that it depends on.
        output: The folder of the work, where all steps write.
        context: What all of them depend on besides their commands.
        any_version: Continue with the results of another version of the package.
        jobs: How many steps run at once; none starts before those that it depends on are finished.
        keep_going: After a failure, run all other steps that do not need the failed one.
        on_finish: Called with the name of each step as soon as it is known to be finished.

    Returns:
        The steps of other versions, and with `keep_going` those that failed.

    Raises:
        DataError: Without `keep_going`, a step failed or wrote nothing, or its folder holds other
            work. Steps that run beside it end first.
        Interrupted: A stop signal came. The running commands got it, to save what they have.
    """
    runner = _Runner(steps, output, context, any_version, keep_going, on_finish)
    with _forward_signals(runner.processes) as signals:
        try:
            while True:
                if not signals:
                    runner.start_ready(jobs)
                if not runner.processes:
                    break
                time.sleep(POLL)
                runner.collect_ended(is_stopping=bool(signals))
        except BaseException:  # such as a full disk: no command goes on without its report
            for process in runner.processes.values():
                process.terminate()
            raise
    if signals:
        raise Interrupted(signals[0], f"in {', '.join(runner.stopped) or 'no step'}")
    outcome = runner.outcome
    if outcome.failures and not keep_going:
        raise DataError(next(iter(outcome.failures.values())))
    if outcome.of_other_versions:
        log.warning(
            "%d of %d steps were made by other versions of the package: %s",
            len(outcome.of_other_versions),
            len(steps),
            ", ".join(outcome.of_other_versions),
        )
    return outcome


class _Runner:
    """Keeps what waits, runs, is finished and has failed.

    Args:
        steps: As for `run_steps`.
        output: As for `run_steps`.
        context: As for `run_steps`.
        any_version: As for `run_steps`.
        keep_going: As for `run_steps`.
        on_finish: As for `run_steps`.

    Attributes:
        processes: Step -> its running process.
        stopped: The steps that ended after a stop signal.
        outcome: What became of the others.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        output: Path,
        context: str,
        any_version: bool,
        keep_going: bool,
        on_finish: Callable[[str], None],
    ) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.stopped: list[str] = []
        self.outcome = Outcome()
        self._steps = {step.name: step for step in steps}
        self._waiting = list(steps)
        self._finished: set[str] = set()
        self._output = output
        self._any_version = any_version
        self._keep_going = keep_going
        self._on_finish = on_finish
        self._digests: dict[str, str] = {}
        for step in steps:
            self._digests[step.name] = _hash_step(step, self._digests, output, context)

    def start_ready(self, jobs: int) -> None:
        """Start steps until `jobs` processes run or no waiting step can start."""
        is_changed = True
        while is_changed:  # a step that is already finished may release others
            is_changed = False
            for step in list(self._waiting):
                if self.outcome.failures and not self._keep_going:
                    self._waiting.clear()
                    return
                if len(self.processes) < jobs and self._is_released(step):
                    self._waiting.remove(step)
                    self._attempt(step, self._start)
                    is_changed = True

    def collect_ended(self, is_stopping: bool) -> None:
        """Note what the processes that have ended left behind."""
        for name, process in list(self.processes.items()):
            if process.poll() is None:
                continue
            del self.processes[name]
            if is_stopping:
                self.stopped.append(name)
            else:
                self._attempt(self._steps[name], partial(self._finish, process))

    def _is_released(self, step: Step) -> bool:
        """Whether the step waits for no other one; steps that are not planned count as finished."""
        failures = self.outcome.failures
        needed = [name for name in step.depends_on if name in self._steps]
        return all(name in self._finished or name in failures for name in needed)

    def _attempt(self, step: Step, action: Callable[[Step], None]) -> None:
        try:
            action(step)
        except DataError as error:
            self.outcome.failures[step.name] = str(error)
            if self._keep_going:
                log.error("%s", error)

    def _start(self, step: Step) -> None:
        """Start a step, unless it is finished."""
        for name in step.depends_on:
            if name in self.outcome.failures:
                raise DataError(f"{step.name}: needs {name}, which failed")
        record = _find_record(self._output, step)
        completed = _read_completion(record)
        current = self._describe(step)
        if completed:
            _check_same(step, completed, current, self._output, self._any_version)
            if completed.code != current.code:
                self.outcome.of_other_versions.append(step.name)
        valid = completed if completed and not completed.is_stale else None
        is_extended = valid is not None and valid.resumable_args != step.resumable_args
        if valid and not is_extended:
            missing = step.find_missing(self._output)
            if not missing:
                self._note_finished(step)
                return
            log.warning("%s: was done, but %s is gone: it is run again", step.name, missing[0])
        number = list(self._steps).index(step.name) + 1
        log.info("step %d of %d: %s", number, len(self._steps), step.name)
        if completed and completed.is_stale:
            # A command that finds its old result goes on with it, or refuses it. The record goes
            # too, so that the new work goes on after a stop.
            _set_aside(self._output / step.name)
        if not is_extended:
            record.unlink(missing_ok=True)  # half a result must not pass as finished
            self._forget_dependents(step)
        self.processes[step.name] = _start_process(step, self._output)

    def _forget_dependents(self, step: Step) -> None:
        """Note of what was made of a step's old result that it is to be made again.

        That holds for steps of other plans in this folder, too, of which the records alone tell.
        """
        dependents = {
            _find_record(self._output, other)
            for other in self._steps.values()
            if step.name in other.depends_on
        }
        for record in (self._output / DONE).rglob("*.json"):
            if not _read_completion(record):
                continue
            content = json.loads(record.read_text(encoding="utf-8"))
            if record in dependents or step.name in content.get("depends_on", ()):
                content["stale"] = True
                filesystem.write_atomically(record, filesystem.to_json(content), durable=False)

    def _finish(self, process: subprocess.Popen[bytes], step: Step) -> None:
        """Check a step that has ended, and note it as finished."""
        if process.returncode:
            log_file = _find_log(self._output, step)
            lines = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise DataError(
                f"{step.name}: failed with exit code {process.returncode} "
                f"({lines[-1][:300] if lines else 'it said nothing'}); all it said: {log_file}"
            )
        if missing := step.find_missing(self._output):
            raise DataError(f"{step.name}: ended well and made no {missing[0]}")
        _write_completion(_find_record(self._output, step), step, self._describe(step))
        self._note_finished(step)

    def _note_finished(self, step: Step) -> None:
        self._finished.add(step.name)
        self._on_finish(step.name)

    def _describe(self, step: Step) -> Completion:
        return Completion(self._digests[step.name], step.resumable_args, identify_code(step))


def identify_code(step: Step) -> str:
    """Identify the code that would run a step.

    Returns:
        The version of the package, twelve digits of a hash of its source and the step's script, and
        the versions of `LIBRARIES`.
    """
    digest = hashlib.sha256(hash_sources().encode())
    for argument in step.command:
        if argument.endswith(".py") and Path(argument).is_file():
            digest.update(Path(argument).read_bytes())
    return f"{__version__} {digest.hexdigest()[:12]}, {describe_libraries()}"


@cache
def describe_libraries() -> str:
    """Return the versions of `LIBRARIES`, in words."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)


@cache
def hash_sources() -> str:
    """Return the sha256 of all modules of the package, by their names and contents.

    The scripts in a wheel are left out: a step's own script is hashed with the step.
    """
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.startswith(f"{shipped.FOLDER}/"):
            continue
        digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def describe_commit() -> str:
    """Return the commit of the source; "" outside of a git checkout.

    It is noted, and not compared: `identify_code` already tells sources apart, and a commit that
    changes a page of text makes no other results.
    """
    state = read_git_state()
    if not state:
        return ""
    return state["git_commit"][:12] + (" and changes" if state["git_dirty"] == "true" else "")


def _check_same(
    step: Step, completed: Completion, current: Completion, output: Path, any_version: bool
) -> None:
    """Refuse a folder that another config, or without `any_version` another version, has made."""
    folder = output / step.name
    record = _find_record(output, step)
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


def _find_record(output: Path, step: Step) -> Path:
    return output / DONE / f"{step.name}.json"


def _find_log(output: Path, step: Step) -> Path:
    return output / LOGS / f"{step.name}.txt"


def _set_aside(folder: Path) -> None:
    """Rename a folder, if there is one, to FOLDER.old, in the place of an earlier one."""
    old = folder.with_name(f"{folder.name}{OLD}")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)


def _start_process(step: Step, output: Path) -> subprocess.Popen[bytes]:
    log_file = _find_log(output, step)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as file:
        # In a process group of its own: Ctrl-C reaches it once, through us.
        return subprocess.Popen(
            [sys.executable, *step.arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,
        )


@contextmanager
def _forward_signals(processes: Mapping[str, subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Pass stop signals on to all processes; yields the list of those that came."""
    signals: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        for process in list(processes.values()):
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
    """Hash what a step depends on, wherever work, code and archives are."""
    digest = hashlib.sha256(context.encode())
    for argument in step.command:
        named = argument.replace(str(output), "").replace(str(shipped.ROOT), "")
        key, _, value = named.partition("=")
        if key.endswith("root") and Path(value).is_dir():
            named = f"{key}={_hash_listing(value)}"
        digest.update(f"\n{named}".encode())
        for path in _list_configs(argument):
            digest.update(path.read_bytes())
    for path in step.inputs:
        digest.update(path.read_bytes())
    for name in step.depends_on:
        digest.update(f"\n{digests[name]}".encode())
    return digest.hexdigest()


@cache
def _hash_listing(folder: str) -> str:
    """Hash the names and sizes of an archive's files, so that it may move but not change."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
    return digest.hexdigest()


def _list_configs(argument: str) -> list[Path]:
    """List the config files that an argument names, be it within an override or by a script.

    Examples:
        >>> [path.name for path in _list_configs("methods={a: {config: configs/can.yaml}}")]
        ['can.yaml']
        >>> [path.name for path in _list_configs("detector.script=ssd")]
        ['ssd.yaml']
    """
    scripts = re.findall(r"""\bscript["']?[=:]\s*["']?(\w+)""", argument)
    named = [
        argument,
        *re.findall(r"[^\s\"'{}:=,]+\.yaml\b", argument),
        *(f"configs/{script}.yaml" for script in scripts),
    ]
    files = []
    for name in dict.fromkeys(named):
        # as the command reads it: from here, or of the package
        for path in (Path(name), shipped.ROOT / name):
            if path.suffix == ".yaml" and path.is_file():
                files.append(path)
                break
    return files


def _read_completion(path: Path) -> Completion | None:
    """Read what is noted of a finished step; None where nothing is."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Completion(
            str(content["digest"]),
            tuple(content["extent"]),
            str(content.get("code", "")),
            bool(content.get("stale")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_completion(path: Path, step: Step, completion: Completion) -> None:
    content = {
        "digest": completion.digest,
        "extent": completion.resumable_args,
        "code": completion.code,
        "depends_on": step.depends_on,
        "commit": describe_commit(),
        "command": step.format_command(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    filesystem.write_atomically(path, filesystem.to_json(content), durable=False)
