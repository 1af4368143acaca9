"""What the benchmarks measure: models with the papers' sizes and batches, and their input."""

from __future__ import annotations

import argparse
import json
from typing import Any, NamedTuple

import numpy as np


class Model(NamedTuple):
    """What is measured of a model.

    Attributes:
        size: The paper's patches, px.
        batch: The paper's.
        config: What differs from our defaults.
        labels: Of how many kinds its patches are, in turn; 1: they have no label.
    """

    size: int
    batch: int
    config: dict[str, Any]
    labels: int = 1


MODELS = {
    "can": Model(256, 1, {"discriminator_strided": 3}),  # patches of 70 px, as Pix2Pix's
    "infilling": Model(256, 2, {"weights": "none"}),  # the time does not depend on VGG-19's weights
    "contextual": Model(256, 12, {}, labels=3),
    "cgan": Model(256, 8, {}),
    "blending": Model(256, 8, {}, labels=2),
    "mask_gan": Model(256, 32, {}),
    "flow": Model(128, 8, {}),
    "classifier": Model(256, 20, {"weights": "none"}, labels=2),
    "unet": Model(256, 1, {}),
    "segnet": Model(256, 1, {}),
    "fcn8s": Model(256, 1, {}),
    # the paper's 1344 x 800 px; its batch of four needs more memory than two processes should take
    "light_head": Model(1024, 1, {"weights": "none", "batch_norm": "running"}),
}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says which training step is measured, and in how many rounds."""
    parser.add_argument("--model", choices=tuple(MODELS), default="can")
    parser.add_argument("--size", type=int, help="rows and columns of a patch, px (the paper's)")
    parser.add_argument("--batch", type=int, help="patches of a process's batch (the paper's)")
    parser.add_argument(
        "--config",
        type=json.loads,
        default={},
        metavar="JSON",
        help="keys of the model's config that differ from the paper",
    )
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; size and batch are the paper's where it gives none."""
    arguments = parser.parse_args()
    model = MODELS[arguments.model]
    arguments.size = arguments.size or model.size
    arguments.batch = arguments.batch or model.batch
    return arguments


def make_batch(arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    """Make images, float32 [batch, size, size, 1], their masks, discs of all sizes, and labels.

    A detector has the discs' boxes instead of masks.
    """
    random = np.random.default_rng(0)
    shape = (arguments.batch, arguments.size, arguments.size, 1)
    places = np.arange(arguments.size) - (arguments.size - 1) / 2
    distance = np.hypot(places[:, np.newaxis], places)[..., np.newaxis]
    # of equal ones batch normalisation would enlarge the last digits of float32
    radius = arguments.size / 5 * (1 + np.arange(arguments.batch) / arguments.batch)
    batch = {
        "mask": (distance < radius.reshape(-1, 1, 1, 1)).astype(np.float32),
        "image": random.random(shape, np.float32),
    }
    if arguments.model == "light_head":
        halves = radius.reshape(-1, 1, 1) / arguments.size * np.array([-1, -1, 1, 1])
        classes = np.zeros((arguments.batch, 1), np.int32)
        return {
            "image": batch["image"],
            "boxes": (0.5 + halves).astype(np.float32),
            "classes": classes,
        }
    labels = MODELS[arguments.model].labels
    if labels > 1:
        # the batch must be a multiple of their number
        batch["label"] = -np.arange(arguments.batch, dtype=np.int32) % labels
    return batch
