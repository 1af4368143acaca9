"""CAN in PyTorch, for benchmarks/step.py.

It has the networks, losses and updates of tfmammo.models.can, and starts from its weights. Each
loss is differentiated with respect to its own network's weights alone, three times through one
forward pass: Algorithm 1 as printed.
"""

from __future__ import annotations

from typing import Any

from peers.layers import Discriminator, Trained, UNet, compute_in, log_mean
from torch import Tensor


class Model(Trained):
    """One round of Algorithm 1."""

    def __init__(self, config: dict[str, Any], size: int, fused: bool, precision: str) -> None:
        filters = config["filters"]
        dropout = config["dropout"]
        self.generator = UNet(filters, dropout)
        self.inverter = UNet(filters, dropout)
        self.discriminator = Discriminator(
            config["discriminator_strided"], config["discriminator_filters"]
        )
        self.lambdas = (config["lambda_1"], config["lambda_2"])
        networks = {"generator": self.generator, "inverter": self.inverter}
        networks |= {"discriminator": self.discriminator}
        super().__init__(config, precision, fused, **networks)

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Compute the losses, then update all three networks.

        Args:
            batch: "mask" and "image", [batch, 1, rows, cols] in [0, 1].
        """
        mask = 2 * batch["mask"] - 1
        image = 2 * batch["image"] - 1
        with compute_in(self.precision):
            fake_image = self.generator(mask)
            fake_mask = self.inverter(image)
            real = self.discriminator(mask, image)
            fake_1 = self.discriminator(mask, fake_image)
            fake_2 = self.discriminator(fake_mask, image)
        losses = {
            "generator": -log_mean(fake_1) + self.lambdas[0] * (image - fake_image).abs().mean(),
            "inverter": -log_mean(fake_2) + self.lambdas[1] * (mask - fake_mask).square().mean(),
            "discriminator": -(log_mean(real) + log_mean(-fake_1) + log_mean(-fake_2)),
        }
        return self.update(losses)
