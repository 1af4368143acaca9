"""U-Net, SegNet and FCN-8s in PyTorch, for benchmarks/step.py.

They have the networks, loss and update of tfmammo.baselines, and start from its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from peers.layers import ConvolutionUNet, Trained, compute_in, sample_norm
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    linear,
    max_unpool2d,
    relu,
)

DEPTHS = (2, 2, 3, 3, 3)  # VGG-16's convolutions before each pooling


class SegNet(nn.Module):
    """See tfmammo.baselines.segnet."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        entering = 1
        self.encoder = nn.ModuleList()
        for width, depth in zip(widths, DEPTHS, strict=True):
            self.encoder.append(stack_convolutions([entering] + [width] * depth))
            entering = width
        self.decoder = nn.ModuleList()
        for block in reversed(range(len(widths))):
            # the last convolution of a block has the next block's width
            last = [widths[block - 1]] if block else []
            self.decoder.append(stack_convolutions([widths[block]] * DEPTHS[block] + last))
        self.head = nn.Conv2d(widths[0], 1, 3, padding=1)
        self.pool = nn.MaxPool2d(2, return_indices=True)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 1, rows, cols] in [-1, 1] -> logits."""
        places = []
        for block in self.encoder:
            x, indices = self.pool(block(x))
            places.append(indices)
        for block in self.decoder:
            x = block(max_unpool2d(x, places.pop(), 2))
        return self.head(x).float()


def stack_convolutions(widths: Sequence[int]) -> nn.Sequential:
    """Stack convolutions 3 x 3, each normalised by the sample's own statistics, then ReLU."""
    layers: list[nn.Module] = []
    for before, width in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(before, width, 3, padding=1), sample_norm(width), nn.ReLU()]
    return nn.Sequential(*layers)


class Score(nn.Conv2d):
    """A convolution by kernels of one pixel, as a matrix product.

    oneDNN's gradient of such a kernel writes beyond its end in bfloat16, in PyTorch too; see
    tfmammo.nn.convolutions.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, rows, cols] -> [n, outputs, rows, cols]."""
        return linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class FCN8s(nn.Module):
    """See tfmammo.baselines.fcn8s."""

    def __init__(self, widths: Sequence[int], fc_width: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        entering = 3
        for width, depth in zip(widths, DEPTHS, strict=True):
            block = [nn.Conv2d(width if i else entering, width, 3, padding=1) for i in range(depth)]
            self.blocks.append(nn.ModuleList(block))
            entering = width
        self.fc1 = nn.Conv2d(entering, fc_width, 7, padding=3)
        self.fc2 = nn.Conv2d(fc_width, fc_width, 1)
        self.dropout = nn.Dropout(dropout)
        # in the order in which Keras lists the weights
        self.score_fc7 = Score(fc_width, 2, 1)
        self.up = nn.ConvTranspose2d(2, 2, 4, 2, 1, bias=False)
        self.score_pool4 = nn.Conv2d(widths[3], 2, 1)
        self.up_again = nn.ConvTranspose2d(2, 2, 4, 2, 1, bias=False)
        self.score_pool3 = nn.Conv2d(widths[2], 2, 1)
        self.last = nn.ConvTranspose2d(2, 2, 16, 8, 4, bias=False)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 1, rows, cols] in [-1, 1] -> logits of the lesion."""
        x = x.expand(-1, 3, -1, -1)
        pools = []
        for block in self.blocks:
            for convolution in block:
                x = relu(convolution(x))
            x = self.pool(x)
            pools.append(x)
        for layer in (self.fc1, self.fc2):
            x = self.dropout(relu(layer(x)))
        scores = self.up(self.score_fc7(x)) + self.score_pool4(pools[3])
        scores = self.up_again(scores) + self.score_pool3(pools[2])
        scores = self.last(scores).float()
        return scores[:, 1:] - scores[:, :1]


class Model(Trained):
    """One step of a segmenter: image in [-1, 1] -> logits, [batch, 1, rows, cols] both."""

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Update the network once, by the cross-entropy of all pixels.

        Args:
            batch: "mask" and "image", [batch, 1, rows, cols] in [0, 1].
        """
        with compute_in(self.precision):
            logits = self.networks["segmenter"](2 * batch["image"] - 1)
        loss = binary_cross_entropy_with_logits(logits, batch["mask"])
        return self.update({"segmenter": loss})


def make_builder(build: Callable[[dict[str, Any]], nn.Module]) -> Callable[..., Model]:
    """Make what step.py calls with config, size, fused and precision.

    Args:
        build: Builds the network of a config.
    """

    def make(config: dict[str, Any], size: int, fused: bool, precision: str) -> Model:
        return Model(config, precision, fused, segmenter=build(config))

    return make


make_unet = make_builder(lambda config: ConvolutionUNet(1, config["widths"], config["dropout"]))
make_segnet = make_builder(lambda config: SegNet(config["widths"]))
make_fcn8s = make_builder(
    lambda config: FCN8s(config["widths"], config["fc_width"], config["dropout"])
)
