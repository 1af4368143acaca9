"""The private folder of a server's temporary files."""

import stat
import tempfile
from pathlib import Path

from tfmammo.apps.serving.local import private_folder


def test_a_folder_is_private_and_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with private_folder("tfmammo_x_") as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert Path(tempfile.mkdtemp()).parent == folder
    assert list(tmp_path.iterdir()) == [] and tempfile.gettempdir() == str(tmp_path)
