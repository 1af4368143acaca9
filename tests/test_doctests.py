"""The examples in docstrings run."""

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest

import tfmammo

PACKAGE = Path(tfmammo.__file__).parent


def list_modules():
    """List the modules with an example."""
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>>" in path.read_text("utf-8")]
    parts = [path.relative_to(PACKAGE.parent).with_suffix("").parts for path in files]
    return [".".join(names).removesuffix(".__init__") for names in parts]


@pytest.mark.slow
@pytest.mark.parametrize("name", list_modules())
def test_the_examples_run(name, monkeypatch, repository):
    monkeypatch.chdir(repository)
    module = importlib.import_module(name)
    # of the module's own __file__, without what it imports
    found = doctest.DocTestFinder().find(module, name, extraglobs={"np": np})
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert not sum(runner.run(test).failed for test in found)
    assert runner.tries > 0
