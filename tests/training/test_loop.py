"""The loop with real small networks: resume, guards, signals, precision, export.

What the loop does whatever it trains is shown with a segmenter of two convolutions, whose step is
traced five times as fast as a small CAN's.
"""

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmammo import config as configuration
from tfmammo import filesystem
from tfmammo.baselines.segmenter import Segmenter, SegmenterConfig, cross_entropy
from tfmammo.config import AddedConfig, TrainingConfig
from tfmammo.errors import ConfigError, ExportError, Interrupted, TrackingError, TrainingError
from tfmammo.mammogram import key_check
from tfmammo.models.can import CAN
from tfmammo.nn.layers import Dropout
from tfmammo.nn.optimization import build_adam, minimize
from tfmammo.nn.published import Source
from tfmammo.tracking import export
from tfmammo.training import checkpoints, folder, loop, script

TRAINED_ON = ["p0", "p1", "p2", "p3"]  # the patients of eight patches


class Small(Segmenter):
    """A segmenter of two convolutions; the config's first number of filters is its width."""

    def __init__(self, config, size):
        layers = [
            keras.Input((size, size, 1)),
            keras.layers.Conv2D(config.filters[0], 3, padding="same", activation="relu"),
            keras.layers.Conv2D(1, 1, dtype="float32"),
        ]
        super().__init__(keras.Sequential(layers), SegmenterConfig(), "small")


class Pair(Small):
    """Two networks with states of every kind: weights, moments, running means, draws of dropout."""

    def __init__(self, config, size):
        super().__init__(config, size)
        for name in ("segmenter", "critic"):
            layers = [keras.Input((size, size, 1)), keras.layers.Conv2D(4, 3, padding="same")]
            layers += [keras.layers.BatchNormalization(), Dropout(0.5)]
            self.networks[name] = keras.Sequential([*layers, keras.layers.Conv2D(1, 1)])
        self.optimizers = build_adam(self.networks, 2e-3, 0.5)

    def train_step(self, batch):
        losses = {}
        for name, network in self.networks.items():
            with tf.GradientTape() as tape:
                loss = cross_entropy(batch["mask"], network(batch["image"], training=True))
            minimize(loss, network, self.optimizers[name], tape)
            losses[f"{name}_loss"] = loss
        return losses


@pytest.fixture
def fit(tiny_can, random_patches, tmp_path):
    """A function that trains on eight patches in the folder "run", by the names of `training`.

    It registers the model if told so: that takes a second.
    """

    def fit(
        output="run",
        validate=script.compute_validation_metrics,
        model=Small,
        experiment=None,
        patches=random_patches,
        options=None,
        monitor="dice",
        register=False,
        **training,
    ):
        experiment = experiment or tiny_can(**training)
        tracking = experiment.tracking.model_copy(update={"register_models": register})
        experiment = experiment.model_copy(update={"tracking": tracking})
        return loop.Training(
            lambda: model(experiment.model, experiment.data.size),
            experiment,
            patches(8),
            patches(3),
            tmp_path / output,
            validate,
            monitor=monitor,
            **(options or {}),
        ).fit()

    return fit


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def with_data(experiment, **values):
    data = experiment.data.model_copy(update=values)
    return experiment.model_copy(update={"data": data})


def saved_step(output: Path) -> int:
    return int(tf.train.latest_checkpoint(str(output / "checkpoints")).rsplit("-", 1)[1])


def read_checkpoint(output: Path) -> dict:
    path = tf.train.latest_checkpoint(str(output / "checkpoints"))
    reader = tf.train.load_checkpoint(path)
    names = reader.get_variable_to_shape_map()
    return {name: reader.get_tensor(name) for name in names if "VARIABLE_VALUE" in name}


def assert_same_checkpoint(one: Path, other: Path):
    """Bitwise equality needs training.deterministic, see tests/scripts/test_kill.py."""
    ours, theirs = read_checkpoint(one), read_checkpoint(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-4, atol=1e-6, err_msg=name)


def find_run(experiment, output: Path):
    import mlflow

    client = mlflow.MlflowClient(experiment.tracking.uri)
    return client, client.get_run((output / "mlflow_run_id").read_text().strip())


@pytest.mark.slow
def test_a_run_leaves_checkpoints_pictures_a_model_and_a_history(fit, run, tiny_can):
    experiment = with_data(tiny_can(), name="inbreast")  # without a folder
    metrics = fit(experiment=experiment, model=CAN, register=True)
    assert list(metrics)[0] == "dice" and 0 <= metrics["dice"] <= 1
    assert saved_step(run) == 4
    pictures = sorted(path.name for path in (run / "samples").iterdir())
    assert pictures == [f"step_{n:08d}.png" for n in (0, 2, 4)]
    card = export.read_card(run / "export")
    assert card["step"] == 4 and card["metrics"]["dice"] == pytest.approx(metrics["dice"])
    assert card["train_patients"] == TRAINED_ON and card["archive"] == "phantom"
    client, found = find_run(experiment, run)
    assert found.info.status == "FINISHED" and found.data.tags["archive"] == "phantom"
    history = client.get_metric_history(found.info.run_id, "generator_loss")
    assert [each.step for each in history] == [2, 4]
    names = {"validation_dice", "generator_learning_rate", "inverter_loss", "discriminator_loss"}
    assert names <= set(found.data.metrics)
    best = client.get_model_version_by_alias("tfmammo-can", "best")
    assert "- Data: phantom, 32 px" in best.description
    scores = [m.value for m in client.get_metric_history(found.info.run_id, "validation_dice")]
    assert float(best.tags["validation_dice"]) == pytest.approx(max(scores), abs=1e-5)


def test_a_finished_run_is_not_validated_again(fit, run):
    validated = []

    def validate(functions, held_out):
        validated.append(len(held_out))
        return {"dice": 0.25}

    assert fit(validate=validate) == {"dice": 0.25} and validated == [3, 3]  # at steps 2 and 4
    assert fit(validate=validate) == {"dice": 0.25} and len(validated) == 2
    shutil.rmtree(run / "export")  # stopped between checkpoint and export
    assert fit(validate=validate) == {"dice": 0.25}
    assert len(validated) == 3 and export.read_card(run / "export")["step"] == 4


@pytest.mark.slow
def test_the_papers_protocol_trains_on_its_copies_as_they_are(fit, tiny_can, random_patches):
    drawn = []

    class Noting(Small):
        def train_step(self, batch):
            note = lambda images: drawn.extend(image.tobytes() for image in images.numpy())  # noqa: E731
            tf.py_function(note, [batch["image"]], [])
            return super().train_step(batch)

    fit(experiment=with_data(tiny_can(steps=16), split="paper"), model=Noting)
    # each of the eight patches, none of them turned
    assert set(drawn) == {image.tobytes() for image in random_patches(8).images}


@pytest.mark.slow
def test_the_same_command_goes_on_where_it_stopped_and_then_has_nothing_to_do(fit, run):
    seen = []

    class Counting(Small):
        def train_step(self, batch):
            seen.append(1)  # once per trace
            return super().train_step(batch)

    def times(*names):
        return [(run / name).stat().st_mtime_ns for name in names]

    claim = ("config.yaml", "train_patches", "held_out_patches")
    fit(steps=2, register=True)
    began = times(*claim)
    (run / "registered").write_text("")  # a write that failed
    fit(steps=4, model=Counting, register=True)
    assert saved_step(run) == 4 and seen and times(*claim) == began
    seen.clear()
    (run / "registered").write_text("")
    before = times("export/card.json")
    fit(steps=4, model=Counting, register=True)
    assert saved_step(run) == 4 and not seen and times("export/card.json") == before


@pytest.mark.slow
def test_the_best_weights_that_were_the_last_ones_stay_one_version(fit, run):
    for steps, dice in ((1, 0.9), (2, 0.1), (2, 0.1)):
        fit(steps=steps, register=True, validate=lambda *_, dice=dice: {"dice": dice})
    assert export.read_card(run / "best")["step"] == 1
    lines = [line.split() for line in (run / "registered").read_text().splitlines()]
    assert [line[0] for line in lines] == ["1", "2"] and len({line[3] for line in lines}) == 2


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_never_stopped(fit, tmp_path):
    fit("whole", model=Pair, steps=4)
    fit("parts", model=Pair, steps=2)
    fit("parts", model=Pair, steps=4)
    held = read_checkpoint(tmp_path / "whole")
    for part in ("network_segmenter", "optimizer_critic"):
        assert any(part in name for name in held)
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_two_batches_of_a_step_are_one_of_twice_the_size_and_resume(fit, tmp_path):
    fit("one", steps=4, batch_size=4)
    fit("two", steps=2, batch_size=2, accumulate=2)
    fit("two", steps=4, batch_size=2, accumulate=2)
    assert read_checkpoint(tmp_path / "two")["step/.ATTRIBUTES/VARIABLE_VALUE"] == 4
    assert_same_checkpoint(tmp_path / "one", tmp_path / "two")  # which has no sums


def test_a_start_that_fails_leaves_no_claim_and_no_run(fit, run, tiny_can, random_patches):
    def build(*_):
        raise ValueError("60 px can't be halved eight times")

    import mlflow

    experiment = tiny_can(initial="no/such/run")
    with pytest.raises(ValueError, match="60 px"):
        fit(model=build)
    assert not run.exists()
    with pytest.raises(TrackingError, match="no/such/run"):
        fit(experiment=experiment)
    assert not configuration.is_training_folder(run) and not (run / "mlflow_run_id").exists()
    client = mlflow.MlflowClient(experiment.tracking.uri)
    assert not client.search_runs([found.experiment_id for found in client.search_experiments()])
    # the corrected command may go there
    folder.check_owner(run, tiny_can({"filters": (4, 8)}), random_patches(8), random_patches(3))


class Misnamed(CAN):
    """Its exported function fits no network; training would end in an error after the last step."""

    def functions(self):
        return {"segmenter": super().functions()["inverter"]}

    def train_step(self, batch):
        raise AssertionError("no step may be taken")


class TooLarge(Small):
    """Its weights do not fit the memory."""

    def __init__(self, config, size):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")


@pytest.mark.parametrize(
    ("values", "classes", "error", "named"),
    [
        ({"model": TooLarge}, 1, ConfigError, "model: .*memory"),
        ({"model": Misnamed}, 1, TrainingError, "Misnamed.functions"),
        ({"batch_size": 4}, 3, TrainingError, "training.batch_size"),
    ],
)
def test_what_can_not_be_trained_is_refused_before_anything_is_written(
    fit, run, random_patches, values, classes, error, named
):
    def make(count):
        patches = random_patches(count)
        return patches.with_labels(np.arange(count) % classes, True) if classes > 1 else patches

    with pytest.raises(error, match=named):
        fit(patches=make, **values)
    assert not run.exists()


def test_a_batch_that_its_devices_cant_share_is_refused(fit, run, monkeypatch):
    two = SimpleNamespace(num_replicas_in_sync=2)
    monkeypatch.setattr(loop.devices, "choose_strategy", lambda *_: two)
    with pytest.raises(TrainingError, match="batch_size"):
        fit()
    assert not run.exists()


def test_a_folder_of_another_training_or_in_use_is_refused(
    fit, run, tmp_path, tiny_can, random_patches
):
    fit(steps=1)
    with pytest.raises(TrainingError, match=r"model\.filters"):
        fit(experiment=tiny_can({"filters": (4, 8)}))
    with pytest.raises(TrainingError, match="patches were others"):
        fit(steps=2, patches=lambda count: random_patches(count + 2))
    with (run / ".lock").open("w") as other:
        assert filesystem.take_lock(other) is True
        with pytest.raises(TrainingError, match="another process"):
            fit(steps=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file/run"):
        fit("file/run")


@pytest.mark.slow
def test_a_run_goes_on_wherever_its_archive_has_moved_but_not_with_another_of_its_name(
    fit, run, tmp_path, tiny_can, random_patches
):
    def make(root, steps):
        return with_data(tiny_can(steps=steps), name="folder", root=root)

    fit(experiment=make(Path("archive"), 1))
    assert "root: archive" in (run / "config.yaml").read_text()
    elsewhere = make(tmp_path / "elsewhere/archive", 2)
    assert script.default_output(make(Path("archive"), 1)) == script.default_output(elsewhere)
    with pytest.raises(TrainingError, match="choose another --output"):
        fit(experiment=elsewhere, patches=lambda count: random_patches(count + 2))
    assert saved_step(run) == 1
    fit(experiment=elsewhere)
    assert saved_step(run) == 2


class Exploding(Small):
    """A segmenter whose loss is NaN from the fourth step on."""

    def train_step(self, batch):
        losses = super().train_step(batch)
        broken = self.optimizers["segmenter"].iterations >= 4
        return {"segmenter_loss": tf.where(broken, float("nan"), losses["segmenter_loss"])}


class Spoiling(Small):
    """A segmenter whose third update leaves a NaN in a bias while all losses are still finite."""

    def train_step(self, batch):
        losses = super().train_step(batch)
        bias = self.networks["segmenter"].layers[-1].bias
        bias.assign(tf.where(self.optimizers["segmenter"].iterations == 4, float("nan"), bias))
        return losses


@pytest.mark.parametrize(
    ("model", "every", "named"),
    [
        (Exploding, 2, "segmenter_loss .*ckpt-2"),
        (Spoiling, 8, "bias is NaN"),
        (Spoiling, 2, "bias is NaN"),  # an image of spoilt weights can't be drawn
    ],
)
def test_nan_stops_with_its_name_and_the_last_good_checkpoint(fit, run, model, every, named):
    with pytest.raises(TrainingError, match=named):
        fit(model=model, steps=8, validate_every=every, grid_every=every)
    assert saved_step(run) == 2


def test_memory_that_runs_out_is_one_sentence(fit):
    def validate(functions, held_out):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    with pytest.raises(TrainingError, match="training.accumulate=2"):
        fit(validate=validate)


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_is_one_sentence(fit, run, tmp_path):
    fit(steps=2)
    (run / "checkpoints/best").rename(tmp_path / "elsewhere")
    (run / "checkpoints/best").write_text("no folder")  # as good as a full disk
    with pytest.raises(TrainingError, match="step 4 .*ckpt-2"):
        fit(steps=4, validate=lambda *_: {"dice": float("inf")})
    assert saved_step(run) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_saves_and_leaves(fit, run, number):
    before = signal.getsignal(number)

    def validate(functions, held_out):
        os.kill(os.getpid(), number)
        return script.compute_validation_metrics(functions, held_out)

    with pytest.raises(Interrupted, match="stopped at step 2") as stopped:
        fit(validate=validate, steps=6, checkpoint_every=100)
    assert stopped.value.signal == number and signal.getsignal(number) is before
    assert saved_step(run) == 2
    # after the last step all is done, but nothing else may begin
    with pytest.raises(Interrupted, match="stopped at step 4, the last one"):
        fit(validate=validate, steps=4, checkpoint_every=100)
    assert export.read_card(run / "export")["step"] == 4


@pytest.mark.slow
def test_a_truncated_checkpoint_gives_way_to_the_one_before(fit, run, caplog):
    fit(steps=4)
    newest = next((run / "checkpoints").glob("ckpt-4.data*"))
    newest.write_bytes(newest.read_bytes()[:1000])
    fit(steps=6)
    assert "trying the one before" in caplog.text and saved_step(run) == 6
    for data in (run / "checkpoints").glob("ckpt-*.data*"):
        data.write_bytes(b"")
    with pytest.raises(TrainingError, match="none of the checkpoints"):
        fit(steps=8)


@pytest.mark.slow
def test_training_starts_from_the_registry_or_an_export(fit, tmp_path, tiny_can, random_patches):
    fit("first", steps=1, register=True)
    expected = Small(tiny_can().model, 32)
    export.assign(expected.networks, tmp_path / "first/export")
    weights = expected.networks["segmenter"].get_weights()

    class Checking(Small):
        def train_step(self, batch):
            found = self.networks["segmenter"].trainable_variables
            for have, want in zip(found, weights, strict=True):
                tf.debugging.assert_equal(have.value, want)
            return super().train_step(batch)

    for number, handle in enumerate(("models:/tfmammo-can@best", str(tmp_path / "first"))):
        fewer = {"patches": lambda count: random_patches(count - 2)}
        start = {"initial": handle, "steps": 1, "steps_per_loop": 1}
        fit(f"from-{number}", model=Checking, **fewer, **start)
        # what the start was trained on counts as seen
        card = export.read_card(tmp_path / f"from-{number}/export")
        assert card["step"] == 1 and card["train_patients"] == TRAINED_ON
    with pytest.raises(ExportError, match="segmenter"):
        other = tiny_can({"filters": (8, 8)}, initial=str(tmp_path / "first"))
        fit("second", experiment=other)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains_and_exports_float32(fit, run, tiny_can, random_patches, policy):
    keras.config.set_dtype_policy(policy)
    experiment = tiny_can(precision=policy)
    metrics = fit(experiment=experiment)
    assert keras.config.dtype_policy().name == policy
    assert all(np.isfinite(value) for value in metrics.values())
    logged = find_run(experiment, run)[1].data.metrics
    assert ("segmenter_loss_scale" in logged) == (policy == "mixed_float16")
    mask = export.load(run / "export", "segmenter")(random_patches(2).images)["mask"]
    assert mask.dtype == np.float32 and mask.min() >= 0 and mask.max() <= 1


@pytest.mark.parametrize(
    ("values", "patches", "steps"),
    [
        ({"epochs": 300, "epoch_samples": 700}, 71, 210_000),
        ({"epochs": 3, "batch_size": 4}, 10, 8),  # 30 draws in batches of four
        ({"epochs": 3, "batch_size": 4, "accumulate": 2}, 10, 4),  # and two of them a step
        ({"steps": 7}, 10, 7),
    ],
)
def test_steps_follow_from_epochs(values, patches, steps):
    assert loop.count_steps(TrainingConfig(**values), patches) == steps


@pytest.mark.slow
def test_the_monitored_metric_chooses_the_best_checkpoint(fit, run):
    scores = iter([0.5, 0.75, 0.25, 0.6])
    validate = lambda *_: {"other": 1.0, "dice": next(scores)}  # noqa: E731
    fit(validate=validate, monitor="dice", steps=8, validate_every=2)
    card = export.read_card(run / "best")
    assert card["metrics"] == {"dice": 0.75} and card["step"] == 4


@pytest.mark.slow
def test_the_best_export_states_the_score_of_its_own_weights(fit, run, tiny_can):
    scores = iter([0.5, 0.4])
    fit(validate=lambda *_: {"dice": next(scores)}, steps=4, validate_every=2)
    # a better checkpoint was written, and lost
    saved = checkpoints.TrainingState(Small(tiny_can().model, 32), run, 1)
    saved.newest_checkpoints.restore()
    saved.best.assign(0.9)
    saved.save()
    shutil.rmtree(run / "export")
    fit(validate=lambda *_: {"dice": 0.4}, steps=4, validate_every=2)
    assert export.read_card(run / "best")["metrics"] == {"dice": 0.5}


@pytest.mark.slow
def test_a_metric_that_cannot_be_measured_is_left_out_of_the_card(fit, run):
    measured = {"judged": float("nan"), "error": 0.5}
    for _ in range(2):  # a finished training is read again
        metrics = fit(validate=lambda *_: measured, monitor="error", steps=2)
        assert metrics["error"] == 0.5
    assert export.read_card(run / "export")["metrics"] == {"error": 0.5}
    with pytest.raises(TrainingError, match="metric auc"):
        fit("other", validate=lambda *_: measured, monitor="auc", steps=2)


def test_the_card_names_the_published_networks_of_a_loss(fit, run):
    class Guided(Small):
        pretrained = {"trunk": Source("Keras's VGG-19", "f427" * 16)}

    fit(model=Guided, steps=1)
    card = export.read_card(run / "export")
    assert card["pretrained"] == {"trunk": {"title": "Keras's VGG-19", "sha256": "f427" * 16}}
    assert "f427" * 16 in export.card.format_card(card)


@pytest.mark.slow
def test_seen_patients_are_recorded_at_the_start_and_read_at_a_resume(fit, run):
    record = run / "initial_patients.txt"
    run.mkdir()
    record.write_text("q7")  # of a start that failed
    fit(steps=2, options={"seen_patients": ["q2", "q1"]})
    assert record.read_text().split() == ["q1", "q2"]
    assert export.read_card(run / "export")["train_patients"] == [*TRAINED_ON, "q1", "q2"]
    record.write_text("q3\nq2")
    fit(steps=4, options={"seen_patients": ["q9"]})
    assert record.read_text() == "q3\nq2", "the record of the start stays"
    assert export.read_card(run / "export")["train_patients"] == [*TRAINED_ON, "q2", "q3"]


@pytest.mark.slow
def test_a_start_that_knows_held_out_patients_says_so(fit, random_patches, caplog):
    fit("one", steps=1, options={"seen_patients": ["q1"]})
    assert "knows" not in caplog.text
    fit("two", steps=1, options={"seen_patients": [random_patches(3).patient_ids[0]]})
    assert "knows 1 of the 2 held-out patients: the held-out metrics are too good" in caplog.text


@pytest.fixture
def synthetic_set(tmp_path):
    """The folder of a set behind which the patients t1, d1 and n1 stand."""
    patients = {"mammograms": ["t1"], "lesions": ["d1"], "trained_on": ["n1"]}
    patients["id_key"] = key_check()
    (tmp_path / "set").mkdir()
    (tmp_path / "set/patients.json").write_text(json.dumps(patients))
    return tmp_path / "set"


def test_patients_behind_a_synthetic_set_stand_in_the_card(fit, run, tiny_can, synthetic_set):
    experiment = with_data(tiny_can(steps=1), name="folder", root=synthetic_set)
    fit(experiment=experiment, validate=lambda *_: {"dice": 0.5})
    assert {"t1", "d1", "n1"} <= set(export.read_card(run / "export")["train_patients"])


@pytest.mark.slow
def test_patients_of_the_start_the_synthetic_set_and_the_caller_are_all_seen(
    fit, run, tmp_path, tiny_can, synthetic_set
):
    fit("first", steps=1, options={"seen_patients": ["q1"]})
    experiment = tiny_can(steps=1, initial=str(tmp_path / "first"))
    experiment = with_data(experiment, added=AddedConfig(synthetic=synthetic_set))
    fit(experiment=experiment, options={"seen_patients": ["q2"]})
    seen = {*TRAINED_ON, "q1", "q2", "t1", "d1", "n1"}
    assert set(export.read_card(run / "export")["train_patients"]) == seen


@pytest.mark.slow
def test_a_training_keeps_the_precision_that_it_began_with(fit, run, tmp_path, monkeypatch):
    policy = keras.config.dtype_policy().name
    chosen = []
    monkeypatch.setattr(script.devices, "choose_precision", lambda *_: "mixed_float16")
    monkeypatch.setattr(script.keras.config, "set_dtype_policy", chosen.append)
    fit(steps=1)
    assert folder.read_precision(run) == policy != "mixed_float16"
    assert folder.read_precision(tmp_path) == policy  # that of the first stage
    for precision, began_with, expected in (
        ("auto", policy, policy),
        ("auto", None, "mixed_float16"),
        ("mixed_float16", policy, "mixed_float16"),
    ):
        script.configure_tensorflow(TrainingConfig(precision=precision), began_with)
        assert chosen[-1] == expected
    (run / "precision").write_text("a disk full of")
    assert folder.read_precision(run) is None
