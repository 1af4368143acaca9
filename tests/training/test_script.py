"""What the scripts share: precision, archives, the data of a config, one-line errors."""

import logging
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.known_networks import Weightless
from tfmammo import cli, filesystem
from tfmammo.config import DataConfig
from tfmammo.data import build, datasets, splits
from tfmammo.data.extraction import make_shape_patches
from tfmammo.data.patches import Patches
from tfmammo.data.tfrecord import Records
from tfmammo.errors import ConfigError, DataError, Interrupted, TrainingError
from tfmammo.mammogram import SHAPES
from tfmammo.metrics.segmentation import centred_disc
from tfmammo.models.can import CAN, CANConfig
from tfmammo.training import folder, script


@pytest.mark.parametrize(
    ("data", "error", "named"),
    [
        ({"name": "nowhere"}, ConfigError, "data.name: nowhere"),
        ({"name": "cdd_cesm", "root": "{tmp_path}/no"}, ConfigError, "data.root: no such folder"),
        ({"records": "{tmp_path}/no"}, ConfigError, "data.records: no such folder"),
        ({"records": "{records}", "size": 64}, ConfigError, "data.size: 64 px"),
        (
            {"records": "{records}", "size": 32, "frame": "loose", "window": (0, 1)},
            ConfigError,
            "other settings; set data.frame=square data.window=null",
        ),
        ({"name": "cdd_cesm", "root": "{tmp_path}"}, ValueError, "{tmp_path}"),
        ({"name": "inbreast", "root": "{tmp_path}"}, ValueError, "{tmp_path}"),
    ],
)
def test_wrong_archives_and_folders_name_the_key(tmp_path, records, data, error, named):
    def fill(value):
        place = isinstance(value, str)
        return value.format(tmp_path=tmp_path, records=records) if place else value

    with pytest.raises(error, match=re.escape(fill(named))):
        datasets.load_all_patches(DataConfig(**{key: fill(value) for key, value in data.items()}))


def test_a_run_keeps_its_split_for_others_to_use(tmp_path):
    config = DataConfig(phantoms=12, size=32, fold=1)
    subsets = datasets.open_subsets(config, tmp_path / "run")
    path = tmp_path / "run/split.json"
    saved = splits.load(path)
    assert saved.archive == "phantom"
    assert {saved.patients[patient] for patient in subsets[1].patient_ids} == {1}
    again = config.model_copy(update={"seed": 0, "folds": 2, "split_file": path})
    for side, same in zip(subsets, datasets.open_subsets(again), strict=True):
        assert side.ids.tolist() == same.ids.tolist()


def test_masks_of_known_shape_are_split_by_patient_and_shape(tmp_path):
    config = DataConfig(phantoms=60, size=64, folds=5, stratify="shape")
    held: list[str] = []
    for fold in range(5):
        chosen = config.model_copy(update={"fold": fold})
        train, held_out = datasets.open_subsets(chosen, tmp_path, make_shape_patches)
        assert not set(train.patient_ids) & set(held_out.patient_ids)
        assert [SHAPES[label] for label in held_out.labels] == held_out.shapes.tolist()
        np.testing.assert_array_equal(held_out.images, held_out.masks)
        held += held_out.ids.tolist()
    masks = datasets.load_all_patches(config, make_shape_patches)
    assert sorted(held) == sorted(masks.ids.tolist())
    assert splits.load(tmp_path / "split.json").stratify == "shape"
    with pytest.raises(ConfigError, match="data.records"):
        datasets.load_all_patches(DataConfig(records=tmp_path), make_shape_patches)


def test_a_split_of_any_kind_is_kept_for_a_study(tmp_path):
    config = DataConfig(phantoms=16, folds=2)

    def write(name, **changes):
        changed = config.model_copy(update=changes)
        return datasets.write_archive_split(changed, tmp_path / name)

    path = write("own")
    again = splits.load(write("other", split_file=path, folds=5))
    assert again == splits.load(path) and set(again.patients.values()) == {0, 1}
    with pytest.raises(DataError, match="neither set"):  # phantoms have no official split
        write("official", split="official")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A folder of records of 32 px from twelve phantoms."""
    shards = build.ShardConfig(shard_mammograms=4)
    data = DataConfig(phantoms=12, size=32)
    chosen = build.BuildConfig(name="test", data=data, build=shards)
    folder = tmp_path_factory.mktemp("records")
    build.build(chosen, folder)
    return folder


def test_records_are_split_like_the_archive_and_their_training_part_stays_on_disk(
    records, tmp_path
):
    config = DataConfig(phantoms=12, size=32)
    of_records = DataConfig(records=records, size=32)
    train, held_out = datasets.open_subsets(of_records, tmp_path)
    assert isinstance(train, Records) and isinstance(held_out, Patches)
    expected, _ = datasets.open_subsets(config)
    assert train.ids.tolist() == expected.ids.tolist()
    assert splits.load(tmp_path / "split.json").archive == "phantom"
    every = datasets.load_all_patches(of_records)
    assert every.ids.tolist() == datasets.load_all_patches(config).ids.tolist()


def test_validation_of_a_model_that_does_both(tiny_can, random_patches):
    held_out = random_patches(3)
    metrics = script.compute_validation_metrics(CAN(tiny_can().model, 32).functions(), held_out)
    names = ["dice", "jaccard", "accuracy", "mcc", "dice_of_disc", "ssim", "l1"]
    assert list(metrics) == names
    assert 0 <= metrics["jaccard"] <= metrics["dice"] <= 1


def test_a_segmenter_that_ignores_the_image_is_no_better_than_a_disc(
    tiny_can, random_patches, tmp_path, caplog
):
    held_out = random_patches(3)
    discs = np.stack([centred_disc(32, radius) for radius in (6, 9, 9)])
    held_out = replace(held_out, masks=discs.astype(np.uint8))
    same = Weightless("segmenter", lambda image: {"mask": 0 * image + discs[1]}, image=(32, 32, 1))
    metrics = script.compute_validation_metrics(same.functions(), held_out)
    small, large = discs[0].sum(), discs[1].sum()
    assert metrics["dice_of_disc"] == pytest.approx((2 + 2 * small / (small + large)) / 3)
    assert metrics["dice"] == pytest.approx(metrics["dice_of_disc"])
    script.print_summary(tiny_can(), metrics, held_out, tmp_path)
    assert "no better than a centred disc" in caplog.text
    caplog.clear()
    script.print_summary(tiny_can(), metrics | {"dice": 0.99}, held_out, tmp_path)
    assert not caplog.text


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


def test_a_failed_starts_split_is_replaced_and_a_begun_trainings_stays(tmp_path):
    config = DataConfig(phantoms=12, size=32)
    datasets.open_subsets(config, tmp_path)  # and then the model can't be built
    datasets.open_subsets(config.model_copy(update={"folds": 2}), tmp_path)  # the corrected command
    assert splits.load(tmp_path / "split.json").folds == 2
    (tmp_path / "config.yaml").write_text("name: can")  # the training has begun
    datasets.open_subsets(config, tmp_path)
    assert splits.load(tmp_path / "split.json").folds == 2


VIEWER = "mlflow ui --backend-store-uri"


@pytest.mark.parametrize(
    ("uri", "environment", "said"),
    [
        (None, "http://anna:geheim@server:5000", "http://server:5000"),
        ("sqlite:////data/runs.db", "http://server:5000", f"{VIEWER} sqlite:////data/runs.db"),
        ("postgresql://anna:geheim@db/runs", None, f"{VIEWER} postgresql://db/runs"),
        (None, None, VIEWER + " sqlite:///{here}/mlflow.db"),
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
    tracking = experiment.tracking.model_copy(update={"uri": uri})
    experiment = experiment.model_copy(update={"tracking": tracking})
    script.print_summary(experiment, {"dice": 0.5}, random_patches(3), tmp_path)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"history   {said.format(here=tmp_path)}"


def test_the_same_command_has_the_same_folder_and_another_one_its_own(tiny_can):
    here = script.default_output(tiny_can(steps=4))
    assert here == script.default_output(tiny_can(steps=9, keep=5)) and here.parent.name == "runs"
    assert here != script.default_output(tiny_can({"filters": (4, 8)}))
    assert here != script.default_output(tiny_can(seed=1))


@pytest.fixture
def start(repository, monkeypatch, tmp_path):
    """A function that starts a train script with these arguments, in a folder of the test's own."""
    monkeypatch.setattr(script, "configure_tensorflow", lambda *_: None)
    monkeypatch.chdir(tmp_path)

    def start(*arguments, **options):
        words = ["train/can.py", "--config", str(repository / "configs/can.yaml"), *arguments]
        monkeypatch.setattr(sys, "argv", words)
        return script.start("Train.", CANConfig, **options)

    return start


def test_a_train_script_reads_its_command(start):
    with start("--set", "training.steps=3") as command:
        assert command.experiment.training.steps == 3
        assert command.overrides == ("training.steps=3",)
        assert command.output == script.default_output(command.experiment)
    with start("--output", "run") as command:
        assert command.output == Path("run")
    several = start("--set", "training.strategy=multi_worker", not_for_workers="it is one's")
    with pytest.raises(ConfigError, match="training.strategy"), several:
        pass


def test_a_command_holds_its_folder_from_its_start(start):
    """A second one of other settings would replace split.json while the first opens its data."""
    Path("run").mkdir()
    with start("--output", "run") as command:
        with folder.hold_lock(command.output):  # as Training.fit does
            pass
        with Path("run/.lock").open("w") as other:
            assert filesystem.take_lock(other) is False
    with Path("run/.lock").open("w") as other:
        assert filesystem.take_lock(other) is True
        with pytest.raises(TrainingError, match="another process"), start("--output", "run"):
            pass
