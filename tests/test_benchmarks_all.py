"""benchmarks/all.py: what it runs, when it refuses, how it goes on, what it sums up."""

import importlib
import json
import os
import runpy
import sys
from unittest import mock

import pytest


@pytest.fixture
def script(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    monkeypatch.delitem(sys.modules, "all", raising=False)
    module = importlib.import_module("all")
    monkeypatch.setattr(module, "measure_load", lambda: 0.0)
    return module


def run(script, monkeypatch, path, *arguments):
    monkeypatch.setattr(sys, "argv", ["all.py", str(path), *arguments])
    script.main()


def test_every_benchmark_is_a_script_that_takes_its_arguments(
    script, repository, monkeypatch, capsys
):
    """Each script's own parser reads them, which refuses values, and its help knows the options."""
    longest = {command[0]: command[1:] for command in sorted(script.BENCHMARKS.values(), key=len)}
    for stem, arguments in longest.items():
        monkeypatch.setattr(sys, "argv", [stem, *arguments, "--help"])
        with pytest.raises(SystemExit) as stop, mock.patch.dict(os.environ):
            runpy.run_path(str(repository / f"benchmarks/{stem}.py"), run_name="__main__")
        assert stop.value.code == 0, (stem, capsys.readouterr().err)
        said = capsys.readouterr().out
        assert all(word in said for word in arguments if word.startswith("--")), stem


def test_runs_are_kept_joined_and_not_repeated(script, monkeypatch, tmp_path, capsys):
    asked = []

    def measure(arguments):
        asked.append(arguments)
        if len(asked) == 3:
            raise SystemExit("stopped")
        return [{"ratio": float(len(asked)), "rounds": [[1, 2]], "ratios": {"onnx": [2, 4]}}]

    monkeypatch.setattr(script, "measure", measure)
    path = tmp_path / "all.json"
    with pytest.raises(SystemExit, match="stopped"):
        run(script, monkeypatch, path, "--only", "froc", "--runs", "3")
    run(script, monkeypatch, path, "--only", "froc", "--runs", "3")
    assert asked == [("froc",)] * 4  # two, one that failed, and the third again
    measured = json.loads(path.read_text())
    assert [lines[0]["ratio"] for lines in measured["runs"]["froc"]] == [1, 2, 4]
    assert measured["summary"]["froc"]["0.ratio"] == [2, 1, 4]
    assert measured["summary"]["froc"]["0.ratios.onnx.1"] == [4, 4, 4]
    assert "| froc | 0.ratio | 2 | 1 to 4 |" in capsys.readouterr().out
    assert measured["machine"]["cores"] and measured["machine"]["tensorflow"]


def test_later_runs_keep_the_first_ones_choice(script, monkeypatch, tmp_path):
    asked = []
    chosen = ["ours tuned", "torch tcmalloc fused"]

    def measure(arguments):
        asked.append(arguments)
        return [{"ratio": 1.5, "chosen": chosen}]

    monkeypatch.setattr(script, "measure", measure)
    run(script, monkeypatch, tmp_path / "a.json", "--only", "step unet float32", "--runs", "3")
    first = script.BENCHMARKS["step unet float32"]
    assert asked == [first, *2 * [(*first, "--chosen", *chosen)]]
    # bfloat16 begins with the allocators of both sides
    asked.clear()
    run(script, monkeypatch, tmp_path / "a.json", "--only", "step unet bfloat16", "--runs", "2")
    first = script.BENCHMARKS["step unet bfloat16"]
    assert asked == [
        (*first, "--allocators", "tcmalloc", "tuned"),
        (*first, "--chosen", *chosen),
    ]


def test_a_file_of_another_machine_is_refused(script, monkeypatch, tmp_path):
    path = tmp_path / "all.json"
    path.write_text(json.dumps({"machine": {"cores": 512}, "runs": {}}))
    with pytest.raises(SystemExit, match="all.json"):
        run(script, monkeypatch, path)


def test_processors_of_one_name_are_told_apart(script):
    text = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu {}\n\n"
    zen3, zen4 = (
        script.describe_processor(text.format(flags) + text.format("of the second processor"))
        for flags in ("avx2 fma", "avx2 avx512f avx512_bf16")
    )
    assert zen3 == {"processor": "AMD EPYC", "instructions": ["avx2"]}
    assert zen4["instructions"] == ["avx2", "avx512f", "avx512_bf16"]


def test_a_busy_machine_is_refused(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "measure_load", lambda: 0.9)
    monkeypatch.setattr(script, "WAIT", -1)
    with pytest.raises(SystemExit, match="90%"):
        run(script, monkeypatch, tmp_path / "all.json", "--only", "froc")
    assert not (tmp_path / "all.json").exists()


def test_the_load_is_what_was_not_idle_meanwhile(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    monkeypatch.delitem(sys.modules, "all", raising=False)
    script = importlib.import_module("all")
    # user, nice, system, idle, waiting for a disk, interrupts, soft ones, stolen
    lines = iter(["cpu  10 0 5 100 0 0 0 0 7 7\ncpu0 1", "cpu  15 1 6 130 2 0 0 1 9 9\ncpu0 1"])
    monkeypatch.setattr(script.Path, "read_text", lambda path, encoding: next(lines))
    assert script.measure_load(0.0) == pytest.approx(10 / 40)


def test_an_unknown_name_is_an_error(script, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(script, monkeypatch, tmp_path / "all.json", "--only", "fork")
    assert "--only: none of step can float32," in capsys.readouterr().err


@pytest.mark.slow
def test_a_benchmark_that_fails_says_so(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script.sys, "executable", "/bin/false")
    with pytest.raises(SystemExit, match="froc: failed with code 1"):
        script.measure(("froc",))
