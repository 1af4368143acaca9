"""The list of mutants fits the sources, and the command says what becomes of each mutant."""

import json
import runpy
import shutil
import subprocess
import sys

import pytest
import yaml

# What the list must break, by the beginning of a file's path.
AREAS = (
    "archives/dicom",
    "audit",
    "data/preprocess",
    "data/splits",
    "detection",
    "exchange",
    "export",
    "losses",
    "metrics/classification",
    "metrics/detection",
    "metrics/segmentation",
    "models/blending",
    "models/can",
    "models/cgan",
    "models/contextual",
    "models/flow",
    "models/infilling",
    "optimization",
    "pacs",
    "postprocessing",
    "registry",
    "serving",
    "stress",
    "studio",
    "synthesis",
    "training",
)
PACKAGE = """
def double(x):
    return 2 * x


def triple(x):
    return 3 * x


def count(n):
    while n > 0:
        n -= 1
    return n
"""
TESTS = """
import sys

import pytest

import tfmammo


def test_double():
    assert tfmammo.double(2) == 4


@pytest.mark.parametrize("x", [0, 1])
def test_triple(x):
    assert tfmammo.triple(x) == 3 * x


def test_count():
    assert tfmammo.count(3) == 0


def test_nothing():
    assert tfmammo.triple(0) == 0


def test_what_fails_anyway():
    assert tfmammo.double(2) == 5
"""


def make_mutant(name, old, new, *tests):
    names = [f"tests/test_package.py::{test}" for test in tests]
    return {"name": name, "file": "tfmammo/__init__.py", "old": old, "new": new, "tests": names}


@pytest.fixture
def tree(tmp_path, repository):
    """A function (*mutants) -> the folder of a package with tests, that list and the command."""

    def make(*mutants):
        contents = {
            "tfmammo/__init__.py": PACKAGE,
            "tests/test_package.py": TESTS,
            "tests/mutants.yaml": yaml.safe_dump(list(mutants)),
        }
        for name, content in contents.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content)
        (tmp_path / "benchmarks").mkdir()
        shutil.copy(repository / "benchmarks/mutants.py", tmp_path / "benchmarks")
        return tmp_path

    return make


def run(folder, *arguments):
    command = [sys.executable, str(folder / "benchmarks/mutants.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=1100)


def read_results(done):
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["mutant"]: line["result"] for line in lines}


@pytest.mark.slow
def test_every_old_text_stands_once_and_every_test_is_there(repository):
    done = run(repository, "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_list_breaks_every_area(repository):
    mutants = yaml.safe_load((repository / "tests/mutants.yaml").read_text())
    files = [mutant["file"].removeprefix("tfmammo/") for mutant in mutants]
    assert len(files) >= 80
    missing = [area for area in AREAS if not any(file.startswith(area) for file in files)]
    assert not missing


def test_seeds_go_through_the_whole_list(repository):
    choose = runpy.run_path(str(repository / "benchmarks/mutants.py"))["choose"]
    assert [choose("abcde", 2, seed) for seed in range(3)] == [["a", "b"], ["c", "d"], ["e", "a"]]
    assert choose("abc", 10, 4) == ["b", "c", "a"]


def test_an_entry_that_does_not_fit_is_broken(tree):
    folder = tree(
        make_mutant("gone", "4 * x", "5 * x", "test_double"),
        make_mutant("twice", "return", "raise", "test_double"),
        make_mutant("no-python", "2 * x", "2 * ", "test_double"),
        make_mutant("the-same", "2 * x", "2 * x", "test_double"),
        make_mutant("no-test", "2 * x", "3 * x", "test_half"),
        make_mutant("no-file", "2 * x", "3 * x", "test_double") | {"file": "tfmammo/half.py"},
        make_mutant("sound", "2 * x", "3 * x", "test_double", "test_triple[1]"),
    )
    done = run(folder, "--check")
    assert done.returncode == 1
    names = ("gone", "twice", "no-python", "the-same", "no-test", "no-file")
    assert read_results(done) == dict.fromkeys(names, "broken")
    assert "holds the old text 3 times, not once" in done.stdout
    assert "no such test: tests/test_package.py::test_half" in done.stdout
    assert run(folder, "--check", "--only", "sound").returncode == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [({"odd": 1}, "odd"), ({"tests": []}, "tests"), ({"name": "Two words"}, "name")],
)
def test_a_damaged_list_is_an_error(tree, change, message):
    folder = tree(make_mutant("sound", "2 * x", "3 * x", "test_double") | change)
    done = run(folder, "--check")
    assert done.returncode == 1 and message in done.stderr


def test_a_name_that_is_not_there_or_there_twice_is_an_error(tree):
    mutant = make_mutant("sound", "2 * x", "3 * x", "test_double")
    folder = tree(mutant)
    assert "no such mutant: other" in run(folder, "--check", "--only", "other").stderr
    (folder / "tests/mutants.yaml").write_text(yaml.safe_dump([mutant, mutant]))
    assert "names that occur twice: sound" in run(folder, "--check").stderr


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_what_becomes_of_mutants(tree):
    folder = tree(
        make_mutant("killed", "2 * x", "3 * x", "test_double"),
        make_mutant("killed-by-one-case", "3 * x", "0 * x", "test_triple"),
        # of the same length and within the same second: no compiled file may be taken for another
        make_mutant("killed-too", "2 * x", "4 * x", "test_double"),
        make_mutant("survived", "3 * x", "4 * x", "test_nothing"),
        make_mutant("survived-one-test", "3 * x", "5 * x", "test_triple", "test_nothing"),
        make_mutant("hangs", "n -= 1", "n -= 0", "test_count"),
        make_mutant("not-imported", "def double", "import nowhere\ndef double", "test_double"),
        make_mutant("fails-anyway", "2 * x", "3 * x", "test_what_fails_anyway"),
    )
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    done = run(folder, "--limit", "20")  # a pytest takes seconds to start under load
    assert done.returncode == 1
    assert read_results(done) == {
        "killed": "killed",
        "killed-by-one-case": "killed",
        "killed-too": "killed",
        "survived": "survived",
        "survived-one-test": "survived",
        "hangs": "hangs",
        "not-imported": "broken",
        "fails-anyway": "broken",
    }
    table = done.stderr.splitlines()[-4:]
    assert table == [
        "survived  survived",
        "survived  survived-one-test",
        "broken    not-imported",
        "broken    fails-anyway",
    ]
    assert before == {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
