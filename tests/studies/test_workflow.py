"""Steps: run in order, never twice, refused where others lie, stopped with what they run."""

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
from tfmammo.errors import DataError
from tfmammo.studies import workflow
from tfmammo.studies.workflow import Step, format_overrides

WRITE = (
    "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.parent.mkdir(parents=True, "
    "exist_ok=True); p.open('a').write(sys.argv[2]); "
    "(p.parent / sys.argv[3]).mkdir(exist_ok=True)"
)


def writing(name, text, output, depends_on=(), **further):
    """A step that appends a text to OUTPUT/ran and makes its folder."""
    return Step(name, ("-c", WRITE, str(output / "ran"), text, name), depends_on, **further)


def test_overrides_are_what_set_takes():
    values = {
        "data": {"size": 64, "root": None, "kinds": ["mass"], "window": {}},
        "name": "a b",
        "clip": 0.5,
        "on": True,
    }
    assert format_overrides(values) == [
        "data.size=64",
        "data.root=null",
        'data.kinds=["mass"]',
        "data.window={}",
        "name=a b",
        "clip=0.5",
        "on=true",
    ]


def test_a_step_knows_its_overrides():
    step = Step(
        "one",
        ("x.py", "--config", "a.yaml", "--set", "a=1", "b.c=[2]", "--output", "d"),
        (),
        ("--set", "count=3"),
        ("--set", "e=4"),
    )
    assert step.overrides == ["a=1", "b.c=[2]", "count=3", "e=4"]


def test_steps_run_in_order_once(tmp_path):
    steps = [writing("one", "1", tmp_path), writing("two", "2", tmp_path, ("one",))]
    finished = []
    workflow.run_steps(steps, tmp_path, on_finish=finished.append)
    workflow.run_steps(steps, tmp_path, on_finish=finished.append)
    assert finished == ["one", "two"] * 2
    assert (tmp_path / "ran").read_text() == "12"
    assert (
        json.loads((tmp_path / "done/two.json").read_text())["command"] == steps[1].format_command()
    )


def test_further_steps_join_and_what_is_ignored_does_not_count(tmp_path):
    workflow.run_steps([writing("one", "1", tmp_path)], tmp_path)
    workflow.run_steps(
        [
            writing("one", "1", tmp_path, ignored_args=("--set", "tracking.parent=other")),
            writing("two", "2", tmp_path),
        ],
        tmp_path,
    )
    assert (tmp_path / "ran").read_text() == "12"


def test_a_step_of_other_resumable_arguments_goes_on_and_what_depends_on_it_stays(tmp_path):
    for argument in ("count=3", "count=5", "count=5"):
        workflow.run_steps(
            [
                writing("one", "1", tmp_path, resumable_args=(argument,)),
                writing("two", "2", tmp_path, ("one",)),
            ],
            tmp_path,
        )
    assert (tmp_path / "ran").read_text() == "121"


def test_other_work_in_a_steps_place_is_refused(tmp_path):
    first = writing("one", "1", tmp_path), writing("two", "2", tmp_path, ("one",))
    workflow.run_steps(first, tmp_path, "this split")
    with pytest.raises(DataError, match="one: was made by another config"):
        workflow.run_steps(first, tmp_path, "another split")
    with pytest.raises(DataError, match="one: was made by another config"):
        workflow.run_steps([writing("one", "other", tmp_path), first[1]], tmp_path, "this split")
    (tmp_path / "done/one.json").unlink()
    # because what it needs is another
    with pytest.raises(DataError, match="two: was made by another config"):
        workflow.run_steps([writing("one", "other", tmp_path), first[1]], tmp_path, "this split")


def test_a_config_file_counts_by_its_content(tmp_path):
    config = tmp_path / "some.yaml"
    config.write_text("a: 1")
    (tmp_path / "one").mkdir()
    step = Step("one", ("-c", "pass", str(config)))
    workflow.run_steps([step], tmp_path)
    config.write_text("a: 2")
    with pytest.raises(DataError, match="another config"):
        workflow.run_steps([step], tmp_path)


def test_work_that_moved_is_known(tmp_path):
    workflow.run_steps([writing("one", "1", tmp_path / "here")], tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    workflow.run_steps([writing("one", "1", tmp_path / "there")], tmp_path / "there")
    assert (tmp_path / "there/ran").read_text() == "1"


def test_code_that_moved_is_known(tmp_path, monkeypatch):
    for place in ("here", "there"):
        monkeypatch.setattr(workflow.shipped, "ROOT", tmp_path / place)
        script = tmp_path / place / "script.py"
        script.parent.mkdir()
        script.write_text(f"open(r'{tmp_path / 'ran'}', 'a').write('1')")
        (tmp_path / "work/one").mkdir(parents=True, exist_ok=True)
        workflow.run_steps([Step("one", (str(script),))], tmp_path / "work")
    assert (tmp_path / "ran").read_text() == "1"


def test_a_failure_says_which_and_why_and_is_tried_again(tmp_path):
    failing = Step("bad", ("-c", "import sys; print('first'); sys.exit('error: no such archive')"))
    for _ in range(2):
        with pytest.raises(
            DataError,
            match=r"bad: failed with exit code 1 \(error: no such archive\); all it said: "
            r".*bad.txt",
        ):
            workflow.run_steps([writing("one", "1", tmp_path), failing], tmp_path)
    assert (tmp_path / "ran").read_text() == "1"
    assert (tmp_path / "logs/bad.txt").read_text().count("first") == 2


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


def test_work_of_another_version_is_refused_unless_that_is_asked_for(tmp_path, monkeypatch, caplog):
    steps = [writing("one", "1", tmp_path), writing("two", "2", tmp_path, ("one",))]
    assert workflow.run_steps(steps, tmp_path) == workflow.Outcome()
    monkeypatch.setattr(workflow, "hash_sources", lambda: "another state of the package")
    with pytest.raises(
        DataError,
        match=r"one: was made by another version of tfmammo \(.*; this is .*\); .* --any-version",
    ):
        workflow.run_steps(steps, tmp_path)
    outcome = workflow.run_steps(steps, tmp_path, any_version=True)
    assert outcome.of_other_versions == ["one", "two"]
    assert (
        tmp_path / "ran"
    ).read_text() == "12" and "2 of 2 steps were made by other versions" in caplog.text


def test_a_note_that_knows_no_version_is_of_another_one(tmp_path):
    steps = [writing("one", "1", tmp_path)]
    workflow.run_steps(steps, tmp_path)
    path = tmp_path / "done/one.json"
    path.write_text(
        json.dumps(
            {key: value for key, value in json.loads(path.read_text()).items() if key != "code"}
        )
    )
    with pytest.raises(DataError, match="another version of tfmammo .not noted"):
        workflow.run_steps(steps, tmp_path)


def test_the_source_and_the_script_are_part_of_the_version(tmp_path, monkeypatch):
    script = tmp_path / "train.py"
    script.write_text("a = 1")
    step = Step("one", (str(script), "--config", "x.yaml"))
    first = workflow.identify_code(step)
    script.write_text("a = 2")
    assert workflow.identify_code(step) != first
    script.write_text("a = 1")
    assert workflow.identify_code(step) == first
    package = tmp_path / "package"
    (package / "inner").mkdir(parents=True)
    (package / "inner/module.py").write_text("b = 1")
    monkeypatch.setattr(workflow, "__file__", str(package / "steps.py"))
    digests = []
    for text in ("b = 1", "b = 2", "b = 1"):
        (package / "inner/module.py").write_text(text)
        workflow.hash_sources.cache_clear()
        digests.append(workflow.hash_sources())
    workflow.hash_sources.cache_clear()
    assert digests[0] == digests[2] != digests[1]


def test_what_is_gone_is_made_again(tmp_path, caplog):
    steps = [writing("one", "1", tmp_path), writing("two", "2", tmp_path, ("one",))]
    workflow.run_steps(steps, tmp_path)
    (tmp_path / "one").rmdir()
    workflow.run_steps(steps, tmp_path)
    assert (tmp_path / "ran").read_text() == "1212" and "one: was done, but" in caplog.text


def test_what_was_made_of_a_lost_result_is_made_again(tmp_path):
    names = {"one": (), "two": ("one",), "three": ("two",), "four": ()}
    steps = [writing(name, name[1], tmp_path, needed) for name, needed in names.items()]
    workflow.run_steps(steps, tmp_path)
    (tmp_path / "one").rmdir()
    workflow.run_steps(steps, tmp_path)
    assert (tmp_path / "ran").read_text() == "nwho" + "nwh"


def test_what_another_plan_made_of_a_lost_result_is_made_again(tmp_path):
    train, one = writing("train", "t", tmp_path), writing("one", "1", tmp_path, ("train",))
    two = writing("two", "2", tmp_path, ("train",))
    workflow.run_steps([train, one, two], tmp_path)
    (tmp_path / "train").rmdir()
    workflow.run_steps([train, one], tmp_path)
    workflow.run_steps([train, one, two], tmp_path)
    assert (tmp_path / "ran").read_text() == "t12" + "t1" + "2"


def test_half_a_result_of_a_second_run_is_not_finished(tmp_path):
    code = (
        "import pathlib, sys; folder = pathlib.Path({0!r}); folder.mkdir(exist_ok=True);"
        "tries = folder.parent / 'tries'; tries.open('a').write('x');"
        "sys.exit(tries.read_text() == 'xx')"
    )
    step = Step("one", ("-c", code.format(str(tmp_path / "one"))))
    workflow.run_steps([step], tmp_path)
    shutil.rmtree(tmp_path / "one")
    with pytest.raises(DataError, match="one: failed with exit code 1"):
        workflow.run_steps([step], tmp_path)
    workflow.run_steps([step], tmp_path)
    workflow.run_steps([step], tmp_path)
    assert (tmp_path / "tries").read_text() == "xxx"


def test_what_is_made_again_does_not_find_its_old_result(tmp_path):
    """A training that finds its export ends at once, and would pass for new."""
    code = (
        "import pathlib, sys; folder = pathlib.Path({folder!r}); folder.mkdir(exist_ok=True);"
        "file = folder / 'made'; file.exists() or file.write_text({text!r})"
    )

    def making(name, text, needed=()):
        return Step(name, ("-c", code.format(folder=str(tmp_path / name), text=text)), needed)

    workflow.run_steps([making("one", "1"), making("two", "2", ("one",))], tmp_path)
    (tmp_path / "two" / "made").write_text("old")
    shutil.rmtree(tmp_path / "one")
    workflow.run_steps([making("one", "1"), making("two", "2", ("one",))], tmp_path)
    assert (tmp_path / "two" / "made").read_text() == "2"
    assert (tmp_path / "two.old" / "made").read_text() == "old"
    (tmp_path / "two" / "made").write_text("kept")
    workflow.run_steps([making("one", "1"), making("two", "2", ("one",))], tmp_path)
    assert (tmp_path / "two" / "made").read_text() == "kept"


def test_no_command_goes_on_when_its_report_fails(tmp_path):
    def fill_disk(name):
        raise OSError(28, "No space left on device")

    make = workflow._Runner
    runner = []

    def remember(*arguments):
        runner.append(make(*arguments))
        return runner[0]

    waiting = Step("long", ("-c", "import time; time.sleep(60)"), ())
    with (
        mock.patch.object(workflow, "_Runner", side_effect=remember),
        pytest.raises(OSError, match="No space left"),
    ):
        workflow.run_steps(
            [waiting, writing("one", "1", tmp_path)], tmp_path, jobs=2, on_finish=fill_disk
        )
    assert runner[0].processes["long"].wait(10) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("name", "argument"), [("inner.yaml", "methods={a: {config: FILE}}"), ("a = b.yaml", "FILE")]
)
def test_config_files_count_by_their_content(tmp_path, name, argument):
    file = tmp_path / name
    digests = []
    for content in ("a: 1", "a: 2"):
        file.write_text(content)
        step = Step("one", ("-c", "", argument.replace("FILE", str(file))), ())
        digests.append(workflow._hash_step(step, {}, tmp_path / "output", ""))
    assert digests[0] != digests[1]


def test_config_files_are_found_as_the_command_finds_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [path.name for path in workflow._list_configs("detector.script='ssd'")] == ["ssd.yaml"]
    assert workflow._list_configs("configs/can.yaml") == [shipped.ROOT / "configs/can.yaml"]
    (tmp_path / "own.yaml").write_text("a: 1")
    assert workflow._list_configs("own.yaml") == [Path("own.yaml")]


def test_a_step_that_makes_nothing_has_failed(tmp_path):
    step = Step("one", ("-c", "pass"), outputs=("export/card.json",))
    with pytest.raises(DataError, match=r"one: ended well and made no .*one/export/card.json"):
        workflow.run_steps([step], tmp_path)
    assert not (tmp_path / "done").exists()


def test_what_is_noted_of_a_command_holds_no_password():
    uri = "postgresql://anna:ge/heim@db/runs"
    step = workflow.Step(
        "one",
        ("train/can.py", "--config", "c.yaml"),
        ignored_args=("--set", f"tracking.uri={uri}", 'data.kinds=["mass"]'),
    )
    assert (
        step.format_command()
        == "python train/can.py --config c.yaml --set tracking.uri=postgresql://db/runs "
        "'data.kinds=[\"mass\"]'"
    )
    assert f"tracking.uri={uri}" in step.arguments


FAIL = Step("bad", ("-c", "import sys; sys.exit('error: no data')"))


def test_a_failure_ends_the_work(tmp_path):
    steps = [FAIL, writing("other", "1", tmp_path)]
    with pytest.raises(DataError, match="bad: failed with exit code 1"):
        workflow.run_steps(steps, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_work_keeps_going_without_what_needs_the_failed_step(tmp_path, caplog):
    steps = [
        FAIL,
        writing("needs", "1", tmp_path, ("bad",)),
        writing("needs_that", "2", tmp_path, ("needs",)),
        writing("free", "3", tmp_path),
    ]
    outcome = workflow.run_steps(steps, tmp_path, keep_going=True)
    assert (tmp_path / "ran").read_text() == "3"
    assert list(outcome.failures) == ["bad", "needs", "needs_that"]
    assert "bad: failed with exit code 1 (error: no data)" in caplog.text
    assert outcome.failures["needs_that"] == "needs_that: needs needs, which failed"


def test_independent_steps_run_at_once_and_dependent_ones_after_them(tmp_path):
    # Each of the pair waits for the other to start, which takes two processes at a time.
    meet = (
        "import pathlib, sys, time; own, other = map(pathlib.Path, sys.argv[1:3]); own.mkdir()\n"
        "for _ in range(400):\n"
        "    if other.is_dir(): break\n"
        "    time.sleep(0.05)\n"
        "else: sys.exit('error: alone')\n"
    )
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    steps = [
        Step("one", ("-c", meet, one, two)),
        Step("two", ("-c", meet, two, one)),
        writing("last", "3", tmp_path, ("one", "two")),
    ]
    workflow.run_steps(steps, tmp_path, jobs=2)
    assert (tmp_path / "ran").read_text() == "3"


def test_what_runs_beside_a_failure_is_finished_first(tmp_path):
    slow = Step("slow", ("-c", "import sys, time; time.sleep(0.5); " + WRITE, *[
        str(tmp_path / "ran"), "1", "slow"
    ]))  # fmt: skip
    with pytest.raises(DataError, match="bad"):
        workflow.run_steps([FAIL, slow, writing("never", "2", tmp_path)], tmp_path, jobs=2)
    assert (tmp_path / "ran").read_text() == "1" and (tmp_path / "done/slow.json").is_file()


def test_libraries_are_part_of_the_version_and_the_commit_is_noted(tmp_path, monkeypatch):
    steps = [writing("one", "1", tmp_path)]
    workflow.run_steps(steps, tmp_path)
    note = json.loads((tmp_path / "done/one.json").read_text())
    assert f"tensorflow {workflow.metadata.version('tensorflow')}" in note["code"]
    assert "commit" in note
    monkeypatch.setattr(workflow, "LIBRARIES", ("numpy",))
    with pytest.raises(DataError, match="another version"):
        workflow.run_steps(steps, tmp_path)
