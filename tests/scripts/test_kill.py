"""A deterministic run that is killed (SIGKILL) at random moments, while it starts, between two
checkpoints and while it exports, ends as one that never was: bitwise equal weights, the same
exports, one registered version of each, one finished run, and nothing left over.
"""

import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from tfmammo.tracking import runs, store

SEED = int(os.environ.get("TFMAMMO_KILL_SEED", 1))
OVERRIDES = (
    "data.size=32",
    "data.phantoms=12",
    "training.deterministic=true",
    "training.checkpoint_every=50",
    "training.steps_per_loop=5",
    "training.validate_every=500",
    "training.grid_every=500",
    "tracking.system_metrics=false",
    "model.filters=[4,8,8]",
    "model.discriminator_filters=4",
    "training.precision=float32",
)
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


class Run:
    """A run's folder, and the process in it, which is started as often as needed."""

    def __init__(self, place, name, steps, repository):
        self.output, self.log, self.steps = place / name, place / f"{name}.log", steps
        self.store = f"sqlite:///{place / 'mlflow.db'}"
        script = [sys.executable, repository / "train/can.py", "--config"]
        script += [repository / "configs/can.yaml", "--output", self.output, "--set", *OVERRIDES]
        self.command = [*script, f"training.steps={steps}", f"tracking.uri={self.store}"]

    def start(self):
        with self.log.open("a") as log:
            return subprocess.Popen(
                self.command, cwd=self.output.parent, stdout=log, stderr=subprocess.STDOUT
            )

    def saved_step(self):
        steps = self.output.glob("checkpoints/ckpt-*.index")
        return max((int(path.stem.rpartition("-")[2]) for path in steps), default=0)

    def is_exporting(self, log_size=0):
        text = self.log.read_bytes()[log_size:]
        return b"exporting step" in text or b"already exported" in text

    def weights(self):
        folders = [self.output / f"checkpoints/ckpt-{self.saved_step()}"]
        folders += [
            path.parent / "variables"
            for path in sorted(self.output.glob("*/*/variables/variables.index"))
        ]
        weights = {}
        for prefix in folders:
            reader = tf.train.load_checkpoint(str(prefix))
            for name in reader.get_variable_to_shape_map():
                if name.endswith(VALUE):
                    key = f"{prefix.relative_to(self.output)}: {name}"
                    weights[key] = reader.get_tensor(name)
        return weights

    def kill_once(self, end, chance, late):
        """Start it and kill it: return "starting", "training" or "ending", or None where it ended
        by itself before. `end` are the seconds of its export, `late` kills after the last step.
        """
        before = self.saved_step()
        log_size = self.log.stat().st_size if self.log.exists() else 0
        process = self.start()

        def is_due():
            step = self.saved_step()
            if late or step == self.steps:
                return self.is_exporting(log_size)
            return step > before

        wait = chance.uniform(0.2, 15.0)
        if late or chance.random() >= 0.15:
            while process.poll() is None and not is_due():
                time.sleep(0.01)
            wait = chance.uniform(0, 0.8 * end if self.saved_step() == self.steps else 0.7)
        try:
            assert process.wait(wait) == 0, self.log.read_text()[-2000:]
            return None
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        step = self.saved_step()
        assert step >= before, "saved work was lost"
        if step == self.steps and self.is_exporting(log_size):
            return "ending"
        return "training" if step > before else "starting"


def compare(whole, parts):
    expected, actual = whole.weights(), parts.weights()
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, actual[name], err_msg=name)
    assert not [path for path in parts.output.rglob(".*") if path.name != ".lock"]
    assert not list(parts.output.rglob("*_temp"))
    versions = []
    with store.open_registry(parts.store) as client:
        for run in (whole, parts):
            info = client.get_run((run.output / runs.RUN_ID).read_text().strip()).info
            assert info.status == "FINISHED"
            versions.append(len(client.search_model_versions(f"run_id = '{info.run_id}'")))
    assert versions[0] == versions[1]


@pytest.mark.parametrize(
    ("kills", "late_kills", "steps"),
    [
        pytest.param(3, 1, 400, marks=(pytest.mark.long, pytest.mark.timeout(1200))),
        pytest.param(
            30,
            5,
            1_500,
            marks=(pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(4500)),
        ),
    ],
)
def test_killed_and_bitwise_equal(kills, late_kills, steps, repository, tmp_path):
    chance = random.Random(SEED)
    whole = Run(tmp_path, "whole", steps, repository)
    process, end = whole.start(), None
    while process.poll() is None:
        if end is None and whole.is_exporting():
            end = time.monotonic()
        time.sleep(0.02)
    assert process.returncode == 0, whole.log.read_text()[-2000:]
    end = time.monotonic() - end
    moments = []

    def is_enough():
        return len(moments) >= kills and moments.count("ending") >= late_kills

    while not is_enough():
        parts = Run(tmp_path, f"parts{len(moments)}", steps, repository)
        while not is_enough():
            late = len(moments) >= kills - late_kills + moments.count("ending")
            if (moment := parts.kill_once(end, chance, late)) is None:
                break
            moments.append(moment)
        assert parts.start().wait() == 0, parts.log.read_text()[-2000:]
        compare(whole, parts)
