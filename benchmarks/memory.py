"""Compute what training each system needs of a GPU's memory, for docs/guides/memory.md.

python benchmarks/memory.py [can unet ...] [--batches 1 8] [--size 256]

One line of a Markdown table per system: millions of weights, MB of weights and Adam's slots, and MB
of the tensors of a step for each batch, in float32. Nothing is trained; each step is traced.
"""

from __future__ import annotations

import argparse

from models import build_model

from tfmammo.nn.memory import estimate_memory

# whose defaults are the papers' at every size
NAMES = ("unet", "can", "segnet", "cgan", "infilling", "pix2pix", "fcn8s")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="NAME", default=list(NAMES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    if unknown := set(options.models) - set(NAMES):
        parser.error(f"{', '.join(sorted(unknown))}: none of {', '.join(NAMES)}")
    for name in options.models:
        values = {"weights": "none"} if name == "infilling" else {}  # no file is read
        model = build_model(name, values, options.size)
        needs = [estimate_memory(model, batch, options.size) for batch in options.batches]
        millions = needs[0].weights / 4e6
        kept = (needs[0].weights + needs[0].slots) / 1e6
        steps = " | ".join(f"{need.step / 1e6:,.0f}" for need in needs)
        print(f"| {name} | {millions:.1f} | {kept:,.0f} | {steps} |", flush=True)


if __name__ == "__main__":
    main()
