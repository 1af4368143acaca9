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
from tfmammo.baselines.segmenter import Segmenter, SegmenterConfig
from tfmammo.config import AddedConfig, TrainingConfig
from tfmammo.errors import ConfigError, ExportError, Interrupted, TrackingError, TrainingError
from tfmammo.mammogram import key_check
from tfmammo.models.can import CAN
from tfmammo.nn.published import Source
from tfmammo.tracking import export
from tfmammo.training import checkpoints, folder, loop, script


class Small(Segmenter):
    """A segmenter of two convolutions; the config's first number of filters is its width."""

    def __init__(self, config, size):
        layers = [
            keras.Input((size, size, 1)),
            keras.layers.Conv2D(config.filters[0], 3, padding="same", activation="relu"),
            keras.layers.Conv2D(1, 1, dtype="float32"),
        ]
        super().__init__(keras.Sequential(layers), SegmenterConfig(), "small")


def fit(
    experiment,
    patches,
    output,
    validate=script.compute_validation_metrics,
    model=Small,
    monitor="dice",
    register=False,
    **options,
):
    """Train on eight of `patches`, and register the model if told so: that takes a second."""
    tracking = experiment.tracking.model_copy(update={"register_models": register})
    experiment = experiment.model_copy(update={"tracking": tracking})
    return loop.Training(
        lambda: model(experiment.model, experiment.data.size),
        experiment,
        patches(8),
        patches(3),
        output,
        validate,
        monitor=monitor,
        **options,
    ).fit()


def saved_step(output: Path) -> int:
    return int(tf.train.latest_checkpoint(str(output / "checkpoints")).rsplit("-", 1)[1])


@pytest.mark.slow
def test_a_run_leaves_checkpoints_pictures_a_model_and_a_history(
    tiny_can, random_patches, tmp_path
):
    import mlflow

    experiment = tiny_can()
    data = experiment.data.model_copy(update={"name": "inbreast"})  # without a folder
    experiment = experiment.model_copy(update={"data": data})
    metrics = fit(experiment, random_patches, tmp_path / "run", model=CAN, register=True)
    assert list(metrics)[0] == "dice" and 0 <= metrics["dice"] <= 1
    assert saved_step(tmp_path / "run") == 4
    assert [p.name for p in sorted((tmp_path / "run/samples").iterdir())] == [
        f"step_{n:08d}.png" for n in (0, 2, 4)
    ]
    card = export.read_card(tmp_path / "run/export")
    assert card["step"] == 4 and card["metrics"]["dice"] == pytest.approx(metrics["dice"])
    assert card["train_patients"] == ["p0", "p1", "p2", "p3"]
    assert card["archive"] == "phantom"
    client = mlflow.MlflowClient(experiment.tracking.uri)
    run = client.get_run((tmp_path / "run/mlflow_run_id").read_text().strip())
    assert run.info.status == "FINISHED" and run.data.tags["archive"] == "phantom"
    history = [m.step for m in client.get_metric_history(run.info.run_id, "generator_loss")]
    assert history == [2, 4]
    assert {
        "validation_dice",
        "generator_learning_rate",
        "inverter_loss",
        "discriminator_loss",
    } <= set(run.data.metrics)
    best = client.get_model_version_by_alias("tfmammo-can", "best")
    assert "- Data: phantom, 32 px" in best.description
    scores = [m.value for m in client.get_metric_history(run.info.run_id, "validation_dice")]
    assert float(best.tags["validation_dice"]) == pytest.approx(max(scores), abs=1e-5)


def test_a_finished_run_is_not_validated_again(tiny_can, random_patches, tmp_path):
    validated = []

    def validate(functions, held_out):
        validated.append(len(held_out))
        return {"dice": 0.25}

    output = tmp_path / "run"
    first = fit(tiny_can(), random_patches, output, validate)
    assert validated.count(3) == 2  # the config's steps 2 and 4
    assert fit(tiny_can(), random_patches, output, validate) == first == {"dice": 0.25}
    assert len(validated) == 2
    shutil.rmtree(output / "export")  # stopped between checkpoint and export
    assert fit(tiny_can(), random_patches, output, validate) == first
    assert len(validated) == 3 and export.read_card(output / "export")["step"] == 4


@pytest.mark.slow
def test_the_papers_protocol_trains_on_its_copies_as_they_are(tiny_can, random_patches, tmp_path):
    drawn = []

    class Noting(Small):
        def train_step(self, batch):
            tf.py_function(
                lambda images: drawn.extend(image.tobytes() for image in images.numpy()),
                [batch["image"]],
                [],
            )
            return super().train_step(batch)

    leaky = tiny_can(steps=16)
    leaky = leaky.model_copy(update={"data": leaky.data.model_copy(update={"split": "paper"})})
    fit(leaky, random_patches, tmp_path / "run", model=Noting)
    assert set(drawn) == {image.tobytes() for image in random_patches(8).images}, (
        "each of the eight patches, none of them turned"
    )


@pytest.mark.slow
def test_the_same_command_goes_on_where_it_stopped_and_then_has_nothing_to_do(
    tiny_can, random_patches, tmp_path
):
    seen = []

    class Counting(Small):
        def train_step(self, batch):
            losses = super().train_step(batch)
            seen.append(1)  # once per trace
            return losses

    fit(tiny_can(steps=2), random_patches, tmp_path / "run", register=True)
    began = {
        name: (tmp_path / "run" / name).stat().st_mtime_ns
        for name in ("config.yaml", "train_patches", "held_out_patches")
    }
    (tmp_path / "run/export_registered").write_text("")  # a write that failed
    fit(tiny_can(steps=4), random_patches, tmp_path / "run", model=Counting, register=True)
    assert saved_step(tmp_path / "run") == 4 and seen
    assert began == {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in began}, (
        "written once"
    )
    seen.clear()
    (tmp_path / "run/export_registered").write_text("")
    card = tmp_path / "run/export/card.json"
    before = card.stat().st_mtime_ns
    fit(tiny_can(steps=4), random_patches, tmp_path / "run", model=Counting, register=True)
    assert saved_step(tmp_path / "run") == 4 and not seen and card.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_run_stopped_before_its_registration_is_registered_by_the_next_call_once(
    tiny_can, random_patches, tmp_path
):
    import mlflow

    experiment = tiny_can(steps=2)
    fit(experiment, random_patches, tmp_path / "run")
    client = mlflow.MlflowClient(experiment.tracking.uri)
    run_id = (tmp_path / "run/mlflow_run_id").read_text().strip()
    assert not client.search_model_versions(f"run_id = '{run_id}'")
    for _ in range(2):
        fit(experiment, random_patches, tmp_path / "run", register=True)
        (version,) = client.search_model_versions(f"run_id = '{run_id}'")
    assert (
        version.tags["step"] == "2"
        and client.get_model_version_by_alias("tfmammo-can", "best").version == version.version
    )


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_never_stopped(tiny_can, random_patches, tmp_path):
    fit(tiny_can(steps=4), random_patches, tmp_path / "whole", model=CAN)
    fit(tiny_can(steps=2), random_patches, tmp_path / "parts", model=CAN)
    fit(tiny_can(steps=4), random_patches, tmp_path / "parts", model=CAN)
    whole, parts = (
        tf.train.load_checkpoint(tf.train.latest_checkpoint(str(tmp_path / n / "checkpoints")))
        for n in ("whole", "parts")
    )
    names = [name for name in whole.get_variable_to_shape_map() if "VARIABLE_VALUE" in name]
    assert any("optimizer_generator" in n for n in names) and any(
        "network_discriminator" in n for n in names
    )
    # bitwise equality needs training.deterministic, see tests/scripts/test_kill.py
    for name in names:
        np.testing.assert_allclose(
            whole.get_tensor(name), parts.get_tensor(name), rtol=1e-4, atol=1e-6, err_msg=name
        )


@pytest.mark.slow
def test_two_batches_of_a_step_are_one_of_twice_the_size_and_resume(
    tiny_can, random_patches, tmp_path
):
    several = {"batch_size": 2, "accumulate": 2}
    fit(tiny_can(steps=4, batch_size=4), random_patches, tmp_path / "one")
    fit(tiny_can(steps=2, **several), random_patches, tmp_path / "two")
    fit(tiny_can(steps=4, **several), random_patches, tmp_path / "two")
    one, two = (
        tf.train.load_checkpoint(tf.train.latest_checkpoint(str(tmp_path / n / "checkpoints")))
        for n in ("one", "two")
    )
    names = [name for name in one.get_variable_to_shape_map() if "VARIABLE_VALUE" in name]
    assert names == [
        name for name in two.get_variable_to_shape_map() if "VARIABLE_VALUE" in name
    ]  # no sums
    assert two.get_tensor("step/.ATTRIBUTES/VARIABLE_VALUE") == 4
    for name in names:
        np.testing.assert_allclose(
            one.get_tensor(name), two.get_tensor(name), rtol=1e-4, atol=1e-6, err_msg=name
        )


class TwiceUpdated(Small):
    """It states that a step can't have several batches."""

    not_for_accumulation = "because it says so"


class WithKerasAdam(Small):
    """Keras's Adam trains it."""

    def __init__(self, config, size):
        super().__init__(config, size)
        optimizer = keras.optimizers.Adam()
        optimizer.build(self.networks["segmenter"].trainable_variables)
        self.optimizers = {"segmenter": optimizer}


def test_a_start_that_fails_leaves_no_claim_and_no_run(tiny_can, random_patches, tmp_path):
    import mlflow

    def build(*_):
        raise ValueError("60 px can't be halved eight times")

    experiment = tiny_can()
    with pytest.raises(ValueError, match="60 px"):
        fit(experiment, random_patches, tmp_path / "run", model=build)
    assert not (tmp_path / "run").exists()
    with pytest.raises(TrackingError, match="no/such/run"):
        fit(tiny_can(initial="no/such/run"), random_patches, tmp_path / "run")
    assert (
        not configuration.is_training_folder(tmp_path / "run")
        and not (tmp_path / "run/mlflow_run_id").exists()
    )
    client = mlflow.MlflowClient(experiment.tracking.uri)
    assert not client.search_runs([found.experiment_id for found in client.search_experiments()])
    # the corrected command may go there
    folder.check_owner(
        tmp_path / "run", tiny_can({"filters": (4, 8)}), random_patches(8), random_patches(3)
    )


class Misnamed(CAN):
    """A CAN whose exported function fits no network; its training would end in an error after the
    last step.
    """

    def functions(self):
        return {"segmenter": super().functions()["inverter"]}

    def train_step(self, batch):
        raise AssertionError("no step may be taken")


class TooLarge(Small):
    """Its weights do not fit the memory."""

    def __init__(self, config, size):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")


@pytest.mark.parametrize(
    ("values", "options", "classes", "error", "named"),
    [
        ({}, {"model": TooLarge}, 1, ConfigError, "model: .*memory"),
        ({"accumulate": 2}, {"model": TwiceUpdated}, 1, ConfigError, "training.accumulate"),
        ({"exchange": "bfloat16"}, {"model": WithKerasAdam}, 1, ConfigError, "training.exchange"),
        ({}, {"model": Misnamed}, 1, TrainingError, "Misnamed.functions"),
        ({}, {"strategy": SimpleNamespace(num_replicas_in_sync=2)}, 1, TrainingError, "batch_size"),
        ({"batch_size": 4}, {}, 3, TrainingError, "training.batch_size"),
    ],
)
def test_what_can_not_be_trained_is_refused_before_anything_is_written(
    tiny_can, random_patches, tmp_path, values, options, classes, error, named
):
    def make(count):
        patches = random_patches(count)
        return patches.with_labels(np.arange(count) % classes, True) if classes > 1 else patches

    with pytest.raises(error, match=named):
        fit(tiny_can(**values), make, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_training_is_refused_with_the_difference(
    tiny_can, random_patches, tmp_path
):
    fit(tiny_can(steps=1), random_patches, tmp_path / "run")
    with pytest.raises(TrainingError, match=r"model\.filters"):
        fit(tiny_can({"filters": (4, 8)}), random_patches, tmp_path / "run")
    with pytest.raises(TrainingError, match="patches were others"):
        fit(tiny_can(steps=2), lambda count: random_patches(count + 2), tmp_path / "run")


def with_root(experiment, root):
    return experiment.model_copy(
        update={"data": experiment.data.model_copy(update={"name": "folder", "root": root})}
    )


@pytest.mark.slow
def test_a_run_goes_on_wherever_its_archive_has_moved_and_however_its_path_is_spelt(
    tiny_can, random_patches, tmp_path
):
    fit(with_root(tiny_can(steps=1), Path("archive")), random_patches, tmp_path / "run")
    assert "root: archive" in (tmp_path / "run/config.yaml").read_text()
    fit(
        with_root(tiny_can(steps=2), tmp_path / "elsewhere/archive"),
        random_patches,
        tmp_path / "run",
    )
    assert saved_step(tmp_path / "run") == 2


def test_two_archives_of_one_name_share_a_default_folder_but_not_a_run(
    tiny_can, random_patches, tmp_path
):
    one, other = (
        with_root(tiny_can(steps=1), tmp_path / place / "archive") for place in ("one", "other")
    )
    assert script.default_output(one) == script.default_output(other)
    fit(one, random_patches, tmp_path / "run")
    with pytest.raises(TrainingError, match="choose another --output"):
        fit(other, lambda count: random_patches(count + 2), tmp_path / "run")
    assert saved_step(tmp_path / "run") == 1


def test_a_folder_in_use_is_refused(tiny_can, random_patches, tmp_path):
    (tmp_path / "run").mkdir()
    with (tmp_path / "run/.lock").open("w") as other:
        assert filesystem.take_lock(other) is True
        with pytest.raises(TrainingError, match="another process"):
            fit(tiny_can(), random_patches, tmp_path / "run")


def test_an_output_that_cannot_be_made_is_one_sentence(tiny_can, random_patches, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="file/run: can't be made"):
        fit(tiny_can(), random_patches, tmp_path / "file" / "run")


class Exploding(Small):
    """A segmenter whose loss is NaN from the fourth step on."""

    def train_step(self, batch):
        losses = super().train_step(batch)
        broken = self.optimizers["segmenter"].iterations >= 4
        return {"segmenter_loss": tf.where(broken, float("nan"), losses["segmenter_loss"])}


def test_nan_stops_with_the_losss_name_and_the_last_good_checkpoint(
    tiny_can, random_patches, tmp_path
):
    with pytest.raises(TrainingError, match="segmenter_loss .*ckpt-2"):
        fit(tiny_can(steps=8), random_patches, tmp_path / "run", model=Exploding)
    assert saved_step(tmp_path / "run") == 2


class Spoiling(Small):
    """A segmenter whose third update leaves a NaN in a bias while all losses are still finite."""

    def train_step(self, batch):
        losses = super().train_step(batch)
        bias = self.networks["segmenter"].layers[-1].bias
        bias.assign(tf.where(self.optimizers["segmenter"].iterations == 4, float("nan"), bias))
        return losses


@pytest.mark.parametrize("every", [8, 2])  # an image of spoilt weights can't be drawn
def test_spoilt_weights_are_never_saved(tiny_can, random_patches, tmp_path, every):
    experiment = tiny_can(steps=8, validate_every=every, grid_every=every)
    with pytest.raises(TrainingError, match="bias is NaN"):
        fit(experiment, random_patches, tmp_path / "run", model=Spoiling)
    assert saved_step(tmp_path / "run") == 2


def test_memory_that_runs_out_is_one_sentence(tiny_can, random_patches, tmp_path):
    def validate(functions, held_out):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    with pytest.raises(TrainingError, match="training.accumulate=2"):
        fit(tiny_can(), random_patches, tmp_path / "run", validate)


def test_a_stop_signal_after_the_last_step_lets_nothing_else_begin(
    tiny_can, random_patches, tmp_path
):
    def validate(functions, held_out):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"dice": 0.5}

    with pytest.raises(Interrupted, match="stopped at step 2, the last one") as stopped:
        fit(tiny_can(steps=2), random_patches, tmp_path / "run", validate)
    assert stopped.value.signal == signal.SIGTERM
    assert export.read_card(tmp_path / "run/export")["step"] == 2  # all is done


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_is_one_sentence(tiny_can, random_patches, tmp_path):
    fit(tiny_can(steps=2), random_patches, tmp_path / "run")
    (tmp_path / "run/checkpoints/best").rename(tmp_path / "elsewhere")
    (tmp_path / "run/checkpoints/best").write_text("no folder")  # as good as a full disk
    with pytest.raises(TrainingError, match="step 4 .*ckpt-2"):
        fit(
            tiny_can(steps=4),
            random_patches,
            tmp_path / "run",
            validate=lambda *_: {"dice": float("inf")},
        )
    assert saved_step(tmp_path / "run") == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_saves_and_leaves(tiny_can, random_patches, tmp_path, number):
    experiment = tiny_can(steps=6, checkpoint_every=100)
    before = signal.getsignal(number)

    def validate(functions, held_out):
        os.kill(os.getpid(), number)
        return script.compute_validation_metrics(functions, held_out)

    with pytest.raises(Interrupted, match="stopped at step 2") as stopped:
        fit(experiment, random_patches, tmp_path / "run", validate)
    assert stopped.value.signal == number and signal.getsignal(number) is before
    assert saved_step(tmp_path / "run") == 2
    fit(experiment, random_patches, tmp_path / "run")
    assert saved_step(tmp_path / "run") == 6


@pytest.mark.slow
def test_a_truncated_checkpoint_gives_way_to_the_one_before(
    tiny_can, random_patches, tmp_path, caplog
):
    fit(tiny_can(steps=4), random_patches, tmp_path / "run")
    newest = Path(
        tf.train.latest_checkpoint(str(tmp_path / "run/checkpoints")) + ".data-00000-of-00001"
    )
    newest.write_bytes(newest.read_bytes()[:1000])
    fit(tiny_can(steps=6), random_patches, tmp_path / "run")
    assert "trying the one before" in caplog.text
    assert saved_step(tmp_path / "run") == 6


@pytest.mark.slow
@pytest.mark.parametrize("state", [None, b""])
def test_a_training_goes_on_without_tensorflows_list_of_checkpoints(
    tiny_can, random_patches, tmp_path, caplog, state
):
    fit(tiny_can(steps=4), random_patches, tmp_path / "run")
    for listed in (
        tmp_path / "run/checkpoints/checkpoint",
        tmp_path / "run/checkpoints/best/checkpoint",
    ):
        listed.unlink() if state is None else listed.write_bytes(state)
    with caplog.at_level("INFO"):
        fit(tiny_can(steps=6), random_patches, tmp_path / "run")
    assert "training can from step 4 to step 6" in caplog.text and saved_step(tmp_path / "run") == 6


def test_nothing_starts_anew_over_unreadable_checkpoints(tiny_can, random_patches, tmp_path):
    fit(tiny_can(steps=2), random_patches, tmp_path / "run")
    for data in (tmp_path / "run/checkpoints").glob("ckpt-*.data*"):
        data.write_bytes(b"")
    with pytest.raises(TrainingError, match="none of the checkpoints"):
        fit(tiny_can(steps=4), random_patches, tmp_path / "run")


@pytest.mark.long
def test_a_checkpoint_holds_every_variable_of_every_network(tiny_can, random_patches, tmp_path):
    fit(tiny_can(steps=2), random_patches, tmp_path / "run", model=CAN)
    reader = tf.train.load_checkpoint(str(tmp_path / "run/checkpoints"))
    model = CAN(tiny_can().model, 32)
    export.assign(model.networks, tmp_path / "run/export")
    held = [
        np.asarray(reader.get_tensor(name))
        for name in reader.get_variable_to_shape_map()
        if name.startswith("network_")
    ]
    for network in model.networks.values():
        for variable in network.variables:
            value = variable.numpy()
            assert any(
                array.shape == value.shape and np.array_equal(array, value) for array in held
            ), variable.path


@pytest.mark.slow
def test_training_starts_from_the_registry_or_an_export(tiny_can, random_patches, tmp_path):
    fit(tiny_can(steps=1), random_patches, tmp_path / "first", register=True)
    expected = Small(tiny_can().model, 32)
    export.assign(expected.networks, tmp_path / "first/export")
    weights = {
        name: [v.numpy() for v in network.trainable_variables]
        for name, network in expected.networks.items()
    }

    class Checking(Small):
        def train_step(self, batch):
            for name, network in self.networks.items():
                for have, want in zip(network.trainable_variables, weights[name], strict=True):
                    tf.debugging.assert_equal(have.value, want)
            return super().train_step(batch)

    for handle in ("models:/tfmammo-can@best", str(tmp_path / "first")):
        output = tmp_path / f"from-{handle.count('m')}"
        fit(
            tiny_can(steps=1, steps_per_loop=1, initial=handle),
            lambda count: random_patches(count - 2),
            output,
            model=Checking,
        )
        assert saved_step(output) == 1
        # what the start was trained on counts as seen
        assert export.read_card(output / "export")["train_patients"] == ["p0", "p1", "p2", "p3"]


def test_another_models_export_is_refused_as_a_start(tiny_can, random_patches, tmp_path):
    fit(tiny_can(steps=1), random_patches, tmp_path / "first")
    with pytest.raises(ExportError, match="segmenter"):
        fit(
            tiny_can({"filters": (8, 8)}, initial=str(tmp_path / "first")),
            random_patches,
            tmp_path / "second",
        )


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains_and_exports_float32(tiny_can, random_patches, tmp_path, policy):
    import mlflow

    keras.config.set_dtype_policy(policy)
    experiment = tiny_can(precision=policy)
    metrics = fit(experiment, random_patches, tmp_path / "run")
    assert keras.config.dtype_policy().name == policy
    assert all(np.isfinite(value) for value in metrics.values())
    run = mlflow.MlflowClient(experiment.tracking.uri).get_run(
        (tmp_path / "run/mlflow_run_id").read_text().strip()
    )
    assert ("segmenter_loss_scale" in run.data.metrics) == (policy == "mixed_float16")
    mask = export.load(tmp_path / "run/export", "segmenter")(random_patches(2).images)["mask"]
    assert mask.dtype == np.float32 and mask.min() >= 0 and mask.max() <= 1


def test_steps_follow_from_epochs():
    training = configuration.TrainingConfig(epochs=300, epoch_samples=700)
    assert loop.count_steps(training, 71) == 210_000
    # 30 draws in batches of four
    assert loop.count_steps(configuration.TrainingConfig(epochs=3, batch_size=4), 10) == 8
    assert loop.count_steps(configuration.TrainingConfig(steps=7), 10) == 7
    # 30 draws in steps of two batches of four
    several = configuration.TrainingConfig(epochs=3, batch_size=4, accumulate=2)
    assert loop.count_steps(several, 10) == 4


def test_differences_name_nested_keys():
    assert folder.list_differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == [
        "a.c: 2 there, 3 here"
    ]
    assert folder.list_differences({"a": 1}, {"a": 1}) == []


def test_values_of_networks_of_keras_and_of_others():
    dense = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert [value.shape for value in checkpoints.get_variables(dense)] == [(2, 1), (1,)]
    assert all(isinstance(value, tf.Variable) for value in checkpoints.get_variables(dense))
    module = tf.Module()
    module.weight = tf.Variable(1.0)
    (value,) = checkpoints.get_variables(module)
    assert value is module.weight


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "score"), [("max", 0.75), ("min", 0.25)])
def test_the_monitored_metric_chooses_the_best_checkpoint(
    tiny_can, random_patches, tmp_path, mode, score
):
    scores = iter([0.5, 0.75, 0.25, 0.6])

    def validate(functions, held_out):
        return {"other": 1.0, "error": next(scores)}

    fit(
        tiny_can(steps=8, validate_every=2),
        random_patches,
        tmp_path / "run",
        validate,
        monitor="error",
        mode=mode,
    )
    card = export.read_card(tmp_path / "run/best")
    assert card["metrics"] == {"error": score}
    assert card["step"] == {"max": 4, "min": 6}[mode]


@pytest.mark.slow
def test_the_best_export_states_the_score_of_its_own_weights(tiny_can, random_patches, tmp_path):
    scores = iter([0.5, 0.4])
    output = tmp_path / "run"

    def validate(functions, held_out):
        return {"dice": next(scores)}

    fit(tiny_can(steps=4, validate_every=2), random_patches, output, validate)
    # a better checkpoint was written, and lost
    saved = checkpoints.TrainingState(Small(tiny_can().model, 32), output, 1)
    saved.newest_checkpoints.restore()
    saved.best.assign(0.9)
    saved.save()
    shutil.rmtree(output / "export")
    fit(tiny_can(steps=4, validate_every=2), random_patches, output, lambda *_: {"dice": 0.4})
    assert export.read_card(output / "best")["metrics"] == {"dice": 0.5}


@pytest.mark.slow
def test_a_metric_that_cannot_be_measured_is_left_out_of_the_card(
    tiny_can, random_patches, tmp_path
):
    def validate(functions, held_out):
        return {"judged": float("nan"), "error": 0.5}

    for _ in range(2):  # a finished training is read again
        metrics = fit(
            tiny_can(steps=2), random_patches, tmp_path / "run", validate, monitor="error"
        )
        assert metrics["error"] == 0.5
    assert export.read_card(tmp_path / "run/export")["metrics"] == {"error": 0.5}


def test_the_card_names_the_published_networks_of_a_loss(tiny_can, random_patches, tmp_path):
    class Guided(Small):
        pretrained = {"trunk": Source("Keras's VGG-19", "f427" * 16)}

    for model, expected in (
        (Guided, {"trunk": {"title": "Keras's VGG-19", "sha256": "f427" * 16}}),
        (Small, {}),
    ):
        output = tmp_path / model.__name__
        fit(tiny_can(steps=1), random_patches, output, model=model)
        card = export.read_card(output / "export")
        assert card["pretrained"] == expected
        assert ("f427" * 16 in export.card.format_card(card)) == bool(expected)


def test_a_validation_without_the_monitored_metric_is_refused(tiny_can, random_patches, tmp_path):
    with pytest.raises(TrainingError, match="metric auc"):
        fit(
            tiny_can(steps=2),
            random_patches,
            tmp_path / "run",
            validate=lambda functions, held_out: {"dice": 0.5},
            monitor="auc",
        )


@pytest.mark.slow
def test_seen_patients_are_recorded_at_the_start_and_read_at_a_resume(
    tiny_can, random_patches, tmp_path
):
    record = tmp_path / "run/initial_patients.txt"
    fit(tiny_can(steps=2), random_patches, tmp_path / "run", seen_patients=["q2", "q1"])
    assert record.read_text().split() == ["q1", "q2"]
    trained = ["p0", "p1", "p2", "p3"]
    assert export.read_card(tmp_path / "run/export")["train_patients"] == [*trained, "q1", "q2"]
    record.write_text("q3\nq2")
    fit(tiny_can(steps=4), random_patches, tmp_path / "run", seen_patients=["q9"])
    assert record.read_text() == "q3\nq2", "the record of the start stays"
    assert export.read_card(tmp_path / "run/export")["train_patients"] == [*trained, "q2", "q3"]


@pytest.mark.slow
def test_a_start_that_knows_held_out_patients_says_so(tiny_can, random_patches, tmp_path, caplog):
    fit(tiny_can(steps=1), random_patches, tmp_path / "one", seen_patients=["q1"])
    assert "knows" not in caplog.text
    known = random_patches(3).patient_ids[0]
    fit(tiny_can(steps=1), random_patches, tmp_path / "two", seen_patients=[known])
    assert "knows 1 of the 2 held-out patients: the held-out metrics are too good" in caplog.text


def test_patients_behind_a_synthetic_set_stand_in_the_card(tiny_can, random_patches, tmp_path):
    patients = {
        "mammograms": ["t1"],
        "lesions": ["d1"],
        "trained_on": ["n1"],
        "id_key": key_check(),
    }
    (tmp_path / "set").mkdir()
    (tmp_path / "set/patients.json").write_text(json.dumps(patients))
    experiment = tiny_can(steps=1)
    for name, data in (
        ("added", {"added": AddedConfig(synthetic=tmp_path / "set")}),
        ("alone", {"name": "folder", "root": tmp_path / "set"}),
    ):
        data = experiment.data.model_copy(update=data)
        fit(
            experiment.model_copy(update={"data": data}),
            random_patches,
            tmp_path / name,
            lambda functions, held_out: {"dice": 0.5},
        )
        card = export.read_card(tmp_path / name / "export")
        assert {"t1", "d1", "n1"} <= set(card["train_patients"])


@pytest.mark.slow
def test_patients_of_the_start_the_synthetic_set_and_the_caller_are_all_seen(
    tiny_can, random_patches, tmp_path
):
    first = tmp_path / "first"
    fit(tiny_can(steps=1), random_patches, first, seen_patients=["q1"])
    (tmp_path / "set").mkdir()
    patients = {
        "mammograms": ["t1"],
        "lesions": ["d1"],
        "trained_on": ["n1"],
        "id_key": key_check(),
    }
    (tmp_path / "set/patients.json").write_text(json.dumps(patients))
    experiment = tiny_can(steps=1, initial=str(first))
    added = AddedConfig(synthetic=tmp_path / "set")
    data = experiment.data.model_copy(update={"added": added})
    experiment = experiment.model_copy(update={"data": data})
    fit(experiment, random_patches, tmp_path / "second", seen_patients=["q2"])
    card = export.read_card(tmp_path / "second/export")
    trained_on = {"p0", "p1", "p2", "p3"}
    assert set(card["train_patients"]) == trained_on | {"q1", "q2", "t1", "d1", "n1"}


@pytest.mark.slow
def test_a_training_keeps_the_precision_that_it_began_with(
    tiny_can, random_patches, tmp_path, monkeypatch
):
    policy = keras.config.dtype_policy().name
    chosen = []
    monkeypatch.setattr(script.devices, "choose_precision", lambda *_: "mixed_float16")
    monkeypatch.setattr(script.keras.config, "set_dtype_policy", chosen.append)
    fit(tiny_can(steps=1), random_patches, tmp_path / "run")
    assert folder.read_precision(tmp_path / "run") == policy != "mixed_float16"
    assert folder.read_precision(tmp_path) == policy  # that of the first stage
    for precision, began_with, expected in (
        ("auto", policy, policy),
        ("auto", None, "mixed_float16"),
        ("mixed_float16", policy, "mixed_float16"),
    ):
        script.configure_tensorflow(TrainingConfig(precision=precision), began_with)
        assert chosen[-1] == expected
    (tmp_path / "run/precision").write_text("a disk full of")
    assert folder.read_precision(tmp_path / "run") is None


@pytest.mark.slow
def test_a_start_replaces_the_record_of_one_that_failed(tiny_can, random_patches, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/initial_patients.txt").write_text("q1")
    fit(tiny_can(steps=1), random_patches, tmp_path / "run")
    assert export.read_card(tmp_path / "run/export")["train_patients"] == ["p0", "p1", "p2", "p3"]
