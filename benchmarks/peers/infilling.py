"""Infilling in PyTorch, for benchmarks/step.py.

It has the networks, losses and updates of tfmammo.models.infilling, and starts from its weights.
Both losses belong to one forward pass. VGG-19 is frozen; its features of the real image need no
gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peers.layers import EPSILON, Discriminator, Trained, UNet, compute_in, log_mean, take
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, relu

BLOCKS = (2, 2, 4, 4, 2)  # VGG-19's convolutions up to conv5_2
TAPS = {"blocks": (1, 3, 5, 9, 13), "first": (0, 1, 2, 3, 4)}
# torchvision's, which go with random weights too
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
FULL = 256


class CRN(nn.Module):
    """See tfmammo.models.infilling.CRN."""

    def __init__(self, channels: int, widths: Sequence[int], normalization: str) -> None:
        super().__init__()
        entering = [channels, *(channels + width for width in widths[:-1])]
        self.factors = [2**i for i in reversed(range(len(widths)))]
        self.convolutions = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(n, width, 3, padding=1) for n in (before, width))
            for before, width in zip(entering, widths, strict=True)
        )
        normed = normalization == "layer"
        self.norms = nn.ModuleList(
            nn.ModuleList(
                nn.GroupNorm(1, width, EPSILON) if normed else nn.Identity() for _ in range(2)
            )
            for width in widths
        )
        self.head = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, label: Tensor) -> Tensor:
        """[batch, channels, rows, cols] -> [batch, 1, rows, cols] in [-1, 1]."""
        x = None
        for factor, convolutions, norms in zip(
            self.factors, self.convolutions, self.norms, strict=True
        ):
            small = avg_pool2d(label, factor) if factor > 1 else label
            x = (
                small
                if x is None
                else torch.cat([small, interpolate(x, scale_factor=2, mode="bilinear")], 1)
            )
            for convolution, norm in zip(convolutions, norms, strict=True):
                x = relu(norm(convolution(x)))
        return torch.tanh(self.head(x).float())


class FeatureExtractor(nn.Module):
    """VGG-19's feature maps of a grey image, frozen; see tfmammo.nn.pretrained.vgg19.

    Args:
        taps: Numbers of the convolutions whose maps, after their ReLU, are put out.
    """

    def __init__(self, taps: Sequence[int]) -> None:
        super().__init__()
        blocks = [block for block, depth in enumerate(BLOCKS) for _ in range(depth)][
            : max(taps) + 1
        ]
        widths = [3, *(64 * min(2**block, 8) for block in blocks)]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 3, padding=1) for i in range(len(blocks))
        )
        self.taps = frozenset(taps)
        self.pooled = [i > 0 and blocks[i] > blocks[i - 1] for i in range(len(blocks))]
        self.register_buffer("mean", torch.tensor(MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(DEVIATION).reshape(1, 3, 1, 1))
        self.grey_scale = float(np.mean(1 / np.array(DEVIATION, np.float32)))
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute phi_0 to phi_5.

        Args:
            image: [batch, 1, rows, cols] in [0, 1].
        """
        features = [image]
        x = (image - self.mean) / self.deviation
        for i, (convolution, pooled) in enumerate(zip(self.convolutions, self.pooled, strict=True)):
            x = relu(convolution(max_pool2d(x, 2) if pooled else x))
            if i in self.taps:
                features.append(x.float() / self.grey_scale)
        return features


class Model(Trained):
    """One step of G and D.

    Its config has its default `adversarial` and `average`.
    """

    def __init__(self, config: dict[str, Any], size: int, fused: bool, precision: str) -> None:
        self.margin = config["margin"]
        channels = 2 if config["margin"] is None else 3
        crn = config["generator"] == "crn"
        self.generator = (
            CRN(channels, config["widths"], config["normalization"])
            if crn
            else UNet(config["filters"], config["dropout"], channels)
        )
        self.discriminator = Discriminator(
            config["discriminator_strided"], config["discriminator_filters"], channels + 1
        )
        self.feature_extractor = FeatureExtractor(TAPS[config["feature_layers"]])
        self.weight = config["lambda_fm"]
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        super().__init__(config, precision, fused, **networks)
        self.networks["feature_extractor"] = self.feature_extractor  # it is not trained

    def load(self, weights: dict[str, list[np.ndarray]]) -> None:
        """Take over weights from TensorFlow.

        Args:
            weights: Each network's trainable variables in their order, and all variables of
                "feature_extractor", which only a training step needs.
        """
        for name, network in self.networks.items():
            if name != "feature_extractor" or weights.get(name):
                take(network, weights[name])

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Losses, then both updates.

        Args:
            batch: "mask" and "image", [batch, 1, rows, cols] in [0, 1]; "noise", likewise, what
                fills the lesion, drawn here if it is not there.
        """
        image = batch["image"]
        noise = batch["noise"] if "noise" in batch else torch.rand_like(image)
        label = 2 * tri_label(image, batch["mask"], noise, self.margin) - 1
        with compute_in(self.precision):
            with torch.no_grad():
                real_features = self.feature_extractor(image)
            fake_image = self.generator(label)
            real = self.discriminator(label, 2 * image - 1)
            fake = self.discriminator(label, fake_image)
            fake_features = self.feature_extractor(fake_image * 0.5 + 0.5)
        pairs = zip(real_features, fake_features, strict=True)
        matching = sum((r - f).abs().mean() for r, f in pairs)
        losses = {
            "generator": -log_mean(fake) + self.weight * matching,
            "discriminator": -(log_mean(real) + log_mean(-fake)),
        }
        return self.update(losses)


def tri_label(image: Tensor, mask: Tensor, noise: Tensor, margin: int | None) -> Tensor:
    """Tissue, mask and margin, if there is one; see tfmammo.nn.layers.tri_label."""
    channels = [torch.where(mask > 0, noise, image), mask]
    if margin is not None:
        size = mask.shape[-1]
        border = round(size * (margin - FULL) / (2 * FULL))
        places = (2 * (torch.arange(size) + border) + 1) * size // (2 * (size + 2 * border))
        channels.append((mask[..., places, :][..., places] - mask).clamp_min(0))
    return torch.cat(channels, 1)
