"""Every reader against damaged files: a record, a named skip or a ValueError of one
sentence, nothing else.

They differ from day to day: the seed is the date, and a failure prints it. TFMAMMO_FUZZ_SEED names
another one.
"""

import datetime
import json
import os
import subprocess
import sys

import pytest

from tfmammo.archives import ARCHIVES

SEED = int(os.environ.get("TFMAMMO_FUZZ_SEED", datetime.date.today().toordinal()))
LAYOUTS = ("folder/hf", "folder/monai", "folder/nnunet", "folder/regions", "folder/yolo")
READERS = (*sorted(ARCHIVES.keys() - {"phantom"}), *LAYOUTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.nightly)])
def test_damaged_files(name, count, repository):
    """Address space, time for each and the place of every file are watched by the script."""
    command = [
        sys.executable,
        "-m",
        "tests.archives.fuzz",
        name,
        "--count",
        str(count),
        "--seed",
        str(SEED),
    ]
    print("damaged with the seed", SEED)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=580,
        cwd=repository,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    numbers = json.loads(done.stdout.splitlines()[-1])
    assert not numbers["failures"], numbers["failures"][:20]
    assert sum(numbers["outcomes"].values()) == count and numbers["structures"] >= 30
    # little of a user's folder or of another tool's data set is without meaning
    least = count / 40 if name.startswith("folder") else count / 10
    assert least < numbers["outcomes"]["record"] < 3 * count / 4, (
        "damage was done, and not everything fell to it"
    )
    assert numbers["memory_mib"] < 2000
