"""Folders of long works: one process at a time, and no kill that shuts a folder for good.

Two are real processes.
"""

import contextlib
import signal
import subprocess
import sys
import textwrap

import portalocker
import pytest

from tfmammo.data import jobs, runners
from tfmammo.data.runners import HERE
from tfmammo.errors import ConfigError, DataError

HOLD = """
    import sys, time
    from pathlib import Path
    from tfmammo import filesystem
    from tfmammo.data import jobs

    output = Path(sys.argv[1])
    with jobs.claim_folder(output, {"work": 1}, "work.json"):
        with filesystem.atomic_file(output / "shard") as part:
            part.write_text("half")
            print("begun", flush=True)
            sys.stdin.readline()
    print("done", flush=True)
"""


@contextlib.contextmanager
def process(script, *arguments, repository):
    """A Python process of the test's own, which has said one word; it is killed at the end."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=repository, **pipes) as running:
        try:
            assert running.stdout.readline() == "begun\n"
            yield running
        finally:
            running.kill()


@pytest.mark.long
def test_a_second_process_is_refused_and_the_first_one_ends_well(tmp_path, repository):
    with process(HOLD, tmp_path / "out", repository=repository) as first:
        refused = pytest.raises(ConfigError, match="another process")
        with refused, jobs.claim_folder(tmp_path / "out", {"work": 1}, "work.json"):
            pass
        assert first.communicate("\n", timeout=60)[0] == "done\n" and first.returncode == 0
    assert (tmp_path / "out/shard").read_text() == "half"
    with jobs.claim_folder(tmp_path / "out", {"work": 1}, "work.json"):
        pass


@pytest.mark.slow
def test_a_killed_process_leaves_no_lock_and_its_halves_are_removed(tmp_path, repository):
    with process(HOLD, tmp_path / "out", repository=repository) as first:
        first.send_signal(signal.SIGKILL)
        first.wait(timeout=60)
    assert list((tmp_path / "out").glob(".shard.*.part"))
    with jobs.claim_folder(tmp_path / "out", {"work": 1}, "work.json"):
        assert not list((tmp_path / "out").glob("*.part"))


FIRST_WRITE = """
    import os, sys
    from pathlib import Path
    from tfmammo.data import jobs

    def stop(*names):
        print("begun", flush=True)
        os.kill(os.getpid(), 9)

    os.replace = stop
    with jobs.claim_folder(Path(sys.argv[1]), {"work": 1}, "work.json"):
        pass
"""


@pytest.mark.slow
def test_a_kill_at_the_first_write_does_not_shut_the_folder(tmp_path, repository):
    with process(FIRST_WRITE, tmp_path / "out", repository=repository) as first:
        assert first.wait(timeout=60) == -signal.SIGKILL
    assert (
        list((tmp_path / "out").glob(".work.json.*.part"))
        and not (tmp_path / "out/work.json").exists()
    )
    with jobs.claim_folder(tmp_path / "out", {"work": 1}, "work.json"):
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            jobs.LOCK,
            "work.json",
        ]


@pytest.mark.parametrize("name", ["mine.txt", "notes.part", ".other.json.abc.part"])
def test_a_folder_of_somebodys_is_left_as_it_was(tmp_path, name):
    (tmp_path / name).write_text("mine")
    refused = pytest.raises(ConfigError, match="is not empty")
    with refused, jobs.claim_folder(tmp_path, {"work": 1}, "work.json"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_error_of_the_work_stays_what_it_is(tmp_path):
    with (
        pytest.raises(PermissionError, match="of the work"),
        jobs.claim_folder(tmp_path / "out", {"work": 1}, "work.json"),
    ):
        raise PermissionError("of the work")


def test_who_stops_a_work_is_told_how_it_goes_on(tmp_path, caplog):
    caplog.set_level("INFO")
    with (
        pytest.raises(KeyboardInterrupt),
        jobs.claim_folder(tmp_path / "out", {"work": 1}, "work.json"),
    ):
        raise KeyboardInterrupt
    assert f"{tmp_path / 'out'}: stopped; the same command goes on where it was" in caplog.text


def test_where_a_file_system_has_no_locks_work_goes_on_with_a_warning(
    tmp_path, monkeypatch, caplog
):
    def refuse(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(portalocker.portalocker, "LOCKER", refuse)
    with jobs.claim_folder(tmp_path / "out", {"work": 1}, "work.json"):
        assert "its file system has no locks" in caplog.text


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="leads out of"):
        jobs.resolve_inside(tmp_path, name)
    assert jobs.resolve_inside(tmp_path, "images/a.png") == tmp_path / "images/a.png"


@pytest.mark.slow
def test_finished_parts_are_kept_and_missing_ones_an_error(tmp_path, monkeypatch):
    names = []

    def make(path):
        names.append(path.name)
        path.write_text("whole")

    steps = jobs.PartSteps(
        make=make,
        read=lambda path: path.read_text() if path.is_file() else None,
        name=lambda path: path,
        command="work",
    )
    parts = [tmp_path / "b", tmp_path / "a"]
    for expected in (["b", "a"], []):
        names.clear()
        assert jobs.complete_parts(parts, steps, HERE) == ["whole"] * 2 and names == expected
    (tmp_path / "a").unlink()
    monkeypatch.setattr(runners, "run", lambda parts, make, runner: None)
    with pytest.raises(DataError, match="/a: "):
        jobs.complete_parts(parts, steps, HERE)
