"""TensorFlow's CPU graph optimizer must not give up on training steps and lose its fusions."""

import os
import subprocess
import sys

import pytest

STEPS = """
import tfmammo.models
import tensorflow as tf
from tests.models.every import make_batch, make_model

for name, count in {"can": 1, "cgan": 3, "contextual": 3, "infilling, crn": 3, "flow": 3}.items():
    tf.function(make_model(name).train_step)(make_batch(name, count))
    print(name)
"""


@pytest.mark.long
def test_no_training_step_makes_the_optimizer_fail(tmp_path, repository):
    script = tmp_path / "steps.py"
    script.write_text(STEPS, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(repository), "TF_CPP_MIN_LOG_LEVEL": "0"}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["can", "cgan", "contextual", "infilling, crn", "flow"]
    assert "remapper failed" not in done.stderr and "Mutation::Apply" not in done.stderr
