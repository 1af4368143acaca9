"""The examples in docstrings run, and the names that a library user meets first have one."""

import doctest
import importlib

import numpy as np
import pytest

FIRST = [
    "tfmammo.config.load",
    "tfmammo.config.parse",
    "tfmammo.archives.phantom.read",
    "tfmammo.mammogram.Mammogram",
    "tfmammo.mammogram.Lesion",
    "tfmammo.data.extraction.make_patches",
    "tfmammo.data.splits.split",
    "tfmammo.data.preprocess.resize",
    "tfmammo.losses.dice_loss",
    "tfmammo.losses.log_real",
    "tfmammo.layers.SpectralNormalization",
    "tfmammo.layers.SelfAttention",
    "tfmammo.models.can.CAN",
    "tfmammo.models.shape.ShapeCNN",
    "tfmammo.baselines.unet.UNet",
    "tfmammo.metrics.segmentation.dice",
    "tfmammo.metrics.segmentation.mcc",
    "tfmammo.metrics.classification.roc_auc",
    "tfmammo.metrics.classification.delong_test",
    "tfmammo.metrics.detection.froc",
]


def resolve(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST)
def test_the_example_runs(name, tmp_path, monkeypatch, repository):
    monkeypatch.chdir(repository)
    finder = doctest.DocTestFinder(recurse=False)
    found = finder.find(resolve(name), name, extraglobs={"np": np})
    assert found and found[0].examples, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert runner.run(found[0]).failed == 0
