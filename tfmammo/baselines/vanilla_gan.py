"""Vanilla GAN: breast tissue and lesion from noise alone.

It is the weakest of the blending paper's comparisons (Fig. 5d).

    min_G max_D  E[log D(Y)] + E[log(1 - D(G(z)))]          Goodfellow et al. 2014

Deviations and what the paper leaves open:
- The networks: DCGAN's, as for the mask GAN. So are the distribution of z, uniform in [-1, 1], and
  Adam's values. The batch is the mask GAN's.
- Each draw of a training patch is one of the eight symmetries of the square (`data.augment`).
- Both networks are updated from one pass, so that G descends through D as it was before its update.
- Patches of lesions, as in tfmammo/models/blending.py, where the paper shows whole breasts.
- Annotation: the paper shows images alone. G and D see images alone here too. A D that also saw
  masks would tell fakes by the mask, whose real values are 0 and 1 alone, and would teach G little
  about the image.
- The mask that comes with every image is the mean of the training lesions' masks, the same for any
  z. Training patches are cut around their lesions, so that the mean says where the lesion of a
  generated patch should be.
- -log D(G(z)) is minimised.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from tfmammo.nn.dcgan import DCGANConfig, dcgan_discriminator, dcgan_generator
from tfmammo.nn.layers import draw_latent_noise, sample_latent_noise
from tfmammo.nn.losses import log_fake, log_real
from tfmammo.nn.networks import Trainable, export_function
from tfmammo.nn.optimization import build_adam, count_batches, minimize_each


class VanillaGANConfig(DCGANConfig):
    """DCGAN's values, its networks deepened to 256 px."""


@keras.saving.register_keras_serializable("tfmammo")
class MeanMask(keras.layers.Layer):
    """Append the mean of all masks seen in training to an image, as a second channel in [-1, 1].

    No gradient reaches it.
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
        """See the class."""
        mask = tf.convert_to_tensor(self.mean) * 2 - 1
        return tf.concat([image, tf.broadcast_to(mask, tf.shape(image))], axis=-1)

    def get_config(self) -> dict[str, object]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "size": self.size}

    def follow(self, masks: tf.Tensor, step: tf.Tensor) -> None:
        """Update the mean by a batch of masks in [0, 1]; `step` counts the batches before it."""
        difference = tf.reduce_mean(masks, axis=0) - self.mean
        self.mean.assign_add(difference / tf.cast(step + 1, tf.float32))


class VanillaGAN(Trainable):
    """Generator and discriminator of patches, with their optimizers.

    G puts out two channels: the image, and the mean mask, which no loss depends on.
    """

    def __init__(self, config: VanillaGANConfig | None = None, size: int = 256) -> None:
        super().__init__(name="vanilla_gan")
        self.config = config = config or VanillaGANConfig()
        self.size = size
        image_generator = dcgan_generator(config, size)
        self.mean_mask = MeanMask(size)
        self.generator = keras.Sequential(
            [keras.Input((config.z,)), *image_generator.layers, self.mean_mask], name="generator"
        )
        self.discriminator = dcgan_discriminator(config, size)
        self.networks = {"generator": self.generator, "discriminator": self.discriminator}
        self.optimizers = build_adam(
            self.networks, config.learning_rate, config.beta_1, config.beta_2
        )

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Update G and D once, both from the same forward pass, on "image" and "mask".

        The scalars are each network's loss, and D's mean probability for real and generated
        patches.
        """
        self.mean_mask.follow(batch["mask"], count_batches(self.optimizers["generator"]))
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
        return {
            **minimize_each(losses, self, tape),
            "p_real": tf.reduce_mean(tf.sigmoid(p_real)),
            "p_fake": tf.reduce_mean(tf.sigmoid(p_fake)),
        }

    def generate(self, noise: tf.Tensor) -> dict[str, tf.Tensor]:
        """Generate "image" and "mask" in [0, 1] from noise [n, z] in [-1, 1].

        The mask is the share of training lesions that cover a pixel.
        """
        image, mask = tf.split(self.generator(noise, training=False) * 0.5 + 0.5, 2, axis=-1)
        return {"image": image, "mask": mask}

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Draw panels for the image grid: a patch of fixed noise, the mean mask, a real patch."""
        noise = sample_latent_noise(len(batch["image"]), self.config.z)
        generated = self.generate(tf.constant(noise))
        return {
            "synthetic": generated["image"],
            "mean mask": generated["mask"],
            "real": batch["image"],
        }

    def functions(self) -> dict[str, Callable]:
        """Return what is exported: noise -> image and mask; image -> logits."""
        shape = (self.size, self.size, 1)
        return {
            "generator": export_function(
                lambda noise: self.generate(noise), noise=(self.config.z,)
            ),
            "discriminator": export_function(
                lambda image: {"logits": self.discriminator(image * 2 - 1)}, image=shape
            ),
        }

    def _draw(self, count: tf.Tensor) -> tf.Tensor:
        """Draw this step's latent noise; see `layers.draw_latent_noise`."""
        return draw_latent_noise(count, self.config.z, count_batches(self.optimizers["generator"]))
