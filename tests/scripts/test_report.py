"""evaluate/report.py as a user calls it."""

import subprocess
import sys

import pytest

from tests.commands import run_script_here

ARGUMENTS = ("--scale", "smoke", "--only", "can_fig2")


@pytest.fixture
def script(repository):
    """The path of the script."""
    return repository / "evaluate/report.py"


def run_apart(script, *arguments):
    """Run the script, and each of its steps, in a process of its own."""
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(
        command, cwd=script.parents[1], capture_output=True, text=True, timeout=900
    )


def read_facts(run, output):
    """Run the report of one figure, and return what it wrote of them."""
    done = run(*ARGUMENTS, "--jobs", 2, "--output", output)
    assert done.returncode == 0, done.stderr
    assert b"# CAN: results" in (output / "results/can.md").read_bytes()
    return (output / "results/can_fig2.smoke.json").read_bytes()


@pytest.mark.long
def test_a_smoke_run_makes_facts_and_pages(script, tmp_path):
    facts = read_facts(lambda *arguments: run_apart(script, *arguments), tmp_path / "one")
    assert b"2 of 210,000 steps" in facts


@pytest.mark.slow
@pytest.mark.nightly
def test_two_smoke_runs_in_processes_have_the_same_facts(script, tmp_path):
    one, two = (
        read_facts(lambda *arguments: run_apart(script, *arguments), tmp_path / name)
        for name in ("one", "two")
    )
    assert one == two


@pytest.mark.long
def test_a_plan_shows_commands_and_runs_nothing(script, tmp_path):
    output = tmp_path / "output"
    done = run_apart(script, *ARGUMENTS, "--plan", "--output", output)
    assert done.returncode == 0 and not output.exists()
    assert [line.split()[1] for line in done.stdout.splitlines()] == [
        "train/can.py",
        "train/pix2pix.py",
        "evaluate/synthesis.py",
    ]


def test_a_wrong_name_is_one_sentence(script, monkeypatch):
    monkeypatch.chdir(script.parents[1])
    done = run_script_here(script, "--scale", "smoke", "--only", "table1", "--plan")
    assert done.returncode == 2 and "error: --only table1: is no paper and no item" in done.stderr
