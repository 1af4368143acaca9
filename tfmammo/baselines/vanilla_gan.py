"""Vanilla GAN: breast tissue and lesion from noise alone, the weakest of the blending
paper's comparisons (Fig. 5d).

    min_G max_D  E[log D(Y)] + E[log(1 - D(G(z)))]          Goodfellow et al. 2014

Departures and what the paper leaves open:
- The networks: DCGAN's, as for the mask GAN. So are the distribution of z, uniform in [-1, 1],
  Adam's values and the batch.
- Patches of lesions, as in tfmammo/models/blending.py, where the paper shows whole breasts.
- Annotation: the paper shows images alone. G and D see images alone here too. A D that saw masks
  beside them would tell
  fakes by the mask, whose real values are 0 and 1 alone, and would teach G little about the image.
- The mask that comes with every image is the mean of the training lesions' masks, the same for any
  z. Training patches are cut
  around their lesions, so that the mean says where the lesion of a generated patch should be.
- -log D(G(z)) is minimised.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf
from pydantic import Field, PositiveFloat, PositiveInt

from tfmammo.config import Frozen
from tfmammo.layers import step_noise
from tfmammo.losses import log_fake, log_real
from tfmammo.networks import Trainable, dcgan_discriminator, dcgan_generator
from tfmammo.optimization import Adam, build, minimize


class VanillaGANConfig(Frozen):
    """DCGAN's values, its networks deepened to 256 px."""

    learning_rate: PositiveFloat = 2e-4
    beta_1: float = Field(default=0.5, ge=0, lt=1)
    beta_2: float = Field(default=0.999, ge=0, lt=1)
    z: PositiveInt = 100
    """Length of the noise vector."""
    filters: tuple[PositiveInt, ...] = Field(default=(1024, 512, 256, 128, 64, 32), min_length=1)
    """Of G from its innermost map on, each twice the size of the one before."""
    discriminator_filters: tuple[PositiveInt, ...] = Field(
        default=(32, 64, 128, 256, 512, 1024), min_length=1
    )
    """Of D, one per halving of the patch."""
    kernel: PositiveInt = 5
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of batch normalisation's moving averages."""


@keras.saving.register_keras_serializable("tfmammo")
class MeanMask(keras.layers.Layer):
    """Appends the mean of all masks seen in training to an image, as a second channel in [-1, 1];
    no gradient reaches it.
    """

    def __init__(self, size: int, **kwargs: object) -> None:
        super().__init__(**{"name": "mean_mask", "dtype": "float32", **kwargs})
        self.size = size
        self.mean = self.add_weight(
            shape=(size, size, 1),
            initializer="zeros",
            trainable=False,
            name="mean",
            aggregation="mean",
        )

    def call(self, image: tf.Tensor) -> tf.Tensor:
        """See the class.

        Args:
            image: float32 [n, size, size, 1].

        Returns:
            float32 [n, size, size, 2].
        """
        mask = tf.convert_to_tensor(self.mean) * 2 - 1
        return tf.concat([image, tf.broadcast_to(mask, tf.shape(image))], axis=-1)

    def get_config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return {**super().get_config(), "size": self.size}

    def follow(self, masks: tf.Tensor, step: tf.Tensor) -> None:
        """Take a batch into the mean.

        Args:
            masks: float32 [n, size, size, 1] in [0, 1].
            step: Batches before this one.
        """
        difference = tf.reduce_mean(masks, axis=0) - self.mean
        self.mean.assign_add(difference / tf.cast(step + 1, tf.float32))


class VanillaGAN(Trainable):
    """Generator and discriminator of patches, and their optimizers; built on construction.

    G answers with two channels: the image, and the mean mask, which no loss depends on.

    Args:
        config: DCGAN's values or yours.
        size: Patch rows and columns, px.

    Raises:
        ConfigError: Patches of that size can't be halved so often.
    """

    def __init__(self, config: VanillaGANConfig | None = None, size: int = 256) -> None:
        super().__init__(name="vanilla_gan")
        self.config = config = config or VanillaGANConfig()
        self.size = size
        drawing = dcgan_generator(config.z, config.filters, 1, size, config.kernel, config.momentum)
        self.mean_mask = MeanMask(size)
        self.generator = keras.Sequential(
            [keras.Input((config.z,)), *drawing.layers, self.mean_mask], name="generator"
        )
        self.discriminator = dcgan_discriminator(
            config.discriminator_filters, 1, size, config.kernel, config.momentum
        )
        self.networks = {"generator": self.generator, "discriminator": self.discriminator}
        self.optimizers = {
            name: build(
                Adam(config.learning_rate, config.beta_1, config.beta_2, name=name), network
            )
            for name, network in self.networks.items()
        }

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One step of G and one of D, both from the same forward pass; the noise follows from step
        and replica.

        Args:
            batch: "image" and "mask", float32 [batch, size, size, 1] in [0, 1].

        Returns:
            float32 scalars: each network's loss, and D's mean probability for real and generated
            patches.
        """
        self.mean_mask.follow(batch["mask"], self.optimizers["generator"].iterations)
        real = batch["image"] * 2 - 1
        z = self._draw(tf.shape(real)[0])
        with tf.GradientTape(persistent=True) as tape:
            fake = self.generator(z, training=True)[..., :1]
            p_real = self.discriminator(real, training=True)
            p_fake = self.discriminator(fake, training=True)
            losses = {
                "generator": -log_real(p_fake),
                "discriminator": -(log_real(p_real) + log_fake(p_fake)),
            }
        for name, loss in losses.items():
            minimize(loss, self.networks[name], self.optimizers[name], tape)
        return {
            **{f"{name}_loss": loss for name, loss in losses.items()},
            "p_real": tf.reduce_mean(tf.sigmoid(p_real)),
            "p_fake": tf.reduce_mean(tf.sigmoid(p_fake)),
        }

    def generate(self, noise: tf.Tensor) -> dict[str, tf.Tensor]:
        """G at inference.

        Args:
            noise: float32 [n, z] in [-1, 1].

        Returns:
            "image" and "mask", float32 [n, size, size, 1] in [0, 1]; the mask is the part of the
            training lesions that cover a pixel.
        """
        image, mask = tf.split(self.generator(noise, training=False) * 0.5 + 0.5, 2, axis=-1)
        return {"image": image, "mask": mask}

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Panels for the image grid: of fixed noise a patch, and the mean mask; beside them a real
        patch.
        """
        noise = tf.random.stateless_uniform([len(batch["image"]), self.config.z], [0, 0], -1.0, 1.0)
        made = self.generate(noise)
        return {"synthetic": made["image"], "mean mask": made["mask"], "real": batch["image"]}

    def functions(self) -> dict[str, Callable]:
        """What is exported: noise -> image and mask; image -> logits."""
        patch = tf.TensorSpec([None, self.size, self.size, 1], tf.float32, "image")

        @tf.function(input_signature=[tf.TensorSpec([None, self.config.z], tf.float32, "noise")])
        def generator(noise: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.generate(noise)

        @tf.function(input_signature=[patch])
        def discriminator(image: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"logits": self.discriminator(image * 2 - 1, training=False)}

        return {"generator": generator, "discriminator": discriminator}

    def _draw(self, count: tf.Tensor) -> tf.Tensor:
        """This step's noise on this replica: float32 [count, z], uniform in [-1, 1]; a resumed run
        draws what it would have.
        """
        return step_noise(count, self.config.z, self.optimizers["generator"].iterations)
