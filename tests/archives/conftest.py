"""Fixtures of all tests of archives."""

import pytest


@pytest.fixture(autouse=True)
def float32_policy():
    """In place of the fixture for all tests: nothing here touches Keras, so nothing waits."""
