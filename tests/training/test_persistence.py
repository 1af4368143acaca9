"""What a checkpoint and an export must bring back, whenever the process is killed."""

import contextlib
import errno
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmammo import filesystem
from tfmammo.errors import TrainingError
from tfmammo.nn import optimization
from tfmammo.tracking.export import export, locate, read_card, remove_leftovers
from tfmammo.training.checkpoints import TrainingState, parse_step, read_scalar


class Pair(keras.Model):
    """Two networks of a dense layer, each with an optimizer that has a momentum."""

    def __init__(self):
        super().__init__(name="pair")
        self.networks = {
            name: keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            for name in ("generator", "critic")
        }
        self.optimizers = {
            name: optimization.build(keras.optimizers.SGD(0.1, momentum=0.9), network)
            for name, network in self.networks.items()
        }

    def take_step(self, target):
        for name, network in self.networks.items():
            with tf.GradientTape() as tape:
                output = tf.cast(network(tf.ones([4, 2]), training=True), tf.float32)
                loss = tf.reduce_mean((output - target) ** 2)
            optimization.minimize(loss, network, self.optimizers[name], tape)


def make_state(output, keep=3):
    return TrainingState(Pair(), output, keep)


def resume(output):
    state = make_state(output)
    state.newest_checkpoints.restore()
    return state


def advance(state, count=1):
    for _ in range(count):
        state.model.take_step(float(state.step))
        state.step.assign_add(1)


def read_weights(state):
    return [
        variable.numpy()
        for network in state.model.networks.values()
        for variable in network.trainable_variables
    ]


def read_best_step(state):
    return parse_step(state.best_checkpoints.latest)


def test_each_networks_loss_scale_survives_a_resume(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    state = make_state(tmp_path)
    for name, scale, count in (("generator", 256.0, 7), ("critic", 4096.0, 11)):
        state.model.optimizers[name].dynamic_scale.assign(scale)
        state.model.optimizers[name].step_counter.assign(count)
    state.step.assign(5)
    state.save()
    resumed = resume(tmp_path)
    resumed.model.generator_updates = 2  # in a step, as the contextual GAN's for masses
    facts = resumed.describe_optimizers()
    assert (facts["generator_loss_scale"], facts["critic_loss_scale"]) == (256.0, 4096.0)
    assert (facts["generator_skipped_updates"], facts["critic_skipped_updates"]) == (10, 5)
    counts = [read_scalar(other.step_counter) for other in resumed.model.optimizers.values()]
    assert counts == [7, 11], "finite steps since the scale last changed"


def test_the_best_score_survives_a_resume(tmp_path):
    state = make_state(tmp_path)
    state.save_if_best(float("nan"))
    assert state.best_checkpoints.latest is None and float(state.best) == -np.inf
    for score in (0.8, 0.8, 0.7):  # of equal scores the earliest is the best
        advance(state)
        state.save_if_best(score)
    state.save()
    resumed = resume(tmp_path)
    assert float(resumed.best) == 0.8 and read_best_step(resumed) == 1
    resumed.save_if_best(0.8 + 1e-9)
    assert read_best_step(resumed) == 3


def test_the_best_checkpoint_holds_the_weights_of_its_own_step(tmp_path):
    state = make_state(tmp_path)
    advance(state)
    state.save_if_best(0.5)
    best = read_weights(state)
    advance(state)
    state.save()
    newest = read_weights(state)
    for kept, expected in ((state.best_checkpoints, best), (state.newest_checkpoints, newest)):
        kept.restore()
        for weight, value in zip(read_weights(state), expected, strict=True):
            np.testing.assert_array_equal(weight, value)


@pytest.mark.parametrize("where", ["write", "flush"])
def test_a_full_disk_leaves_no_part_of_a_checkpoint_and_the_message_names_a_whole_one(
    tmp_path, monkeypatch, where
):
    state = make_state(tmp_path)
    advance(state)
    state.save()
    before = sorted((tmp_path / "checkpoints").iterdir())
    if where == "write":

        def write(path):
            for name in (f"{path}.index", f"{path}.data-00000-of-00001"):
                Path(name).write_bytes(b"the first half")
            raise tf.errors.ResourceExhaustedError(None, None, f"{path}; No space left on device")

        monkeypatch.setattr(state.newest_checkpoints.checkpoint, "write", write)
    else:

        def flush(path):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(filesystem, "flush", flush)
    advance(state)
    with pytest.raises(TrainingError, match="step 2 .*No space left.*ckpt-1$"):
        state.save()
    assert sorted((tmp_path / "checkpoints").iterdir()) == before


class Killed(BaseException):
    """Raised in place of a system call, and of every later one, as in a process that is dead."""


class Killer:
    """An audit hook that lets a number of changes to files happen, and no more.

    A hook can't be removed, so it is inert while `budget` is None.
    """

    CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink")

    def __init__(self):
        self.budget = None

    def __call__(self, event, arguments):
        if self.budget is None or not self.is_change(event, arguments):
            return
        if self.budget == 0:
            raise Killed
        self.budget -= 1

    def is_change(self, event, arguments):
        if event == "open":
            mode = arguments[1]
            return isinstance(mode, str) and any(letter in mode for letter in "wax+")
        return event in self.CHANGES


@pytest.fixture(scope="module")
def killer():
    hook = Killer()
    sys.addaudithook(hook)
    yield hook
    hook.budget = None


def write_version(version):
    def write(model, folder):
        for name in ("first", "second"):
            (folder / name).mkdir()
            (folder / name / "weights").write_text(f"{version}")
        return {name: {"inputs": {}, "outputs": {}, "variables": []} for name in ("first",)}

    return write


def read_versions(directory: Path) -> set[int]:
    """The version that the card states and those that the files hold, wherever they are."""
    place = locate(directory)
    files = {int((place / name / "weights").read_text()) for name in ("first", "second")}
    return {read_card(directory)["step"]} | files


def test_an_export_killed_at_any_change_of_a_file_leaves_the_old_or_the_new_one(tmp_path, killer):
    model = Pair()
    results = []
    for budget in range(100):
        directory = tmp_path / str(budget) / "export"
        export(model, directory, {"step": 1}, write_version(1))
        killer.budget = budget
        with contextlib.suppress(Killed):
            export(model, directory, {"step": 2}, write_version(2))
            results.append("finished")
        killer.budget = None
        (version,) = read_versions(directory)  # old and new files are never mixed
        if budget % 2:
            remove_leftovers(directory)
            assert read_versions(directory) == {version}
        else:  # the next export removes them
            export(model, directory, {"step": 3}, write_version(3))
            assert read_versions(directory) == {3}
        assert [path.name for path in directory.parent.iterdir()] == ["export"]
        if results[-1:] == ["finished"]:
            break
        results.append(version)
    assert results.pop() == "finished" and version == 2
    assert results == sorted(results), "once new, it stays new"
    assert results.count(1) > 5, "making the new export changes files, and so do two moves"
