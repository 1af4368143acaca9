"""Run a long piece of work as commands, each in its own process and only once.

Finished steps are noted in OUTPUT/done, so that a stopped study continues where it was. A step
counts as finished if its command, the config files and archives that the command names, and all
steps that it depends on are unchanged; other work in its place is refused. So is the work of
another version of the package or of its libraries. A step whose files are gone, or whose
dependency was made again, is run again.

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
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
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
        outputs: Files in its folder without which the step is not finished.
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
    def config_file(self) -> Path:
        """The value after --config."""
        return Path(self.command[self.command.index("--config") + 1])

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


def make_command(
    script: Sequence[str], config: Path, output: Path, overrides: Sequence[str]
) -> tuple[str, ...]:
    """Make the arguments of Python that run a script with a config file and overrides of it."""
    command = (*script, "--config", str(config), "--output", str(output))
    return (*command, "--set", *overrides) if overrides else command


def parse_step(step: Step, schema: Any, name: str) -> Any:
    """Parse the config of a step; the message of an error begins with `name`."""
    try:
        return configuration.parse(schema, step.config_file, step.overrides)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


@dataclass(frozen=True)
class Record:
    """What is noted of a finished step.

    Attributes:
        digest: A hash of everything that the step depends on, without `resumable_args`.
        extent: The `resumable_args` that it was run with last.
        code: The version and state of the package, see `identify_code`.
        made: Names this making of the step; it stays where the step is continued.
        made_of: Dependency -> its `made` when this step was made.
    """

    digest: str
    extent: tuple[str, ...]
    code: str
    made: str
    made_of: Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    """The steps that another version made; step -> why it failed, or which failed one it needs."""

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
        steps: Each after those that it depends on.
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
            work. Steps that run at the same time end first.
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


@dataclass
class _Runner:
    """Keeps what waits, runs, is finished and has failed, for `run_steps`."""

    steps: Sequence[Step]
    output: Path
    context: str
    any_version: bool
    keep_going: bool
    on_finish: Callable[[str], None]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)

    def __post_init__(self) -> None:
        self._steps = {step.name: step for step in self.steps}
        self._waiting = list(self.steps)
        self._finished: set[str] = set()
        self._started: dict[str, Record] = {}
        self._digests: dict[str, str] = {}
        for step in self.steps:
            digest = _hash_step(step, self._digests, self.output, self.context)
            self._digests[step.name] = digest

    def start_ready(self, jobs: int) -> None:
        """Start steps until `jobs` processes run or no waiting step can start."""
        is_changed = True
        while is_changed:  # a step that is already finished may release others
            is_changed = False
            for step in list(self._waiting):
                if self.outcome.failures and not self.keep_going:
                    self._waiting.clear()
                    return
                # steps that are not planned count as finished
                needed = [name for name in step.depends_on if name in self._steps]
                done = self._finished | set(self.outcome.failures)
                if len(self.processes) < jobs and done.issuperset(needed):
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

    def _attempt(self, step: Step, action: Callable[[Step], None]) -> None:
        try:
            action(step)
        except DataError as error:
            self.outcome.failures[step.name] = str(error)
            if self.keep_going:
                log.error("%s", error)

    def _start(self, step: Step) -> None:
        """Start a step, unless it is finished."""
        for name in step.depends_on:
            if name in self.outcome.failures:
                raise DataError(f"{step.name}: needs {name}, which failed")
        record = _read_record(self.output, step.name)
        needed = {name: _read_record(self.output, name) for name in step.depends_on}
        made_of = {name: one.made for name, one in needed.items() if one}
        code = identify_code(step)
        digest = self._digests[step.name]
        current = Record(digest, step.resumable_args, code, uuid.uuid4().hex[:12], made_of)
        if record:
            self._check_same(step, record, current)
            if record.code != code:
                self.outcome.of_other_versions.append(step.name)
        is_stale = record is not None and record.made_of != made_of
        is_extended = record is not None and not is_stale and record.extent != current.extent
        if record and is_extended:
            current = replace(current, made=record.made)
        elif record and not is_stale:
            missing = step.find_missing(self.output)
            if not missing:
                self._note_finished(step)
                return
            log.warning("%s: was done, but %s is gone: it is run again", step.name, missing[0])
        number = list(self._steps).index(step.name) + 1
        log.info("step %d of %d: %s", number, len(self._steps), step.name)
        if is_stale:
            # A command that finds its old result goes on with it, or refuses it. The record goes
            # too, so that the new work goes on after a stop.
            folder = self.output / step.name
            if folder.exists():
                shutil.rmtree(f"{folder}{OLD}", ignore_errors=True)
                folder.rename(f"{folder}{OLD}")
        if not is_extended:  # half a result must not pass as finished
            _find_record(self.output, step.name).unlink(missing_ok=True)
        self._started[step.name] = current
        self.processes[step.name] = _start_process(step, self.output)

    def _check_same(self, step: Step, record: Record, current: Record) -> None:
        """Refuse a folder that another config or, without `any_version`, another version made."""
        folder = self.output / step.name
        path = _find_record(self.output, step.name)
        if record.digest != current.digest:
            raise DataError(
                f"{folder}: was made by another config; take another --output, or remove it and "
                f"{path}"
            )
        if record.code != current.code and not self.any_version:
            raise DataError(
                f"{folder}: was made by another version of tfmammo ({record.code}; this is "
                f"{current.code}); take another --output, remove it and {path} to make it "
                "again, or continue with what is there by --any-version"
            )

    def _finish(self, process: subprocess.Popen[bytes], step: Step) -> None:
        """Check a step that has ended, and note it as finished."""
        if process.returncode:
            log_file = _find_log(self.output, step)
            lines = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise DataError(
                f"{step.name}: failed with exit code {process.returncode} "
                f"({lines[-1][:300] if lines else 'it said nothing'}); all it said: {log_file}"
            )
        if missing := step.find_missing(self.output):
            raise DataError(f"{step.name}: ended well and made no {missing[0]}")
        path = _find_record(self.output, step.name)
        content = asdict(self._started[step.name]) | {
            "commit": describe_commit(),
            "command": step.format_command(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        filesystem.write_atomically(path, filesystem.to_json(content), durable=False)
        self._note_finished(step)

    def _note_finished(self, step: Step) -> None:
        self._finished.add(step.name)
        self.on_finish(step.name)


def identify_code(step: Step) -> str:
    """Identify the code that would run a step: version, hash of the source, `LIBRARIES`."""
    digest = hashlib.sha256(hash_sources().encode())
    for argument in step.command:
        if argument.endswith(".py") and Path(argument).is_file():
            digest.update(Path(argument).read_bytes())
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    return f"{__version__} {digest.hexdigest()[:12]}, {libraries}"


@cache
def hash_sources() -> str:
    """Hash all modules of the package but a wheel's scripts: a step's own is hashed with it."""
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

    It is noted and not compared, because a commit that changes a page of text makes no other
    results.
    """
    state = read_git_state()
    if not state:
        return ""
    return state["git_commit"][:12] + (" and changes" if state["git_dirty"] == "true" else "")


def _find_record(output: Path, name: str) -> Path:
    return output / DONE / f"{name}.json"


def _read_record(output: Path, name: str) -> Record | None:
    """Read what is noted of a finished step; None where nothing is."""
    try:
        content = json.loads(_find_record(output, name).read_text(encoding="utf-8"))
        noted = {key.name: content[key.name] for key in fields(Record)}
        return Record(**noted | {"extent": tuple(noted["extent"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _find_log(output: Path, step: Step) -> Path:
    return output / LOGS / f"{step.name}.txt"


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
    """Pass stop signals on to all processes; yield the list of those that came."""
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
        key, _, value = argument.partition("=")
        if (
            key.endswith("root")
            and value
            and Path(folder := str(configuration.read_value(argument))).is_dir()
        ):
            named = f"{key}={_hash_listing(folder)}"
        digest.update(f"\n{named}".encode())
        for path in _list_configs(argument):
            digest.update(path.read_bytes())
    for path in step.inputs:
        digest.update(path.read_bytes())
    for name in step.depends_on:
        digest.update(f"\n{digests.get(name, '')}".encode())
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
    """List the config files that an argument names, be it within an override or by a script."""
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
