"""What the scripts share: precision, archives, the data of a config, one-line errors."""

import logging
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tfmammo import cli, filesystem
from tfmammo.archives import phantom
from tfmammo.config import DataConfig
from tfmammo.data import build, datasets, splits
from tfmammo.data.extraction import make_shape_patches
from tfmammo.data.patches import Patches
from tfmammo.data.sampling import SHAPES
from tfmammo.data.tfrecord import Records
from tfmammo.errors import ConfigError, DataError, Interrupted, TrainingError
from tfmammo.models.can import CAN, CANConfig
from tfmammo.tracking import export
from tfmammo.training import folder, script


def test_the_phantom_stands_in_where_no_root_is_set(caplog):
    caplog.set_level(logging.INFO, "tfmammo")
    patches = datasets.load_all_patches(DataConfig(name="inbreast", phantoms=6, size=64))
    assert len(patches) >= 3 and patches.images.shape[1:] == (64, 64, 1)
    assert "data.root is not set: taking the phantom" in caplog.text


def test_wrong_archives_and_folders_name_the_key(tmp_path):
    with pytest.raises(ConfigError, match="data.name: nowhere"):
        datasets.load_all_patches(DataConfig(name="nowhere"))
    with pytest.raises(ConfigError, match="data.root: no such folder"):
        datasets.load_all_patches(DataConfig(name="cdd_cesm", root=tmp_path / "missing"))


def test_an_empty_folder_is_no_archive(tmp_path):
    for name in ("cdd_cesm", "inbreast"):
        with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
            datasets.load_all_patches(DataConfig(name=name, root=tmp_path))


def test_no_patient_is_on_both_sides_and_every_patch_is_held_out_once():
    config = DataConfig(phantoms=12, size=32)
    held_out_ids: list[str] = []
    for fold in range(3):
        train, held_out = datasets.open_subsets(config.model_copy(update={"fold": fold}))
        assert not set(train.patient_ids) & set(held_out.patient_ids)
        held_out_ids += held_out.ids.tolist()
    assert sorted(held_out_ids) == sorted(datasets.load_all_patches(config).ids.tolist())


def test_a_run_keeps_its_split_for_others_to_use(tmp_path):
    config = DataConfig(phantoms=12, size=32, fold=1)
    train, held_out = datasets.open_subsets(config, tmp_path / "run")
    saved = splits.load(tmp_path / "run/split.json")
    assert saved.archive == "phantom" and {
        saved.patients[patient] for patient in held_out.patient_ids
    } == {1}
    again = config.model_copy(
        update={"seed": 0, "folds": 2, "split_file": tmp_path / "run/split.json"}
    )
    for side, same in zip((train, held_out), datasets.open_subsets(again), strict=True):
        assert side.ids.tolist() == same.ids.tolist()


def test_masks_of_known_shape_are_split_by_patient_and_shape(tmp_path):
    config = DataConfig(phantoms=60, size=64, folds=5, stratify="shape")
    held: list[str] = []
    for fold in range(5):
        train, held_out = datasets.open_subsets(
            config.model_copy(update={"fold": fold}), tmp_path, make_shape_patches
        )
        assert isinstance(train, Patches) and not set(train.patient_ids) & set(held_out.patient_ids)
        assert [SHAPES[label] for label in held_out.labels] == held_out.shapes.tolist()
        np.testing.assert_array_equal(held_out.images, held_out.masks)
        held += held_out.ids.tolist()
    masks = datasets.load_all_patches(config, make_shape_patches)
    assert (
        sorted(held) == sorted(masks.ids.tolist())
        and splits.load(tmp_path / "split.json").stratify == "shape"
    )
    pathologies = {
        f"{m.image_id}#{i}": lesion.pathology
        for m in phantom.read(count=60)
        for i, lesion in enumerate(m.lesions)
    }
    assert masks.pathologies.tolist() == [pathologies[name] for name in masks.ids.tolist()]
    with pytest.raises(ConfigError, match="data.records"):
        datasets.load_all_patches(DataConfig(records=tmp_path), make_shape_patches)


def test_a_split_of_any_kind_is_kept_for_a_study(tmp_path):
    config = DataConfig(phantoms=16, folds=2)
    path = datasets.write_archive_split(config, tmp_path / "own")
    again = datasets.write_archive_split(
        config.model_copy(update={"split_file": path, "folds": 5}), tmp_path / "other"
    )
    assert splits.load(again) == splits.load(path) and set(splits.load(path).patients.values()) == {
        0,
        1,
    }
    with pytest.raises(DataError, match="neither set"):  # phantoms have no official split
        datasets.write_archive_split(
            config.model_copy(update={"split": "official"}), tmp_path / "official"
        )


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A folder of records of 32 px from twelve phantoms."""
    chosen = build.BuildConfig(
        name="test",
        data=DataConfig(phantoms=12, size=32),
        build=build.ShardConfig(shard_mammograms=4),
    )
    folder = tmp_path_factory.mktemp("records")
    build.build(chosen, folder)
    return folder


def test_records_are_split_like_the_archive_and_their_training_part_stays_on_disk(
    records, tmp_path
):
    config = DataConfig(phantoms=12, size=32)
    for (train, held_out), kind in (
        (datasets.open_subsets(config), Patches),
        (datasets.open_subsets(DataConfig(records=records, size=32), tmp_path), Records),
    ):
        assert isinstance(train, kind) and isinstance(held_out, Patches)
    expected, _ = datasets.open_subsets(config)
    assert train.ids.tolist() == expected.ids.tolist()
    assert splits.load(tmp_path / "split.json").archive == "phantom"
    assert (
        datasets.load_all_patches(DataConfig(records=records, size=32)).ids.tolist()
        == datasets.load_all_patches(config).ids.tolist()
    )


def test_records_that_do_not_fit_name_the_key(records, tmp_path):
    with pytest.raises(ConfigError, match="data.size: 64 px"):
        datasets.load_all_patches(DataConfig(records=records, size=64))
    with pytest.raises(ConfigError, match="data.records: no such folder"):
        datasets.load_all_patches(DataConfig(records=tmp_path / "nowhere"))


def test_the_papers_protocol_leaks_and_says_so(caplog):
    config = DataConfig(phantoms=12, size=32, split="paper", paper_samples=60, paper_test=10)
    train, held_out = datasets.open_subsets(config)
    assert (len(train), len(held_out)) == (50, 10)
    assert set(train.patient_ids) & set(held_out.patient_ids)
    assert "copies of one lesion are on both sides" in caplog.text
    assert caplog.text.count("data.augment is off") == 1


def test_validation_of_a_model_that_does_both(tiny_can, random_patches):
    held_out = random_patches(3)
    metrics = script.compute_validation_metrics(CAN(tiny_can().model, 32).functions(), held_out)
    assert list(metrics) == ["dice", "jaccard", "accuracy", "mcc", "ssim", "l1"]
    assert 0 <= metrics["jaccard"] <= metrics["dice"] <= 1


def test_predict_joins_batches():
    def double(image):
        return {"twice": image * 2}

    values = np.arange(10, dtype=np.float32).reshape(10, 1, 1, 1)
    np.testing.assert_array_equal(
        export.predict(double, {"image": values}, batch=4)["twice"], values * 2
    )


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("training.stepz: unknown key"), 2, "error: training.stepz: unknown key\n"),
        (Interrupted(15, "at step 7"), 143, ""),
        (Interrupted(2, "at step 7"), 130, ""),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_our_errors_become_one_line_and_a_code(capsys, monkeypatch, error, code, said):
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)

    def main():
        raise error

    with pytest.raises(SystemExit) as exit_:
        cli.run(main)
    assert exit_.value.code == code
    assert capsys.readouterr().err == said


def test_an_error_that_is_not_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)

    def main():
        raise ValueError("from deep inside")

    with pytest.raises(ValueError, match="from deep inside"):
        cli.run(main)


def test_overrides_accumulate(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    parsed = cli.make_parser("x").parse_args(
        ["--config", "c.yaml", "--set", "a.b=1", "c.d=2", "--set", "e.f=3"]
    )
    assert parsed.set == ["a.b=1", "c.d=2", "e.f=3"]


def test_a_failed_starts_split_is_replaced_and_a_begun_trainings_stays(tmp_path):
    config = DataConfig(phantoms=12, size=32)
    datasets.open_subsets(config, tmp_path)  # and then the model can't be built
    datasets.open_subsets(config.model_copy(update={"folds": 2}), tmp_path)  # the corrected command
    assert splits.load(tmp_path / "split.json").folds == 2
    (tmp_path / "config.yaml").write_text("name: can")  # the training has begun
    datasets.open_subsets(config, tmp_path)
    assert splits.load(tmp_path / "split.json").folds == 2


def test_whoever_gives_no_data_is_told_so_in_a_frame(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["train/can.py", "--config", "configs/can.yaml", "--set", "training.seed=1"]
    )
    datasets.open_subsets(DataConfig(name="inbreast", phantoms=12, size=32))
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[0].startswith("╭")
        and "No data: data.root is not set, so the built-in phantom is used" in lines[1]
    )
    command = "tfmammo train can --config configs/can.yaml --set data.name=inbreast data.root=DIR"
    assert command in lines[3]
    assert "tfmammo train can --config quickstart" in lines[4] and lines[5].startswith("╰")
    datasets.open_subsets(DataConfig(phantoms=12, size=32))  # who asks for the phantom knows
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("uri", "environment", "said"),
    [
        (None, "http://anna:geheim@server:5000", "history   http://server:5000"),
        (
            "sqlite:////data/runs.db",
            "http://server:5000",
            "history   mlflow ui --backend-store-uri sqlite:////data/runs.db",
        ),
        (
            "postgresql://anna:geheim@db/runs",
            None,
            "history   mlflow ui --backend-store-uri postgresql://db/runs",
        ),
        (None, None, "history   mlflow ui --backend-store-uri sqlite:///{here}/mlflow.db"),
    ],
)
def test_the_last_line_names_the_store_that_was_used(
    tiny_can, random_patches, tmp_path, monkeypatch, capsys, uri, environment, said
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if environment:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", environment)
    experiment = tiny_can()
    experiment = experiment.model_copy(
        update={"tracking": experiment.tracking.model_copy(update={"uri": uri})}
    )
    script.print_summary(experiment, {"dice": 0.5}, random_patches(3), tmp_path)
    assert capsys.readouterr().out.splitlines()[-1] == said.format(here=tmp_path)


def test_the_same_command_has_the_same_folder_and_another_one_its_own(tiny_can):
    here = script.default_output(tiny_can(steps=4))
    assert here == script.default_output(tiny_can(steps=9, keep=5)) and here.parent.name == "runs"
    assert here != script.default_output(tiny_can({"filters": (4, 8)}))
    assert here != script.default_output(tiny_can(seed=1))


def test_a_train_script_reads_its_command(repository, monkeypatch, tmp_path):
    arguments = ["--config", str(repository / "configs/can.yaml"), "--set", "training.steps=3"]
    monkeypatch.setattr(sys, "argv", ["train/can.py", *arguments])
    monkeypatch.setattr(script, "configure_tensorflow", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    with script.start("Train.", CANConfig) as command:
        assert command.experiment.training.steps == 3
        assert command.overrides == ("training.steps=3",)
        assert command.output == script.default_output(command.experiment)
    monkeypatch.setattr(sys, "argv", ["train/can.py", *arguments, "--output", str(tmp_path)])
    with script.start("Train.", CANConfig) as command:
        assert command.output == tmp_path
    monkeypatch.setattr(sys, "argv", ["train/can.py", *arguments, "training.strategy=multi_worker"])
    refused = script.start("Train.", CANConfig, "it is one process's")
    with (
        pytest.raises(ConfigError, match="training.strategy"),
        refused,
    ):
        pass


def test_a_command_holds_its_folder_from_its_start(repository, monkeypatch, tmp_path):
    """A second one of other settings would replace split.json while the first opens its data."""
    words = ["train/can.py", "--config", str(repository / "configs/can.yaml"), "--output", "run"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(script, "configure_tensorflow", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    with script.start("Train.", CANConfig) as command:
        with folder.hold_lock(command.output):  # as Training.fit does
            pass
        with Path("run/.lock").open("w") as other:
            assert filesystem.take_lock(other) is False
    with Path("run/.lock").open("w") as other:
        assert filesystem.take_lock(other) is True
        second = script.start("Train.", CANConfig)
        with pytest.raises(TrainingError, match="another process"), second:
            pass
