"""Break the package on purpose, one line at a time, and check that the tests notice.

python tests/mutants.py [--only NAME ...] [--sample N --seed S] [--check] [--limit 300]

tests/mutants.yaml lists the mutants: a name, a file, its old text, the new text, and the test that
must fail. Each is tried in a copy of the tree and reported as one JSON line:

    killed    the test fails, or runs past the limit
    survived  the test passes
    broken    the test can't be run

The exit code is 1 if any mutant survived or is broken, and nothing is tried where the old text of
one does not occur once, where a test is missing or fails anyway. --sample takes N neighbours in the
list, so that successive seeds go through all of it. --check only compares the list with the files.

A list, because mutation tools (mutmut, cosmic-ray) change operators wherever they occur: 71,430
mutants, mostly trivial, each of which takes seconds of TensorFlow. The faults that matter are of
meaning, such as a swapped loss or a mask that is resampled linearly.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("benchmarks", "configs", "evaluate", "pyproject.toml", "tests", "tfmammo", "train")
PASSED, FAILED, HANGS = 0, 1, None  # exit codes of pytest, and of a process that runs on


class Mutant(BaseModel):
    """One entry of the list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    file: str
    old: str
    new: str
    test: str
    """As file::function."""

    def find_fault(self) -> str:
        """Say why the entry does not fit the sources, "" if it does."""
        path = ROOT / self.file
        count = path.read_text(encoding="utf-8").count(self.old) if path.is_file() else 0
        if count != 1:
            return f"{self.file} contains the old text {count} times, not once"
        file, _, function = self.test.partition("::")
        tests = ROOT / file
        if not tests.is_file() or f"\ndef {function}(" not in tests.read_text(encoding="utf-8"):
            return f"no such test: {self.test}"
        return ""


def choose(mutants: Sequence[Mutant], sample: int, seed: int) -> list[Mutant]:
    """Choose `sample` neighbours of the list; successive seeds go through all of it."""
    start = sample * seed
    return [mutants[(start + i) % len(mutants)] for i in range(min(sample, len(mutants)))]


def copy_tree(place: Path) -> None:
    """Copy what the tests need."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=ignored)
        else:
            shutil.copy(source, place)


def run_tests(tests: Sequence[str], limit: float, place: Path) -> int | None:
    """Run tests in a copy of the tree, which every process that they start imports.

    Returns:
        Exit code of pytest, None if they ran past `limit` seconds.
    """
    environment = {**os.environ, "PYTHONPATH": str(place)}
    # two mutants of one second and one length would share a compiled file
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", *tests]
    with (
        (place / "mutants.log").open("w") as log,
        subprocess.Popen(
            command, cwd=place, env=environment, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what the tests started
            return HANGS


def try_mutant(
    mutant: Mutant, limit: float, place: Path
) -> Literal["killed", "survived", "broken"]:
    """Run a mutant's test in the copy with it, and restore the file."""
    path = place / mutant.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        code = run_tests([mutant.test], limit, place)
    finally:
        path.write_text(text, encoding="utf-8")
    if code == PASSED:
        return "survived"
    return "killed" if code in (FAILED, HANGS) else "broken"


def try_all(mutants: Sequence[Mutant], limit: float) -> bool:
    """Try mutants one after another, print what becomes of each, say whether all are killed."""
    all_killed = True
    tests = sorted({mutant.test for mutant in mutants})
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        place = Path(folder)
        copy_tree(place)
        if run_tests(tests, limit * len(tests), place) != PASSED:
            said = (place / "mutants.log").read_text(encoding="utf-8")[-2000:]
            sys.exit(f"{said}\nerror: without a mutant, too, this fails")
        for mutant in mutants:
            start = time.monotonic()
            result = try_mutant(mutant, limit, place)
            all_killed &= result == "killed"
            seconds = round(time.monotonic() - start, 1)
            print(
                json.dumps({"mutant": mutant.name, "result": result, "seconds": seconds}),
                flush=True,
            )
    return all_killed


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutants alone")
    parser.add_argument("--sample", type=int, metavar="N", help="this many mutants of the list")
    parser.add_argument("--seed", type=int, default=0, help="which part of the list --sample takes")
    parser.add_argument("--check", action="store_true", help="compare list and files, run nothing")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one test")
    arguments = parser.parse_args()
    text = (ROOT / "tests/mutants.yaml").read_text(encoding="utf-8")
    mutants = TypeAdapter(list[Mutant]).validate_python(yaml.safe_load(text))
    if arguments.only:
        mutants = [mutant for mutant in mutants if mutant.name in arguments.only]
        if len(mutants) < len(set(arguments.only)):
            parser.error("--only: no such mutant")
    if arguments.sample is not None:
        mutants = choose(mutants, arguments.sample, arguments.seed)
    faults = [f"{mutant.name}: {fault}" for mutant in mutants if (fault := mutant.find_fault())]
    if faults:
        sys.exit("\n".join(faults))
    if not arguments.check:
        sys.exit(not try_all(mutants, arguments.limit))


if __name__ == "__main__":
    main()
