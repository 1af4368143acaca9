"""cGAN: breast tumour segmentation with a conditional adversarial network (Singh et al.,
reviewed in the paper's text).

A generator G maps a framed mammogram x to a mask, a discriminator D judges (x, mask) pairs:

    L_G = BCE(D(x, G(x, z)), 1) + lambda * l_Dice(y, G(x, z))        l_Dice(y, o) = 1 - 2 |y o| /
    (|y| + |o|)
    L_D = BCE(D(x, y), 1) + BCE(D(x, G(x, z)), 0)

Both are updated from one forward pass, "concurrently". The noise z is dropout in the three
innermost decoder blocks alone, on at test time too: `samples` draws are averaged. From two draws on
their standard deviation is given as the uncertainty.

Departures and what the text leaves open:
- The original has a tanh, so masks in [-1, 1], on which the Dice loss is wrong (sums of negative
  numbers): G ends in a
  sigmoid here, masks are in [0, 1].
- |y| and |o| are sums over the pixels of one sample; 1 is added above and below, so that an empty
  mask has a loss.
- BCE is the mean over D's 30 x 30 responses, as in Pix2Pix's code.
- `normalization: batch` (as printed, for its batch of 8); `sample` takes each sample's own
  statistics, for a batch of 1.
- `momentum` of the averages that BatchNorm goes by at inference: 0.9, PyTorch's, not Keras's 0.99,
  with which they lag behind a
  training of some hundred steps so far that masks are worse than those of the network in training.
- At test time the noise follows from the picture and the number of the draw, so that one picture
  has one answer, whatever
  was asked before and whatever else is in the batch. The original draws anew at every call.
- Open: the weights' start (N(0, 0.02), as in Pix2Pix), epsilon of BatchNorm (Keras's 1e-3) and of
  Adam (1e-7). D sees image and
  mask in [0, 1], as they are.
- Augmentation: each draw is turned anew by one of the eight symmetries of the square
  (`data.augment`); the text names none.
- Ablations of the text: `adversarial: false` trains G on its content loss alone; `content: l1` puts
  |y - o| in Dice's place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import cv2
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from tfmammo.config import Frozen
from tfmammo.layers import BatchNormalization, SampleNormalization, patch_seeds
from tfmammo.losses import dice_loss, l1, log_fake, log_real
from tfmammo.networks import PatchDiscriminator, Trainable, UNet256
from tfmammo.optimization import Adam, build, minimize

FILTERS = (32, 64, 128, 256, 256, 256, 256, 256)


class CGANConfig(Frozen):
    """The article's values; see *Departures* in the module."""

    lambda_content: NonNegativeFloat = 150.0
    """Weight of the Dice (or L1) loss."""
    content: Literal["dice", "l1"] = "dice"
    adversarial: bool = True
    learning_rate: PositiveFloat = 2e-4
    beta_1: float = Field(default=0.5, ge=0, lt=1)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    samples: PositiveInt = 1
    """Draws of the dropout noise that are averaged at inference; one draw has no uncertainty."""
    normalization: Literal["batch", "sample"] = "batch"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of BatchNorm's moving averages."""
    filters: tuple[PositiveInt, ...] = Field(default=FILTERS, min_length=1)
    """Of G, one per halving of the patch."""
    discriminator_strided: PositiveInt = 3
    """stride-2 convolutions of D; 3 gives 30 x 30 responses."""
    discriminator_filters: PositiveInt = 32


class PostprocessConfig(Frozen):
    """Morphology on the binary mask, in this order: side of the square element of each step, px; 0
    leaves the step out.
    """

    closing: NonNegativeInt = 3
    erosion: NonNegativeInt = 2
    dilation: NonNegativeInt = 3


def postprocess(mask: NDArray[np.uint8], config: PostprocessConfig) -> NDArray[np.uint8]:
    """Remove small speckles: closing, erosion, dilation.

    Args:
        mask: uint8 [rows, cols, 1], 0 or 1.
        config: The elements' sides.

    Returns:
        uint8 [rows, cols, 1], 0 or 1.

    Source:
        Section 1.5: 3 x 3, 2 x 2 and 3 x 3.
    """
    steps = (
        (cv2.MORPH_CLOSE, config.closing),
        (cv2.MORPH_ERODE, config.erosion),
        (cv2.MORPH_DILATE, config.dilation),
    )
    # nothing beyond the frame: OpenCV's closing would join what lies near the border to it
    room = config.closing
    cleaned = cv2.copyMakeBorder(mask[..., 0], room, room, room, room, cv2.BORDER_CONSTANT, value=0)
    for operation, side in steps:
        if side:
            cleaned = cv2.morphologyEx(cleaned, operation, np.ones((side, side), np.uint8))
        if operation == cv2.MORPH_CLOSE:
            cleaned = cleaned[room : room + mask.shape[0], room : room + mask.shape[1]]
    return cleaned[..., None]


class CGAN(Trainable):
    """Generator and discriminator with their optimizers; built on construction.

    Args:
        config: The article's values or yours.
        size: Patch rows and columns, px.

    Source:
        Sections 2.1 and 2.2. G has 13,607,937 and D 694,625 trainable parameters.
    """

    def __init__(self, config: CGANConfig | None = None, size: int = 256) -> None:
        super().__init__(name="cgan")
        self.config = config = config or CGANConfig()
        self.size = size
        average = partial(BatchNormalization, momentum=config.momentum)
        norm = average if config.normalization == "batch" else SampleNormalization
        self.generator = UNet256(
            filters=config.filters,
            dropout=config.dropout,
            size=size,
            name="generator",
            biases=True,
            norm=norm,
            activation="sigmoid",
        )
        self.networks = {"generator": self.generator}
        if config.adversarial:
            strided = config.discriminator_strided
            filters = config.discriminator_filters
            self.discriminator = PatchDiscriminator(
                2, strided, filters, size=size, name="discriminator", biases=True, norm=norm
            )
            self.networks["discriminator"] = self.discriminator
        self.optimizers = {
            name: build(Adam(config.learning_rate, config.beta_1, name=name), network)
            for name, network in self.networks.items()
        }

    def discriminate(self, image: tf.Tensor, mask: tf.Tensor, training: bool = False) -> tf.Tensor:
        """D(x, y): float32 logits, one per patch of the pair.

        float32 [batch, size, size, 1] in [0, 1].
        """
        return self.discriminator(tf.concat([image, mask], axis=-1), training=training)

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One step of G and one of D, both from the same forward pass.

        Args:
            batch: "image" and "mask", float32 [batch, size, size, 1] in [0, 1].

        Returns:
            float32 scalars: each network's loss, the content loss, and D's mean probability for
            each pair.
        """
        image = batch["image"]
        mask = batch["mask"]
        content = dice_loss if self.config.content == "dice" else l1
        losses: dict[str, tf.Tensor] = {}
        scalars: dict[str, tf.Tensor] = {}
        with tf.GradientTape(persistent=True) as tape:
            fake_mask = self.generator(image, training=True)  # G(x, z)
            scalars[self.config.content] = content(mask, fake_mask)  # l_Dice(y, G(x, z))
            losses["generator"] = self.config.lambda_content * scalars[self.config.content]
            if self.config.adversarial:
                real = self.discriminate(image, mask, training=True)  # D(x, y)
                fake = self.discriminate(image, fake_mask, training=True)  # D(x, G(x, z))
                losses["generator"] += -log_real(fake, "losses")
                losses["discriminator"] = -log_real(real, "losses") - log_fake(fake, "losses")
                scalars |= {
                    "p_real": tf.reduce_mean(tf.sigmoid(real)),
                    "p_fake": tf.reduce_mean(tf.sigmoid(fake)),
                }
        for name, loss in losses.items():
            minimize(loss, self.networks[name], self.optimizers[name], tape)
        return {**{f"{name}_loss": loss for name, loss in losses.items()}, **scalars}

    def segment(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """G at inference, its noise on: mean and standard deviation over `samples` draws.

        Args:
            image: float32 [batch, size, size, 1] in [0, 1].

        Returns:
            "mask", a probability, and, of more than one draw, "uncertainty", in [0, 0.5]; float32,
            the same shape.
        """
        samples = self.config.samples
        batch = tf.shape(image)[0]
        images = tf.tile(image, [samples, 1, 1, 1])
        seeds = patch_seeds(images, tf.repeat(tf.range(samples), batch))
        masks = tf.reshape(self.generator(images, seeds=seeds), [samples, batch, *image.shape[1:]])
        mask = tf.reduce_mean(masks, axis=0)
        return (
            {"mask": mask, "uncertainty": tf.math.reduce_std(masks, axis=0)}
            if samples > 1
            else {"mask": mask}
        )

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Panels for the image grid.

        Args:
            batch: As in `train_step`.

        Returns:
            float32 [batch, size, size, 1] in [0, 1].
        """
        answer = self.segment(batch["image"])
        return {
            "image": batch["image"],
            "segmented": answer.pop("mask"),
            **answer,
            "truth": batch["mask"],
        }

    def functions(self) -> dict[str, Callable]:
        """What is exported: image -> mask, with its uncertainty if `samples` > 1; if there is a D,
        its logits for (image, mask).
        """
        mask, image = (
            tf.TensorSpec([None, self.size, self.size, 1], tf.float32, name)
            for name in ("mask", "image")
        )

        @tf.function(input_signature=[image])
        def generator(image: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.segment(image)

        @tf.function(input_signature=[mask, image])
        def discriminator(mask: tf.Tensor, image: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"logits": self.discriminate(image, mask)}

        return {"generator": generator} | (
            {"discriminator": discriminator} if self.config.adversarial else {}
        )
