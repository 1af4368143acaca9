"""Break the package on purpose, one line at a time, and check that the tests notice.

python tests/mutants.py [--only NAME ...] [--sample N --seed S] [--check] [--limit 120]

tests/mutants.yaml lists the mutants: a name, a file, its old text, the new text, and the test that
must fail. Each is tried in a copy of the tree and reported as one JSON line:

    killed    the test fails, or runs past the limit
    survived  the test passes
    broken    the old text does not occur once, or there is no such test, or it fails anyway

The exit code is 1 if any mutant survived or is broken. --sample takes N neighbours in the list, so
that successive seeds go through all of it. --check compares the list with the files and runs
nothing.

A list, because mutation tools (mutmut, cosmic-ray) change operators wherever they occur: 71,430
mutants, mostly trivial, each of which takes seconds of TensorFlow. The faults that matter are of
meaning, such as a swapped loss or a mask that is resampled linearly.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import shutil
import signal
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
    """Copy what the tests need, and have every process that they start import the copy."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, place / name, ignore=ignored)
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, place)
    os.chdir(place)
    sys.path[0] = str(place)
    # two mutants of one second and one length would share a compiled file
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ["PYTHONPATH"] = str(place)
    os.environ.pop("PYTEST_ADDOPTS", None)


def preload() -> None:
    """Import what takes long, once for all mutants. It must start no threads of its own."""
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import keras  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import pandas  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import skimage.exposure  # noqa: F401
    import sklearn.metrics  # noqa: F401


def run_test(test: str, limit: float) -> int | None:
    """Run a test in a fork of this process, which has not imported tfmammo yet.

    Returns:
        Exit code of pytest, None if it ran past `limit` seconds.
    """
    process = multiprocessing.get_context("fork").Process(target=_run_here, args=(test,))
    process.start()
    process.join(limit)
    code = process.exitcode
    if code is HANGS and process.pid:
        os.killpg(process.pid, signal.SIGKILL)  # with what the test started
        process.join()
    return code


run_unchanged = functools.cache(run_test)


def _run_here(test: str) -> None:
    import pytest

    place = os.getcwd()
    os.setsid()
    log = os.open("mutants.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    warning = "ignore::pytest.PytestAssertRewriteWarning"  # of what is imported already
    code = pytest.main(["-qx", "-p", "no:cacheprovider", "-W", warning, test])
    package = sys.modules.get("tfmammo")
    if package and not str(package.__file__).startswith(place):
        code = pytest.ExitCode.INTERNAL_ERROR
    os._exit(code)


def try_mutant(mutant: Mutant, limit: float) -> Literal["killed", "survived", "broken"]:
    """Run a mutant's test in the copy without it and with it, and restore the file."""
    if run_unchanged(mutant.test, limit) != PASSED:
        return "broken"
    path = Path(mutant.file)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        code = run_test(mutant.test, limit)
    finally:
        path.write_text(text, encoding="utf-8")
    if code == PASSED:
        return "survived"
    return "killed" if code in (FAILED, HANGS) else "broken"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutants alone")
    parser.add_argument("--sample", type=int, metavar="N", help="this many mutants of the list")
    parser.add_argument("--seed", type=int, default=0, help="which part of the list --sample takes")
    parser.add_argument("--check", action="store_true", help="compare list and files, run nothing")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one test")
    arguments = parser.parse_args()
    text = (ROOT / "tests/mutants.yaml").read_text(encoding="utf-8")
    mutants = TypeAdapter(list[Mutant]).validate_python(yaml.safe_load(text))
    if arguments.only:
        mutants = [mutant for mutant in mutants if mutant.name in arguments.only]
        if len(mutants) < len(set(arguments.only)):
            parser.error("--only: no such mutant")
    if arguments.sample is not None:
        mutants = choose(mutants, arguments.sample, arguments.seed)
    all_killed = True
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        if not arguments.check:
            copy_tree(Path(place))
            preload()
        for mutant in mutants:
            start = time.monotonic()
            fault = mutant.find_fault()
            if arguments.check and not fault:
                continue
            result = "broken" if fault else try_mutant(mutant, arguments.limit)
            all_killed &= result == "killed"
            line = {"mutant": mutant.name, "result": result, "fault": fault}
            print(json.dumps({**line, "seconds": round(time.monotonic() - start, 1)}), flush=True)
    sys.exit(not all_killed)


if __name__ == "__main__":
    main()
