"""Vanilla GAN: breast tissue and lesion from noise alone, the weakest of the blending paper's comparisons (Fig. 5d).

    min_G max_D  E[log D(Y)] + E[log(1 - D(G(z)))]          Goodfellow et al. 2014

Departures: the paper does not say which networks; DCGAN's here, as for the mask GAN. G draws the lesion's mask as a second
channel, which D sees too, so that what it makes can be annotated and measured as the other methods' images are. Patches of lesions, as in
tfmammo/models/blending.py, where the paper shows whole breasts. z is uniform in [-1, 1]. -log D(G(z)) is minimised.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf
from pydantic import Field, PositiveFloat, PositiveInt

from tfmammo.config import Frozen
from tfmammo.layers import step_noise
from tfmammo.losses import log_fake, log_real
from tfmammo.networks import dcgan_discriminator, dcgan_generator
from tfmammo.optimization import Adam, build, minimize


class VanillaGANConfig(Frozen):
    """DCGAN's values, its networks deepened to 256 px.

    z: length of the noise vector. filters: of G from its innermost map on, each twice the size of the one before.
    discriminator_filters: of D, one per halving of the patch. momentum: of batch normalisation's moving averages.
    """

    learning_rate: PositiveFloat = 2e-4
    beta_1: float = Field(default=0.5, ge=0, lt=1)
    beta_2: float = Field(default=0.999, ge=0, lt=1)
    z: PositiveInt = 100
    filters: tuple[PositiveInt, ...] = Field(default=(1024, 512, 256, 128, 64, 32), min_length=1)
    discriminator_filters: tuple[PositiveInt, ...] = Field(default=(32, 64, 128, 256, 512, 1024), min_length=1)
    kernel: PositiveInt = 5
    momentum: float = Field(default=0.9, ge=0, lt=1)


class VanillaGAN(keras.Model):
    """Generator and discriminator of patches with their masks, and their optimizers; built on construction.

    Args:     config: DCGAN's values or yours. size: patch rows and columns, px.
    Raises:   ConfigError: patches of that size can't be halved so often.
    """

    def __init__(self, config: VanillaGANConfig | None = None, size: int = 256) -> None:
        super().__init__(name="vanilla_gan")
        self.config = config = config or VanillaGANConfig()
        self.size = size
        self.generator = dcgan_generator(config.z, config.filters, 2, size, config.kernel, config.momentum)
        self.discriminator = dcgan_discriminator(config.discriminator_filters, 2, size, config.kernel, config.momentum)
        self.networks = {"generator": self.generator, "discriminator": self.discriminator}
        self.optimizers = {
            name: build(Adam(config.learning_rate, config.beta_1, config.beta_2, name=name), network)
            for name, network in self.networks.items()
        }

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One step of G and one of D, both from the same forward pass; the noise follows from step and replica.

        Args:     batch: "image" and "mask", float32 [batch, size, size, 1] in [0, 1].
        Returns:  float32 scalars: each network's loss, and D's mean probability for real and generated patches.
        """
        real = tf.concat([batch["image"], batch["mask"]], axis=-1) * 2 - 1
        z = self._draw(tf.shape(real)[0])
        with tf.GradientTape(persistent=True) as tape:
            fake = self.generator(z, training=True)
            p_real, p_fake = self.discriminator(real, training=True), self.discriminator(fake, training=True)
            losses = {"generator": -log_real(p_fake), "discriminator": -(log_real(p_real) + log_fake(p_fake))}
        for name, loss in losses.items():
            minimize(loss, self.networks[name], self.optimizers[name], tape)
        return {
            **{f"{name}_loss": loss for name, loss in losses.items()},
            "p_real": tf.reduce_mean(tf.sigmoid(p_real)),
            "p_fake": tf.reduce_mean(tf.sigmoid(p_fake)),
        }

    def generate(self, noise: tf.Tensor) -> dict[str, tf.Tensor]:
        """G at inference.

        Args:     noise: float32 [n, z] in [-1, 1].
        Returns:  "image" and "mask", float32 [n, size, size, 1] in [0, 1]; the mask is a probability.
        """
        image, mask = tf.split(self.generator(noise, training=False) * 0.5 + 0.5, 2, axis=-1)
        return {"image": image, "mask": mask}

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Panels for the image grid: of fixed noise a patch and its mask; beside them a real patch."""
        noise = tf.random.stateless_uniform([len(batch["image"]), self.config.z], [0, 0], -1.0, 1.0)
        made = self.generate(noise)
        return {"synthetic": made["image"], "its mask": made["mask"], "real": batch["image"]}

    def functions(self) -> dict[str, Callable]:
        """What is exported: noise -> image and mask; (image, mask) -> logits."""
        patch = [self.size, self.size, 1]

        @tf.function(input_signature=[tf.TensorSpec([None, self.config.z], tf.float32, "noise")])
        def generator(noise: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.generate(noise)

        @tf.function(input_signature=[tf.TensorSpec([None, *patch], tf.float32, name) for name in ("image", "mask")])
        def discriminator(image: tf.Tensor, mask: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"logits": self.discriminator(tf.concat([image, mask], axis=-1) * 2 - 1, training=False)}

        return {"generator": generator, "discriminator": discriminator}

    def _draw(self, count: tf.Tensor) -> tf.Tensor:
        """This step's noise on this replica: float32 [count, z], uniform in [-1, 1]; a resumed run draws what it would have."""
        return step_noise(count, self.config.z, self.optimizers["generator"].iterations)
