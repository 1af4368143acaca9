"""TensorFlow's CPU graph optimizer must not give up on training steps and lose its fusions."""

import os
import subprocess
import sys

import pytest

STEPS = """
import tfmammo.models
import numpy as np
import tensorflow as tf
from tfmammo.models.can import CAN, CANConfig
from tfmammo.models.cgan import CGAN, CGANConfig
from tfmammo.models.contextual import Contextual, ContextualConfig
from tfmammo.models.flow import Flow, FlowConfig
from tfmammo.models.infilling import Infilling, InfillingConfig

SIZE = 32
unet = {"filters": (4, 8, 8), "discriminator_filters": 4, "discriminator_strided": 2}
models = [
    CAN(CANConfig(**unet), SIZE),
    CGAN(CGANConfig(**unet), SIZE),
    Contextual(ContextualConfig(filters=(3, 4, 8), discriminator_factor=2, attention=8, border=2, start=32), SIZE),
    Infilling(InfillingConfig(**unet, widths=(4,) * 4, weights="none", feature_layers="first"), SIZE),
    Flow(FlowConfig(widths=(8, 8), attention_levels=1), SIZE),
]
random = np.random.default_rng(0)
mask = np.hypot(*(np.indices((SIZE, SIZE)) - SIZE / 2)) < 9
image = 0.3 + 0.3 * mask + random.normal(0, 0.1, (3, SIZE, SIZE))
for model in models:
    count = 1 if model.name == "can" else 3
    images = tf.constant(image[:count, ..., None].clip(0, 1), tf.float32)
    masks = tf.constant(np.repeat(mask[None, ..., None], count, 0), tf.float32)
    batch = {"image": images, "mask": masks}
    if model.name == "contextual":
        batch = {"image": images, "label": tf.constant([0, 1, 2])}
    tf.function(model.train_step)(batch)
    print(model.name)
"""  # noqa: E501


@pytest.mark.long
def test_no_training_step_makes_the_optimizer_fail(tmp_path, repository):
    script = tmp_path / "steps.py"
    script.write_text(STEPS, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(repository), "TF_CPP_MIN_LOG_LEVEL": "0"}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["can", "cgan", "contextual", "infilling", "flow"]
    assert "remapper failed" not in done.stderr and "Mutation::Apply" not in done.stderr
