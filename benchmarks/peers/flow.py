"""Rectified flow in PyTorch, for benchmarks/step.py.

It has the network, loss and update of tfmammo.models.flow, and starts from its weights. Everything
is turned by 180 degrees, see peers.layers.take.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from peers.contextual import SelfAttention
from peers.infilling import tri_label
from peers.layers import EPSILON, Trained, compute_in
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu


class ResidualBlock(nn.Module):
    """See tfmammo.models.flow.ResidualBlock."""

    def __init__(self, width: int, channels: int, groups: int, embedded: int, attends: bool):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(groups, n, EPSILON) for n in (channels, width))
        self.convolution = nn.Conv2d(channels, width, 3, padding=1)
        self.shift = nn.Linear(embedded, width)
        self.attention = SelfAttention(width, spectral=False) if attends else nn.Identity()
        self.last = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """[batch, channels, rows, cols] and the time's embedding -> [batch, width, rows, cols]."""
        h = self.convolution(silu(self.norms[0](x))) + self.shift(time)[:, :, None, None]
        h = self.attention(silu(self.norms[1](h)))
        return self.last(h) + self.shortcut(x)


class Velocity(nn.Module):
    """See tfmammo.models.flow.VelocityUNet."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        widths = config["widths"]
        embedded = 4 * widths[0]
        channels = 2 if config["margin"] is None else 3

        def block(level: int, entering: int) -> ResidualBlock:
            attends = level >= len(widths) - config["attention_levels"]
            return ResidualBlock(widths[level], entering, config["groups"], embedded, attends)

        levels = range(len(widths))
        half = widths[0] // 2
        frequencies = 1000.0 * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        self.register_buffer("frequencies", frequencies.float())
        self.embedding = nn.ModuleList(nn.Linear(n, embedded) for n in (widths[0], embedded))
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.downs = nn.ModuleList(block(level, widths[max(level - 1, 0)]) for level in levels)
        self.halvings = nn.ModuleList(nn.Conv2d(n, n, 3, 2, 1) for n in widths[:-1])
        self.bottom = block(levels[-1], widths[-1])
        self.ups = nn.ModuleList(block(level, 2 * widths[level]) for level in reversed(levels))
        self.narrowings = nn.ModuleList(
            nn.Conv2d(below, width, 3, padding=1)
            for below, width in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.norm = nn.GroupNorm(config["groups"], widths[0], EPSILON)
        self.head = nn.Conv2d(widths[0], 1, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """[batch, channels, rows, cols] and [batch] -> float32 [batch, 1, rows, cols]."""
        angles = time[:, None] * self.frequencies
        embedded = torch.cat([angles.cos(), angles.sin()], 1)
        for layer in self.embedding:
            embedded = silu(layer(embedded))
        x = self.first(x)
        skips: list[Tensor] = []
        for level, block in enumerate(self.downs):
            x = block(self.halvings[level - 1](x) if level else x, embedded)
            skips.append(x)
        x = self.bottom(x, embedded)
        for level, block in enumerate(self.ups):
            if level:
                x = interpolate(self.narrowings[level - 1](x), scale_factor=2, mode="nearest")
            x = block(torch.cat([x, skips.pop()], 1), embedded)
        return self.head(silu(self.norm(x))).float()


class Model(Trained):
    """One step of v and of its running average.

    Its config has no `drop_condition`.
    """

    turned = True

    def __init__(self, config: dict[str, Any], size: int, fused: bool, precision: str) -> None:
        super().__init__(config, precision, fused, velocity=Velocity(config))
        self.average = copy.deepcopy(self.networks["velocity"])
        self.steps = 0

    def load(self, weights: dict[str, list[np.ndarray]]) -> None:
        """Take over v from TensorFlow; its average starts there, too."""
        super().load(weights)
        self.average.load_state_dict(self.networks["velocity"].state_dict())

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Update v once, then its average.

        Args:
            batch: "mask" and "image", [batch, 1, rows, cols] in [0, 1]; "noise", likewise, and
                "time", [batch], in [0, 1], are drawn here if they are not there.
        """
        image = batch["image"]
        noise = batch["noise"] if "noise" in batch else torch.rand_like(image)
        time = batch["time"] if "time" in batch else torch.rand(len(image))
        label = tri_label(image, batch["mask"], noise, self.config["margin"]).flip(2, 3) * 2 - 1
        start = label[:, :1]
        end = image.flip(2, 3) * 2 - 1
        share = time[:, None, None, None]
        state = torch.cat([share * end + (1 - share) * start, label[:, 1:]], 1)
        with compute_in(self.precision):
            velocity = self.networks["velocity"](state, time)
        hole = (label[:, 1:2] > 0).float()
        squared = (hole * (end - start - velocity) ** 2).sum((1, 2, 3))
        loss = (squared / hole.sum((1, 2, 3)).clamp_min(1)).mean()
        losses = self.update({"velocity": loss})
        self.update_average()
        return losses

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the average to v; it starts fast, see tfmammo.models.flow."""
        past = min(self.config["ema"], (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(
            list(self.average.parameters()),
            list(self.networks["velocity"].parameters()),
            1 - past,
        )
        self.steps += 1
