"""The list of mutants fits the sources, and the command tells killed mutants from others."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

PACKAGE = """
def double(x):
    return 2 * x
"""
TESTS = """
import tfmammo

def test_double():
    assert tfmammo.double(2) == 4

def test_zero():
    assert tfmammo.double(0) == 0
"""
MUTANT = {"file": "tfmammo/__init__.py", "old": "2 * x", "new": "3 * x"}
MUTANTS = [
    {"name": "killed", **MUTANT, "test": "tests/test_package.py::test_double"},
    {"name": "survived", **MUTANT, "test": "tests/test_package.py::test_zero"},
    {"name": "no-test", **MUTANT, "test": "tests/test_package.py::test_half"},
    {"name": "no-text", **MUTANT, "old": "4 * x", "test": "tests/test_package.py::test_double"},
]


def run(folder, *arguments):
    command = [sys.executable, str(folder / "benchmarks/mutants.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_list_fits_the_sources(repository):
    done = run(repository, "--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_killed_and_other_mutants(tmp_path, repository):
    for name in ("tfmammo", "tests", "benchmarks"):
        (tmp_path / name).mkdir()
    (tmp_path / "tfmammo/__init__.py").write_text(PACKAGE)
    (tmp_path / "tests/test_package.py").write_text(TESTS)
    (tmp_path / "tests/mutants.yaml").write_text(yaml.safe_dump(MUTANTS))
    shutil.copy(repository / "benchmarks/mutants.py", tmp_path / "benchmarks")
    done = run(tmp_path)
    assert done.returncode == 1, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["mutant"]: line["result"] for line in results} == {
        "killed": "killed",
        "survived": "survived",
        "no-test": "broken",
        "no-text": "broken",
    }
    assert (tmp_path / "tfmammo/__init__.py").read_text() == PACKAGE
