"""Compute what training each system needs of a GPU's memory, for docs/guides/memory.md.

python benchmarks/memory.py [can unet ...] [--batches 1 8] [--size 256]

One line of a Markdown table per system: millions of weights, MB of weights and Adam's slots, and MB
of the tensors of a step for each batch, in float32. Nothing is trained; each step is traced.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from tfmammo import _tensorflow  # noqa: F401  # the first to import TensorFlow, because it keeps that quiet
from tfmammo.baselines.fcn8s import FCN8s, FCN8sConfig
from tfmammo.baselines.pix2pix import Pix2Pix, Pix2PixConfig
from tfmammo.baselines.segnet import SegNet, SegNetConfig
from tfmammo.baselines.unet import UNet, UNetConfig
from tfmammo.memory import estimate_memory
from tfmammo.models.can import CAN, CANConfig
from tfmammo.models.cgan import CGAN, CGANConfig
from tfmammo.models.infilling import Infilling, InfillingConfig

MODELS: dict[str, Callable[[int], Any]] = {
    "unet": lambda size: UNet(UNetConfig(), size),
    "can": lambda size: CAN(CANConfig(), size),
    "segnet": lambda size: SegNet(SegNetConfig(), size),
    "cgan": lambda size: CGAN(CGANConfig(), size),
    "infilling": lambda size: Infilling(InfillingConfig(weights="none"), size),
    "pix2pix": lambda size: Pix2Pix(Pix2PixConfig(), size),
    "fcn8s": lambda size: FCN8s(FCN8sConfig(), size),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="NAME", default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    if unknown := set(options.models) - set(MODELS):
        parser.error(f"{', '.join(sorted(unknown))}: none of {', '.join(MODELS)}")
    for name in options.models:
        model = MODELS[name](options.size)
        needs = [estimate_memory(model, batch, options.size) for batch in options.batches]
        millions = needs[0].weights / 4e6
        kept = (needs[0].weights + needs[0].slots) / 1e6
        steps = " | ".join(f"{need.step / 1e6:,.0f}" for need in needs)
        print(f"| {name} | {millions:.1f} | {kept:,.0f} | {steps} |", flush=True)
        del model


if __name__ == "__main__":
    main()
