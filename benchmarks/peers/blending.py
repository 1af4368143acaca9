"""Blending in PyTorch, for benchmarks/step.py.

It has the networks, losses and updates of tfmammo.models.blending, and starts from its weights.
"""

from __future__ import annotations

from math import pi
from typing import Any

import torch
from peers.layers import ConvolutionUNet, Trained, compute_in, log_mean, sample_norm
from torch import Tensor, nn
from torch.nn.functional import grid_sample, leaky_relu, pad

GAP = 4  # px between mask and border of a patch
TINY = 1e-12  # under a square root, whose gradient is infinite at 0


class Discriminator(nn.Module):
    """See tfmammo.models.blending: four convolutions that see 16 x 16 px."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, filters, 4, 2, 1)
        self.second = nn.Conv2d(filters, 2 * filters, 4, 1, 1, bias=False)
        self.second_norm = sample_norm(2 * filters)
        self.third = nn.Conv2d(2 * filters, 4 * filters, 4, 1, 1, bias=False)
        self.third_norm = sample_norm(4 * filters)
        self.head = nn.Conv2d(4 * filters, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """[batch, 1, rows, cols] in [-1, 1] -> logits."""
        x = leaky_relu(self.first(image), 0.2)
        x = leaky_relu(self.second_norm(self.second(x)), 0.2)
        x = leaky_relu(self.third_norm(self.third(x)), 0.2)
        return self.head(x).float()


class Model(Trained):
    """One step of G and D.

    Its config has `prior`, `adversarial` and `average` as they are by default.
    """

    def __init__(self, config: dict[str, Any], size: int, fused: bool, precision: str) -> None:
        self.generator = ConvolutionUNet(3, config["widths"], config["dropout"])
        self.discriminator = Discriminator(config["discriminator_filters"])
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        super().__init__(config, precision, fused, **networks)

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Place the lesions, compute both losses from one forward pass, update both networks.

        Args:
            batch: "mask" and "image", [batch, 1, rows, cols] in [0, 1]; "label", [batch], 1 for a
                lesion, as many as 0; "draws", [lesions, 4] in [0, 1), drawn here if not there.
        """
        has_lesion = batch["label"] == 1
        tissue = batch["image"][~has_lesion]
        real = batch["image"][has_lesion]
        draws = batch["draws"] if "draws" in batch else torch.rand(len(real), 4)
        lesion, mask = place_lesion(
            real, batch["mask"][has_lesion], draws, self.config["rotate"], self.config["resize"]
        )
        pasted = torch.cat([tissue, torch.where(mask > 0, lesion, tissue), mask], 1)
        with compute_in(self.precision):
            blended = torch.tanh(self.generator(pasted * 2 - 1))
            p_real = self.discriminator(real * 2 - 1)
            p_fake = self.discriminator(blended)
        image = blended * 0.5 + 0.5
        seam = compute_seamless_loss(image, tissue, lesion, mask)
        background = compute_background_loss(image, tissue, mask)
        losses = {
            "generator": -log_mean(p_fake) + self.config["lambda_p"] * (seam + background),
            "discriminator": -(log_mean(p_real) + log_mean(-p_fake)),
        }
        return self.update(losses)


def place_lesion(
    lesion: Tensor, mask: Tensor, draws: Tensor, rotate: float, resize: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Rotate, resize and move lesions; see tfmammo.models.blending.place_lesion."""
    size = lesion.shape[-1]
    centre, reach = measure_extent(mask)
    angle = (2 * draws[:, 0] - 1) * (rotate * pi / 180)
    factor = resize[0] + draws[:, 1] * (resize[1] - resize[0])
    factor = torch.minimum(factor, (size / 2 - GAP) / reach)
    distance = (factor * reach + GAP)[:, None]
    row, col = (distance + draws[:, 2:] * (size - 2 * distance) - 0.5).unbind(1)
    cosine = (angle.cos() / factor)[:, None, None]
    sine = (angle.sin() / factor)[:, None, None]
    places = torch.arange(size, dtype=torch.float32)
    down = places[:, None] - row[:, None, None]
    right = places - col[:, None, None]
    source_col = centre[1][:, None, None] + cosine * right + sine * down
    source_row = centre[0][:, None, None] + cosine * down - sine * right
    grid = torch.stack([source_col, source_row], -1) * (2 / (size - 1)) - 1
    moved = grid_sample(torch.cat([lesion, mask], 1), grid, align_corners=True)
    return moved[:, :1], (moved[:, 1:] >= 0.5).float()


def measure_extent(mask: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Measure the centre (row, col) of each mask's box, and half the box's diagonal, px."""
    centres = []
    lengths = []
    for axis in (3, 2):
        inside = (mask.amax(axis)[:, 0] > 0).float()
        first = inside.argmax(1)
        last = inside.shape[1] - 1 - inside.flip(1).argmax(1)
        centres.append((first + last).float() / 2)
        lengths.append((last - first + 1).float())
    return (centres[0], centres[1]), torch.hypot(*lengths) / 2


def compute_gradients(image: Tensor) -> Tensor:
    """Compute forward differences along rows and columns, 0 at the end of each."""
    down = pad(image[:, :, 1:] - image[:, :, :-1], (0, 0, 0, 1))
    right = pad(image[..., 1:] - image[..., :-1], (0, 1))
    return torch.cat([down, right], 1)


def compute_seamless_loss(output: Tensor, tissue: Tensor, lesion: Tensor, mask: Tensor) -> Tensor:
    """Compute L_S, Eq. (3)."""
    of_tissue, of_lesion = compute_gradients(tissue), compute_gradients(lesion)
    is_longer = (of_tissue**2).sum(1, keepdim=True) > (of_lesion**2).sum(1, keepdim=True)
    difference = compute_gradients(output) - torch.where(is_longer, of_tissue, of_lesion)
    return root(average_region(2 * difference**2, find_touching(mask))).mean()


def compute_background_loss(output: Tensor, tissue: Tensor, mask: Tensor) -> Tensor:
    """Compute L_B, Eq. (5)."""
    lengths = [
        root((compute_gradients(image) ** 2).sum(1, keepdim=True)) for image in (output, tissue)
    ]
    change = (lengths[0] - lengths[1])[:, :, :-1, :-1]
    whole = (1 - find_touching(mask).amax(1, keepdim=True))[:, :, :-1, :-1]
    grey = average_region((output - tissue).abs(), 1 - mask)
    return (grey + root(average_region(change**2, whole))).mean()


def find_touching(mask: Tensor) -> Tensor:
    """Mark the differences of `compute_gradients` of which a pixel lies in the mask."""
    down = pad(torch.maximum(mask[:, :, 1:], mask[:, :, :-1]), (0, 0, 0, 1))
    right = pad(torch.maximum(mask[..., 1:], mask[..., :-1]), (0, 1))
    return torch.cat([down, right], 1)


def average_region(values: Tensor, region: Tensor) -> Tensor:
    """Average each sample's map over a region of 0 and 1."""
    return (values * region).sum((1, 2, 3)) / region.sum((1, 2, 3)).clamp_min(TINY)


def root(squares: Tensor) -> Tensor:
    """Compute a square root with a finite gradient."""
    return (squares + TINY).sqrt()
