"""evaluate/report.py as a user calls it."""

import subprocess
import sys

import pytest


def call(repository, *arguments):
    command = [sys.executable, "evaluate/report.py", "--scale", "smoke", *map(str, arguments)]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_two_smoke_runs_have_the_same_facts(repository, tmp_path):
    written = []
    for name in ("one", "two"):
        output = tmp_path / name
        done = call(repository, "--only", "can_fig2", "--jobs", 2, "--output", output)
        assert done.returncode == 0, done.stderr
        written.append((tmp_path / name / "facts/can_fig2.smoke.json").read_bytes())
        assert b"data:image/png" in (tmp_path / name / "report.html").read_bytes()
    assert written[0] == written[1]


def test_a_plan_shows_commands_and_runs_nothing(repository, tmp_path):
    output = tmp_path / "output"
    done = call(repository, "--only", "can_fig2", "--plan", "--output", output)
    assert done.returncode == 0 and not output.exists()
    assert [line.split()[1] for line in done.stdout.splitlines()] == [
        "train/can.py",
        "train/pix2pix.py",
        "evaluate/synthesis.py",
    ]


def test_a_wrong_name_is_one_sentence(repository, tmp_path):
    done = call(repository, "--only", "table1", "--plan")
    assert done.returncode == 2 and "error: --only table1: is no paper and no item" in done.stderr
