"""cGAN: breast tumour segmentation with a conditional adversarial network (Singh et al.).

Sources: a review of the paper (Sik-Ho Tsang, 2022), whose sections are cited, and some facts from
the article. A generator G maps a crop x of a mammogram to a mask, a discriminator D judges (x,
mask) pairs:

    l_Dice(y, o) = 1 - 2 |y o| / (|y| + |o|)
    L_G = BCE(D(x, G(x, z)), 1) + lambda * l_Dice(y, G(x, z))
    L_D = BCE(D(x, y), 1) + BCE(D(x, G(x, z)), 0)

Both are updated from one forward pass, "concurrently". The noise z is dropout in the three
innermost decoder blocks alone, on at test time too: `samples` draws are averaged. The standard
deviation of two or more draws is the uncertainty.

Deviations and what the text leaves open:
- The original has a tanh, so masks in [-1, 1], on which the Dice loss is wrong (sums of negative
  numbers). G ends in a sigmoid here, and masks are in [0, 1].
- |y| and |o| are sums over the pixels of one sample; 1 is added above and below, so that an empty
  mask has a loss.
- BCE is the mean over D's 30 x 30 responses, as in Pix2Pix's code.
- `normalization: batch` is as printed, for its batch of 8; `sample` takes each sample's own
  statistics, for a batch of 1.
- Statistics of the batch are those of the whole batch on any number of devices, and so are the
  moving averages (`normalization.BatchNormalization`). A device's share may be a single sample, at
  which moving averages misrepresent what the network learned with.
- `momentum` of BatchNorm's moving averages, which are used at inference, is PyTorch's 0.9. With
  Keras's 0.99 they lag behind a run of some hundred steps, so that masks are worse than the
  network's in training.
- At test time the noise follows from the image and the number of the draw. An image therefore has
  one output, whatever was computed before and whatever else is in the batch. The original draws new
  noise at every call.
- In training and evaluation a frame is cropped around the true box of the mass's outline
  (`data.frame`). The text's pipeline crops around the box of its SSD, expanded, and leaves open
  which boxes its Dice was measured with. Segmentation is thus measured apart from detection. The
  mass is centred, and half as high and wide as a loose frame, unless the image's border cuts the
  frame. That favours a centred disc. The CAD pipeline alone crops around detected boxes.
- Open: initial weights (N(0, 0.02), as in Pix2Pix), epsilon of BatchNorm (Keras's 1e-3) and of Adam
  (1e-7). D sees image and mask in [0, 1], as they are.
- Augmentation: each draw is transformed by a random one of the eight symmetries of the square
  (`data.augment`); the text names none.
- `content: l1` replaces Dice by |y - o|, which the text compares. `adversarial: false` trains G on
  its content loss alone, which it does not.
- The text compares with "the cGAN using pre-trained ResNet101 layers" and says no more of it.
  `encoder` is one reading: ResNet-101 without top, batch-normalised whatever `normalization` says,
  takes the place of G's encoder. Its maps of 1/2 to 1/16 of the size are the skips, that of 1/32
  is the innermost. The decoder has four inner maps of 32 to 256 filters, as G's own at these sizes.
  All of it is trained; D and the losses stay. Of the ten alternatives FCN-8s, SegNet and U-Net are
  in `tfmammo.baselines`; SLSDeep and five that the text does not name are absent.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import cv2
import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from tfmammo.config import FIXED, Frozen, Width
from tfmammo.errors import name_key
from tfmammo.nn.layers import patch_seeds
from tfmammo.nn.losses import dice_loss, l1, log_fake, log_real
from tfmammo.nn.networks import (
    PatchDiscriminator,
    Trainable,
    UNet256,
    export_function,
    resnet_stages,
)
from tfmammo.nn.normalization import BatchNormalization, SampleNormalization
from tfmammo.nn.optimization import build_adam, minimize_each
from tfmammo.nn.pretrained import adopt_resnet

FILTERS = (32, 64, 128, 256, 256, 256, 256, 256)
RESNET_101 = (64, (3, 4, 23, 3))  # filters and blocks


class EncoderConfig(Frozen):
    """A ResNet in place of G's own encoder: by default ResNet-101, which the text compares with."""

    filters: Width = RESNET_101[0]
    """Filters of the first stage."""
    blocks: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = RESNET_101[1]
    """Blocks of each stage."""
    weights: Path | None = None
    """Keras's ResNet-101 without top (.h5), of ImageNet. null: random weights, which are not what
    the text compares with. Nothing is downloaded.
    """

    @model_validator(mode="after")
    def _weights_fit(self) -> EncoderConfig:
        if self.weights and (self.filters, self.blocks) != RESNET_101:
            raise ValueError(
                f"weights {self.weights} are of ResNet-101: filters {RESNET_101[0]} and blocks "
                f"{list(RESNET_101[1])}; take weights null"
            )
        return self


class CGANConfig(Frozen):
    """The article's values; see *Deviations* in the module."""

    lambda_content: NonNegativeFloat = 150.0
    """Weight of the Dice (or L1) loss."""
    content: Literal["dice", "l1"] = "dice"
    """Content loss of G."""
    adversarial: bool = True
    """Train G against D; otherwise on its content loss alone."""
    learning_rate: PositiveFloat = 2e-4
    """Adam's learning rate, of both networks."""
    beta_1: float = Field(default=0.5, ge=0, lt=1)
    """Adam's decay of the first moment."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share dropped in the three innermost decoder blocks of G."""
    samples: PositiveInt = 1
    """Draws of the dropout noise that are averaged at inference; one draw has no uncertainty."""
    normalization: Annotated[Literal["batch", "sample"], FIXED] = "batch"
    """Whether the batch's or each sample's statistics normalise."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Decay of BatchNorm's moving averages."""
    filters: tuple[Width, ...] = Field(default=FILTERS, min_length=1)
    """Filters of G, one for each halving of the patch. With an `encoder` those of G's decoder, one
    for each of its four inner maps, the largest one first.
    """
    encoder: Annotated[EncoderConfig | None, FIXED] = None
    """A ResNet in place of G's own encoder; null: none."""
    discriminator_strided: Annotated[PositiveInt, FIXED] = 3
    """Stride-2 convolutions of D; 3 gives 30 x 30 responses."""
    discriminator_filters: Width = 32
    """Filters of D's first convolution."""

    @model_validator(mode="after")
    def _filters_fit(self) -> CGANConfig:
        if self.encoder and len(self.filters) != len(self.encoder.blocks):
            raise ValueError(
                f"filters: with an encoder they are the decoder's, one for each of its "
                f"{len(self.encoder.blocks)} inner maps, not {len(self.filters)}"
            )
        return self


class PostprocessConfig(Frozen):
    """Morphology on the binary mask, in this order; 0 leaves a step out."""

    closing: NonNegativeInt = 3
    """Rows and columns of the closing's square element, px."""
    erosion: NonNegativeInt = 2
    """Rows and columns of the erosion's square element, px."""
    dilation: NonNegativeInt = 3
    """Rows and columns of the dilation's square element, px."""


def postprocess(mask: NDArray[np.uint8], config: PostprocessConfig) -> NDArray[np.uint8]:
    """Remove small speckles from a mask [rows, cols, 1] of 0 and 1: closing, erosion, dilation.

    Source: section 1.5: 3 x 3, 2 x 2 and 3 x 3.
    """
    steps = (
        (cv2.MORPH_CLOSE, config.closing),
        (cv2.MORPH_ERODE, config.erosion),
        (cv2.MORPH_DILATE, config.dilation),
    )
    # Zeros around the mask: OpenCV's closing would join regions near the border to it.
    pad = config.closing
    cleaned = cv2.copyMakeBorder(mask[..., 0], pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
    for operation, side in steps:
        if side:
            cleaned = cv2.morphologyEx(cleaned, operation, np.ones((side, side), np.uint8))
        if operation == cv2.MORPH_CLOSE:
            cleaned = cleaned[pad : pad + mask.shape[0], pad : pad + mask.shape[1]]
    return cleaned[..., None]


def build_encoder(config: EncoderConfig | None, size: int, momentum: float) -> keras.Model | None:
    """Build the encoder that takes the place of G's own; None without a config.

    image float32 [b, size, size, 1] in [0, 1] -> five maps of 1/2 to 1/32 of the size
    """
    if config is None:
        return None
    image = keras.Input((size, size, 1), name="image")
    stages = resnet_stages(image, config.filters, config.blocks, momentum=momentum)
    # its ReLU is the one that the decoder applies to all of its maps
    first = keras.Model(image, stages).get_layer("conv1_bn").output
    return keras.Model(image, [first, *stages], name="encoder")


class CGAN(Trainable):
    """Generator and discriminator, with their optimizers.

    Source:
        Sections 2.1 and 2.2. G has 13,607,937 and D 694,625 trainable parameters. With ResNet-101
        as its encoder G has 54,385,057.
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
            encoder=build_encoder(config.encoder, size, config.momentum),
        )
        if config.encoder and config.encoder.weights:
            weights = str(config.encoder.weights.absolute())  # no name, which means a download
            with name_key("model.encoder.weights"):
                source = adopt_resnet(self.generator.encoder, "resnet101", weights)
            self.pretrained = {"encoder": source}
        self.networks = {"generator": self.generator}
        if config.adversarial:
            strided = config.discriminator_strided
            filters = config.discriminator_filters
            self.discriminator = PatchDiscriminator(
                2, strided, filters, size=size, name="discriminator", biases=True, norm=norm
            )
            self.networks["discriminator"] = self.discriminator
        self.optimizers = build_adam(self.networks, config.learning_rate, config.beta_1)

    def discriminate(self, image: tf.Tensor, mask: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Compute D(x, y), x and y in [0, 1]: float32 logits, one for each patch of the pair."""
        return self.discriminator(tf.concat([image, mask], axis=-1), training=training)

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Update G and D once, both from the same forward pass, on "image" and "mask".

        The scalars are each network's loss, the content loss, and D's mean probability for each
        pair.
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
        return {**minimize_each(losses, self, tape), **scalars}

    def segment(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """Segment images by G, its noise on: mean and standard deviation over `samples` draws.

        [batch, size, size, 1] in [0, 1] -> "mask", a probability, and for more than one draw
        "uncertainty", in [0, 0.5]
        """
        samples = self.config.samples
        batch = tf.shape(image)[0]
        images = tf.tile(image, [samples, 1, 1, 1])
        seeds = patch_seeds(images, tf.repeat(tf.range(samples), batch))
        masks = tf.reshape(self.generator(images, seeds=seeds), [samples, batch, *image.shape[1:]])
        mask = tf.reduce_mean(masks, axis=0)
        if samples == 1:
            return {"mask": mask}
        return {"mask": mask, "uncertainty": tf.math.reduce_std(masks, axis=0)}

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Draw panels for the image grid."""
        outputs = self.segment(batch["image"])
        return {
            "image": batch["image"],
            "segmented": outputs.pop("mask"),
            **outputs,
            "truth": batch["mask"],
        }

    def functions(self) -> dict[str, Callable]:
        """Return what is exported, one function for each network."""
        shape = (self.size, self.size, 1)
        functions = {"generator": export_function(lambda image: self.segment(image), image=shape)}
        if self.config.adversarial:
            functions["discriminator"] = export_function(
                lambda mask, image: {"logits": self.discriminate(image, mask)},
                mask=shape,
                image=shape,
            )
        return functions
