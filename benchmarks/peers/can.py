"""CAN in PyTorch, for benchmarks/step.py: the same networks, losses and updates as tfmammo.models.can, from the same weights.

Images go in as [batch, 1, rows, cols]. `load` takes the weights of ours in their order and turns their axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, logsigmoid, relu

EPSILON = 1e-3  # of the normalisation, as ours


class UNet(nn.Module):
    """See tfmammo.networks.UNet256."""

    def __init__(self, filters: Sequence[int], dropout: float) -> None:
        super().__init__()
        depth, wide = len(filters), [1, *filters]
        ups = [*reversed(filters[:-1]), 1]
        entering = [filters[-1], *(2 * width for width in ups[:-1])]
        self.downs = nn.ModuleList(nn.Conv2d(wide[i], wide[i + 1], 4, 2, 1, bias=False) for i in range(depth))
        self.down_norms = nn.ModuleList(norm(filters[i]) if 0 < i < depth - 1 else nn.Identity() for i in range(depth))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(entering[i], ups[i], 4, 2, 1, bias=i == depth - 1) for i in range(depth))
        self.up_norms = nn.ModuleList(norm(ups[i]) if i < depth - 1 else nn.Identity() for i in range(depth))
        self.dropouts = nn.ModuleList(nn.Dropout(dropout if i < min(3, depth - 1) else 0.0) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 1, rows, cols] -> the same shape, in [-1, 1]."""
        skips = []
        for i, (down, normal) in enumerate(zip(self.downs, self.down_norms, strict=True)):
            x = normal(down(leaky_relu(x, 0.2) if i else x))
            skips.append(x)
        skips.pop()
        for up, normal, dropout in zip(self.ups, self.up_norms, self.dropouts, strict=True):
            x = dropout(normal(up(relu(x))))
            x = torch.cat([x, skips.pop()], 1) if skips else x
        return torch.tanh(x.float())


class Discriminator(nn.Module):
    """See tfmammo.networks.PatchDiscriminator."""

    def __init__(self, strided: int, filters: int) -> None:
        super().__init__()
        widths, strides = [2, *(filters * min(2**i, 8) for i in range(strided + 1))], [2] * strided + [1]
        self.convolutions = nn.ModuleList(nn.Conv2d(widths[i], widths[i + 1], 4, strides[i], 1, bias=i == 0) for i in range(strided + 1))
        self.norms = nn.ModuleList(norm(widths[i + 1]) if i else nn.Identity() for i in range(strided + 1))
        self.head = nn.Conv2d(widths[-1], 1, 4, 1, 1)

    def forward(self, mask: Tensor, image: Tensor) -> Tensor:
        """Logits of a pair."""
        x = torch.cat([mask, image], 1)
        for convolution, normal in zip(self.convolutions, self.norms, strict=True):
            x = leaky_relu(normal(convolution(x)), 0.2)
        return self.head(x).float()


class CAN(nn.Module):
    """One round of Algorithm 1. config: of ours. fused: Adam's kernel. precision: float32 or bfloat16 (autocast)."""

    def __init__(self, config: dict[str, object], fused: bool, precision: str) -> None:
        super().__init__()
        filters, dropout = config["filters"], config["dropout"]
        self.generator, self.inverter = UNet(filters, dropout), UNet(filters, dropout)  # type: ignore[arg-type]
        self.discriminator = Discriminator(config["discriminator_strided"], config["discriminator_filters"])  # type: ignore[arg-type]
        self.lambdas, self.precision = (config["lambda_1"], config["lambda_2"]), precision
        options = {"lr": config["learning_rate"], "betas": (config["beta_1"], 0.999), "eps": 1e-7, "fused": fused}
        self.networks = {"generator": self.generator, "inverter": self.inverter, "discriminator": self.discriminator}
        self.optimizers = {name: torch.optim.Adam(network.parameters(), **options) for name, network in self.networks.items()}

    def losses(self, mask: Tensor, image: Tensor) -> dict[str, Tensor]:
        """Each network's loss. Args: [batch, 1, rows, cols] in [0, 1]."""
        mask, image = 2 * mask - 1, 2 * image - 1
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            fake_image, fake_mask = self.generator(mask), self.inverter(image)
            real, fake_1, fake_2 = (
                self.discriminator(mask, image), self.discriminator(mask, fake_image), self.discriminator(fake_mask, image),
            )  # fmt: skip
        return {
            "generator": -log_mean(fake_1) + self.lambdas[0] * (image - fake_image).abs().mean(),  # type: ignore[operator]
            "inverter": -log_mean(fake_2) + self.lambdas[1] * (mask - fake_mask).square().mean(),  # type: ignore[operator]
            "discriminator": -(log_mean(real) + log_mean(-fake_1) + log_mean(-fake_2)),
        }

    def train_step(self, mask: Tensor, image: Tensor) -> dict[str, float]:
        """Losses, then the updates of all three."""
        losses = self.losses(mask, image)
        for name, network in self.networks.items():
            self.optimizers[name].zero_grad()
            losses[name].backward(inputs=list(network.parameters()), retain_graph=name != "discriminator")
        for optimizer in self.optimizers.values():
            optimizer.step()
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def load(self, weights: dict[str, list[np.ndarray]]) -> None:
        """Take ours over. Args: weights: network -> arrays in the order of its Keras layers: down convolutions, their
        normalisations, up convolutions ...; see `ordered`.
        """
        for name, network in self.networks.items():
            ours = iter(weights[name])
            with torch.no_grad():
                for parameter, kind in ordered(network):
                    value = np.ascontiguousarray(next(ours).transpose(kind) if kind else next(ours))
                    assert tuple(value.shape) == tuple(parameter.shape), (name, value.shape, parameter.shape)
                    parameter.copy_(torch.from_numpy(value))
            assert next(ours, None) is None, f"{name} has weights left over"


def ordered(network: nn.Module) -> list[tuple[nn.Parameter, tuple[int, ...] | None]]:
    """Parameters layer by layer, kernel or gamma first, each with the turn of our axes; [rows, cols, in, out] of a convolution,
    [rows, cols, out, in] of a transposed one.
    """
    found: list[tuple[nn.Parameter, tuple[int, ...] | None]] = []
    for layer in (layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.InstanceNorm2d)):
        for parameter in (layer.weight, layer.bias):
            if parameter is not None:
                found.append((parameter, (3, 2, 0, 1) if parameter.ndim == 4 else None))
    return found


def norm(channels: int) -> nn.Module:
    """A sample's own statistics."""
    return nn.InstanceNorm2d(channels, EPSILON, affine=True)


def log_mean(logits: Tensor) -> Tensor:
    """log of the mean probability of each sample's patches, then its mean over samples, stably."""
    flat = logsigmoid(logits.flatten(1))
    return (torch.logsumexp(flat, 1) - np.log(flat.shape[1])).mean()
