"""Parts of long jobs: finished ones are kept, missing ones are an error."""

import pytest

from tfmammo.data import jobs, runners
from tfmammo.data.runners import HERE
from tfmammo.errors import DataError


def test_finished_parts_are_kept_and_missing_ones_an_error(tmp_path, monkeypatch):
    names = []

    def make(path):
        names.append(path.name)
        path.write_text("whole")

    def complete():
        names.clear()
        parts = [tmp_path / "b", tmp_path / "a"]
        return jobs.complete_parts(parts, make, read, lambda path: path, HERE)

    def read(path):
        return path.read_text() if path.is_file() else None

    assert complete() == ["whole"] * 2 and names == ["b", "a"]
    assert complete() == ["whole"] * 2 and names == []
    (tmp_path / "a").unlink()
    monkeypatch.setattr(runners, "run", lambda parts, make, runner: None)
    with pytest.raises(DataError, match="/a: "):
        complete()
