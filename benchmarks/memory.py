"""Compute what training each system needs of a GPU's memory, for docs/guides/memory.md.

python benchmarks/memory.py [can unet ...] [--batches 1 8] [--size 256]

One line of a Markdown table per system: millions of weights, MB of weights and Adam's slots, and MB
of the tensors of a step for each batch, in float32. Nothing is trained; each step is traced.
"""

from __future__ import annotations

import argparse
from typing import Any

from counts import MODELS

from tfmammo.nn.memory import estimate_memory

# Those whose defaults are the papers' at every size, and what is no default: no weight is loaded.
VALUES: dict[str, dict[str, Any]] = {
    "unet": {},
    "can": {},
    "segnet": {},
    "cgan": {},
    "infilling": {"weights": "none"},
    "pix2pix": {},
    "fcn8s": {},
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="NAME", default=list(VALUES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    if unknown := set(options.models) - set(VALUES):
        parser.error(f"{', '.join(sorted(unknown))}: none of {', '.join(VALUES)}")
    for name in options.models:
        build, make_config, _ = MODELS[name]
        model = build(make_config(**VALUES[name]), options.size)
        needs = [estimate_memory(model, batch, options.size) for batch in options.batches]
        millions = needs[0].weights / 4e6
        kept = (needs[0].weights + needs[0].slots) / 1e6
        steps = " | ".join(f"{need.step / 1e6:,.0f}" for need in needs)
        print(f"| {name} | {millions:.1f} | {kept:,.0f} | {steps} |", flush=True)
        del model


if __name__ == "__main__":
    main()
