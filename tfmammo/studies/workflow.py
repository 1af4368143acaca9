"""A long piece of work as commands that are run one after the other, each in a process of
its own, and never twice.

What is finished is noted in OUTPUT/done, so that a study which was stopped goes on where it was. A
step is the same as one that was done when its command, the config files that this names, and all
steps that it needs are the same; other work in its place is refused. So is work of another version
of the package: its source is part of what a step depends on. A step whose files are gone is run
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
from tfmammo.tracking.store import shown

log = logging.getLogger(__name__)

DONE = "done"
LOGS = "logs"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Also its folder beneath the work's.
        command: What Python is given.
        needs: Steps that come before it.
        extent: Further arguments, how much of its work to do: where they are others than before,
            the command goes on in its folder.
        aside: Arguments on which its result does not depend.
        makes: Files in its folder that others read; it is done while all of them are there.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    extent: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()

    def missing(self, output: Path) -> list[Path]:
        """What it makes and is not there; of a step that names no file, its folder."""
        return [
            path
            for path in (output / self.name / name for name in self.makes or (".",))
            if not path.exists()
        ]

    @property
    def arguments(self) -> tuple[str, ...]:
        """All of the command."""
        return *self.command, *self.extent, *self.aside

    def overrides(self) -> list[str]:
        """What --set is given."""
        found = []
        given = False
        for argument in self.arguments:
            given = argument == "--set" or (given and not argument.startswith("--"))
            found += [argument] if given and argument != "--set" else []
        return found

    def shown(self) -> str:
        """The command as a shell takes it, without the password of a tracking store."""
        return shlex.join(["python", *map(shown, self.arguments)])


def overrides(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """A nested mapping as arguments of --set: {"data": {"size": 64}} -> ["data.size=64"]."""
    found = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found += overrides(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            found.append(f"{prefix}{key}={text}")
    return found


@dataclass(frozen=True)
class Noted:
    """What is known of a step that was done.

    Attributes:
        code: The package's version and state, see `code`; "" of one that did not note it.
    """

    digest: str
    extent: tuple[str, ...]
    code: str


def run(
    steps: Sequence[Step], output: Path, known: str = "", any_version: bool = False
) -> list[str]:
    """Run what was not run before, in this order.

    Args:
        steps: Those that a step needs stand before it.
        output: Where all of them write.
        known: What all of them depend on beside their commands.
        any_version: Go on with what another version of the package made.

    Returns:
        The steps that another version made.

    Raises:
        DataError: A step failed or made nothing, or its folder holds other work.
        Interrupted: A stop signal came; what runs was given it, to save what it has.
    """
    digests: dict[str, str] = {}
    others: list[str] = []
    for number, step in enumerate(steps, start=1):
        digests[step.name] = digest = _digest(step, digests, output, known)
        noted = output / DONE / f"{step.name}.json"
        before = _noted(noted)
        now = code(step)
        if before:
            _refuse(step, before, Noted(digest, step.extent, now), output, any_version)
            others += [step.name] if before.code != now else []
        if before and before.extent == step.extent:
            gone = step.missing(output)
            if not gone:
                continue
            log.warning("%s: was done, but %s is gone: it is run again", step.name, gone[0])
        log.info("step %d of %d: %s", number, len(steps), step.name)
        _run(step, output)
        if gone := step.missing(output):
            raise DataError(f"{step.name}: ended well and made no {gone[0]}")
        noted.parent.mkdir(parents=True, exist_ok=True)
        filesystem.write_atomically(
            noted,
            jobs.as_json(
                {"digest": digest, "extent": step.extent, "code": now, "command": step.shown()}
            ),
            durable=False,
        )
    if others:
        log.warning(
            "%d of %d steps were made by other versions of the package: %s",
            len(others),
            len(steps),
            ", ".join(others),
        )
    return others


def code(step: Step) -> str:
    """Which state of the package a step would be run by: its version, and twelve digits of its
    source and the step's script.
    """
    content = hashlib.sha256(source().encode())
    for argument in step.command:
        if argument.endswith(".py") and Path(argument).is_file():
            content.update(Path(argument).read_bytes())
    return f"{__version__} {content.hexdigest()[:12]}"


@cache
def source() -> str:
    """The sha256 of all modules of the package, by their names and contents."""
    root = Path(__file__).parents[1]
    content = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content.update(
            f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0"
        )
    return content.hexdigest()


def _refuse(step: Step, before: Noted, now: Noted, output: Path, any_version: bool) -> None:
    folder = output / step.name
    noted = output / DONE / f"{step.name}.json"
    if before.digest != now.digest:
        raise DataError(
            f"{folder}: was made by another config; take another --output, or remove it and {noted}"
        )
    if before.code != now.code and not any_version:
        raise DataError(
            f"{folder}: was made by another version of tfmammo ({before.code or 'not noted'}; "
            f"this is {now.code}); take another "
            f"--output, remove it and {noted} to make it anew, or go on with what is there by "
            "--any-version"
        )


def _run(step: Step, output: Path) -> None:
    said = output / LOGS / f"{step.name}.txt"
    said.parent.mkdir(parents=True, exist_ok=True)
    with said.open("ab") as file:
        command = [sys.executable, *step.arguments]
        # In a process group of its own: Ctrl-C reaches it once, through us.
        start = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        with start as child, _passed_on(child) as got:
            code = child.wait()
    if got:
        raise Interrupted(got[0], f"in {step.name}")
    if code:
        lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise DataError(
            f"{step.name}: failed with exit code {code} "
            f"({lines[-1][:300] if lines else 'it said nothing'}); all it said: {said}"
        )


@contextmanager
def _passed_on(child: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Stop signals go to the child; yields those that came."""
    got: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        got.append(number)
        child.send_signal(number)

    before: dict[int, Callable[..., Any] | int | None] = {
        number: signal.signal(number, pass_on) for number in SIGNALS
    }
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _digest(step: Step, digests: Mapping[str, str], output: Path, known: str) -> str:
    """Wherever the work lies, equal for equal steps."""
    content = hashlib.sha256(known.encode())
    for argument in step.command:
        content.update(f"\n{argument.replace(str(output), '')}".encode())
        if argument.endswith(".yaml") and Path(argument).is_file():
            content.update(Path(argument).read_bytes())
    for name in step.needs:
        content.update(f"\n{digests[name]}".encode())
    return content.hexdigest()


def _noted(path: Path) -> Noted | None:
    """What was done; None where nothing was."""
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        return Noted(str(noted["digest"]), tuple(noted["extent"]), str(noted.get("code", "")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
