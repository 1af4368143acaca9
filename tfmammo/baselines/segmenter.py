"""What U-Net, FCN-8s and SegNet share: one network from image to mask, cross-entropy, one
update per step.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf
from pydantic import Field, PositiveFloat

from tfmammo.config import Frozen
from tfmammo.errors import ConfigError
from tfmammo.networks import Trainable
from tfmammo.optimization import Adam, build, minimize


class SegmenterConfig(Frozen):
    """How a baseline is optimised: as CAN is, so that a table compares networks and not
    optimizers.
    """

    learning_rate: PositiveFloat = 2e-4
    """Of Adam."""
    beta_1: float = Field(default=0.5, ge=0, lt=1)
    """Of Adam."""


class Segmenter(Trainable):
    """A room of one network, "segmenter", which maps an image to one logit per pixel.

    Args:
        network: Image float32 [b, s, s, 1] in [0, 1] -> logits float32 [b, s, s, 1].
        config: Its optimizer's values.
        name: The system's.
    """

    def __init__(self, network: keras.Model, config: SegmenterConfig, name: str) -> None:
        super().__init__(name=name)
        self.config = config
        self.networks = {"segmenter": network}
        self.optimizers = {
            "segmenter": build(Adam(config.learning_rate, config.beta_1, name="segmenter"), network)
        }

    def logits(self, image: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The lesion's log-odds.

        Args:
            image: float32 [b, s, s, 1] in [0, 1].
            training: Whether dropout drops.

        Returns:
            float32 [b, s, s, 1].
        """
        return self.networks["segmenter"](image, training=training)

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One update. batch: {"image": float32 [b, s, s, 1] in [0, 1], "mask": {0, 1},
        same shape}.
        """
        with tf.GradientTape() as tape:
            logits = self.logits(batch["image"], training=True)
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(batch["mask"], logits))
        minimize(loss, self.networks["segmenter"], self.optimizers["segmenter"], tape)
        return {"segmenter_loss": loss}

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The image grid's panels: image, output and truth, each float32 [b, s, s, 1] in [0, 1]."""
        output = tf.sigmoid(self.logits(batch["image"]))
        return {"image": batch["image"], "output": output, "truth": batch["mask"]}

    def functions(self) -> dict[str, Callable[..., dict[str, tf.Tensor]]]:
        """What is exported: {"segmenter": image float32 [b, s, s, 1] in [0, 1] -> mask, a
        probability, same shape}.
        """
        shape = self.networks["segmenter"].input_shape

        @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name="image")])
        def segmenter(image: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"mask": tf.sigmoid(self.logits(image))}

        return {"segmenter": segmenter}


def check_size(size: int, stride: int) -> None:
    """Raise ConfigError unless a patch of `size` px can be halved down to the network's stride, px,
    without a rest.
    """
    if size <= 0 or size % stride:
        raise ConfigError(
            f"data.size: {size} px is not a multiple of {stride}, which this network needs"
        )
