"""A run's folder: whose it is, and what survives kills, full disks and power losses."""

import pytest
import tensorflow as tf

from tfmammo import filesystem
from tfmammo.config import (
    TRAINING_CONFIG,
    DataConfig,
    Experiment,
    TrackingConfig,
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


SOMEWHERE = {"name": "inbreast", "root": "somewhere"}


@pytest.mark.parametrize(
    ("files", "train", "held_out", "named"),
    [
        (["checkpoints/ckpt-4.index", TRAINING_CONFIG], "0123", "0123", "config.yaml"),
        (["best/mine.txt"], "0123", "0123", "contains best, which no"),
        (["checkpoints/mine.txt"], "0123", "0123", "contains checkpoints, which no"),
        (None, "ba98", "0123", "its patches were .* data.root somewhere"),
        (None, "0123", "ba98", "its held-out patches were .* data.root somewhere"),
    ],
)
def test_a_folder_of_something_else_is_not_taken(tmp_path, files, train, held_out, named):
    if files is None:
        folder.claim(tmp_path, experiment(**SOMEWHERE), Patches("0123"), Patches("0123"))
    for name in files or ():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(TrainingError, match=named):
        folder.check_owner(tmp_path, experiment(**SOMEWHERE), Patches(train), Patches(held_out))


def test_a_run_of_another_system_is_named(tmp_path):
    own = experiment(**SOMEWHERE)
    folder.claim(tmp_path, own, Patches(), Patches())
    other = own.model_copy(update={"name": "unet"})
    with pytest.raises(TrainingError, match=f"holds a run of {own.name}, not of unet; choose"):
        folder.check_owner(tmp_path, other, Patches(), Patches())


@pytest.mark.parametrize("trace", ["checkpoints/checkpoint", "export/card.json"])
def test_a_folder_whose_checkpoints_are_gone_is_refused(tmp_path, trace):
    folder.check_nothing_lost(tmp_path)
    (tmp_path / trace).parent.mkdir()
    (tmp_path / trace).touch()
    with pytest.raises(TrainingError, match=trace):
        folder.check_nothing_lost(tmp_path)


def test_config_yaml_holds_no_password(tmp_path):
    own = experiment("https://anna:ge/heim@mlflow.example/?token=geheim")
    folder.claim(tmp_path, own, Patches(), Patches())
    text = (tmp_path / TRAINING_CONFIG).read_text()
    assert "uri: https://mlflow.example/" in text and "heim" not in text
    # it is no part of what a run is
    other = experiment("https://anna:new@mlflow.example")
    folder.check_owner(tmp_path, other, Patches(), Patches())


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


@pytest.mark.parametrize("keep", [1, 2])
def test_an_older_checkpoint_goes_only_when_the_newer_is_on_the_disk(tmp_path, monkeypatch, keep):
    counter = Counter(tmp_path, keep)
    counter.save(1)
    flushed = set()

    def flush(path):
        assert "ckpt-1.index" in names(tmp_path)
        flushed.add(path.name)

    monkeypatch.setattr(filesystem, "flush", flush)
    monkeypatch.setattr(filesystem, "write_atomically", lambda *_: None)
    counter.save(2)
    assert flushed == {"ckpt-2.data-00000-of-00001", "ckpt-2.index"}
    assert ("ckpt-1.index" in names(tmp_path)) == (keep == 2)


@pytest.mark.parametrize("state", [None, "rubbish {"])
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
    theirs = ("ckpt-backup.zip", "ckpt-mine.index")
    for name in theirs:
        (tmp_path / name).touch()
    other = Counter(tmp_path)
    assert other.checkpoints.restore() == str(tmp_path / "ckpt-1")
    # an unreadable one of a later step does not push out the good ones
    (tmp_path / "ckpt-9.index").touch()
    assert other.checkpoints.restore() == str(tmp_path / "ckpt-1")
    other.save(3)
    assert [path.rpartition("-")[2] for path in other.checkpoints.paths] == ["1", "3"]
    assert len(names(tmp_path)) == 4 + len(theirs) and set(theirs) <= set(names(tmp_path))


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for step in (900, 1000, 80):
        (tmp_path / f"ckpt-{step}.index").touch()
    listed = checkpoints.list_checkpoints(tmp_path)
    assert [checkpoints.parse_step(path) for path in listed] == [80, 900, 1000]


@pytest.mark.slow
def test_checkpoints_of_another_model_are_refused(tmp_path):
    Counter(tmp_path).save(1)
    checkpoint = tf.train.Checkpoint(another=tf.Variable(0))
    with pytest.raises(TrainingError, match="ckpt-1"):
        checkpoints.Checkpoints(checkpoint, tmp_path, 2).restore()
