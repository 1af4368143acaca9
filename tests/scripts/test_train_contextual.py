"""Progressive growing: stages that are too short to fade in, and which checkpoint may be best."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tfmammo import config as configuration
from tfmammo.errors import ConfigError, DataError
from tfmammo.evaluation.validation import validate_contextual
from tfmammo.metrics.classification import roc_auc
from tfmammo.models.contextual import Contextual, ContextualConfig
from tfmammo.nn.layers import sample_latent_noise
from tfmammo.studies import progressive

TINY = ["model.filters=[3,4,8]", "model.discriminator_factor=1", "model.attention=4"]
TINY += ["model.border=1", "model.start=8", "data.size=32"]


def experiment(repository, *overrides):
    file = repository / "configs/contextual.yaml"
    return configuration.load(file, [*TINY, *overrides], ContextualConfig)


def test_a_stage_that_ends_before_its_level_is_faded_in_is_refused(repository):
    config = experiment(repository, "model.fade_steps=10", "model.start_steps=10")
    progressive.check_fading(config, [8, 16, 32], 10)
    progressive.check_fading(config, [8, 16, 32], None)  # not known yet
    with pytest.raises(ConfigError, match="training.steps"):
        progressive.check_fading(config, [8, 16, 32], 9)
    short = experiment(repository, "model.fade_steps=10", "model.start_steps=9")
    with pytest.raises(ConfigError, match="model.start_steps"):
        progressive.check_fading(short, [8, 16, 32], 10)
    progressive.check_fading(short, [16, 32], 10)  # the first stage fades nothing in
    progressive.check_fading(short, [32], 1)


def test_it_is_refused_before_anything_is_read_or_written(call_script, repository, tmp_path):
    overrides = [*TINY, "model.fade_steps=10", "training.steps=9", f"data.root={tmp_path}/nowhere"]
    options = ["--config", repository / "configs/contextual.yaml", "--output", tmp_path / "out"]
    with pytest.raises(ConfigError, match="training.steps: 9 end before"):
        call_script("train/contextual", *options, "--set", *overrides)
    assert not list(tmp_path.iterdir())


def instead_of_training(fit):
    """Take the place of the class `loop.Training` by a function of its arguments."""
    return lambda *args, **options: SimpleNamespace(fit=lambda: fit(*args, **options))


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

    monkeypatch.setattr(progressive.loop, "Training", instead_of_training(fit))
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
    fit = lambda *_, seen_patients, **__: seen.extend(seen_patients)  # noqa: E731
    monkeypatch.setattr(progressive.loop, "Training", instead_of_training(fit))
    subsets = progressive.Subsets(None, None, None)
    stage = experiment(repository)
    progressive.fit_stage(stage, lambda: None, subsets, tmp_path, tmp_path / "8px/export")
    assert seen == ["p1", "p2"]


def mean_grey(image):
    """A judge: the brighter a patch, the more certain is it of a lesion."""
    return {"probability": tf.reduce_mean(image, axis=[1, 2, 3])}


def make_average(level):
    """A generator whose lesion is a square, `level` high, where the first random number is > 0."""
    square = np.zeros((1, 32, 32, 1), np.float32)
    square[:, 8:24, 8:24] = level
    specs = [tf.TensorSpec([None, 32, 32, 1], tf.float32, "image")]
    specs += [tf.TensorSpec([None, 3], tf.float32, "noise")]

    @tf.function(input_signature=specs)
    def average(image, noise):
        active = tf.cast(noise[:, 0] > 0, tf.float32)[:, None, None, None]
        lesion = active * square
        return {"image": tf.clip_by_value(image + lesion / 2, 0, 1), "lesion": lesion}

    return average


@pytest.mark.parametrize(("target", "level"), [("mass", 0.6), ("removal", -0.6)])
def test_a_judge_compares_what_is_kept_with_its_inputs(random_patches, target, level):
    """Four of eight patches are changed, all by as much; half of the others are brighter still."""
    patches = random_patches(8, 32)
    steps = np.linspace(0.3, 0.6, 8, dtype=np.float32)[:, None, None, None]
    patches = replace(patches, images=np.broadcast_to(steps, (8, 32, 32, 1)).copy())
    model = ContextualConfig(target=target, postprocess={"dilation": 0, "edge": 0})
    functions = {"average": make_average(level)}
    metrics = validate_contextual(functions, patches, patches, model, mean_grey)
    kept = sample_latent_noise(8, 3)[:, 0] > 0
    before = steps[:, 0, 0, 0]
    after = before[kept] + level / 2 * 0.25
    labels = np.repeat([0, 1], kept.sum())
    area = roc_auc(labels, np.concatenate([before[kept], after]))
    assert 0 < kept.sum() < 8 and metrics["discarded"] == pytest.approx(1 - kept.mean())
    assert metrics["judged"] == pytest.approx(1 - area if target == "removal" else area)
    assert 0.5 < metrics["judged"] < 1
    assert "judged" not in validate_contextual(functions, patches, patches, model)
    idle = {"average": make_average(0.0)}
    assert np.isnan(validate_contextual(idle, patches, patches, model, mean_grey)["judged"])


def test_a_judge_chooses_the_weights_of_the_last_stage_alone(repository, monkeypatch, tmp_path):
    stages = {}

    def fit(build, stage, patches, held_out, output, validate, *, monitor, seen_patients):
        stages[stage.data.size] = (monitor, stage.model.judge, stage.model.judge_seed)
        return {}

    patches = SimpleNamespace(patient_ids=np.array(["p1", "p2"]))
    subsets = progressive.Subsets(patches, patches, patches)
    config = experiment(repository, "model.judge=runs/classifier", "model.fade_steps=1")
    monkeypatch.setattr(progressive.loop, "Training", instead_of_training(fit))
    monkeypatch.setattr(progressive, "read_card", lambda _: {"train_patients": []})
    monkeypatch.setattr(progressive, "open_subsets", lambda *_: subsets)
    monkeypatch.setattr(progressive.Subsets, "downsample", lambda subsets, _: subsets)
    monkeypatch.setattr(progressive, "find_best_weights", lambda *_: tmp_path)

    def judge_of(patients, **data):
        of_judge = config.data.model_copy(update=data).model_dump(mode="json")
        settings = {"data": of_judge, "training": {"seed": 7}}
        card = {"config": settings, "train_patients": patients}
        opened = SimpleNamespace(card=card, call=mean_grey)
        monkeypatch.setattr(progressive, "load_identified", lambda *_: opened)
        monkeypatch.setattr(
            progressive, "get_training_patients", lambda card, _: set(card["train_patients"])
        )

    judge_of(["p3"])
    progressive.train(config, tmp_path)
    assert stages == {
        8: ("likeness", None, None),
        16: ("likeness", None, None),
        32: ("judged", "runs/classifier", 7),
    }
    judge_of(["p2", "p3"])
    with pytest.raises(DataError, match="was trained on 1 of the 2 patients held out here"):
        progressive.train(config, tmp_path)
    judge_of(["p3"], size=64)
    with pytest.raises(DataError, match="model.judge .* have 64 px, the real ones 32"):
        progressive.train(config, tmp_path)
