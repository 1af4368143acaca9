"""A training's folder: whose it is, and what survives kills, full disks and power losses."""

import errno
import logging
import os

import portalocker
import pytest
import tensorflow as tf

from tfmammo import filesystem
from tfmammo.config import (
    TRAINING_CONFIG,
    DataConfig,
    Experiment,
    TrackingConfig,
    is_training_folder,
)
from tfmammo.errors import ConfigError, TrainingError
from tfmammo.training import checkpoints, folder


class Patches:
    """What `claim` asks of patches."""

    def __init__(self, fingerprint="0123456789ab"):
        self.fingerprint = lambda: fingerprint


def experiment(uri=None, **data):
    return Experiment[dict](
        name="tiny", data=DataConfig(**data), tracking=TrackingConfig(uri=uri), model={"width": 1}
    )


def inodes(output):
    return {
        name: os.stat(output / name).st_ino
        for name in (TRAINING_CONFIG, folder.PATCHES, folder.HELD_OUT)
    }


def test_config_and_fingerprint_are_written_once(tmp_path, monkeypatch):
    folder.claim(tmp_path, experiment(), Patches(), Patches())
    before = inodes(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)  # no write would succeed from here on
    folder.check_owner(tmp_path, experiment(), Patches(), Patches())
    folder.claim(tmp_path, experiment(), Patches(), Patches())
    assert inodes(tmp_path) == before and (tmp_path / folder.PATCHES).read_text() == "0123456789ab"


def test_a_write_that_fails_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            folder.claim(tmp_path, experiment(), Patches(), Patches())
    assert list(tmp_path.iterdir()) == [] and not is_training_folder(tmp_path)
    folder.claim(tmp_path, experiment(), Patches(), Patches())
    assert is_training_folder(tmp_path)


def test_an_empty_config_beside_checkpoints_is_one_sentence(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/ckpt-4.index").touch()
    (tmp_path / TRAINING_CONFIG).touch()
    with pytest.raises(TrainingError, match="config.yaml"):
        folder.check_owner(tmp_path, experiment(), Patches(), Patches())


@pytest.mark.parametrize(
    ("train", "held_out", "words"),
    [("ba9876543210", "0123456789ab", "patches"), ("0123456789ab", "ba98", "held-out patches")],
)
def test_other_patches_are_another_training(tmp_path, train, held_out, words):
    place = experiment(name="inbreast", root="somewhere")
    folder.claim(tmp_path, place, Patches(), Patches())
    with pytest.raises(TrainingError, match=f"its {words} were .* data.root somewhere"):
        folder.check_owner(tmp_path, place, Patches(train), Patches(held_out))


def test_config_yaml_holds_no_password(tmp_path):
    folder.claim(
        tmp_path,
        experiment("https://anna:ge/heim@mlflow.example/?token=geheim"),
        Patches(),
        Patches(),
    )
    text = (tmp_path / TRAINING_CONFIG).read_text()
    assert "uri: https://mlflow.example/" in text and "heim" not in text
    # it is no part of what a run is
    folder.check_owner(
        tmp_path, experiment("https://anna:new@mlflow.example"), Patches(), Patches()
    )


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_no_other_process(tmp_path, monkeypatch, caplog, number):
    def none(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(portalocker.portalocker, "LOCKER", none)
    with caplog.at_level(logging.WARNING), folder.hold_lock(tmp_path):
        pass
    assert "its file system knows no locks" in caplog.text


def test_a_folder_in_which_no_training_began_is_removed(tmp_path):
    with pytest.raises(ConfigError), folder.hold_lock(tmp_path / "runs/new"):
        (tmp_path / "runs/new/split.json").write_text("{}")  # which the data of a start leaves
        raise ConfigError("data.root: no such folder")
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty").mkdir()
    with folder.hold_lock(tmp_path / "empty"), folder.hold_lock(tmp_path / "run"):
        (tmp_path / "run/config.yaml").write_text("")
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "run"}, "the user's, and a run's"


class Counter:
    """Checkpoints of one number."""

    def __init__(self, place, keep=2):
        self.value = tf.Variable(0)
        self.checkpoints = checkpoints.Checkpoints(
            tf.train.Checkpoint(value=self.value), place, keep
        )

    def save(self, step):
        self.value.assign(step)
        self.checkpoints.save(step)


def names(place):
    return sorted(path.name for path in place.glob("ckpt-*"))


def test_the_newest_checkpoints_are_kept_and_tensorflow_finds_them(tmp_path):
    counter = Counter(tmp_path)
    for step in (8, 9, 10):
        counter.save(step)
    assert names(tmp_path) == [
        f"ckpt-{step}.{part}" for step in (10, 9) for part in ("data-00000-of-00001", "index")
    ]
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "ckpt-10")
    other = Counter(tmp_path)
    assert other.checkpoints.restore() == str(tmp_path / "ckpt-10") and int(other.value) == 10


@pytest.mark.parametrize("keep", [1, 2])
def test_an_older_checkpoint_goes_only_when_the_newer_is_on_the_disk(tmp_path, monkeypatch, keep):
    counter = Counter(tmp_path, keep)
    counter.save(1)
    flushed = []

    def flush(path):
        assert "ckpt-1.index" in names(tmp_path)
        flushed.append(path.name)

    monkeypatch.setattr(filesystem, "flush", flush)
    monkeypatch.setattr(filesystem, "write_atomically", lambda *_: None)
    counter.save(2)
    assert flushed == ["ckpt-2.data-00000-of-00001", "ckpt-2.index"] or flushed == [
        "ckpt-2.index",
        "ckpt-2.data-00000-of-00001",
    ]
    assert ("ckpt-1.index" in names(tmp_path)) == (keep == 2)


@pytest.mark.parametrize("state", [None, "", "rubbish {"])
def test_checkpoints_are_found_without_their_list(tmp_path, state):
    counter = Counter(tmp_path)
    counter.save(600)
    listed = tmp_path / checkpoints.STATE
    listed.unlink() if state is None else listed.write_text(state)
    other = Counter(tmp_path)
    assert other.checkpoints.restore() == str(tmp_path / "ckpt-600") and int(other.value) == 600
    other.save(601)
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "ckpt-601")


def test_what_a_killed_save_leaves_is_passed_over_and_removed(tmp_path):
    counter = Counter(tmp_path)
    counter.save(1)
    (tmp_path / "ckpt-2_temp").mkdir()
    (tmp_path / "ckpt-2_temp/part-00000-of-00001.data-00000-of-00001").touch()
    (tmp_path / "ckpt-2.data-00000-of-00001").touch()  # the index is written last
    other = Counter(tmp_path)
    assert other.checkpoints.restore() == str(tmp_path / "ckpt-1")
    # an unreadable one of a later step does not push out the good ones
    (tmp_path / "ckpt-9.index").touch()
    assert other.checkpoints.restore() == str(tmp_path / "ckpt-1")
    other.save(3)
    assert [path.rpartition("-")[2] for path in other.checkpoints.paths] == ["1", "3"] and len(
        names(tmp_path)
    ) == 4


def test_a_folder_whose_checkpoints_are_gone_is_refused(tmp_path):
    folder.check_nothing_lost(tmp_path)
    Counter(tmp_path / "checkpoints").save(600)
    for path in (tmp_path / "checkpoints").glob("ckpt-*"):
        path.unlink()
    with pytest.raises(TrainingError, match="checkpoints/checkpoint"):
        folder.check_nothing_lost(tmp_path)
    (tmp_path / "checkpoints/checkpoint").unlink()
    (tmp_path / "export").mkdir()
    (tmp_path / "export/card.json").write_text("{}")
    with pytest.raises(TrainingError, match="export/card.json: is there"):
        folder.check_nothing_lost(tmp_path)


@pytest.mark.slow
def test_checkpoints_of_another_model_are_refused(tmp_path):
    Counter(tmp_path).save(1)
    checkpoint = tf.train.Checkpoint(another=tf.Variable(0))
    with pytest.raises(TrainingError, match="ckpt-1"):
        checkpoints.Checkpoints(checkpoint, tmp_path, 2).restore()


@pytest.mark.parametrize("name", ["best", "export", "samples", "checkpoints"])
def test_a_folder_with_files_of_somebody_else_is_not_taken(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").touch()
    with pytest.raises(TrainingError, match=f"holds {name} of no training; choose another"):
        folder.check_owner(tmp_path, experiment(), Patches(), Patches())


def test_other_files_beside_checkpoints_stay(tmp_path):
    ours = ("ckpt-3.index", "ckpt-3.data-00000-of-00001", "ckpt-4_temp")
    for name in (*ours, "ckpt-backup.zip", "ckpt-mine.index"):
        (tmp_path / name).touch()
    kept = checkpoints.Checkpoints(tf.train.Checkpoint(), tmp_path, 1)
    kept._remove_all_except(set())
    assert {path.name for path in tmp_path.iterdir()} == {
        "ckpt-backup.zip",
        "ckpt-mine.index",
    }
