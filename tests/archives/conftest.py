"""Fixtures of all tests of archives."""

import pytest

from tests.archives.folders import BYTE, REGION, picture, table


@pytest.fixture
def small(tmp_path):
    """A folder of somebody's own: a.png with a mask, b.png without, and a table of patients."""
    for name, pixels in (("images/a", BYTE), ("images/b", BYTE), ("masks/a", REGION)):
        picture(tmp_path / f"{name}.png", pixels)
    table(tmp_path, "file,patient", "a.png,p1", "b.png,p2")
    return tmp_path
