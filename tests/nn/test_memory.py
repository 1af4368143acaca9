"""The limit on the memory of test processes."""

import pytest

pytest_plugins = ["pytester"]

TEST = """
import numpy as np

def test_large():
    assert np.ones(40_000_000).sum() == 40_000_000  # 320 MB
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_process_that_needs_too_much_fails_the_session(pytester, workers, repository):
    pytester.makepyfile(TEST)
    pytester.makeini(f"[pytest]\npythonpath = {repository}")
    arguments = ["-p", "tests.memory", "-n", "1"] if workers else ["-p", "tests.memory"]
    fine = pytester.runpytest_subprocess(*arguments, "--max-memory", "20")
    assert fine.ret == 0
    fine.stdout.fnmatch_lines(
        [f"peak memory:*{'gw0 ' if workers else 'main '}*GB*", "  +0.3? GB test_*.py::test_large"]
    )
    too_large = pytester.runpytest_subprocess(*arguments, "--max-memory", "0.3")
    assert too_large.ret == 1
    too_large.stdout.fnmatch_lines(["more than --max-memory 0.3 GB"])
