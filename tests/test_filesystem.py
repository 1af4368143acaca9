"""Files that are there as a whole or not at all, and locks."""

import os
import stat

import pytest

from tfmammo import filesystem


def list_names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    filesystem.write_atomically(path, "old")
    with pytest.raises(KeyboardInterrupt), filesystem.atomic_file(path) as part:
        part.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list_names(tmp_path) == ["file"]


def test_a_file_has_its_new_contents_when_it_is_flushed(tmp_path, monkeypatch):
    path = tmp_path / "file"
    flushed = []
    monkeypatch.setattr(filesystem, "flush", lambda part: flushed.append(part.read_text()))
    filesystem.write_atomically(path, "new")
    assert flushed == ["new"] and path.read_text() == "new"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_file_has_the_permissions_of_any_other_one(tmp_path, mask, mode):
    path = tmp_path / "file"
    before = os.umask(mask)
    try:
        filesystem.write_atomically(path, b"new")
        assert stat.S_IMODE(path.stat().st_mode) == mode
        path.chmod(0o640)
        filesystem.write_atomically(path, b"newer")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640, "what its owner chose stays"
    finally:
        os.umask(before)
