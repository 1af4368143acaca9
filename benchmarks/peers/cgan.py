"""cGAN in PyTorch, for benchmarks/step.py.

It has the networks, losses and updates of tfmammo.models.cgan, and starts from its weights.

Both losses are of one forward pass, in which D sees real and fake pairs apart, because its batch
normalisation does.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peers.layers import EPSILON, Discriminator, Trained, UNet, compute_in
from torch import Tensor, nn
from torch.nn.functional import softplus


class Model(Trained):
    """One step of both networks.

    Its config has `adversarial`, `content` and `normalization` as printed.
    """

    def __init__(self, config: dict[str, Any], size: int, fused: bool, precision: str) -> None:
        norm = partial(nn.BatchNorm2d, eps=EPSILON, momentum=1 - config["momentum"])
        self.generator = UNet(
            config["filters"], config["dropout"], biases=True, norm=norm, activation=torch.sigmoid
        )
        strided = config["discriminator_strided"]
        filters = config["discriminator_filters"]
        self.discriminator = Discriminator(strided, filters, biases=True, norm=norm)
        self.weight = config["lambda_content"]
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        super().__init__(config, precision, fused, **networks)

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Compute the losses, then update both networks.

        Args:
            batch: "mask" and "image", [batch, 1, rows, cols] in [0, 1].
        """
        image = batch["image"]
        mask = batch["mask"]
        with compute_in(self.precision):
            fake_mask = self.generator(image)
            real = self.discriminator(image, mask)
            fake = self.discriminator(image, fake_mask)
        losses = {
            # softplus(-l) = -log sigmoid(l)
            "generator": self.weight * dice_loss(mask, fake_mask) + softplus(-fake).mean(),
            "discriminator": softplus(-real).mean() + softplus(fake).mean(),
        }
        return self.update(losses)


def dice_loss(target: Tensor, output: Tensor, smooth: float = 1.0) -> Tensor:
    """Compute 1 - Dice of each sample's soft masks, averaged over the batch."""
    target = target.flatten(1)
    output = output.flatten(1)
    both = (target * output).sum(1)
    total = target.sum(1) + output.sum(1)
    return (1 - (2 * both + smooth) / (total + smooth)).mean()
