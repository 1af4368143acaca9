"""evaluate/report.py as a user calls it."""

import subprocess
import sys

import pytest

ARGUMENTS = ("--scale", "smoke", "--only", "can_fig2")


@pytest.mark.long
def test_a_smoke_run_makes_facts_and_pages(repository, tmp_path):
    """Each step is a process of its own."""
    script = [sys.executable, "evaluate/report.py", *ARGUMENTS, "--output", str(tmp_path / "out")]
    options = {"cwd": repository, "capture_output": True, "text": True, "timeout": 900}
    plan = subprocess.run([*script, "--plan"], **options)
    assert plan.returncode == 0 and not (tmp_path / "out").exists()
    lines = [line.split() for line in plan.stdout.splitlines()]
    assert [words[1] for words in lines if words[0] == "python"] == [
        *("train/can.py", "train/pix2pix.py", "evaluate/synthesis.py"),
    ]
    done = subprocess.run([*script, "--jobs", "2"], **options)
    assert done.returncode == 0, done.stderr
    assert b"# CAN: results" in (tmp_path / "out/results/can.md").read_bytes()
    assert b"2 of 210,000 steps" in (tmp_path / "out/results/can_fig2.smoke.json").read_bytes()
