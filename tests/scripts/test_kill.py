"""A deterministic run that is killed again and again ends bitwise equal to one that was
not; benchmarks/kills.py does the work.
"""

import os
import runpy

import pytest

SEED = int(os.environ.get("TFMAMMO_KILL_SEED", 1))


@pytest.fixture
def kill(repository):
    """The function of benchmarks/kills.py that kills trainings and checks how they end."""
    return runpy.run_path(str(repository / "benchmarks/kills.py"))["measure"]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_killed_and_bitwise_equal(kill, tmp_path):
    numbers = kill(tmp_path, kills=3, exporting=1, seed=SEED, steps=400)
    assert numbers["kills"] >= 3 and numbers["ending"] >= 1


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(4500)
def test_killed_often_and_bitwise_equal(kill, tmp_path):
    numbers = kill(tmp_path, kills=30, exporting=5, seed=SEED, steps=1_500)
    assert numbers["kills"] >= 30 and numbers["ending"] >= 5
