"""Break the package on purpose, one line at a time, and check that the tests notice.

python benchmarks/mutants.py [--only NAME ...] [--sample N --seed S] [--check] [--limit 120]

tests/mutants.yaml lists the mutants: a name, a file, its old text, the new text, and the tests that
must fail. Every mutant is written into one copy of the tree, its tests run there, and the file is
restored. One JSON line a mutant:

    killed    all its tests fail
    hangs     its tests ran past the limit; this counts as killed, but a test should fail instead
    survived  a test that should fail passes
    broken    nothing could be tried: the old text is missing or stands there twice, a test is
              missing or fails without the mutant, or the mutant can't be imported

The exit code is 1 if any mutant survived or is broken; stderr lists these. --sample takes N
neighbours in the list: successive seeds go through all of it. --check compares the list with the
files and runs nothing.

Why a list and no tool: mutmut 3.8 and cosmic-ray 8.7 change operators and constants wherever they
stand. cosmic-ray finds 71,430 mutants in tfmammo/, each of which takes seconds of TensorFlow. Most
are trivial or equivalent. The mistakes that matter here are of meaning, such as a swapped loss, a
lost file or a mask that is resampled linearly. Neither tool can state them, nor which test is
responsible.

TensorFlow is imported once. Each mutant runs in a fork of that process, which has not imported
tfmammo yet; this saves most of the time. The copy comes first on the path, also for processes that
tests start, and every fork checks that tfmammo really comes from it.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

ROOT = Path(__file__).resolve().parents[1]
LIST = "tests/mutants.yaml"
COPIED = ("benchmarks", "configs", "evaluate", "pyproject.toml", "tests", "tfmammo", "train")
PYTEST = (
    "-q",
    "--tb=short",
    "-p",
    "no:cacheprovider",
    # what the parent has imported already
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
)
BASELINE_LIMIT = 900.0  # seconds for the unchanged tests of one file
MERCY = 10.0  # seconds between asking a hanging process to end and killing it


class Mutant(BaseModel):
    """One entry of the list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    file: str
    old: str = Field(min_length=1)
    new: str
    tests: tuple[str, ...] = Field(min_length=1)
    """Each as file::function, or file::function[case]."""


@dataclass
class Outcome:
    """What became of the tests in one fork.

    Attributes:
        passed: Tests of which a case passed.
        failed: Tests of which a case failed.
        message: The first failure, one line.
        hangs: The fork ran past its limit.
    """

    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    message: str = ""
    hangs: bool = False


class Recorder:
    """A plugin of pytest that notes which tests pass and which fail."""

    def __init__(self) -> None:
        self.outcome = Outcome()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note one phase of one test."""
        if report.failed:
            self.outcome.failed.append(report.nodeid)
            crash = getattr(report.longrepr, "reprcrash", None)
            message = crash.message if crash else str(report.longrepr)
            self.outcome.message = self.outcome.message or " ".join(message.split())[:200]
        elif report.passed and report.when == "call":
            self.outcome.passed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        """Note why a file can't be collected; its tests neither pass nor fail."""
        if report.failed:
            reason = str(report.longrepr).strip().splitlines()
            self.outcome.message = self.outcome.message or " ".join(reason[-1:])[:200]


def read_list(path: Path) -> list[Mutant]:
    """Read the list.

    Raises:
        SystemExit: It is damaged, or two mutants have one name.
    """
    try:
        mutants = TypeAdapter(list[Mutant]).validate_python(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, ValidationError) as error:
        raise SystemExit(f"{path}: {error}") from None
    names = [mutant.name for mutant in mutants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SystemExit(f"{path}: names that occur twice: {', '.join(twice)}")
    return mutants


def find_fault(mutant: Mutant, root: Path) -> str:
    """Say what is wrong with an entry, "" if nothing is."""
    path = root / mutant.file
    if not path.is_file():
        return f"{mutant.file} is missing"
    text = path.read_text(encoding="utf-8")
    count = text.count(mutant.old)
    if count != 1:
        return f"{mutant.file} holds the old text {count} times, not once"
    try:
        ast.parse(text.replace(mutant.old, mutant.new))
    except SyntaxError as error:
        return f"the new text is no Python: {error.msg}"
    if mutant.old == mutant.new:
        return "old and new text are the same"
    missing = [test for test in mutant.tests if not has_test(root, test)]
    return f"no such test: {', '.join(missing)}" if missing else ""


def has_test(root: Path, test: str) -> bool:
    """Whether the sources hold a test; nothing is imported."""
    path, _, function = test.partition("::")
    if not (root / path).is_file():
        return False
    tree = ast.parse((root / path).read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return strip_case(function) in names


def strip_case(test: str) -> str:
    """Return a test's name without the case in brackets."""
    return test.partition("[")[0]


def choose(mutants: Sequence[Mutant], sample: int, seed: int) -> list[Mutant]:
    """Choose `sample` neighbours of the list; seeds that follow each other go through all of it."""
    start = sample * seed
    return [mutants[(start + i) % len(mutants)] for i in range(min(sample, len(mutants)))]


class Workshop:
    """A copy of the tree, in which mutants are tried.

    Args:
        root: The tree.
        place: An empty folder.
    """

    def __init__(self, root: Path, place: Path) -> None:
        self.place = place
        self.copy = place / "copy"
        self.copy.mkdir()
        for name in COPIED:
            if (root / name).is_dir():
                compiled = shutil.ignore_patterns("__pycache__")
                shutil.copytree(root / name, self.copy / name, ignore=compiled)
            elif (root / name).is_file():
                shutil.copy(root / name, self.copy)
        # Compiled files go by their source's contents. By its time of change, two mutants of one
        # second and one length would be the same.
        subprocess.run(
            [
                sys.executable,
                *("-m", "compileall", "-q", "--invalidation-mode", "checked-hash"),
                str(self.copy / "tfmammo"),
            ],
            check=True,
        )
        for name in [name for name in os.environ if name.startswith("PYTEST_")]:
            del os.environ[name]  # of a pytest that runs this command
        os.environ["PYTHONPATH"] = str(self.copy)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
        probe = subprocess.run(
            [sys.executable, "-c", "import tfmammo; print(tfmammo.__file__)"],
            cwd=place,
            capture_output=True,
            text=True,
            check=True,
        )
        if not Path(probe.stdout.strip()).is_relative_to(self.copy):
            raise SystemExit(f"tfmammo comes from {probe.stdout.strip()} and not from the copy")

    def try_mutant(self, mutant: Mutant, limit: float) -> Outcome:
        """Run a mutant's tests with the mutant in its file, and restore the file."""
        path = self.copy / mutant.file
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        try:
            return self.run(mutant.tests, limit)
        finally:
            path.write_text(text, encoding="utf-8")

    def run(self, tests: Collection[str], limit: float) -> Outcome:
        """Run tests in a fork of this process.

        Args:
            tests: file::function each. The first failure of a single test is enough.
            limit: Seconds after which the fork is killed.
        """
        result = self.place / "outcome.json"
        result.unlink(missing_ok=True)
        process = os.fork()
        if not process:
            try:
                self._run_here(tests, result)
            finally:
                os._exit(0)
        hangs = not wait(process, limit)
        if hangs:
            return Outcome(message=f"ran past {limit:g} s", hangs=True)
        if not result.is_file():
            return Outcome(message="the process of the tests died")
        return Outcome(**json.loads(result.read_text()))

    def _run_here(self, tests: Collection[str], result: Path) -> None:
        os.setsid()
        # a shell's background processes ignore it, and `wait` sends it
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log = os.open(self.place / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(self.copy)
        sys.path[0] = str(self.copy)
        sys.dont_write_bytecode = True
        import pytest

        recorder = Recorder()
        options = [*PYTEST, f"--basetemp={self.place / 'pytest'}", *(["-x"] * (len(tests) == 1))]
        pytest.main([*options, *tests], plugins=[recorder])
        package = sys.modules.get("tfmammo")
        if package and not Path(str(package.__file__)).is_relative_to(self.copy):
            recorder.outcome = Outcome(message=f"tfmammo came from {package.__file__}")
        result.write_text(json.dumps(vars(recorder.outcome)))


def wait(process: int, limit: float) -> bool:
    """Wait for a fork and end what it leaves running; False if it ran past its limit."""
    is_done = _wait_until(process, time.monotonic() + limit)
    if not is_done:
        os.kill(process, signal.SIGINT)  # pytest ends what its fixtures have started
        if not _wait_until(process, time.monotonic() + MERCY):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    return is_done


def _wait_until(process: int, deadline: float) -> bool:
    while time.monotonic() < deadline:
        if os.waitpid(process, os.WNOHANG)[0]:
            return True
        time.sleep(0.02)
    return False


def preload() -> None:
    """Import what takes long, so that forks need not. It must start no threads of its own."""
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

    if "tfmammo" in sys.modules:
        raise SystemExit("tfmammo was imported before there was a mutant")


def check_baseline(workshop: Workshop, mutants: Iterable[Mutant]) -> dict[str, str]:
    """Run the tests of all mutants on the unchanged copy, one fork a file.

    Returns:
        Test -> what is wrong, of those that do not pass.
    """
    tests_by_file: dict[str, set[str]] = defaultdict(set)
    for mutant in mutants:
        for test in mutant.tests:
            tests_by_file[test.partition("::")[0]].add(test)
    faults = {}
    for tests in tests_by_file.values():
        outcome = workshop.run(sorted(tests), BASELINE_LIMIT)
        for test in tests:
            if not _holds(outcome.passed, test) or _holds(outcome.failed, test):
                faults[test] = outcome.message or "skipped"
    return faults


def _holds(nodes: Iterable[str], test: str) -> bool:
    return any(test in (node, strip_case(node)) for node in nodes)


def judge(mutant: Mutant, outcome: Outcome) -> str:
    """Say what an outcome means: killed, hangs, survived or broken."""
    if outcome.hangs:
        return "hangs"
    if all(_holds(outcome.failed, test) for test in mutant.tests):
        return "killed"
    return "survived" if outcome.passed else "broken"


def report(mutant: Mutant, result: str, message: str, seconds: float) -> None:
    """Print the JSON line of one mutant."""
    line = {"mutant": mutant.name, "result": result, "message": message}
    print(json.dumps({**line, "seconds": round(seconds, 1)}), flush=True)


def try_mutants(mutants: Sequence[Mutant], limit: float) -> dict[str, str]:
    """Try mutants whose entries are sound, and report each.

    Returns:
        Name -> result.
    """
    preload()
    results = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        workshop = Workshop(ROOT, Path(place))
        faults = check_baseline(workshop, mutants)
        for mutant in mutants:
            start = time.monotonic()
            unsound = [f"{test}: {faults[test]}" for test in mutant.tests if test in faults]
            if unsound:
                result = "broken"
                message = f"fails without the mutant: {unsound[0]}"
            else:
                outcome = workshop.try_mutant(mutant, limit)
                result = judge(mutant, outcome)
                message = outcome.message
            results[mutant.name] = result
            report(mutant, result, message, time.monotonic() - start)
    return results


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutants alone")
    parser.add_argument("--sample", type=int, metavar="N", help="this many mutants of the list")
    parser.add_argument("--seed", type=int, default=0, help="which part of the list --sample takes")
    parser.add_argument("--check", action="store_true", help="compare list and files, run nothing")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one mutant")
    arguments = parser.parse_args()
    mutants = read_list(ROOT / LIST)
    if arguments.only:
        unknown = set(arguments.only) - {mutant.name for mutant in mutants}
        if unknown:
            parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
        mutants = [mutant for mutant in mutants if mutant.name in arguments.only]
    if arguments.sample is not None:
        mutants = choose(mutants, arguments.sample, arguments.seed)
    results = {}
    sound = []
    for mutant in mutants:
        fault = find_fault(mutant, ROOT)
        if fault:
            results[mutant.name] = "broken"
            report(mutant, "broken", fault, 0.0)
        else:
            sound.append(mutant)
    if sound and not arguments.check:
        results |= try_mutants(sound, arguments.limit)
    alive = {name: result for name, result in results.items() if result in ("survived", "broken")}
    for name, result in alive.items():
        print(f"{result:<9} {name}", file=sys.stderr)
    sys.exit(bool(alive))


if __name__ == "__main__":
    main()
