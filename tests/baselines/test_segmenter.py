"""What the segmentation baselines share: cross-entropy."""

import pytest
import tensorflow as tf

from tests.models.every import make_batch, make_random
from tests.updates import assert_descends


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "fcn8s", "segnet"])
def test_the_network_descends_cross_entropy(name):
    model, reference = (make_random(name, 32, 0.15) for _ in range(2))
    data = make_batch(name, 2)

    def loss():
        scores = reference.networks["segmenter"](data["image"], training=True)
        # one logit, or the scores of background and lesion
        p = tf.sigmoid(scores) if scores.shape[-1] == 1 else tf.nn.softmax(scores)[..., 1:]
        y = data["mask"]
        return -tf.reduce_mean(y * tf.math.log(p) + (1 - y) * tf.math.log(1 - p))

    assert_descends(model, reference, data, segmenter=loss)
