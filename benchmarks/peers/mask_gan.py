"""Mask GAN in PyTorch, for benchmarks/step.py.

It has the networks, losses and update of tfmammo.models.mask_gan, and starts from its weights.
Everything is turned by 180 degrees, see peers.layers.take.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peers.layers import EPSILON, Trained, compute_in, log_mean
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, relu


class Generator(nn.Module):
    """See tfmammo.nn.networks.dcgan_generator."""

    def __init__(
        self, z: int, filters: Sequence[int], size: int, kernel: int, momentum: float
    ) -> None:
        super().__init__()
        self.shape = (filters[0], size >> len(filters), size >> len(filters))
        self.dense = nn.Linear(z, int(np.prod(self.shape)), bias=False)
        self.first_norm = nn.BatchNorm2d(filters[0], EPSILON, momentum)
        self.ups = nn.ModuleList()
        for before, width in zip(filters, filters[1:], strict=False):
            self.ups.append(double(before, width, kernel))
            self.ups.append(nn.BatchNorm2d(width, EPSILON, momentum))
        self.head = double(filters[-1], 1, kernel, bias=True)

    def forward(self, z: Tensor) -> Tensor:
        """[batch, z] in [-1, 1] -> [batch, 1, rows, cols] in [-1, 1]."""
        x = relu(self.first_norm(self.dense(z).unflatten(1, self.shape)))
        for convolution, norm in zip(self.ups[::2], self.ups[1::2], strict=True):
            x = relu(norm(convolution(x)))
        return torch.tanh(self.head(x).float())


def double(before: int, width: int, kernel: int, bias: bool = False) -> nn.ConvTranspose2d:
    """Build a transposed convolution that doubles rows and columns."""
    return nn.ConvTranspose2d(before, width, kernel, 2, kernel // 2, 1, bias=bias)


class Discriminator(nn.Module):
    """See tfmammo.nn.networks.dcgan_discriminator."""

    def __init__(self, filters: Sequence[int], size: int, kernel: int, momentum: float) -> None:
        super().__init__()
        entering = [1, *filters[:-1]]
        self.downs = nn.ModuleList()
        for i, (before, width) in enumerate(zip(entering, filters, strict=True)):
            self.downs.append(nn.Conv2d(before, width, kernel, 2, kernel // 2, bias=i == 0))
            if i:
                self.downs.append(nn.BatchNorm2d(width, EPSILON, momentum))
        self.head = nn.Conv2d(filters[-1], 1, size >> len(filters))

    def forward(self, mask: Tensor) -> Tensor:
        """[batch, 1, rows, cols] in [-1, 1] -> logits [batch, 1, 1, 1]."""
        x = leaky_relu(self.downs[0](mask), 0.2)
        for convolution, norm in zip(self.downs[1::2], self.downs[2::2], strict=True):
            x = leaky_relu(norm(convolution(x)), 0.2)
        return self.head(x).float()


class Model(Trained):
    """One step of G and D.

    Its config has its default `adversarial` and `kernel`.
    """

    turned = True

    def __init__(self, config: dict[str, Any], size: int, fused: bool, precision: str) -> None:
        kernel = config["kernel"]
        momentum = 1 - config["momentum"]
        self.z = config["z"]
        self.generator = Generator(self.z, config["filters"], size, kernel, momentum)
        self.discriminator = Discriminator(config["discriminator_filters"], size, kernel, momentum)
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        super().__init__(config, precision, fused, **networks)

    def load(self, weights: dict[str, list[np.ndarray]]) -> None:
        """Take over each network's trainable variables from TensorFlow, in their order."""
        dense, *others = weights["generator"]
        channels, rows, cols = self.generator.shape
        maps = dense.reshape(-1, rows, cols, channels)[:, ::-1, ::-1].transpose(0, 3, 1, 2)
        super().load(weights | {"generator": [maps.reshape(dense.shape), *others]})

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Compute both losses from one forward pass, then update both networks.

        Args:
            batch: "mask", [batch, 1, rows, cols] in [0, 1]; "z", [batch, z] in [-1, 1], drawn here
                if it is not there.
        """
        real_mask = 2 * batch["mask"].flip(2, 3) - 1
        z = batch["z"] if "z" in batch else 2 * torch.rand(len(real_mask), self.z) - 1
        with compute_in(self.precision):
            fake_mask = self.generator(z)
            real = self.discriminator(real_mask)
            fake = self.discriminator(fake_mask)
        losses = {
            "generator": -log_mean(fake),
            "discriminator": -(log_mean(real) + log_mean(-fake)),
        }
        return self.update(losses)
