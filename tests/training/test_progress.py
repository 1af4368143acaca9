"""How long a training still takes, with a clock of the test's own."""

import logging
from types import SimpleNamespace

import pytest

from tfmammo.training import progress


@pytest.fixture
def clock(monkeypatch):
    found = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: found.now)
    return found


def test_the_first_estimate_does_not_count_graph_building(clock, caplog):
    caplog.set_level(logging.INFO, "tfmammo")
    with progress.Progress("can", 0, 1000) as shown:
        clock.now += 120  # the graph, and ten steps
        shown.update(10, {"generator_loss": 1.0})
        clock.now += 31  # ten steps of 3.1 s
        shown.update(20, {"generator_loss": 0.5})
    assert [record.getMessage() for record in caplog.records] == [
        "step 10 of 1,000: generator 1",
        "step 20 of 1,000, about 51 min left: generator 0.5",  # 980 steps of 3.1 s
    ]
