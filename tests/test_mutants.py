"""The list of mutants fits the sources."""

import subprocess
import sys


def test_the_list_fits_the_sources(repository):
    command = [sys.executable, str(repository / "tests/mutants.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
