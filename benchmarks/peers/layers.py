"""What two or more peers share: Pix2Pix's networks in PyTorch, losses, optimizers, weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, logsigmoid, relu

EPSILON = 1e-3  # of every normalisation, as in tfmammo.nn.layers


class UNet(nn.Module):
    """See tfmammo.nn.networks.UNet256."""

    def __init__(
        self,
        filters: Sequence[int],
        dropout: float,
        channels: int = 1,
        biases: bool = False,
        norm: Callable[[int], nn.Module] | None = None,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
    ) -> None:
        super().__init__()
        depth = len(filters)
        wide = [channels, *filters]
        norm = norm or sample_norm
        ups = [*reversed(filters[:-1]), 1]
        entering = [filters[-1], *(2 * width for width in ups[:-1])]
        self.downs = nn.ModuleList(
            nn.Conv2d(wide[i], wide[i + 1], 4, 2, 1, bias=biases) for i in range(depth)
        )
        self.down_norms = nn.ModuleList(
            norm(filters[i]) if 0 < i < depth - 1 else nn.Identity() for i in range(depth)
        )
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(entering[i], ups[i], 4, 2, 1, bias=biases or i == depth - 1)
            for i in range(depth)
        )
        self.up_norms = nn.ModuleList(
            norm(ups[i]) if i < depth - 1 else nn.Identity() for i in range(depth)
        )
        self.dropouts = nn.ModuleList(
            nn.Dropout(dropout if i < min(3, depth - 1) else 0.0) for i in range(depth)
        )
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, rows, cols] -> [batch, 1, rows, cols], in [-1, 1] by default."""
        skips = []
        for i, (down, normal) in enumerate(zip(self.downs, self.down_norms, strict=True)):
            x = normal(down(leaky_relu(x, 0.2) if i else x))
            skips.append(x)
        skips.pop()
        for up, normal, dropout in zip(self.ups, self.up_norms, self.dropouts, strict=True):
            x = dropout(normal(up(relu(x))))
            x = torch.cat([x, skips.pop()], 1) if skips else x
        return self.activation(x.float())


class ConvolutionUNet(nn.Module):
    """See tfmammo.nn.networks.unet_features, with a last convolution 1 x 1."""

    def __init__(self, channels: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        entering = [channels, *widths[:-1]]
        self.downs = nn.ModuleList(
            _two_convolutions(before, width) for before, width in zip(entering, widths, strict=True)
        )
        self.ups = nn.ModuleList()
        for below, width in zip(widths[:0:-1], widths[-2::-1], strict=True):
            pair = [nn.ConvTranspose2d(below, width, 2, 2), _two_convolutions(2 * width, width)]
            self.ups.append(nn.ModuleList(pair))
        self.head = nn.Conv2d(widths[0], 1, 1)
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, rows, cols] -> float32 [batch, 1, rows, cols]."""
        skips: list[Tensor] = []
        for level, convolutions in enumerate(self.downs):
            x = convolutions(self.pool(x) if level else x)
            x = self.dropout(x) if level >= len(self.downs) - 2 else x
            skips.append(x)
        skips.pop()
        for double, convolutions in self.ups:
            x = convolutions(torch.cat([skips.pop(), double(x)], 1))
        return self.head(x).float()


def _two_convolutions(before: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for entering in (before, width):
        layers += [nn.Conv2d(entering, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


class Discriminator(nn.Module):
    """See tfmammo.nn.networks.PatchDiscriminator."""

    def __init__(
        self,
        strided: int,
        filters: int,
        channels: int = 2,
        biases: bool = False,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        widths = [channels, *(filters * min(2**i, 8) for i in range(strided + 1))]
        strides = [2] * strided + [1]
        normed = norm or sample_norm
        self.convolutions = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 4, strides[i], 1, bias=biases or i == 0)
            for i in range(strided + 1)
        )
        self.norms = nn.ModuleList(
            normed(widths[i + 1]) if i else nn.Identity() for i in range(strided + 1)
        )
        self.head = nn.Conv2d(widths[-1], 1, 4, 1, 1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits of a pair, such as mask and image."""
        x = torch.cat([first, second], 1)
        for convolution, normal in zip(self.convolutions, self.norms, strict=True):
            x = leaky_relu(normal(convolution(x)), 0.2)
        return self.head(x).float()


def sample_norm(channels: int) -> nn.Module:
    """Build a normalisation by each sample's own statistics."""
    return nn.InstanceNorm2d(channels, EPSILON, affine=True)


def compute_in(precision: str) -> torch.autocast:
    """Make the context of a forward pass: autocast to bfloat16 where it is wanted."""
    device = torch.get_default_device().type
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")


def log_mean(logits: Tensor) -> Tensor:
    """Compute the log of each sample's mean probability, averaged over the batch."""
    flat = logsigmoid(logits.flatten(1))
    return (torch.logsumexp(flat, 1) - np.log(flat.shape[1])).mean()


def adam(network: nn.Module, config: dict[str, Any], fused: bool) -> torch.optim.Adam:
    """Build a network's Adam with the config's values, or else those of tfmammo.nn.optimization."""
    return torch.optim.Adam(
        network.parameters(),
        lr=config["learning_rate"],
        betas=(config["beta_1"], config.get("beta_2", 0.999)),
        eps=config.get("epsilon", 1e-7),
        fused=fused,
    )


def epsilon_as_ours(optimizer: torch.optim.Optimizer) -> None:
    """Add Adam's epsilon to sqrt(v), as TensorFlow does.

    PyTorch adds it to sqrt(v / (1 - beta_2^t)). In the first steps TensorFlow's is 30 times as
    much, and weights with gradients of 1e-6 move differently.
    """
    (group,) = optimizer.param_groups
    epsilon = group["eps"]
    beta_2 = group["betas"][1]
    steps = count(1)
    optimizer.register_step_pre_hook(
        lambda *_: group.update(eps=epsilon / math.sqrt(1 - beta_2 ** next(steps)))
    )


class Trained:
    """Networks and an Adam of each, which start from TensorFlow's weights.

    A peer is made by a `Model(config, size, fused, precision)`, or by a function of these
    arguments, `size` being rows and columns of a patch, px.

    Args:
        config: That of tfmammo's model.
        precision: "float32", or "bfloat16" by autocast.
        fused: Use PyTorch's fused Adam.
        networks: By tfmammo's names.
    """

    turned = False  # see `take`

    def __init__(
        self, config: dict[str, Any], precision: str, fused: bool, **networks: nn.Module
    ) -> None:
        self.config = config
        self.precision = precision
        self.networks = networks
        self.optimizers = {name: adam(network, config, fused) for name, network in networks.items()}

    def load(self, weights: dict[str, list[np.ndarray]]) -> None:
        """Take over each network's trainable variables from TensorFlow, in their order."""
        for name, network in self.networks.items():
            take(network, weights[name], self.turned)

    def update(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """Take one step of each network down its own loss, all losses being of one forward pass.

        Returns:
            The losses, by tfmammo's names.
        """
        last = list(losses)[-1]
        for name, loss in losses.items():
            self.optimizers[name].zero_grad()
            weights = list(self.networks[name].parameters())
            loss.backward(inputs=weights, retain_graph=name != last)
        for name in losses:
            self.optimizers[name].step()
        return {f"{name}_loss": float(loss.detach()) for name, loss in losses.items()}


def take(network: nn.Module, weights: Iterable[np.ndarray], turned: bool = False) -> None:
    """Give a network weights from TensorFlow.

    Args:
        network: Its layers have TensorFlow's order.
        weights: In that order; [rows, cols, in, out] of a convolution, [rows, cols, out, in] of a
            transposed one, [in, out] of a dense layer.
        turned: Turn each kernel by 180 degrees. Where TensorFlow's padding is uneven it has more at
            the end, PyTorch's more at the start, so that the network of turned kernels makes turned
            maps.
    """
    with torch.no_grad():
        for parameter, ours in zip(network.parameters(), weights, strict=True):
            value = ours[::-1, ::-1] if turned and ours.ndim == 4 else ours
            order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(ours.ndim, range(ours.ndim))
            value = np.array(value.transpose(*order), order="C")
            assert value.shape == tuple(parameter.shape), (value.shape, parameter.shape)
            parameter.copy_(torch.from_numpy(value))
