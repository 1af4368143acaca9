"""Light-Head R-CNN in PyTorch, for benchmarks/step.py.

It has the network, losses and update of tfmammo.detection.light_head_rcnn, and starts from its
weights. IoU, non-maximum suppression and position-sensitive RoI align are torchvision's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from peers.classifier import Stages
from peers.layers import Trained, compute_in
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    relu,
    smooth_l1_loss,
)
from torchvision import ops

STRIDE = 16  # px of the image per cell of C4 and C5
RPN_BETA = 1 / 9
MOST = math.log(1000 / 16)
DEVIATIONS = (0.1, 0.1, 0.2, 0.2)


class Detector(nn.Module):
    """Backbone and head; layers are created in the order in which Keras lists their weights."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        momentum = 1 - config["momentum"]
        strides, dilations = (1, 2, 2, 1), (1, 1, 1, 2)
        self.stages = Stages(config["filters"], config["blocks"], momentum, strides, dilations)
        c5 = self.stages.channels
        per_cell = len(config["anchor_scales"]) * len(config["anchor_ratios"])
        bins = config["bins"]
        out = bins**2 * config["channels"]
        column = {"kernel_size": (config["kernel"], 1), "padding": "same"}
        row = {"kernel_size": (1, config["kernel"]), "padding": "same"}
        middle = config["middle"]
        self.rpn = nn.Conv2d(c5 // 2, config["rpn_width"], 3, padding=1)
        self.column_row_1 = nn.Conv2d(c5, middle, **column)
        self.row_column_1 = nn.Conv2d(c5, middle, **row)
        self.objectness = nn.Conv2d(config["rpn_width"], per_cell, 1)
        self.deltas = nn.Conv2d(config["rpn_width"], 4 * per_cell, 1)
        self.column_row_2 = nn.Conv2d(middle, out, **row)
        self.row_column_2 = nn.Conv2d(middle, out, **column)
        self.hidden = nn.Linear(out, config["units"])
        self.logits = nn.Linear(config["units"], 2)
        self.region_deltas = nn.Linear(config["units"], 4)
        self.bins = bins

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute what is computed once for each image.

        Args:
            image: [batch, 1, rows, cols] in [0, 1].

        Returns:
            Objectness [batch, anchors], deltas [batch, anchors, 4], and maps [batch, channels *
            bins * bins, rows / 16, cols / 16], in torchvision's order.
        """
        *_, c4, c5 = self.stages(image)
        x = relu(self.rpn(c4))
        with compute_in("float32"):
            objectness = self.objectness(x.float()).permute(0, 2, 3, 1).flatten(1)
            deltas = self.deltas(x.float()).permute(0, 2, 3, 1).reshape(len(x), -1, 4)
        maps = self.column_row_2(self.column_row_1(c5)).float()
        maps = maps + self.row_column_2(self.row_column_1(c5)).float()
        # ours has a bin's channels beside each other, torchvision a channel's bins
        parted = maps.unflatten(1, (self.bins**2, -1)).transpose(1, 2)
        return objectness, deltas, parted.flatten(1, 2)

    def predict(self, maps: Tensor, boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Predict logits [n, 2] and deltas [n, 4] of the regions of all images."""
        rows, cols = maps.shape[2:]
        scale = boxes[0].new_tensor([cols, rows, cols, rows])
        in_cells = [image[:, [1, 0, 3, 2]] * scale for image in boxes]
        pooled = ops.ps_roi_align(maps, in_cells, self.bins, sampling_ratio=2)
        x = relu(self.hidden(pooled.permute(0, 2, 3, 1).flatten(1))).float()
        with compute_in("float32"):
            return self.logits(x), self.region_deltas(x)


class Model(Trained):
    """One step of the detector of one kind of lesions.

    Its config has `batch_norm` "running".
    """

    def __init__(self, config: dict[str, Any], size: int, fused: bool, precision: str) -> None:
        super().__init__(config, precision, fused, detector=Detector(config))
        self.smallest = 1 / size
        self.anchors = make_anchors(size, config["anchor_scales"], config["anchor_ratios"])

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Take one step down the sum of the four losses.

        Args:
            batch: "image" [batch, 1, rows, cols] in [0, 1], "boxes" [batch, k, 4] in [0, 1], and
                "random" [batch, anchors] in [0, 1), which chooses anchors; drawn where it is not
                given.
        """
        network = self.networks["detector"]
        truth = list(batch["boxes"])
        with compute_in(self.precision):
            objectness, deltas, maps = network(batch["image"])
        random = batch.get("random", torch.rand_like(objectness))
        loss = self.compute_rpn_loss(objectness, deltas, truth, random)
        with torch.no_grad():
            regions = [
                torch.cat([self.propose(*image), boxes])
                for *image, boxes in zip(objectness, deltas, truth, strict=True)
            ]
        with compute_in(self.precision):
            predicted = network.predict(maps, regions)
        loss = loss + self.compute_head_loss(*predicted, regions, truth)
        return self.update({"detector": loss})

    def compute_rpn_loss(
        self, objectness: Tensor, deltas: Tensor, truth: Sequence[Tensor], random: Tensor
    ) -> Tensor:
        """Compute BCE of the sampled anchors, and smooth L1 of the positive ones among them."""
        count = self.config["rpn_samples"]
        loss = objectness.new_zeros(())
        sampled = 0
        for logits, moves, boxes, draws in zip(objectness, deltas, truth, random, strict=True):
            overlaps = ops.box_iou(self.anchors, boxes)
            best, nearest = overlaps.max(1)
            most = overlaps.max(0).values
            is_nearest = ((overlaps == most) & (most > 0)).any(1)
            is_positive = is_nearest | (best >= self.config["rpn_high"])
            is_negative = ~is_positive & (best < self.config["rpn_low"])
            positive = choose(is_positive, draws, int(count * self.config["rpn_share"]))
            negative = choose(is_negative, draws, count - len(positive))
            logit = logits[torch.cat([positive, negative])]
            label = torch.zeros_like(logit)
            label[: len(positive)] = 1
            expected = encode(boxes[nearest[positive]], self.anchors[positive])
            loss = loss + binary_cross_entropy_with_logits(logit, label, reduction="sum")
            loss = loss + smooth_l1_loss(moves[positive], expected, reduction="sum", beta=RPN_BETA)
            sampled += len(logit)
        return loss / max(sampled, 1)

    def propose(self, objectness: Tensor, deltas: Tensor) -> Tensor:
        """Select the first stage's regions of an image, [n, 4], the surest first."""
        before = min(self.config["proposals_before"], len(objectness))
        surest, index = objectness.topk(before)
        moved = decode(deltas[index], self.anchors[index]).clamp(0, 1)
        is_large = (moved[:, 2:] - moved[:, :2] >= self.smallest).all(1)
        moved, surest = moved[is_large], surest[is_large]
        return moved[ops.nms(moved, surest, self.config["rpn_nms"])[: self.config["proposals"]]]

    def compute_head_loss(
        self, logits: Tensor, deltas: Tensor, regions: Sequence[Tensor], truth: Sequence[Tensor]
    ) -> Tensor:
        """Compute cross entropy of the hardest regions, and smooth L1 of the positive ones."""
        counts = [len(image) for image in regions]
        loss = logits.new_zeros(())
        counted = 0
        images = zip(logits.split(counts), deltas.split(counts), regions, truth, strict=True)
        for scores, moves, places, boxes in images:
            best, nearest = ops.box_iou(places, boxes).max(1)
            is_lesion = best >= self.config["foreground"]
            expected = encode(boxes[nearest], places) / moves.new_tensor(DEVIATIONS)
            distance = smooth_l1_loss(moves, expected, reduction="none").sum(1) * is_lesion
            losses = cross_entropy(scores, is_lesion.long(), reduction="none") + distance
            hardest = losses.topk(min(self.config["hard_examples"], len(losses))).values
            loss = loss + hardest.sum()
            counted += len(hardest)
        return loss / counted


def make_anchors(size: int, scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Make the anchors [n, 4] of a square image; see tfmammo.detection.regions.make_anchors."""
    centres = (torch.arange(size // STRIDE) + 0.5) * STRIDE
    sides = torch.tensor(
        [[s * STRIDE * r**0.5, s * STRIDE / r**0.5] for s in scales for r in ratios]
    )
    middles = torch.cartesian_prod(centres, centres)[:, None]
    return torch.cat([middles - sides / 2, middles + sides / 2], 2).reshape(-1, 4) / size


def choose(eligible: Tensor, draws: Tensor, count: int) -> Tensor:
    """Choose at most `count` of the eligible anchors, those of the highest draws."""
    index = eligible.nonzero()[:, 0]
    return index[draws[index].topk(min(count, len(index))).indices]


def encode(boxes: Tensor, base: Tensor) -> Tensor:
    """Encode how boxes [n, 4] differ from `base`; see tfmammo.detection.regions.encode."""
    sides = boxes[:, 2:] - boxes[:, :2]
    base_sides = base[:, 2:] - base[:, :2]
    shift = ((boxes[:, :2] + boxes[:, 2:]) - (base[:, :2] + base[:, 2:])) / 2 / base_sides
    return torch.cat([shift, (sides / base_sides).log()], 1)


def decode(deltas: Tensor, base: Tensor) -> Tensor:
    """Move `base` [n, 4] by deltas; see tfmammo.detection.regions.decode."""
    sides = base[:, 2:] - base[:, :2]
    centres = (base[:, :2] + base[:, 2:]) / 2 + deltas[:, :2] * sides
    halves = sides * deltas[:, 2:].clamp(max=MOST).exp() / 2
    return torch.cat([centres - halves, centres + halves], 1)
