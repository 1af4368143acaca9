"""The contextual GAN in PyTorch, for benchmarks/step.py.

It has the networks, losses and updates of tfmammo.models.contextual, and starts from its weights.
`Model.load` takes TensorFlow's trainable variables in their order under "generator",
"discriminator" and "average", and the non-trainable ones in theirs under "generator/state" ...: the
step, then u of each normalised kernel. `Model.train_step` takes "image", float32 [n, 1, rows, cols]
in [0, 1], and "label", integer [n]. It draws random numbers unless the batch has all of them:
"noise", [1 + G's updates, sources, blocks] in [-1, 1]; "alpha", [reals]; "uniform", [reals, 1,
rows, cols]. TensorFlow draws them in step s (`generator.steps`) for use u (DISCRIMINATOR_NOISE ...)
as tf.random.stateless_uniform(shape, tf.constant([s, u], tf.int64)). Noise is 2 x - 1, the first
one for D's update. Real patches are malignant (0), sources normal (2).

- TensorFlow pads a convolution of stride 2 behind its map, PyTorch before it. Everything is rotated
  by 180 degrees here, patches by `train_step`, kernels by `load`: outputs are the same, and no map
  is padded twice.
- torch's own spectral_norm iterates in every call, tfmammo's once a step. D's two calls of its own
  update share a kernel (`cached`).
- torch.compile has no second derivative: the penalty bypasses a compiled D (`forward`). D is called
  with two batch sizes: compile(dynamic=False).
- Adam's epsilon is added to sqrt(v / (1 - beta_2^t)) here, by tfmammo to sqrt(v).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from peers.layers import Trained, compute_in
from torch import Tensor, nn
from torch.nn.functional import (
    avg_pool2d,
    interpolate,
    leaky_relu,
    linear,
    log_softmax,
    max_pool2d,
    normalize,
    pad,
    relu,
)
from torch.nn.utils import parametrize
from torch.optim.swa_utils import get_ema_multi_avg_fn

INNERMOST = 4  # px of the innermost map
UPDATES = 2  # of G in a step
TINY = 1e-12


class Normalized(nn.Module):
    """W / sigma of a kernel, in float32, as tfmammo.nn.layers.SpectralNormalization."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.u: Tensor
        self.register_buffer("u", normalize(torch.randn(outputs), dim=0))

    def forward(self, kernel: Tensor) -> Tensor:
        """Compute the kernel of a call."""
        with torch.autocast(kernel.device.type, enabled=False):
            image = torch.mv(matrix(kernel).T, normalize(self.u, dim=0))
            sigma = torch.dot(normalize(image, dim=0).detach(), image)
            return kernel / sigma.clamp_min(TINY)

    @torch.no_grad()
    def iterate(self, kernel: Tensor) -> None:
        """Move u towards the kernel's singular vector."""
        v = normalize(torch.mv(matrix(kernel).T, normalize(self.u, dim=0)), dim=0)
        self.u.copy_(normalize(torch.mv(matrix(kernel), v), dim=0))


class SelfAttention(nn.Module):
    """See tfmammo.nn.layers.SelfAttention."""

    def __init__(self, channels: int, spectral: bool) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.gamma = nn.Parameter(torch.zeros(()))
        self.f, self.g, self.h = (
            convolution(channels, inner, 1, spectral=spectral, bias=False) for _ in range(3)
        )
        self.v = convolution(inner, channels, 1, spectral=spectral, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, rows, cols] -> the same, in float32.

        Written out, as fused attention has no second derivative.
        """
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float()
            f, g, h = (layer(wide).flatten(2) for layer in (self.f, self.g, self.h))
            looks = torch.bmm(g.transpose(1, 2), f).softmax(-1)  # [n, places i, places j]
            seen = torch.bmm(h, looks.transpose(1, 2)).unflatten(2, x.shape[2:])
            return (wide + self.gamma * self.v(seen)).to(x.dtype)


class Encoder(nn.Module):
    """What G and D share; layers are created in the order of tfmammo.models.contextual.

    Levels are numbered from the innermost, 0. `pooling` is D's, which sees no random numbers and
    whose kernels are normalised.
    """

    def __init__(
        self,
        config: dict[str, Any],
        size: int,
        *,
        factor: int,
        outputs: int,
        pooling: bool,
    ) -> None:
        super().__init__()
        self.config = config
        self.pooling = pooling
        self.levels = size.bit_length() - 3
        self.grown = size > config["start"]
        self.widths = [factor * width for width in reversed(config["filters"])][: self.levels + 1]
        more, stride = (0, 1) if pooling else (1, 2)
        pairs = list(zip([*self.widths[1:], 1], self.widths, strict=True))[: self.levels]
        self.downs = nn.ModuleList(
            convolution(a + more, b, stride=stride, spectral=pooling) for a, b in pairs
        )
        attending = self.widths[(config["attention"] // INNERMOST).bit_length() - 1]
        self.attention = SelfAttention(attending, pooling)
        self.centre = convolution(self.widths[0], outputs, INNERMOST, spectral=pooling)
        whole = self.levels == len(config["filters"])
        self.from_image = None if whole else convolution(1, self.widths[-1], 1, spectral=pooling)
        self.old_from_image = (
            convolution(1, self.widths[self.levels - 1], 1, spectral=pooling)
            if self.grown
            else None
        )
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def blend(self, old: Tensor, new: Tensor) -> Tensor:
        """Compute (1 - alpha) * old + alpha * new, which a stage's steps fade in."""
        alpha = (self.steps / self.config["fade_steps"]).clamp(max=1).to(new.dtype)
        return (1 - alpha) * old.to(new.dtype) + alpha * new

    def encode(self, image: Tensor, noise: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Compute the map of each level, innermost first, and the centre, [n, outputs, 1, 1]."""
        maps: list[Tensor] = []
        x = image if self.from_image is None else leaky_relu(self.from_image(image), 0.2)
        for level in reversed(range(self.levels)):
            x = x if noise is None else with_scalar([x], noise[:, 2 * level])
            x = leaky_relu(self.downs[level](x), 0.2)
            x = max_pool2d(x, 2) if self.pooling else x
            if level == self.levels - 1 and self.old_from_image is not None:
                x = self.blend(leaky_relu(self.old_from_image(avg_pool2d(image, 2)), 0.2), x)
            x = self.attention(x) if x.shape[2] == self.config["attention"] else x
            maps.insert(0, x)
        return maps, self.centre(x)


class Generator(Encoder):
    """See tfmammo.models.contextual.Generator."""

    def __init__(self, config: dict[str, Any], size: int) -> None:
        embedding = config["embedding"]
        super().__init__(config, size, factor=1, outputs=embedding, pooling=False)
        widths = [*self.widths, self.widths[-1]][1 : self.levels + 1]
        befores = [embedding, *widths[:-1]]
        entering = [before + skip + 1 for before, skip in zip(befores, self.widths, strict=False)]
        pairs = (
            [(inputs, width), (width, width)]
            for inputs, width in zip(entering, widths, strict=True)
        )
        self.ups = nn.ModuleList(
            nn.ModuleList(convolution(a, b) for a, b in pair) for pair in pairs
        )
        self.to_lesion = nn.Conv2d(widths[-1], 1, 1)
        self.old_to_lesion = nn.Conv2d(befores[-1], 1, 1) if self.grown else None

    def forward(self, image: Tensor, noise: Tensor) -> Tensor:
        """Compute the lesion, float32 [n, 1, size, size].

        Args:
            image: [n, 1, size, size] in [-1, 1].
            noise: [n, 2 * levels] in [-1, 1].
        """
        maps, middle = self.encode(image, noise)
        x = before = middle.expand(-1, -1, INNERMOST, INNERMOST)
        for level, skip in enumerate(maps):
            before = x
            x = interpolate(with_scalar([x, skip], noise[:, 2 * level + 1]), scale_factor=2)
            for layer in self.ups[level]:
                x = relu(layer(x))
        with torch.autocast(x.device.type, enabled=False):
            lesion = self.cropped(self.to_lesion(x.float()))
            if self.old_to_lesion is not None:
                old = interpolate(self.cropped(self.old_to_lesion(before.float())), scale_factor=2)
                lesion = self.cropped(self.blend(old, lesion))
        return lesion

    def cropped(self, lesion: Tensor) -> Tensor:
        """Set the border to 0 and clip the rest to [-1, 1]."""
        border = self.config["border"]
        end = lesion.shape[2] - self.config["border"]
        return pad(lesion[..., border:end, border:end].clamp(-1, 1), [border] * 4)


class Discriminator(Encoder):
    """See tfmammo.models.contextual.Discriminator."""

    def __init__(self, config: dict[str, Any], size: int) -> None:
        super().__init__(
            config,
            size,
            factor=config["discriminator_factor"],
            outputs=4,
            pooling=True,
        )

    def forward(self, image: Tensor) -> Tensor:
        """Compute the logits, float32 [n, 4]."""
        return self.encode(image)[1].flatten(1).float()


class Model(Trained):
    """One training step.

    Its config has `target`, `positives`, `spectral`, `attention_in_decoder`, `lambda_penalty`,
    `delta` and `generator_updates` as they are by default.
    """

    def __init__(self, config: dict[str, Any], size: int, fused: bool, precision: str) -> None:
        self.mixed = compute_in(precision)
        self.generator = Generator(config, size)
        self.discriminator = Discriminator(config, size)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        super().__init__(config, precision, fused, **networks)
        self.networks["average"] = self.average
        self.follow = get_ema_multi_avg_fn(config["ema"])

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Update D, G and the running average; see the module for the batch.

        Returns:
            What tfmammo.models.contextual returns.
        """
        image = batch["image"].flip(2, 3) * 2 - 1
        label = batch["label"]
        real, benign, source = (image[label == index] for index in range(3))
        noise, alpha, uniform = self.numbers(batch, real, len(source))
        for layer in normalized(self.generator, self.discriminator):
            layer[0].iterate(layer.original)
        fake = torch.no_grad()(self.fake)(source, noise[0])
        delta = alpha.view(-1, 1, 1, 1) * 0.5 * real.std(correction=0) * uniform
        loss, penalty, p_real = self.discriminate([real, fake, benign, source], real + delta)
        self.minimize(loss, "discriminator")
        for numbers in noise[1:]:
            generator_loss, p_fake = self.deceive(source, numbers)
            self.minimize(generator_loss, "generator")
        self.average_follows()
        values = {
            "generator_loss": generator_loss,
            "discriminator_loss": loss,
            "penalty": penalty,
            "p_real": p_real,
            "p_fake": p_fake,
        }
        return {name: float(value.detach()) for name, value in values.items()}

    def numbers(
        self, batch: dict[str, Tensor], real: Tensor, sources: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the step's random numbers: the batch's, or else draw them."""
        if "noise" in batch:
            return batch["noise"], batch["alpha"], batch["uniform"].flip(2, 3)
        noise = torch.rand(1 + UPDATES, sources, 2 * self.generator.levels) * 2 - 1
        return noise, torch.rand(len(real)), torch.rand_like(real)

    def fake(self, source: Tensor, noise: Tensor) -> Tensor:
        """Compute patch + lesion, clipped to [-1, 1]."""
        with self.mixed:
            return (source + self.generator(source, noise)).clamp(-1, 1)

    def discriminate(self, parts: list[Tensor], perturbed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute D's loss, the penalty in it and p(real) of real patches.

        Args:
            parts: Patches of each class.
            perturbed: Real patches, perturbed.
        """
        with parametrize.cached():
            with self.mixed:
                logits = self.discriminator(torch.cat(parts)).split([len(part) for part in parts])
            penalty = self.penalty(perturbed)
        real, fake, benign, source = (
            cross_entropy(part, index) for index, part in enumerate(logits)
        )
        return (
            real + fake + self.config["other_weight"] * (benign + source) + penalty,
            penalty,
            logits[0].softmax(1)[:, 0].mean(),
        )

    def penalty(self, image: Tensor) -> Tensor:
        """Compute lambda * E[(|grad log p(real) / p(fake)| - k)^2], in float32."""
        logits = self.discriminator.forward(image.requires_grad_())
        (gradient,) = torch.autograd.grad(
            (logits[:, 0] - logits[:, 1]).sum(), image, create_graph=True
        )
        norm = (gradient.square().sum((1, 2, 3)) + TINY).sqrt()
        return self.config["lambda_penalty"] * (norm - self.config["k"]).square().mean()

    def deceive(self, source: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Compute G's loss, through a D that is not trained, and p(real) of G's patches."""
        self.discriminator.requires_grad_(False)
        fake = self.fake(source, noise)
        with self.mixed:
            logits = self.discriminator(fake)
        self.discriminator.requires_grad_(True)
        return cross_entropy(logits, 0), logits.softmax(1)[:, 0].mean()

    def minimize(self, loss: Tensor, name: str) -> None:
        """Update one network."""
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()

    @torch.no_grad()
    def average_follows(self) -> None:
        """Move the running average towards G, and copy what is not trained."""
        for network in (self.generator, self.discriminator):
            network.steps += 1
        self.follow(list(self.average.parameters()), list(self.generator.parameters()), None)
        for mean, value in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            mean.copy_(value)

    @torch.no_grad()
    def load(self, weights: dict[str, list[np.ndarray]]) -> None:
        """Take over weights from TensorFlow; see the module."""
        for name, network in self.networks.items():
            states = [network.steps, *(layer[0].u for layer in normalized(network))]
            for tensor, value in zip(
                [*ordered(network), *states],
                [*weights[name], *weights[f"{name}/state"]],
                strict=True,
            ):
                turned = value.transpose(3, 2, 0, 1)[:, :, ::-1, ::-1] if value.ndim == 4 else value
                assert tuple(turned.shape) == tuple(tensor.shape), (name, value.shape, tensor.shape)
                tensor.copy_(torch.from_numpy(np.array(turned)))


class WholeMap(nn.Conv2d):
    """A convolution whose kernel covers the map, as a matrix product.

    oneDNN's gradient of such a kernel writes beyond its end in bfloat16, in PyTorch too; see
    tfmammo.nn.convolutions.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, 4, 4] -> [n, outputs, 1, 1]."""
        return linear(x.flatten(1), self.weight.flatten(1), self.bias)[..., None, None]


def convolution(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    spectral: bool = False,
    bias: bool = True,
) -> nn.Module:
    """Build a convolution, with padding where the kernel is 3 x 3."""
    kind = WholeMap if kernel == INNERMOST else nn.Conv2d
    layer = kind(inputs, outputs, kernel, stride, int(kernel == 3), bias=bias)
    return (
        parametrize.register_parametrization(layer, "weight", Normalized(outputs))
        if spectral
        else layer
    )


def ordered(network: nn.Module) -> Iterator[Tensor]:
    """Yield parameters in TensorFlow's order: attention's gamma, then each layer, kernel first."""
    for layer in network.modules():
        if isinstance(layer, SelfAttention):
            yield layer.gamma
        if isinstance(layer, nn.Conv2d):
            yield (
                layer.parametrizations.weight.original
                if parametrize.is_parametrized(layer)
                else layer.weight
            )
            if layer.bias is not None:
                yield layer.bias


def normalized(*networks: nn.Module) -> list[Any]:
    """Return the normalised kernels: each has an `original`, and Normalized as its first."""
    return [
        layer
        for network in networks
        for layer in network.modules()
        if isinstance(layer, parametrize.ParametrizationList)
    ]


def with_scalar(maps: list[Tensor], scalars: Tensor) -> Tensor:
    """Concatenate maps and one more channel of a random number."""
    return torch.cat(
        [*maps, scalars.to(maps[0].dtype).view(-1, 1, 1, 1).expand_as(maps[0][:, :1])], 1
    )


def matrix(kernel: Tensor) -> Tensor:
    """Reshape to [outputs, all else], the latter in memory order, so that nothing is copied."""
    return (
        kernel.permute(0, 2, 3, 1)
        if kernel.is_contiguous(memory_format=torch.channels_last)
        else kernel
    ).flatten(1)


def cross_entropy(logits: Tensor, index: int) -> Tensor:
    """Compute -log p(class), the mean over the batch; 0 for an empty batch."""
    return -log_softmax(logits, 1)[:, index].sum() / max(len(logits), 1)
