"""Every reader against damaged files: a record, a named skip or a ValueError of one
sentence, nothing else.

There are 500 for each reader, or as many as TFMAMMO_FUZZ says.
"""

import json
import os
import subprocess
import sys

import pytest

COUNT = int(os.environ.get("TFMAMMO_FUZZ", "500"))
READERS = ("cbis_ddsm", "cdd_cesm", "ddsm", "folder", "inbreast", "mini_mias", "optimam", "vindr")


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name, repository):
    """Address space, time for each and the place of every file are watched by the script."""
    command = [
        sys.executable,
        str(repository / "tests/archives/fuzz.py"),
        name,
        "--count",
        str(COUNT),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=580,
        cwd=repository,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["failures"], found["failures"][:20]
    assert sum(found["outcomes"].values()) == COUNT and found["structures"] >= 30
    assert COUNT / 10 < found["outcomes"]["record"] < 3 * COUNT / 4, (
        "damage was done, and not everything fell to it"
    )
    assert found["memory_mib"] < 2000
