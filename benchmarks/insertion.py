"""What benchmarks/blending.py and benchmarks/synthesis.py share: a mammogram, a timed network."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfmammo.archives import phantom
from tfmammo.mammogram import Mammogram


class TimedNetwork:
    """A network that records the processor seconds of its calls, of all threads."""

    def __init__(self, call: Callable[..., dict[str, tf.Tensor]]) -> None:
        self.call = call
        self.seconds = 0.0

    def __call__(self, **inputs: tf.Tensor) -> dict[str, Any]:
        """Call the network, and return its outputs as arrays."""
        start = time.process_time()
        images = {name: output.numpy() for name, output in self.call(**inputs).items()}
        self.seconds += time.process_time() - start
        return images


def find_normal_phantom() -> Mammogram:
    """Find a normal phantom of a left breast."""
    return next(
        mammogram
        for mammogram in phantom.read(count=48)
        if mammogram.pathology == "normal" and mammogram.laterality == "L"
    )


def make_parser(doc: str | None, network: str, repeats: int) -> argparse.ArgumentParser:
    """Make a parser of the sizes of the mammogram, the lesion and the network.

    Args:
        doc: The benchmark's docstring, for --help.
        network: What the network is called.
        repeats: Default of --repeats.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pixels", type=int, nargs=2, default=(3328, 2560), metavar=("ROWS", "COLS")
    )
    parser.add_argument(
        "--side", type=int, default=300, help="of a lesion, native px, before it is resized"
    )
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--size", type=int, default=256, help="of the network's patch, px")
    parser.add_argument(
        "--model",
        default="{}",
        metavar="JSON",
        help=f"the {network}'s config where it is not the paper's",
    )
    return parser
