"""A deterministic run that is killed again and again ends bitwise equal to one that was
not; benchmarks/kills.py does the work.
"""

import os
import runpy

import pytest

KILLS = int(os.environ.get("TFMAMMO_KILLS", 6))  # 30 for the full claim


@pytest.mark.slow
@pytest.mark.timeout(120 * KILLS + 900)
def test_killed_often_and_bitwise_equal(repository, tmp_path):
    measure = runpy.run_path(str(repository / "benchmarks/kills.py"))["measure"]
    exporting = max(1, KILLS // 6)
    found = measure(
        tmp_path,
        KILLS,
        exporting,
        int(os.environ.get("TFMAMMO_KILL_SEED", 1)),
        steps=1_500 if KILLS > 10 else 400,
    )
    assert found["kills"] >= KILLS and found["ending"] >= exporting
