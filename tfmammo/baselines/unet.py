"""U-Net (Ronneberger, Fischer and Brox, 2015): the third row of CAN's Table I.

Deviations: the convolutions are padded ("same"), so that the mask covers the whole patch; one logit
per pixel and binary cross-entropy in place of two classes and softmax, without the weights that
keep touching cells apart (a patch has one mass); Adam as CAN's in place of SGD with momentum 0.99.
CAN says nothing of its U-Net but the name. The up-convolution is followed by no ReLU, as in the
text (the authors' released network has one). Dropout "at the end of the contracting path"
follows its last two levels, as in the released network.
"""

from __future__ import annotations

from typing import Annotated

import keras
from pydantic import Field

from tfmammo.baselines.segmenter import Segmenter, SegmenterConfig
from tfmammo.config import Width
from tfmammo.nn.networks import halve, unet_features


class UNetConfig(SegmenterConfig):
    """The paper's U-Net."""

    widths: Annotated[tuple[Width, ...], Field(min_length=2)] = (64, 128, 256, 512, 1024)
    """Channels of each level, the bottom last."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share dropped after the last two levels."""


class UNet(Segmenter):
    """U-Net from image to mask.

    Examples:
        >>> unet = UNet(UNetConfig(widths=(4, 8)), size=32)
        >>> sorted(unet.functions())
        ['segmenter']
    """

    def __init__(self, config: UNetConfig | None = None, size: int = 256) -> None:
        config = config or UNetConfig()
        super().__init__(build_network(size, config.widths, config.dropout), config, "unet")


def build_network(size: int, widths: tuple[int, ...], dropout: float) -> keras.Model:
    """Build the network.

    image float32 [b, size, size, 1] in [0, 1] -> logits float32 [b, size, size, 1]

    31,030,593 parameters at widths 64 to 1024.

    Source:
        Figure 1 and section 2.
    """
    halve("widths", size, len(widths) - 1)
    image = keras.Input((size, size, 1), name="image")
    features = keras.layers.Rescaling(2.0, -1.0, dtype="float32")(image)
    features = unet_features(features, widths, dropout)
    logits = keras.layers.Conv2D(1, 1, dtype="float32", name="logits")(features)
    return keras.Model(image, logits, name="segmenter")
