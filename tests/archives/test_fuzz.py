"""Every reader against 2,000 damaged files: a record, a named skip or a ValueError of one sentence, nothing else."""

import json
import os
import subprocess
import sys

import pytest

READERS = ("cbis_ddsm", "cdd_cesm", "ddsm", "folder", "inbreast", "mini_mias", "optimam", "vindr")


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name, repository):
    """Address space, time for each and the place of every file are watched by the script."""
    command = [sys.executable, str(repository / "tests/archives/fuzz.py"), name, "--count", "2000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, cwd=repository, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["failures"], found["failures"][:20]
    assert sum(found["outcomes"].values()) == 2000 and found["structures"] >= 30
    assert 200 < found["outcomes"]["record"] < 1500, "damage was done, and not everything fell to it"
    assert found["memory_mib"] < 2000
