"""Parts of long jobs: finished ones are kept, and processes that make them end when they should."""

import argparse
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from tests.commands import run_module
from tfmammo import cli
from tfmammo.data import runners
from tfmammo.data.runners import Runner
from tfmammo.errors import DataError

WORK = """
    import os, sys, time
    from pathlib import Path
    from tfmammo import cli
    from tfmammo.data import runners

    def wait(folder):
        (Path(folder) / str(os.getpid())).touch()
        time.sleep(300)

    def fail(part):
        raise ValueError(f"no {part}")

    def die(part):
        os._exit(1)

    if __name__ == "__main__":
        cli.run(lambda: runners.run([sys.argv[1]] * 3, wait, runners.Runner(2)))
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A module of functions that make parts, which workers find."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "parts_of_a_test.py").write_text(textwrap.dedent(WORK))
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module("parts_of_a_test")
    del sys.modules["parts_of_a_test"]


@contextlib.contextmanager
def running(work, folder, repository):
    """The module as a command that has two workers, and their process numbers."""
    folder.mkdir()
    command = [sys.executable, work.__file__, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            while len(list(folder.iterdir())) < 2:
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.05)
            yield process, [int(path.name) for path in folder.iterdir()]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def is_at_work(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [True, False], ids=["terminal", "kill"])
def test_ctrl_c_ends_every_process_without_a_traceback(work, tmp_path, repository, to_all):
    with running(work, tmp_path / "out", repository) as (process, workers):
        (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 130 and said == "stopped\n"
        assert not any(map(is_at_work, workers))


@pytest.mark.slow
def test_workers_of_a_killed_process_end(work, tmp_path, repository):
    with running(work, tmp_path / "out", repository) as (process, workers):
        process.kill()
        process.wait()
        end = time.monotonic() + 60
        while any(map(is_at_work, workers)):
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_part_that_fails_stops_the_work_with_its_reason(work, processes):
    with pytest.raises(DataError, match=r"\(ValueError: no a\)|\(ValueError: no b\)"):
        runners.run(["a", "b"], work.fail, Runner(processes))


@pytest.mark.slow
def test_a_worker_that_is_killed_stops_the_work(work):
    with pytest.raises(DataError, match="--jobs"):
        runners.run(["a", "b"], work.die, Runner(2))


@pytest.mark.long
def test_nothing_imports_beam_unless_asked_to(tmp_path, monkeypatch):
    """A package of its name that can't be imported shows it, in every process."""
    fake = tmp_path / "modules/apache_beam"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("raise ModuleNotFoundError('x', name='apache_beam')")
    monkeypatch.setenv("PYTHONPATH", str(fake.parent))
    (tmp_path / "tiny.yaml").write_text("name: tiny\n")
    overrides = ("--set", "data.phantoms=8", "data.size=16", "build.shard_mammograms=2")
    arguments = ("--config", tmp_path / "tiny.yaml", *overrides)
    done = run_module("tfmammo.data.build", *arguments, "--output", tmp_path / "a", "--jobs", 2)
    assert done.returncode == 0, done.stderr
    last = ("--output", tmp_path / "b", "--runner", "DirectRunner")
    done = run_module("tfmammo.data.build", *arguments, *last)
    assert done.returncode == 2 and done.stderr.endswith(
        'error: apache_beam is missing: pip install "tfmammo[beam]"\n'
    )


def parse(*arguments: str) -> tuple[argparse.Namespace, Runner]:
    parser = cli.make_command_parser("x", None)
    parser.add_overrides()
    runners.add_options(parser)
    return runners.parse(parser, arguments)


def test_jobs_and_runners_are_parsed():
    assert parse()[1] == Runner(len(os.sched_getaffinity(0)))
    assert parse("--jobs", "3", "--set", "a=1")[1] == Runner(3)
    options, runner = parse("--set", "a=1", "--runner=DirectRunner", "--direct_num_workers", "2")
    assert options.set == ["a=1"]
    assert runner.beam == "DirectRunner" and runner.flags == ("--direct_num_workers", "2")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--direct_num_workers", "2"], "unknown: --direct_num_workers 2"),
        (
            ["--runner=DirectRunner", "--sett=a=1", "--direct_num_workers", "2"],
            "unknown: --sett=a=1; did you mean --set?",
        ),
        (["--runner=DirectRunner", "--jobs", "2"], "not allowed with"),
    ],
)
def test_what_nobody_knows_is_refused(capsys, arguments, said):
    with pytest.raises(SystemExit):
        parse(*arguments)
    assert said in capsys.readouterr().err


def test_finished_parts_are_kept_and_missing_ones_an_error(tmp_path, monkeypatch):
    names = []

    def make(path):
        names.append(path.name)
        path.write_text("whole")

    def complete():
        names.clear()
        parts = [tmp_path / "b", tmp_path / "a"]
        return runners.complete_parts(parts, make, read, lambda path: path, Runner())

    def read(path):
        return path.read_text() if path.is_file() else None

    assert complete() == ["whole"] * 2 and names == ["b", "a"]
    assert complete() == ["whole"] * 2 and names == []
    (tmp_path / "a").unlink()
    monkeypatch.setattr(runners, "run", lambda parts, make, runner: None)
    with pytest.raises(DataError, match="/a: "):
        complete()
