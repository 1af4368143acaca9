"""CAN: joint synthesis and segmentation of X-ray breast mass images (Shen et al.).

The paper calls it Collaborative Adversarial Networks.
A generator G maps masks to mass images, an inverter I maps images to masks, and one discriminator D
judges (mask, image) pairs: only (M_r, Im_r) is real, (M_r, G(M_r)) and (I(Im_r), Im_r) are fake.
Algorithm 1 is `CAN.train_step`, line by line.

Inside, masks and images are in [-1, 1]; at every public border they are in [0, 1].

Deviations and what the paper leaves open:
- Algorithm 1 descends L_D = log P_r + log(1 - P_f1) + log(1 - P_f2), the quantity that D must
  maximise, as the text and Eq. 3 say. D descends -L_D here.
- log(1 - P) for G and I hardly has a gradient while D wins. `adversarial: non_saturating` (default)
  minimises -log P instead, `as_printed` minimises log(1 - P).
- "All the responses are averaged to produce the ultimate prediction" has two readings. `average:
  responses` (default) takes P as the mean of the patch probabilities, word for word. `average:
  losses` averages their logarithms; Pix2Pix's article has almost the same sentence, and its code
  does that. Under `responses` D hardly learns from patches of which it is wrongly sure. On
  CBIS-DDSM patches (7,000 steps at half width and 128 px, one seed, 112 unseen patients) both
  segment alike, Dice 88.7 % (p = 0.13). With `responses` synthetic patches are nearer to the real
  ones, SSIM 0.281 to 0.264 (p < 0.001). See docs/results/can_average.json.
- Pix2Pix is compared "under the same experimental settings": configs/pix2pix_can.yaml.
- ||M_r - I(Im_r)||_2 is read as the mean square (`l2: mean_square`); `norm` takes the Euclidean
  norm.
- Open: the layers of G, I and D. G and I are Pix2Pix's U-Net-256 (54,407,809 parameters each),
  where the text cites Ronneberger's U-Net (31,030,593, as a baseline); D is Pix2Pix's discriminator
  of 16 px (135,489).
- Table I's FCN-8s and SegNet start from ImageNet's weights in their own papers. Here they do so
  only with `model.weights` and full width (`tfmammo.baselines.vgg16`), and an order against them is
  decided only then.
- Open: Adam's beta_1 (0.5, as in Pix2Pix), initial weights (N(0, 0.02)), dropout (0.5 in the three
  innermost decoder blocks, as in Pix2Pix, but off at inference, since CAN names no noise), output
  activation (tanh, for masks too).
- Normalisation: statistics of the sample, in training and at inference (equal to batch
  normalisation at batch 1).
- ||.||_1 and ||.||_2 are taken of values in [-1, 1], where the network works. They are twice and
  four times those of values in [0, 1], so lambda_1 and lambda_2 weigh twice and four times as much.
  Adam's epsilon is Keras's 1e-7.
- Augmentation: after patients are split, each draw is transformed by a random one of the eight
  symmetries of the square (`data.augment`). The paper makes 850 fixed copies and splits them
  afterwards, which `data.split: paper` does.
- Intensities: the 0.5th and 99.5th percentiles of each patch become 0 and 1 (`data.percentiles`);
  the paper states none.
- The crop is not stated. Table I implies lesions that fill 0.35 to 0.37 of a patch, which
  `data.context: 1.3` gives. Patches that come cropped (`data.frame: full`) keep their own share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import tensorflow as tf
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from tfmammo.config import FIXED, Frozen, Width
from tfmammo.errors import ConfigError
from tfmammo.nn.layers import patch_seeds
from tfmammo.nn.losses import (
    Adversarial,
    Average,
    deceive,
    l1,
    l2_norm,
    log_fake,
    log_real,
    mean_square,
)
from tfmammo.nn.networks import (
    PIX2PIX_FILTERS,
    MultiScaleDiscriminator,
    PatchDiscriminator,
    TexturedUNet,
    Trainable,
    UNet256,
    export_function,
)
from tfmammo.nn.optimization import build_adam, call_sharing_gradients, minimize_each


class CANConfig(Frozen):
    """The paper's values; see *Deviations* in the module for those it leaves open."""

    lambda_1: NonNegativeFloat = 10.0
    """Weight of G's L1 term."""
    lambda_2: NonNegativeFloat = 100.0
    """Weight of I's L2 term."""
    learning_rate: PositiveFloat = 2e-4
    """Adam's learning rate, of all networks."""
    discriminator_rate: PositiveFloat | None = None
    """Adam's learning rate of D, which is a deviation; null: learning_rate."""
    beta_1: float = Field(default=0.5, ge=0, lt=1)
    """Adam's decay of the first moment."""
    adversarial: Adversarial = "non_saturating"
    """What G and I minimise: -log P, or log(1 - P) as printed."""
    average: Average = "responses"
    """How D's responses to one pair become one, see `tfmammo.nn.losses`."""
    l2: Literal["mean_square", "norm"] = "mean_square"
    """How I's L2 term is computed."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share dropped in the three innermost decoder blocks of G and I."""
    filters: tuple[Width, ...] = Field(default=PIX2PIX_FILTERS, min_length=1)
    """Filters of G and I, one for each halving of the patch."""
    upsampling: Annotated[Literal["transposed", "resize"], FIXED] = "transposed"
    """How G and I enlarge maps: by transposed convolutions, or by nearest neighbours and a
    convolution, which is a deviation.
    """
    dropout_at_inference: bool = False
    """Whether G drops at inference too, as Pix2Pix does, which is a deviation. Equal masks give
    equal images.
    """
    noise: Annotated[bool, FIXED] = False
    """Whether G's last layers see noise, see `networks.TexturedUNet`, which is a deviation.
    Equal masks give equal images.
    """
    l1_window: PositiveInt = 1
    """Side of the squares of which G's L1 term compares means, px. 1: it compares pixels, as
    printed. Larger ones are a deviation, and leave the texture to D.
    """
    discriminator_strided: Annotated[
        PositiveInt | Annotated[tuple[PositiveInt, ...], Field(min_length=1)], FIXED
    ] = 1
    """Stride-2 convolutions of D; 1 gives the paper's 16 px patches. Several, [2, 3], give as many
    discriminators, whose responses count alike, which is a deviation.
    """
    discriminator_filters: Width = 64
    """Filters of D's first convolution."""


class CAN(Trainable):
    """Generator, inverter and discriminator, with their optimizers.

    Examples:
        >>> can = CAN(CANConfig(filters=(4, 8, 8), discriminator_filters=4), size=32)
        >>> sorted(can.networks)
        ['discriminator', 'generator', 'inverter']
        >>> can.networks["generator"](np.zeros((1, 32, 32, 1), np.float32)).shape
        TensorShape([1, 32, 32, 1])

    Source:
        Section II.B, Fig. 1.
    """

    def __init__(self, config: CANConfig | None = None, size: int = 256) -> None:
        super().__init__(name="can")
        self.config = config = config or CANConfig()
        if config.l1_window > size:
            raise ConfigError(
                f"model.l1_window: {config.l1_window} px are more than a patch has, {size}"
            )
        self.size = size
        self.generator, self.inverter = (
            network(
                filters=config.filters,
                dropout=config.dropout,
                size=size,
                name=name,
                resize=config.upsampling == "resize",
            )
            for name, network in (
                ("generator", TexturedUNet if config.noise else UNet256),
                ("inverter", UNet256),
            )
        )
        strided = config.discriminator_strided
        filters = config.discriminator_filters
        self.discriminator = (
            PatchDiscriminator(2, strided, filters, size, "discriminator")
            if isinstance(strided, int)
            else MultiScaleDiscriminator(2, strided, filters, size, "discriminator")
        )
        self.networks = {
            "generator": self.generator,
            "inverter": self.inverter,
            "discriminator": self.discriminator,
        }
        # One backward pass through D serves two losses. This makes a step faster and does not
        # change what it computes; see `discriminate`.
        self.shares_gradients = config.average == "responses" or config.adversarial == "as_printed"
        players = {"generator": self.generator, "inverter": self.inverter}
        judge = {"discriminator": self.discriminator}
        rate = config.discriminator_rate or config.learning_rate
        self.optimizers = {
            **build_adam(players, config.learning_rate, config.beta_1),
            **build_adam(judge, rate, config.beta_1),
        }

    def discriminate(self, mask: tf.Tensor, image: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Compute D(M; Im), M and Im in [-1, 1]: float32 logits, one for each patch of the pair."""
        pair = tf.concat([mask, image], axis=-1)
        if training and self.shares_gradients:
            return call_sharing_gradients(self.discriminator, pair)
        return self.discriminator(pair, training=training)

    def compare(self, real: tf.Tensor, fake: tf.Tensor) -> tf.Tensor:
        """Compute G's L1 term, ||Im_r - G(M_r)||_1, of pixels or of means of squares."""
        window = self.config.l1_window
        if window == 1:
            return l1(real, fake)
        return l1(*(tf.nn.avg_pool2d(image, window, 1, "VALID") for image in (real, fake)))

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Run one round of Algorithm 1 on "mask" and "image".

        One forward pass of G and I and three of D precede the updates of G, I and D. The scalars
        are each network's loss, the L1 and L2 terms, and D's mean probability for each pair.
        """
        real_mask = batch["mask"] * 2 - 1
        real_image = batch["image"] * 2 - 1
        average = self.config.average
        form = self.config.adversarial
        l2 = mean_square if self.config.l2 == "mean_square" else l2_norm
        with tf.GradientTape(persistent=True) as tape:
            fake_image = self.generator(real_mask, training=True)  # Im_f = G(M_r)
            fake_mask = self.inverter(real_image, training=True)  # M_f = I(Im_r)
            real = self.discriminate(real_mask, real_image, training=True)  # P_r
            fake_1 = self.discriminate(real_mask, fake_image, training=True)  # P_f^1
            fake_2 = self.discriminate(fake_mask, real_image, training=True)  # P_f^2
            image_l1 = self.compare(real_image, fake_image)
            mask_l2 = l2(real_mask, fake_mask)
            losses = {
                "generator": deceive(fake_1, form, average) + self.config.lambda_1 * image_l1,
                "inverter": deceive(fake_2, form, average) + self.config.lambda_2 * mask_l2,
                "discriminator": -(
                    log_real(real, average) + log_fake(fake_1, average) + log_fake(fake_2, average)
                ),
            }
        return {
            **minimize_each(losses, self, tape),
            "image_l1": image_l1,
            "mask_l2": mask_l2,
            "p_real": tf.reduce_mean(tf.sigmoid(real)),
            "p_fake_image": tf.reduce_mean(tf.sigmoid(fake_1)),
            "p_fake_mask": tf.reduce_mean(tf.sigmoid(fake_2)),
        }

    def synthesize(self, mask: tf.Tensor) -> tf.Tensor:
        """Synthesize images by G: [batch, size, size, 1] in {0, 1} -> [0, 1]."""
        seeds = patch_seeds(mask, 0) if self.config.dropout_at_inference else None
        return self.generator(mask * 2 - 1, seeds=seeds) * 0.5 + 0.5

    def segment(self, image: tf.Tensor) -> tf.Tensor:
        """Segment images by I: [batch, size, size, 1] in [0, 1] -> a probability."""
        return self.inverter(image * 2 - 1) * 0.5 + 0.5

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Draw panels for the image grid."""
        mask = batch["mask"]
        image = batch["image"]
        return {
            "mask": mask,
            "synthetic": self.synthesize(mask),
            "real": image,
            "segmented": self.segment(image),
        }

    def functions(self) -> dict[str, Callable]:
        """Return what is exported, one function for each network."""
        shape = (self.size, self.size, 1)
        return {
            "generator": export_function(lambda mask: {"image": self.synthesize(mask)}, mask=shape),
            "inverter": export_function(lambda image: {"mask": self.segment(image)}, image=shape),
            "discriminator": export_function(
                lambda mask, image: {"logits": self.discriminate(mask * 2 - 1, image * 2 - 1)},
                mask=shape,
                image=shape,
            ),
        }
