"""Progressive growing: stages that are too short to fade in, and which checkpoint may be best."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tfmammo import config as configuration
from tfmammo.errors import ConfigError
from tfmammo.models.contextual import Contextual, ContextualConfig
from tfmammo.studies import progressive

TINY = [
    "model.filters=[3,4,8]",
    "model.discriminator_factor=1",
    "model.attention=4",
    "model.border=1",
    "model.start=8",
    "data.size=32",
]


@pytest.fixture(scope="module")
def main(load_script):
    """The main of train/contextual.py."""
    return load_script("train/contextual").main


def experiment(repository, *overrides):
    return configuration.load(
        repository / "configs/contextual.yaml", [*TINY, *overrides], ContextualConfig
    )


def test_a_stage_that_ends_before_its_level_is_faded_in_is_refused(repository):
    config = experiment(repository, "model.fade_steps=10", "model.start_steps=10")
    progressive.check_fading(config, [8, 16, 32], 10)
    progressive.check_fading(config, [8, 16, 32], None)  # not known yet
    with pytest.raises(
        ConfigError,
        match=r"training.steps: 9 end before the level for 32 px is faded in "
        r"\(model.fade_steps=10\)",
    ):
        progressive.check_fading(config, [8, 16, 32], 9)
    short = experiment(repository, "model.fade_steps=10", "model.start_steps=9")
    with pytest.raises(
        ConfigError, match="model.start_steps: 9 end before the level for 16 px is faded in"
    ):
        progressive.check_fading(short, [8, 16, 32], 10)
    progressive.check_fading(short, [16, 32], 10)  # the first stage fades nothing in
    progressive.check_fading(short, [32], 1)


def test_it_is_refused_before_anything_is_read_or_written(main, repository, tmp_path, monkeypatch):
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
        main()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_no_checkpoint_is_the_best_one_before_its_level_is_faded_in(repository, monkeypatch):
    stage = experiment(repository, "model.fade_steps=10")
    metrics = []

    def fit(build, stage, patches, held_out, output, validate, *, monitor, seen_patients):
        assert monitor == "likeness" and not seen_patients
        model = build()
        build()  # the copy that is exported has weights of its own
        for step in (0, 9, 10):
            model.average.steps.assign(step)
            metrics.append(validate({}, held_out))
        return metrics[-1]

    monkeypatch.setattr(progressive.loop, "fit", fit)
    monkeypatch.setattr(
        progressive, "validate_contextual", lambda *_: {"likeness": -0.5, "discarded": 0.1}
    )
    subsets = progressive.Subsets(None, None, None)
    progressive.fit_stage(stage, lambda: Contextual(stage.model, 16), subsets, Path("out"))
    assert np.isnan([metrics[0]["likeness"], metrics[1]["likeness"]]).all()
    assert metrics[2] == {"likeness": -0.5, "discarded": 0.1}


@pytest.mark.slow
def test_a_stage_counts_the_patients_of_the_stage_before_as_seen(repository, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(progressive, "read_card", lambda _: {"train_patients": ["p1", "p2"]})
    monkeypatch.setattr(
        progressive.loop, "fit", lambda *_, seen_patients, **__: seen.extend(seen_patients)
    )
    subsets = progressive.Subsets(None, None, None)
    stage = experiment(repository)
    progressive.fit_stage(stage, lambda: None, subsets, tmp_path, tmp_path / "8px/export")
    assert seen == ["p1", "p2"]
