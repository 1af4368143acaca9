"""The classifier, a ResNet-50, in PyTorch, for benchmarks/step.py.

It has the network, loss and update of tfmammo.models.classifier, and starts from its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peers.layers import Trained, compute_in
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, relu

EPSILON = 1.001e-5  # of batch normalisation in Keras's ResNets
MEAN = (103.939, 116.779, 123.68)  # see tfmammo.nn.pretrained


class Bottleneck(nn.Module):
    """As in tfmammo.nn.networks; layers are created in the order of Keras's weights."""

    def __init__(
        self, entering: int, width: int, stride: int, momentum: float, dilation: int = 1
    ) -> None:
        super().__init__()
        wide = 4 * width
        self.first = nn.Conv2d(entering, width, 1, stride)
        self.first_norm = nn.BatchNorm2d(width, EPSILON, momentum)
        self.second = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.second_norm = nn.BatchNorm2d(width, EPSILON, momentum)
        self.passes = stride == 1 and entering == wide
        self.shortcut = nn.Identity() if self.passes else nn.Conv2d(entering, wide, 1, stride)
        self.third = nn.Conv2d(width, wide, 1)
        self.shortcut_norm = (
            nn.Identity() if self.passes else nn.BatchNorm2d(wide, EPSILON, momentum)
        )
        self.third_norm = nn.BatchNorm2d(wide, EPSILON, momentum)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, entering, rows, cols] -> [batch, 4 width, rows / stride, cols / stride]."""
        shortcut = self.shortcut_norm(self.shortcut(x))
        x = relu(self.first_norm(self.first(x)))
        x = relu(self.second_norm(self.second(x)))
        return relu(shortcut + self.third_norm(self.third(x)))


class Stages(nn.Module):
    """See tfmammo.nn.networks.resnet_stages."""

    def __init__(
        self,
        filters: int,
        blocks: list[int],
        momentum: float,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).reshape(1, 3, 1, 1))
        self.first = nn.Conv2d(3, filters, 7, 2, 3)
        self.norm = nn.BatchNorm2d(filters, EPSILON, momentum)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.stages = nn.ModuleList()
        self.channels = filters
        for stage, (depth, stride, dilation) in enumerate(
            zip(blocks, strides, dilations, strict=True)
        ):
            width = filters * 2**stage
            self.stages.append(nn.Sequential())
            for number in range(depth):
                step = 1 if number else stride
                self.stages[-1].append(Bottleneck(self.channels, width, step, momentum, dilation))
                self.channels = 4 * width

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the last map of each stage of [batch, 1, rows, cols] in [0, 1]."""
        x = 255 * image - self.mean
        x = self.pool(relu(self.norm(self.first(x))))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class ResNet(nn.Module):
    """See tfmammo.models.classifier.resnet."""

    def __init__(self, filters: int, blocks: list[int], momentum: float) -> None:
        super().__init__()
        self.body = Stages(filters, blocks, momentum)
        self.head = nn.Linear(self.body.channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """[batch, 1, rows, cols] in [0, 1] -> logits, float32 [batch]."""
        return self.head(self.body(image)[-1].mean((2, 3)))[:, 0].float()


class Model(Trained):
    """One step of the classifier on real patches.

    Its config has `share` 0.
    """

    def __init__(self, config: dict[str, Any], size: int, fused: bool, precision: str) -> None:
        network = ResNet(config["filters"], config["blocks"], 1 - config["momentum"])
        super().__init__(config, precision, fused, classifier=network)

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Update the network once.

        Args:
            batch: "image", [batch, 1, rows, cols] in [0, 1], and "label", [batch], 0 or 1.
        """
        with compute_in(self.precision):
            logits = self.networks["classifier"](batch["image"])
        loss = binary_cross_entropy_with_logits(logits, batch["label"].float())
        return self.update({"classifier": loss})
