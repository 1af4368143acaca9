"""DCGAN's two networks, deepened to 256 px (Radford, Metz and Chintala 2015)."""

from __future__ import annotations

from typing import Annotated

import keras
from pydantic import Field, PositiveFloat, PositiveInt

from tfmammo.config import FIXED, Frozen, Width
from tfmammo.nn.convolutions import Convolution, TransposedConvolution
from tfmammo.nn.networks import halve, leaky_relu, normal
from tfmammo.nn.normalization import BatchNormalization


class DCGANConfig(Frozen):
    """DCGAN's values, its networks deepened to 256 px."""

    learning_rate: PositiveFloat = 2e-4
    """Adam's learning rate, of both networks."""
    beta_1: float = Field(default=0.5, ge=0, lt=1)
    """Adam's decay of the first moment."""
    beta_2: float = Field(default=0.999, ge=0, lt=1)
    """Adam's decay of the second moment."""
    z: Width = 100
    """Length of the noise vector."""
    filters: tuple[Width, ...] = Field(default=(1024, 512, 256, 128, 64, 32), min_length=1)
    """Channels of G from its innermost map on; each map is twice the size of the one before."""
    discriminator_filters: tuple[Width, ...] = Field(
        default=(32, 64, 128, 256, 512, 1024), min_length=1
    )
    """Channels of D, one for each halving of its input."""
    kernel: Annotated[PositiveInt, FIXED] = 5
    """Rows and columns of the kernels."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Decay of batch normalisation's moving averages."""


def dcgan_generator(config: DCGANConfig, size: int) -> keras.Model:
    """Build DCGAN's generator.

    noise float [batch, z] -> float32 [batch, size, size, 1] in [-1, 1]

    A fully connected layer to the innermost map, then transposed convolutions of stride 2. Batch
    normalisation and ReLU follow all but the last, tanh the last. A size that
    can't be halved so often is a ConfigError.
    """
    side = halve("filters", size, len(config.filters))
    layers = keras.layers
    first, *rest = config.filters
    stack = [
        keras.Input((config.z,)),
        layers.Dense(side * side * first, use_bias=False, kernel_initializer=normal()),
        layers.Reshape((side, side, first)),
        BatchNormalization(momentum=config.momentum),
        layers.ReLU(),
    ]
    for width in rest:
        stack += [
            TransposedConvolution(
                width, config.kernel, 2, "same", use_bias=False, kernel_initializer=normal()
            ),
            BatchNormalization(momentum=config.momentum),
            layers.ReLU(),
        ]
    stack += [
        TransposedConvolution(1, config.kernel, 2, "same", kernel_initializer=normal()),
        layers.Activation("tanh", dtype="float32"),
    ]
    return keras.Sequential(stack, name="generator")


def dcgan_discriminator(config: DCGANConfig, size: int) -> keras.Model:
    """Build DCGAN's discriminator; see `dcgan_generator`.

    [batch, size, size, 1] in [-1, 1] -> float32 logits [batch, 1, 1, 1]

    Strided convolutions, batch normalisation on all but the first, LeakyReLU 0.2.
    """
    side = halve("discriminator_filters", size, len(config.discriminator_filters))
    layers = keras.layers
    stack = [keras.Input((size, size, 1))]
    for i, width in enumerate(config.discriminator_filters):
        convolution = Convolution(
            width, config.kernel, 2, "same", use_bias=i == 0, kernel_initializer=normal()
        )
        norms = [BatchNormalization(momentum=config.momentum)] if i else []
        stack += [convolution, *norms, layers.Activation(leaky_relu)]
    # DCGAN flattens the last map and feeds it into one output: the same as a convolution over all
    # of the map
    stack += [
        Convolution(1, side, padding="valid", kernel_initializer=normal()),
        layers.Activation("linear", dtype="float32"),
    ]
    return keras.Sequential(stack, name="discriminator")
