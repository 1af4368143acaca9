"""How readers walk a folder."""

import errno
import os

from tfmammo.archives.files import list_regular_files


def test_files_in_order_without_hidden_ones_and_each_folder_once(tmp_path):
    root = tmp_path / "root"
    elsewhere = tmp_path / "elsewhere"
    for path in ("b/2.dcm", "b/1.dcm", "a/x.csv", "z.txt", "._z.txt"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    elsewhere.mkdir()
    (elsewhere / "linked.dcm").touch()
    (root / "c").symlink_to(elsewhere)
    (root / "b/above").symlink_to(root)  # would never end
    names = [path.relative_to(root).as_posix() for path in list_regular_files(root)]
    assert names == ["z.txt", "a/x.csv", "b/1.dcm", "b/2.dcm", "c/linked.dcm"]
    assert list(list_regular_files(root / "z.txt")) == list(list_regular_files(root / "no")) == []


def test_predictions_within_are_skipped_unless_they_are_what_is_read(tmp_path):
    for path in ("a.dcm", "found/predict.json", "found/segmentations/a.dcm"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert list(list_regular_files(tmp_path)) == [tmp_path / "a.dcm"]
    assert tmp_path / "found/segmentations/a.dcm" in list_regular_files(tmp_path / "found")


def test_a_folder_that_can_not_be_read_is_spoken_of(tmp_path, caplog, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a").touch()
    scan = os.scandir

    def refuse(folder):
        if folder.endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert [path.name for path in list_regular_files(tmp_path)] == ["a"]
    assert "Permission denied" in caplog.text and "closed" not in caplog.text
