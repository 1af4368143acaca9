"""Every update of the contextual GAN draws noise of its own, within a step and between steps."""

import numpy as np
import pytest
import tensorflow as tf

from tfmammo.models.contextual import Contextual, ContextualConfig

SIZE = 16


def make_batch():
    labels = np.tile(np.arange(3), 2).astype(np.int32)
    images = np.random.default_rng(1).random((len(labels), SIZE, SIZE, 1), np.float32)
    return {"image": tf.constant(images), "label": tf.constant(labels)}


@pytest.mark.slow
@pytest.mark.parametrize(("target", "updates"), [("mass", 3), ("calcification", 2)])
def test_no_update_sees_the_noise_of_another(monkeypatch, target, updates):
    config = ContextualConfig(
        filters=(2, 4), discriminator_factor=1, attention=8, border=1, target=target
    )
    model = Contextual(config, SIZE)
    draw = model._noise
    drawn = []

    def record(source, use):
        noise = draw(source, use)
        drawn.append(noise.numpy())
        return noise

    monkeypatch.setattr(model, "_noise", record)
    for _ in range(2):
        model.train_step(make_batch())
    assert len(drawn) == 2 * updates, "D's fakes, then those of each update of G"
    for first in range(len(drawn)):
        for second in range(first):
            assert not np.array_equal(drawn[first], drawn[second])
