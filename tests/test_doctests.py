"""The examples in docstrings run, and the names that a library user meets first have one."""

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest

import tfmammo

FIRST = [
    "tfmammo.config.load",
    "tfmammo.config.parse",
    "tfmammo.archives.phantom.read",
    "tfmammo.mammogram.Mammogram",
    "tfmammo.mammogram.Lesion",
    "tfmammo.data.extraction.make_patches",
    "tfmammo.data.splits.split",
    "tfmammo.data.preprocess.resize",
    "tfmammo.nn.losses.dice_loss",
    "tfmammo.nn.losses.log_real",
    "tfmammo.nn.layers.SpectralNormalization",
    "tfmammo.nn.layers.SelfAttention",
    "tfmammo.models.can.CAN",
    "tfmammo.models.shape.ShapeCNN",
    "tfmammo.baselines.unet.UNet",
    "tfmammo.metrics.segmentation.dice",
    "tfmammo.metrics.segmentation.mcc",
    "tfmammo.metrics.classification.roc_auc",
    "tfmammo.metrics.classification.delong_test",
    "tfmammo.metrics.detection.froc",
]
PACKAGE = Path(tfmammo.__file__).parent


def list_modules():
    """List the modules with an example."""
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>>" in path.read_text("utf-8")]
    parts = [path.relative_to(PACKAGE.parent).with_suffix("").parts for path in files]
    return [".".join(names).removesuffix(".__init__") for names in parts]


@pytest.mark.slow
@pytest.mark.parametrize("name", list_modules())
def test_the_examples_run(name, tmp_path, monkeypatch, repository):
    monkeypatch.chdir(repository)
    module = importlib.import_module(name)
    # of the module's own __file__, without what it imports
    found = doctest.DocTestFinder().find(module, name, extraglobs={"np": np})
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert not sum(runner.run(test).failed for test in found)
    assert runner.tries > 0


@pytest.mark.parametrize("name", FIRST)
def test_what_a_user_meets_first_has_an_example(name):
    module, _, attribute = name.rpartition(".")
    shown = getattr(importlib.import_module(module), attribute)
    assert ">>>" in (shown.__doc__ or ""), f"{name} has no example"
