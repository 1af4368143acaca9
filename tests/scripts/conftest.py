"""Fixtures of the tests that run scripts in this process."""

import importlib.util
import sys

import pytest


@pytest.fixture(scope="session")
def load_script(repository):
    """A function (name, such as "evaluate/shape") -> the script as a module."""

    def load(name):
        path = repository / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name.replace("/", "_"), path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses and pydantic look annotations up
        spec.loader.exec_module(module)
        return module

    return load
