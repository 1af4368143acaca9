"""Steps: run in order, never twice, refused where others are, stopped with what they run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from tfmammo import shipped
from tfmammo.config import format_overrides
from tfmammo.errors import DataError
from tfmammo.studies import workflow
from tfmammo.studies.workflow import Step, run_steps

WRITE = (
    "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.parent.mkdir(parents=True, "
    "exist_ok=True); p.open('a').write(sys.argv[2]); "
    "(p.parent / sys.argv[3]).mkdir(exist_ok=True)"
)
FAIL = Step("bad", ("-c", "import sys; print('first'); sys.exit('error: no data')"))


def writing(name, text, output, depends_on=(), arguments=(), **further):
    """A step that appends a text to OUTPUT/ran and makes its folder."""
    command = ("-c", WRITE, str(output / "ran"), text, name, *arguments)
    return Step(name, command, depends_on, **further)


@pytest.fixture
def pair(tmp_path):
    """Two steps, the second of which needs the first."""
    return [writing("one", "1", tmp_path), writing("two", "2", tmp_path, ("one",))]


def ran(output):
    return (output / "ran").read_text()


def test_overrides_are_what_set_takes():
    data = {"size": 64, "root": None, "kinds": ["mass"], "window": {}}
    values = {"data": data, "name": "a b", "clip": 0.5, "on": True, "root": "/ä #2", "text": "1e3"}
    assert format_overrides(values) == [
        *("data.size=64", "data.root=null", 'data.kinds=["mass"]', "data.window={}"),
        *("name=a b", "clip=0.5", "on=true", 'root="/ä #2"', "text=1e3"),
    ]
    command = ("x.py", "--config", "a.yaml", "--set", "a=1", "b.c=[2]", "--output", "d")
    step = Step("one", command, (), ("--set", "count=3"), ("--set", "e=4"))
    assert step.overrides == ["a=1", "b.c=[2]", "count=3", "e=4"]


def test_steps_run_in_order_once(tmp_path, pair):
    finished = []
    for _ in range(2):
        run_steps(pair, tmp_path, on_finish=finished.append)
    assert finished == ["one", "two"] * 2 and ran(tmp_path) == "12"
    note = json.loads((tmp_path / "done/two.json").read_text())
    assert note["command"] == pair[1].format_command() and "commit" in note
    # further steps join, and what is ignored does not count
    ignored = writing("one", "1", tmp_path, ignored_args=("--set", "tracking.parent=other"))
    run_steps([ignored, pair[1], writing("three", "3", tmp_path)], tmp_path)
    assert ran(tmp_path) == "123"


def test_a_step_of_other_resumable_arguments_goes_on_and_what_depends_on_it_stays(tmp_path, pair):
    for argument in ("count=3", "count=5", "count=5"):
        run_steps([writing("one", "1", tmp_path, resumable_args=(argument,)), pair[1]], tmp_path)
    assert ran(tmp_path) == "121"


def test_other_work_in_a_steps_place_is_refused(tmp_path, pair):
    other = [writing("one", "other", tmp_path), pair[1]]
    run_steps(pair, tmp_path, "this split")
    for steps, context in ((pair, "another split"), (other, "this split")):
        with pytest.raises(DataError, match="one: was made by another config"):
            run_steps(steps, tmp_path, context)
    (tmp_path / "done/one.json").unlink()
    # because what it needs is another
    with pytest.raises(DataError, match="two: was made by another config"):
        run_steps(other, tmp_path, "this split")


def test_work_code_and_archives_may_move_but_not_change(tmp_path, monkeypatch):
    for place in ("here", "there"):
        monkeypatch.setattr(workflow.shipped, "ROOT", tmp_path / place)
        work, archive = tmp_path / place / "work", tmp_path / place / "archive #2"
        if place == "there":
            (tmp_path / "here").rename(tmp_path / "there")
        else:
            archive.mkdir(parents=True)
            (archive / "image.dcm").write_bytes(b"pixels")
        script = tmp_path / place / "script.py"
        script.write_text(f"open(r'{tmp_path / 'ran'}', 'a').write('1')")
        (work / "one").mkdir(parents=True, exist_ok=True)
        step = Step("one", (str(script), "--set", *format_overrides({"data.root": str(archive)})))
        run_steps([step], work)
    assert ran(tmp_path) == "1"
    workflow._hash_listing.cache_clear()
    (archive / "image.dcm").write_bytes(b"more pixels")
    with pytest.raises(DataError, match="another config"):
        run_steps([step], work)


def test_config_files_count_by_their_content(tmp_path, monkeypatch):
    for name, argument in (("inner.yaml", "{a: {config: FILE}}"), ("a = b.yaml", "FILE")):
        file = tmp_path / name
        digests = set()
        for content in ("a: 1", "a: 2"):
            file.write_text(content)
            step = Step("one", ("-c", "", argument.replace("FILE", str(file))), ())
            digests.add(workflow._hash_step(step, {}, tmp_path / "output", ""))
        assert len(digests) == 2
    # they are found as the command finds them
    monkeypatch.chdir(tmp_path)
    assert [path.name for path in workflow._list_configs("detector.script='ssd'")] == ["ssd.yaml"]
    assert workflow._list_configs("configs/can.yaml") == [shipped.ROOT / "configs/can.yaml"]
    assert workflow._list_configs("inner.yaml") == [Path("inner.yaml")]


def test_a_failure_says_which_and_why_ends_the_work_and_is_tried_again(tmp_path):
    steps = [writing("one", "1", tmp_path), FAIL, writing("other", "2", tmp_path)]
    for _ in range(2):
        with pytest.raises(DataError, match=r"bad: .* code 1 \(error: no data\).*bad.txt"):
            run_steps(steps, tmp_path)
    assert ran(tmp_path) == "1"
    assert (tmp_path / "logs/bad.txt").read_text().count("first") == 2
    nothing = Step("none", ("-c", "pass"), outputs=("export/card.json",))
    with pytest.raises(DataError, match=r"none: .*none/export/card.json"):
        run_steps([nothing], tmp_path)
    assert not (tmp_path / "done/none.json").exists()


def test_the_work_keeps_going_without_what_needs_the_failed_step(tmp_path, caplog):
    needing = {"needs": ("bad",), "needs_that": ("needs",), "free": ()}
    steps = [FAIL, *(writing(name, "3", tmp_path, needed) for name, needed in needing.items())]
    outcome = run_steps(steps, tmp_path, keep_going=True)
    assert ran(tmp_path) == "3" and "bad: failed" in caplog.text
    assert list(outcome.failures) == ["bad", "needs", "needs_that"]


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_reaches_what_runs_and_the_next_run_goes_on(tmp_path, number):
    child = (
        "import signal, sys, pathlib, time\n"
        "where = pathlib.Path(sys.argv[1])\n"
        "(where / 'long').mkdir(exist_ok=True)\n"
        "def stop(*_):\n    (where / 'saved').touch(); sys.exit(1)\n"
        "for one in (signal.SIGINT, signal.SIGTERM): signal.signal(one, stop)\n"
        "(where / 'started').touch()\n"
        "time.sleep(0 if (where / 'saved').exists() else 60)\n"
    )
    parent = (
        "import pathlib, sys\nfrom tfmammo import cli\nfrom tfmammo.studies import workflow\n"
        f"step = workflow.Step('long', ('-c', {child!r}, sys.argv[1]))\n"
        "cli.run(lambda: workflow.run_steps([step], pathlib.Path(sys.argv[1])))\n"
    )
    command = [sys.executable, "-c", parent, str(tmp_path)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "started").exists():
        assert running.poll() is None
        time.sleep(0.05)
    os.kill(running.pid, number)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 128 + number and "stopped in long, everything is saved" in said
    assert (tmp_path / "saved").exists()
    subprocess.run(command, check=True, timeout=60)
    assert (tmp_path / "done/long.json").is_file()


@pytest.mark.parametrize(
    ("name", "value"), [("hash_sources", lambda: "another state"), ("LIBRARIES", ("numpy",))]
)
def test_work_of_another_version_is_refused_unless_that_is_asked_for(
    tmp_path, pair, monkeypatch, caplog, name, value
):
    assert run_steps(pair, tmp_path) == workflow.Outcome()
    monkeypatch.setattr(workflow, name, value)
    with pytest.raises(DataError, match="one: was made by another version.*--any-version"):
        run_steps(pair, tmp_path)
    outcome = run_steps(pair, tmp_path, any_version=True)
    assert outcome.of_other_versions == ["one", "two"] and ran(tmp_path) == "12"
    assert "2 of 2 steps were made by other versions" in caplog.text


def test_the_source_and_the_script_are_part_of_the_version(tmp_path, monkeypatch):
    script = tmp_path / "train.py"
    package = tmp_path / "package"
    (package / "inner").mkdir(parents=True)
    monkeypatch.setattr(workflow, "__file__", str(package / "steps.py"))
    codes = []
    for own, source in (("a = 1", "b = 1"), ("a = 2", "b = 1"), ("a = 1", "b = 2")) * 2:
        script.write_text(own)
        (package / "inner/module.py").write_text(source)
        workflow.hash_sources.cache_clear()
        codes.append(workflow.identify_code(Step("one", (str(script), "--config", "x.yaml"))))
    workflow.hash_sources.cache_clear()
    assert codes[:3] == codes[3:] and len(set(codes)) == 3


def test_what_was_made_of_a_lost_result_is_made_again(tmp_path, caplog):
    names = {"one": (), "two": ("one",), "three": ("two",), "four": ()}
    steps = [writing(name, name[1], tmp_path, needed) for name, needed in names.items()]
    run_steps(steps, tmp_path)
    (tmp_path / "one").rmdir()
    run_steps(steps, tmp_path)
    assert ran(tmp_path) == "nwho" + "nwh" and "one: was done, but" in caplog.text
    # in another plan that knows only one of the two that need it, too
    (tmp_path / "one").rmdir()
    run_steps(steps[:1], tmp_path)
    run_steps(steps, tmp_path)
    assert ran(tmp_path) == "nwhonwh" + "n" + "wh"


def test_half_a_result_of_a_second_run_is_not_finished(tmp_path):
    code = (
        "import pathlib, sys; folder = pathlib.Path({0!r}); folder.mkdir(exist_ok=True);"
        "tries = folder.parent / 'tries'; tries.open('a').write('x');"
        "sys.exit(tries.read_text() == 'xx')"
    )
    step = Step("one", ("-c", code.format(str(tmp_path / "one"))))
    run_steps([step], tmp_path)
    shutil.rmtree(tmp_path / "one")
    with pytest.raises(DataError, match="one: failed with exit code 1"):
        run_steps([step], tmp_path)
    run_steps([step], tmp_path)
    run_steps([step], tmp_path)
    assert (tmp_path / "tries").read_text() == "xxx"


def test_what_is_made_again_does_not_find_its_old_result(tmp_path):
    """A training run that finds its export ends at once, and would pass for new."""
    code = (
        "import pathlib, sys; folder = pathlib.Path({folder!r}); folder.mkdir(exist_ok=True);"
        "file = folder / 'made'; file.exists() or file.write_text({text!r})"
    )
    steps = [
        Step(name, ("-c", code.format(folder=str(tmp_path / name), text=text)), needed)
        for name, text, needed in (("one", "1", ()), ("two", "2", ("one",)))
    ]
    run_steps(steps, tmp_path)
    made = tmp_path / "two" / "made"
    made.write_text("old")
    shutil.rmtree(tmp_path / "one")
    run_steps(steps, tmp_path)
    assert made.read_text() == "2" and (tmp_path / "two.old" / "made").read_text() == "old"
    made.write_text("kept")
    run_steps(steps, tmp_path)
    assert made.read_text() == "kept"


def test_no_command_goes_on_when_its_report_fails(tmp_path):
    def fill_disk(name):
        raise OSError(28, "No space left on device")

    make = workflow._Runner
    runner = []

    def remember(*arguments):
        runner.append(make(*arguments))
        return runner[0]

    steps = [Step("long", ("-c", "import time; time.sleep(60)"), ()), writing("one", "1", tmp_path)]
    with (
        mock.patch.object(workflow, "_Runner", side_effect=remember),
        pytest.raises(OSError, match="No space left"),
    ):
        run_steps(steps, tmp_path, jobs=2, on_finish=fill_disk)
    assert runner[0].processes["long"].wait(10) == -signal.SIGTERM


def test_what_is_shown_of_a_command_holds_no_password():
    uri = "postgresql://anna:ge/heim@db/runs"
    ignored = ("--set", f"tracking.uri={uri}", 'data.kinds=["mass"]')
    step = Step("one", ("train/can.py", "--config", "c.yaml"), ignored_args=ignored)
    shown = "python train/can.py --config c.yaml --set tracking.uri=postgresql://db/runs"
    assert step.format_command() == f"{shown} 'data.kinds=[\"mass\"]'"
    assert f"tracking.uri={uri}" in step.arguments


def test_what_runs_at_the_time_of_a_failure_is_finished_first(tmp_path):
    code = "import time; time.sleep(0.5); " + WRITE
    slow = Step("slow", ("-c", code, str(tmp_path / "ran"), "1", "slow"))
    with pytest.raises(DataError, match="bad"):
        run_steps([FAIL, slow, writing("never", "2", tmp_path)], tmp_path, jobs=2)
    assert ran(tmp_path) == "1" and (tmp_path / "done/slow.json").is_file()
