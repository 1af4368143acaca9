"""A deterministic run that is killed again and again ends bitwise equal to one that was
not; benchmarks/kills.py does the work.
"""

import os
import runpy

import pytest

SEED = int(os.environ.get("TFMAMMO_KILL_SEED", 1))


def kill(repository, folder, kills, exporting, steps):
    measure = runpy.run_path(str(repository / "benchmarks/kills.py"))["measure"]
    numbers = measure(folder, kills, exporting, SEED, steps=steps)
    assert numbers["kills"] >= kills and numbers["ending"] >= exporting


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_and_bitwise_equal(repository, tmp_path):
    kill(repository, tmp_path, kills=3, exporting=1, steps=400)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(4500)
def test_killed_often_and_bitwise_equal(repository, tmp_path):
    kill(repository, tmp_path, kills=30, exporting=5, steps=1_500)
