"""train/contextual.py: stages that are too short to fade in, and which of their
checkpoints may be the best.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from tfmammo import config as configuration
from tfmammo.errors import ConfigError
from tfmammo.models.contextual import Contextual, ContextualConfig

TINY = [
    "model.filters=[3,4,8]",
    "model.discriminator_factor=1",
    "model.attention=4",
    "model.border=1",
    "model.start=8",
    "data.size=32",
]


@pytest.fixture(scope="module")
def train(repository):
    spec = importlib.util.spec_from_file_location(
        "train_contextual", repository / "train/contextual.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic looks its generic classes up
    spec.loader.exec_module(module)
    return module


def experiment(repository, *overrides):
    return configuration.load(
        repository / "configs/contextual.yaml", [*TINY, *overrides], ContextualConfig
    )


def test_a_stage_that_ends_before_its_level_is_faded_in_is_refused(train, repository):
    chosen = experiment(repository, "model.fade_steps=10", "model.start_steps=10")
    train.check_fading(chosen, [8, 16, 32], 10)
    train.check_fading(chosen, [8, 16, 32], None)  # not known yet
    with pytest.raises(
        ConfigError,
        match=r"training.steps: 9 end before the level for 32 px is faded in "
        r"\(model.fade_steps=10\)",
    ):
        train.check_fading(chosen, [8, 16, 32], 9)
    short = experiment(repository, "model.fade_steps=10", "model.start_steps=9")
    with pytest.raises(
        ConfigError, match="model.start_steps: 9 end before the level for 16 px is faded in"
    ):
        train.check_fading(short, [8, 16, 32], 10)
    train.check_fading(short, [16, 32], 10)  # the first stage fades nothing in
    train.check_fading(short, [32], 1)


def test_it_is_refused_before_anything_is_read_or_written(train, repository, tmp_path, monkeypatch):
    overrides = [
        *TINY,
        "model.fade_steps=10",
        "training.steps=9",
        f"data.root={tmp_path / 'nowhere'}",
    ]
    config = repository / "configs/contextual.yaml"
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "contextual.py",
            "--config",
            str(config),
            "--output",
            str(tmp_path / "out"),
            "--set",
            *overrides,
        ],
    )
    with pytest.raises(ConfigError, match="training.steps: 9 end before"):
        train.main()
    assert not list(tmp_path.iterdir())


def test_no_checkpoint_is_the_best_one_before_its_level_is_faded_in(train, repository, monkeypatch):
    chosen = experiment(repository, "model.fade_steps=10")
    found = []

    def fit(build, stage, patches, held_out, output, judge):
        room = build()
        build()  # the copy that is exported has weights of its own
        for step in (0, 9, 10):
            room.average.steps.assign(step)
            found.append(judge({}, held_out))
        return found[-1]

    monkeypatch.setattr(train.loop, "fit", fit)
    monkeypatch.setattr(train, "validate", lambda *_: {"likeness": -0.5, "discarded": 0.1})
    train.fit(chosen, lambda: Contextual(chosen.model, 16), None, None, None, Path("out"))
    assert np.isnan([found[0]["likeness"], found[1]["likeness"]]).all() and found[2] == {
        "likeness": -0.5,
        "discarded": 0.1,
    }
