"""A long piece of work as commands that are run one after the other, each in a process of its own, and never twice.

What is finished is noted in OUTPUT/done, so that a study which was stopped goes on where it was. A step is the same as one that was done
when its command, the config files that this names, and all steps that it needs are the same; other work in its place is refused.
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
from pathlib import Path
from types import FrameType
from typing import Any

from tfmammo.data import jobs
from tfmammo.data.patches import DataError
from tfmammo.training.loop import Interrupted

log = logging.getLogger(__name__)

DONE, LOGS = "done", "logs"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Step:
    """One command. name: also its folder beneath the work's. command: what Python is given. needs: steps that come before it.

    extent: further arguments, how much of its work to do: where they are others than before, the command goes on in its folder. aside:
    arguments on which its result does not depend.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    extent: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """All of the command."""
        return *self.command, *self.extent, *self.aside

    def overrides(self) -> list[str]:
        """What --set is given."""
        found, given = [], False
        for argument in self.arguments:
            given = argument == "--set" or (given and not argument.startswith("--"))
            found += [argument] if given and argument != "--set" else []
        return found

    def shown(self) -> str:
        """The command as a shell takes it."""
        return shlex.join(["python", *self.arguments])


def overrides(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """A nested mapping as arguments of --set: {"data": {"size": 64}} -> ["data.size=64"]."""
    found = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found += overrides(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value, default=str)}")
    return found


def run(steps: Sequence[Step], output: Path, known: str = "") -> None:
    """Run what was not run before, in this order.

    Args:     steps: those that a step needs stand before it. output: where all of them write. known: what all of them depend on
              beside their commands.
    Raises:   DataError: a step failed, or its folder holds other work. Interrupted: a stop signal came; what runs was given it, to
              save what it has.
    """
    digests: dict[str, str] = {}
    for number, step in enumerate(steps, start=1):
        digests[step.name] = digest = _digest(step, digests, output, known)
        noted = output / DONE / f"{step.name}.json"
        before, extent = _noted(noted)
        if (before, extent) == (digest, step.extent):
            continue
        if before not in (None, digest):
            raise DataError(f"{output / step.name}: was made by another config; take another --output, or remove it and {noted}")
        log.info("step %d of %d: %s", number, len(steps), step.name)
        _run(step, output)
        noted.parent.mkdir(parents=True, exist_ok=True)
        jobs.write(noted, jobs.as_json({"digest": digest, "extent": step.extent, "command": step.shown()}))


def _run(step: Step, output: Path) -> None:
    said = output / LOGS / f"{step.name}.txt"
    said.parent.mkdir(parents=True, exist_ok=True)
    with said.open("ab") as file:
        command = [sys.executable, *step.arguments]
        # In a process group of its own: Ctrl-C reaches it once, through us.
        start = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, process_group=0)
        with start as child, _passed_on(child) as got:
            code = child.wait()
    if got:
        raise Interrupted(got[0], f"in {step.name}")
    if code:
        lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise DataError(
            f"{step.name}: failed with exit code {code} ({lines[-1][:300] if lines else 'it said nothing'}); all it said: {said}"
        )


@contextmanager
def _passed_on(child: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Stop signals go to the child; yields those that came."""
    got: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        got.append(number)
        child.send_signal(number)

    before: dict[int, Callable[..., Any] | int | None] = {number: signal.signal(number, pass_on) for number in SIGNALS}
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


def _noted(path: Path) -> tuple[str | None, tuple[str, ...]]:
    """Digest and extent of what was done; None where nothing was."""
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        return str(noted["digest"]), tuple(noted["extent"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, ()
