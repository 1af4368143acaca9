"""Pix2Pix: image-to-image translation with conditional adversarial networks (Isola et al. 2017).

It is CAN's synthesis baseline.

A generator G maps an input to an output, a discriminator D judges (input, output) pairs.
`direction: mask_to_image` is CAN's baseline in Fig. 2 and 3; `image_to_mask` segments.

    L_G = -log D(x, G(x)) + lambda_l1 * |y - G(x)|_1
    L_D = -(log D(x, y) + log(1 - D(x, G(x)))) / 2

Inside, masks and images are in [-1, 1]; at every public border they are in [0, 1].

Deviations and what CAN's paper leaves open about its baseline:
- Noise is dropout. Pix2Pix leaves it on at test time too; here it is off at inference. An exported
  model then gives the same output every time, and both methods are compared without noise (Isola et
  al. report only minor stochasticity).
- Defaults are Pix2Pix's own: lambda 100, a 70 px discriminator (strided 3), responses averaged as
  losses, as in its code. CAN compares "under the same experimental settings" and prints no others,
  so configs/pix2pix_can.yaml has CAN's values.
- Both configs have the half on L_D. CAN has none, but Adam's steps hardly depend on a constant
  factor.
- Normalisation: statistics of the sample, in training and at inference, with Keras's epsilon of
  1e-3; Pix2Pix's is 1e-5.
- Both networks are updated from one pass, as CAN's are by its Algorithm 1: G descends through D as
  it was before its update. Isola et al. update D first.
- Patches, intensities and augmentation are those of CAN (models/can.py), and not Pix2Pix's
  resizing, cropping and mirroring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import tensorflow as tf
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from tfmammo.config import FIXED, Frozen, Width
from tfmammo.nn.losses import Average, l1, log_fake, log_real
from tfmammo.nn.networks import (
    PIX2PIX_FILTERS,
    PatchDiscriminator,
    Trainable,
    UNet256,
    export_function,
)
from tfmammo.nn.optimization import build_adam, minimize_each


class Pix2PixConfig(Frozen):
    """Pix2Pix's values."""

    direction: Annotated[Literal["mask_to_image", "image_to_mask"], FIXED] = "mask_to_image"
    """What G maps to what."""
    lambda_l1: NonNegativeFloat = 100.0
    """Weight of the L1 term."""
    learning_rate: PositiveFloat = 2e-4
    """Adam's learning rate, of both networks."""
    beta_1: float = Field(default=0.5, ge=0, lt=1)
    """Adam's decay of the first moment."""
    average: Average = "losses"
    """How D's responses to one pair become one, see `tfmammo.nn.losses`."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share dropped in the three innermost decoder blocks of G."""
    filters: tuple[Width, ...] = Field(default=PIX2PIX_FILTERS, min_length=1)
    """Filters of G, one for each halving of the patch."""
    discriminator_strided: Annotated[PositiveInt, FIXED] = 3
    """Stride-2 convolutions of D; 3 gives 70 px patches."""
    discriminator_filters: Width = 64
    """Filters of D's first convolution."""


class Pix2Pix(Trainable):
    """Generator and discriminator, with their optimizers.

    Source:
        Isola et al. 2017, Eq. 1-4 and section 6.1.
    """

    def __init__(self, config: Pix2PixConfig | None = None, size: int = 256) -> None:
        super().__init__(name="pix2pix")
        self.config = config = config or Pix2PixConfig()
        self.size = size
        self.source, self.target = (
            ("mask", "image") if config.direction == "mask_to_image" else ("image", "mask")
        )
        self.generator = UNet256(
            filters=config.filters, dropout=config.dropout, size=size, name="generator"
        )
        self.discriminator = PatchDiscriminator(
            2,
            config.discriminator_strided,
            config.discriminator_filters,
            size=size,
            name="discriminator",
        )
        self.networks = {"generator": self.generator, "discriminator": self.discriminator}
        self.optimizers = build_adam(self.networks, config.learning_rate, config.beta_1)

    def discriminate(self, source: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        """Compute D(x, y), x and y in [-1, 1]: float32 logits, one for each patch."""
        return self.discriminator(tf.concat([source, target], axis=-1))

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Update D and G once, both from the same forward pass, on "mask" and "image".

        The scalars are each network's loss, the L1 term, and D's mean probability for each pair.
        """
        source = batch[self.source] * 2 - 1
        target = batch[self.target] * 2 - 1
        average = self.config.average
        with tf.GradientTape(persistent=True) as tape:
            output = self.generator(source, training=True)
            real = self.discriminate(source, target)
            fake = self.discriminate(source, output)
            difference = l1(target, output)
            losses = {
                "generator": -log_real(fake, average) + self.config.lambda_l1 * difference,
                "discriminator": -0.5 * (log_real(real, average) + log_fake(fake, average)),
            }
        return {
            **minimize_each(losses, self, tape),
            "l1": difference,
            "p_real": tf.reduce_mean(tf.sigmoid(real)),
            "p_fake": tf.reduce_mean(tf.sigmoid(fake)),
        }

    def translate(self, source: tf.Tensor) -> tf.Tensor:
        """Translate by G: float32 [batch, size, size, 1] in [0, 1] -> the same shape and range."""
        return self.generator(source * 2 - 1) * 0.5 + 0.5

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Draw panels for the image grid."""
        return {
            "input": batch[self.source],
            "output": self.translate(batch[self.source]),
            "truth": batch[self.target],
        }

    def functions(self) -> dict[str, Callable]:
        """Return what is exported, one function for each network."""
        shape = (self.size, self.size, 1)

        def discriminate(mask: tf.Tensor, image: tf.Tensor) -> dict[str, tf.Tensor]:
            pair = {"mask": mask * 2 - 1, "image": image * 2 - 1}
            return {"logits": self.discriminate(pair[self.source], pair[self.target])}

        if self.source == "mask":
            translate = export_function(lambda mask: {"image": self.translate(mask)}, mask=shape)
        else:
            translate = export_function(lambda image: {"mask": self.translate(image)}, image=shape)
        discriminator = export_function(discriminate, mask=shape, image=shape)
        return {"generator": translate, "discriminator": discriminator}
