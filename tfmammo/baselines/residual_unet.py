"""U-Net with a residual encoder (Isensee et al., 2024): a segmenter of today, on our loop.

nnU-Net's recommended network for 8 to 12 GB ("ResEnc M"), in two dimensions: a convolution, then
six stages of 1, 3, 4, 6, 6 and 6 residual blocks, halved from stage to stage. The decoder has
transposed convolutions, skips and one convolution a stage. Every stage of the decoder but the
lowest answers, and Dice and cross-entropy are asked of each (deep supervision):

    L = sum_i w_i (BCE(m_i, y_i) + 1 - Dice(m_i, y_i)),    w_i = 2^-i / sum_j 2^-j

where m_0 is the mask, m_i the mask halved i times by its nearest pixels, and y_i the answer of that
size. The second normalisation of a block starts at 0, so that a block first lets its input pass.

Isensee et al., nnU-Net revisited: a call for rigorous validation in 3D medical image segmentation
(2024). Isensee et al., nnU-Net: a self-configuring method (2021).

Deviations, so that a table compares networks; nnU-Net as a whole is compared by its predictions
(docs/guides/exchange.md):
- Training is CAN's: Adam, its batch, patches turned and flipped. nnU-Net has SGD with a falling
  rate, weight decay, clipped gradients, a batch of 36 at 128 px, rotation, scaling, noise, blur,
  contrast and gamma, and averages over flips at test time.
- Intensities are scaled to [-1, 1] and not to mean 0 and variance 1.
- Patches of 256 px get six stages too, where nnU-Net plans a seventh.
- One logit in place of two classes. Dice is that of each patch, with 1 added above and below, and
  not that of the batch.
- Normalisation has this package's epsilon, 1e-3. Its other scales start from N(1, 0.02).
- A strided convolution pads the far side alone, as Keras's "same" does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import keras
import tensorflow as tf
from pydantic import Field, PositiveInt, model_validator

from tfmammo.baselines.segmenter import Segmenter, SegmenterConfig, cross_entropy
from tfmammo.config import FIXED, Width
from tfmammo.nn.convolutions import Convolution, TransposedConvolution
from tfmammo.nn.losses import dice_loss
from tfmammo.nn.networks import halve
from tfmammo.nn.normalization import SampleNormalization

SLOPE = 0.01  # of LeakyReLU below 0


class ResidualUNetConfig(SegmenterConfig):
    """The values of nnU-Net's plan for patches of 128 px."""

    widths: Annotated[tuple[Width, ...], Field(min_length=2)] = (32, 64, 128, 256, 512, 512)
    """Channels of each stage, the bottom last."""
    blocks: Annotated[tuple[PositiveInt, ...], FIXED] = (1, 3, 4, 6, 6, 6)
    """Residual blocks of each stage of the encoder."""

    @model_validator(mode="after")
    def _consistent(self) -> ResidualUNetConfig:
        if len(self.blocks) != len(self.widths):
            raise ValueError(f"blocks must be {len(self.widths)}, as many as widths")
        return self


class ResidualUNet(Segmenter):
    """U-Net with a residual encoder, from image to mask.

    Examples:
        >>> unet = ResidualUNet(ResidualUNetConfig(widths=(4, 8), blocks=(1, 1)), size=32)
        >>> sorted(unet.functions())
        ['segmenter']
    """

    def __init__(self, config: ResidualUNetConfig | None = None, size: int = 256) -> None:
        config = config or ResidualUNetConfig()
        network = build_network(size, config.widths, config.blocks)
        super().__init__(network, config, "residual_unet")

    def logits(self, image: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Compute the lesion's log-odds at full size; see Segmenter."""
        return self.answer(image, training)[0]

    def answer(self, image: tf.Tensor, training: bool = False) -> list[tf.Tensor]:
        """Compute the log-odds of every stage that answers, the largest first."""
        # Keras gives a lone answer without its list
        return tf.nest.flatten(self.networks["segmenter"](image, training=training))

    def compute_loss(self, batch: dict[str, tf.Tensor]) -> tf.Tensor:
        """Compute L, float32 scalar; see the module."""
        return deep_supervision(batch["mask"], self.answer(batch["image"], training=True))


def deep_supervision(mask: tf.Tensor, answers: Sequence[tf.Tensor]) -> tf.Tensor:
    """Compute L, see the module, of masks [b, s, s, 1] of 0 and 1, float32 scalar.

    The answers are logits [b, s / 2^i, s / 2^i, 1], the largest first.
    """
    weights = [2.0**-level for level in range(len(answers))]
    total = tf.zeros([])
    for level, (weight, logits) in enumerate(zip(weights, answers, strict=True)):
        middle = 2**level // 2  # as nnU-Net's "nearest-exact"
        target = mask[:, middle :: 2**level, middle :: 2**level]
        loss = cross_entropy(target, logits) + dice_loss(target, tf.sigmoid(logits))
        total += weight / sum(weights) * loss
    return total


def build_network(size: int, widths: tuple[int, ...], blocks: tuple[int, ...]) -> keras.Model:
    """Build the network.

    image float32 [b, size, size, 1] in [0, 1] -> logits float32 [b, size / 2^i, size / 2^i, 1], the
    largest first, one for each stage of the decoder but the lowest

    71,815,076 parameters at the default widths and blocks.

    Source:
        nnU-Net's ResidualEncoderUNet and its plan ("nnUNetResEncUNetMPlans").
    """
    halve("widths", size, len(widths) - 1)
    image = keras.Input((size, size, 1), name="image")
    features = keras.layers.Rescaling(2.0, -1.0, dtype="float32")(image)
    features = _activate(_convolve(features, widths[0]))
    skips = []
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for number in range(count):
            stride = 2 if stage and not number else 1
            features = _add_block(features, width, stride)
        skips.append(features)
    answers: list[keras.KerasTensor] = []
    for stage in range(len(widths) - 2, -1, -1):
        width = widths[stage]
        features = TransposedConvolution(width, 2, 2, kernel_initializer="he_normal")(features)
        features = keras.layers.Concatenate()([features, skips[stage]])
        features = _activate(_convolve(features, width))
        if stage < len(widths) - 2 or stage == 0:
            head = keras.layers.Conv2D(1, 1, dtype="float32", name=f"logits{stage}")
            answers.insert(0, head(features))
    return keras.Model(image, answers, name="segmenter")


def _add_block(features: keras.KerasTensor, width: int, stride: int) -> keras.KerasTensor:
    """Add a residual block: two convolutions, and the way past them, averaged where it narrows."""
    past = features
    if stride > 1:
        past = keras.layers.AveragePooling2D(stride)(past)
    if features.shape[-1] != width:
        past = _convolve(past, width, kernel=1, bias=False)
    features = _activate(_convolve(features, width, stride))
    features = _convolve(features, width, starts_silent=True)
    return _activate(keras.layers.Add()([features, past]))


def _convolve(
    features: keras.KerasTensor,
    width: int,
    stride: int = 1,
    kernel: int = 3,
    bias: bool = True,
    starts_silent: bool = False,
) -> keras.KerasTensor:
    features = Convolution(
        width, kernel, stride, "same", use_bias=bias, kernel_initializer="he_normal"
    )(features)
    norm = SampleNormalization()
    features = norm(features)
    if starts_silent:
        norm.gamma.assign(tf.zeros_like(norm.gamma))
    return features


def _activate(features: keras.KerasTensor) -> keras.KerasTensor:
    return keras.layers.LeakyReLU(SLOPE)(features)
