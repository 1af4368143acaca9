"""Fixtures of all tests of archives."""

import pytest

from tests.archives.folders import make_small


@pytest.fixture(autouse=True)
def float32_policy():
    """In place of the fixture for all tests: nothing here touches Keras, so nothing waits."""


@pytest.fixture
def small(tmp_path):
    """A folder of somebody's own: a.png with a mask, b.png without, and a table of patients."""
    return make_small(tmp_path)
