"""CAN in PyTorch, for benchmarks/step.py: the same networks, losses and updates as
tfmammo.models.can, from the same weights.

Each loss is differentiated by its own network's weights alone, three times through one forward
pass: Algorithm 1 as it is printed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from peers.layers import Discriminator, UNet, adam, log_mean, take, update
from torch import Tensor


class Room:
    """One round of Algorithm 1. config: of ours. size: patch rows and columns, px. fused: Adam's
    kernel. precision: float32, or bfloat16 by autocast.
    """

    def __init__(self, config: dict[str, Any], size: int, fused: bool, precision: str) -> None:
        filters = config["filters"]
        dropout = config["dropout"]
        self.generator = UNet(filters, dropout)
        self.inverter = UNet(filters, dropout)
        self.discriminator = Discriminator(
            config["discriminator_strided"], config["discriminator_filters"]
        )
        self.lambdas = (config["lambda_1"], config["lambda_2"])
        self.precision = precision
        self.networks = {
            "generator": self.generator,
            "inverter": self.inverter,
            "discriminator": self.discriminator,
        }
        self.optimizers = {
            name: adam(network, config, fused) for name, network in self.networks.items()
        }

    def load(self, weights: dict[str, list[np.ndarray]]) -> None:
        """Take ours over: each network's trainable variables in their order."""
        for name, network in self.networks.items():
            take(network, weights[name])

    def losses(self, mask: Tensor, image: Tensor) -> dict[str, Tensor]:
        """Each network's loss.

        [batch, 1, rows, cols] in [0, 1].
        """
        mask = 2 * mask - 1
        image = 2 * image - 1
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            fake_image = self.generator(mask)
            fake_mask = self.inverter(image)
            real = self.discriminator(mask, image)
            fake_1 = self.discriminator(mask, fake_image)
            fake_2 = self.discriminator(fake_mask, image)
        return {
            "generator": -log_mean(fake_1) + self.lambdas[0] * (image - fake_image).abs().mean(),
            "inverter": -log_mean(fake_2) + self.lambdas[1] * (mask - fake_mask).square().mean(),
            "discriminator": -(log_mean(real) + log_mean(-fake_1) + log_mean(-fake_2)),
        }

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Losses, then the updates of all three.

        Args:
            batch: "mask" and "image", [batch, 1, rows, cols] in [0, 1].
        """
        return update(self.losses(batch["mask"], batch["image"]), self.networks, self.optimizers)
