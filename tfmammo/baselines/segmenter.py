"""What the segmentation baselines share: one network from image to mask, and its training."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf
from pydantic import Field, PositiveFloat

from tfmammo.config import Frozen
from tfmammo.nn.networks import Trainable, export_function
from tfmammo.nn.optimization import build_adam, minimize


class SegmenterConfig(Frozen):
    """Optimisation of a baseline: CAN's, so that a table compares networks and not optimizers."""

    learning_rate: PositiveFloat = 2e-4
    """Adam's learning rate."""
    beta_1: float = Field(default=0.5, ge=0, lt=1)
    """Adam's decay of the first moment."""


class Segmenter(Trainable):
    """A model of one network, "segmenter", which maps an image to one logit for each pixel.

    float32 [b, s, s, 1] in [0, 1] -> logits float32 [b, s, s, 1]
    """

    def __init__(self, network: keras.Model, config: SegmenterConfig, name: str) -> None:
        super().__init__(name=name)
        self.config = config
        self.networks = {"segmenter": network}
        self.optimizers = build_adam(self.networks, config.learning_rate, config.beta_1)

    def logits(self, image: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Compute the lesion's log-odds: float32 [b, s, s, 1] in [0, 1] -> float32 [b, s, s, 1]."""
        return self.networks["segmenter"](image, training=training)

    def compute_loss(self, batch: dict[str, tf.Tensor]) -> tf.Tensor:
        """Compute the loss of a batch in training, float32 scalar: here cross-entropy."""
        return cross_entropy(batch["mask"], self.logits(batch["image"], training=True))

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Update the network once, by `compute_loss`, on "image" and "mask"."""
        with tf.GradientTape() as tape:
            loss = self.compute_loss(batch)
        minimize(loss, self.networks["segmenter"], self.optimizers["segmenter"], tape)
        return {"segmenter_loss": loss}

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Draw image, output and truth for the image grid, float32 [b, s, s, 1] in [0, 1] each."""
        output = tf.sigmoid(self.logits(batch["image"]))
        return {"image": batch["image"], "output": output, "truth": batch["mask"]}

    def functions(self) -> dict[str, Callable[..., dict[str, tf.Tensor]]]:
        """Return what is exported: "segmenter", image -> mask, a probability."""

        def segment(image: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"mask": tf.sigmoid(self.logits(image))}

        shape = self.networks["segmenter"].input_shape[1:]
        return {"segmenter": export_function(segment, image=shape)}


def cross_entropy(mask: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Compute the binary cross-entropy of all pixels of a mask of 0 and 1, float32 scalar."""
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(mask, logits))
