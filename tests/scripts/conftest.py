"""Fixtures of the tests that run scripts in this process."""

import importlib.util
import json
import sys

import pytest

from tests.commands import run_module_here, run_script_here
from tfmammo.studies import workflow


@pytest.fixture(scope="session")
def call_script(repository):
    """A function (script, such as "evaluate/shape", *arguments) that runs its `main` here."""

    def call(script, *arguments):
        path = repository / f"{script}.py"
        spec = importlib.util.spec_from_file_location(script.replace("/", "_"), path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses and pydantic look annotations up
        spec.loader.exec_module(module)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
            module.main()

    return call


@pytest.fixture(scope="session")
def run_evaluate(call_script, repository, tmp_path_factory):
    """A function (name, config, *overrides) that runs an evaluate script here -> its output.

    The config is a mapping; None: the shipped one of the script's name.
    """

    def call(name, config, *overrides):
        folder = tmp_path_factory.mktemp(name)
        file = repository / "configs" / f"{name}.yaml"
        if config is not None:
            file = folder / "config.yaml"
            file.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        arguments = ["--config", file, "--output", folder / "output"]
        arguments += ["--set", *overrides] if overrides else []
        call_script(f"evaluate/{name}", *arguments)
        return folder / "output"

    return call


@pytest.fixture
def steps_here(repository, monkeypatch):
    """Steps of a study run in this process, which saves TensorFlow's imports for each.

    tests/studies/test_workflow.py shows them in processes of their own.
    """

    def start(step, output):
        first, *others = step.arguments
        done = run_module_here(*others) if first == "-m" else run_script_here(first, *others)
        done.poll = lambda: done.returncode
        log_file = workflow._find_log(output, step)
        log_file.parent.mkdir(parents=True, exist_ok=True)
        log_file.write_text(done.stdout + done.stderr, encoding="utf-8")
        return done

    monkeypatch.chdir(repository)  # which the steps' paths start from
    monkeypatch.setattr(workflow, "_start_process", start)
    monkeypatch.setattr(workflow, "POLL", 0)
