"""A deterministic run that is killed again and again ends bitwise equal to one that was not."""

import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

KILLS = 10
STEPS = 4_000
OVERRIDES = [
    "data.size=32", "data.phantoms=12", f"training.steps={STEPS}", "training.deterministic=true", "training.checkpoint_every=50",
    "training.steps_per_loop=5", "training.validate_every=1000", "training.grid_every=1000", "tracking.system_metrics=false",
    "tracking.register_models=false", "model.filters=[4,8,8]", "model.discriminator_filters=4", "training.precision=float32",
]  # fmt: skip


def start(repository, folder, output):
    command = [sys.executable, str(repository / "train/can.py"), "--config", str(repository / "configs/can.yaml"), "--output", output]
    with (folder / f"{output}.log").open("a") as log:
        return subprocess.Popen([*command, "--set", *OVERRIDES], cwd=folder, stdout=log, stderr=log)


def weights(folder):
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(folder / "checkpoints")))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "VARIABLE_VALUE" in name}


def saved_step(folder):
    latest = tf.train.latest_checkpoint(str(folder / "checkpoints"))
    return int(latest.rsplit("-", 1)[1]) if latest else 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_ten_times_and_bitwise_equal(repository, tmp_path):
    whole = start(repository, tmp_path, "whole")
    assert whole.wait(600) == 0, (tmp_path / "whole.log").read_text()
    chance, kills, lost = random.Random(os.environ.get("TFMAMMO_KILL_SEED", "1")), 0, []
    while kills < KILLS:
        before = saved_step(tmp_path / "parts")
        process = start(repository, tmp_path, "parts")
        deadline = time.monotonic() + 120
        while saved_step(tmp_path / "parts") <= before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)  # at least one checkpoint of progress, so that ten kills all fall inside the run
        time.sleep(chance.uniform(0, 0.7))
        assert process.poll() is None, f"the run ended after {kills} kills; give it more steps"
        process.kill()
        process.wait()
        kills += 1
        lost.append(saved_step(tmp_path / "parts"))
    assert lost == sorted(lost) and lost[-1] > 0, "work that was saved is never lost"
    assert start(repository, tmp_path, "parts").wait(600) == 0, (tmp_path / "parts.log").read_text()
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert expected.keys() == found.keys() and int(found["step/.ATTRIBUTES/VARIABLE_VALUE"]) == STEPS
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
