"""One PACS for the tests of a file, emptied before each of them."""

import pytest

from tests.orthanc import AUTHORIZATION, run_orthanc


@pytest.fixture(scope="module")
def _server(tmp_path_factory):
    with run_orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def pacs(_server, monkeypatch):
    """An empty PACS; its credentials are in the environment."""
    monkeypatch.setenv("TFMAMMO_PACS_AUTHORIZATION", AUTHORIZATION)
    _server.clear()
    return _server
