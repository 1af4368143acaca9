"""Claimed folders: one process at a time, and no kill that shuts a folder for good."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap

import portalocker
import pytest

from tfmammo import filesystem
from tfmammo.errors import ConfigError
from tfmammo.training import folder

WORK = {"config": {"a": 1, "b": {"c": 2}}, "archive": {"records": 3}}
HOLD = """
    import sys
    from pathlib import Path
    from tfmammo import filesystem

    output = Path(sys.argv[1])
    with filesystem.claim_folder(output, {"work": 1}, "work.json"):
        with filesystem.atomic_file(output / "shard") as part:
            part.write_text("half")
            print("begun", flush=True)
            sys.stdin.readline()
    print("done", flush=True)
"""
FIRST_WRITE = """
    import os, sys
    from pathlib import Path
    from tfmammo import filesystem

    def stop(*names):
        print("begun", flush=True)
        os.kill(os.getpid(), 9)

    os.replace = stop
    with filesystem.claim_folder(Path(sys.argv[1]), {"work": 1}, "work.json"):
        pass
"""


def claim(folder, identity=None):
    return filesystem.claim_folder(folder, identity or {"work": 1}, "work.json")


@contextlib.contextmanager
def run(script, folder, repository):
    """A Python process of the test's own, which has said one word; it is killed at the end."""
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=repository, **pipes) as running:
        try:
            assert running.stdout.readline() == "begun\n"
            yield running
        finally:
            running.kill()


@pytest.mark.slow
def test_a_second_process_is_refused_and_the_first_one_ends_well(tmp_path, repository):
    with run(HOLD, tmp_path / "out", repository) as first:
        with pytest.raises(ConfigError, match="another process"), claim(tmp_path / "out"):
            pass
        assert first.communicate("\n", timeout=60)[0] == "done\n" and first.returncode == 0
    assert (tmp_path / "out/shard").read_text() == "half"
    with claim(tmp_path / "out"):
        pass


@pytest.mark.slow
def test_a_killed_process_leaves_no_lock_and_its_halves_are_removed(tmp_path, repository):
    with run(HOLD, tmp_path / "out", repository) as first:
        first.send_signal(signal.SIGKILL)
        first.wait(timeout=60)
    assert list((tmp_path / "out").glob(".shard.*.part"))
    with claim(tmp_path / "out"):
        assert not list((tmp_path / "out").glob("*.part"))


@pytest.mark.slow
def test_a_kill_at_the_first_write_does_not_shut_the_folder(tmp_path, repository):
    with run(FIRST_WRITE, tmp_path / "out", repository) as first:
        assert first.wait(timeout=60) == -signal.SIGKILL
    assert list((tmp_path / "out").glob(".work.json.*.part"))
    with claim(tmp_path / "out"):
        names = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert names == [filesystem.LOCK, "work.json"]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"config": {"a": 2, "b": {"c": 3}}, "archive": {"records": 3}}, "differs in a, b.c;"),
        ({"config": {"a": 1, "b": {"c": 2}}, "archive": {"records": 4}}, "content of the archive"),
    ],
)
def test_another_work_is_refused_by_its_keys(tmp_path, other, named):
    for _ in range(2):
        with claim(tmp_path, WORK):
            pass
    with pytest.raises(ConfigError, match=named), claim(tmp_path, other):
        pass


@pytest.mark.parametrize("name", ["mine.txt", ".other.json.abc.part"])
def test_somebodys_folder_is_left_as_it_was(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"), claim(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(ConfigError, match="can't be used"), claim(tmp_path / name):
        pass


@pytest.mark.parametrize("error", [PermissionError("of the work"), KeyboardInterrupt()])
def test_an_error_of_the_work_stays_what_it_is(tmp_path, caplog, error):
    caplog.set_level("INFO")
    with pytest.raises(type(error)), claim(tmp_path / "out"):
        raise error
    said = f"{tmp_path / 'out'}: stopped; the same command goes on where it was"
    assert (said in caplog.text) == isinstance(error, KeyboardInterrupt)


@pytest.mark.parametrize(
    ("hold", "number"),
    [
        (claim, errno.ENOLCK),
        (claim, errno.ENOSYS),
        (claim, errno.EOPNOTSUPP),
        (folder.hold_lock, errno.ENOLCK),
    ],
)
def test_where_a_file_system_has_no_locks_work_goes_on_with_a_warning(
    tmp_path, monkeypatch, caplog, hold, number
):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(portalocker.portalocker, "LOCKER", refuse)
    with hold(tmp_path / "out"):
        assert "its file system has no locks" in caplog.text
